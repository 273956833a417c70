"""What the readers of a stranger's table share: lines within bounds, checks of names and texts.

Knows no format; says where in the file a reader is.
"""

from __future__ import annotations

import bz2
import difflib
import gzip
import io
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from svdcut.errors import DataError
from svdcut.files.jsonfile import check_regular, quoted
from svdcut.shown import byte_size

_DECOMPRESSORS: dict[str, Callable[[io.BufferedReader], gzip.GzipFile | bz2.BZ2File]] = {
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw),
    ".bz2": bz2.BZ2File,
}

COMPRESSED = tuple(_DECOMPRESSORS)
"""Suffixes of compressed files that are read."""

Row = Sequence[object]
"""The cells of the columns that are wanted."""

MAX_ROW = 16 << 20
_MAX_LISTED = 20
_MAX_COMPARED = 1000
_NOT_UTF8 = "Save the file as UTF-8."
_MAX_TEXT = 8 << 30
_SMALL_TEXT = 256 << 20
_MAX_EXPANSION = 200
"""Characters, for each byte of the file: a small compressed one can hold any number of them."""

_MAX_LINES = 50_000_000
"""Blank ones too, of which a small compressed file can hold any number."""


class Lines(Iterator[str]):
    """The lines of a file, one after the other, and the place that the reader has come to.

    A byte that is not UTF-8 becomes half a surrogate pair, for `flaw` to find: only the
    reader of a row can tell in which column it is.

    Parameters
    ----------
    path : Path
        The file, for messages.
    file : text file
        Opened with ``newline=""``.
    first_row : int
        1, or 0 where a header precedes the rows.
    """

    def __init__(self, path: Path, file: TextIO, *, first_row: int) -> None:
        self.path = path
        self._file = file
        self._row = first_row
        self._line = 0
        self._row_size = 0
        self._size = 0
        self._max_size = max_text(path)

    def __next__(self) -> str:
        line = self._file.readline(MAX_ROW + 1)
        if not line:
            raise StopIteration
        self._line += 1
        self._row_size += len(line)
        self._size += len(line)
        if self._row_size > MAX_ROW:
            raise DataError(
                f"{self.where}: longer than {MAX_ROW >> 20} MB, which no example is",
                hint="A quote that is not closed takes in all that follows it.",
            )
        if self._size > self._max_size:
            raise too_large(self.path, self._max_size)
        if self._line > _MAX_LINES:
            raise DataError(f"{self.path}: holds more than {_MAX_LINES} lines")
        return line

    def end_row(self) -> None:
        """Say that what comes next belongs to another row."""
        self._row += 1
        self._row_size = 0

    @property
    def where(self) -> str:
        """The file and the row being read; and the line, where that has another number."""
        if self._row == 0:
            return f"{self.path}: line {self._line}"
        line = "" if self._line == self._row else f" (line {self._line})"
        return f"{self.path}: row {self._row}{line}"


def max_text(path: Path) -> int:
    """Return how many characters a file may hold: real ones expand twentyfold at most."""
    return min(_MAX_TEXT, max(_SMALL_TEXT, _MAX_EXPANSION * path.stat().st_size))


def too_large(path: Path, most: int) -> DataError:
    """Return the error to raise where a file holds more than that."""
    return DataError(
        f"{path}: holds more than {byte_size(most)} of text, in {byte_size(path.stat().st_size)} "
        "of file",
        hint="Evaluate a part of it.",
    )


@contextmanager
def open_lines(path: Path, *, first_row: int = 1) -> Iterator[Lines]:
    """Open the lines of a file.

    Raises
    ------
    DataError
        If it cannot be read; also while it is read.
    """
    with open_text(path) as file:
        yield Lines(path, file, first_row=first_row)


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """Open a text file, compressed or not, with or without a byte order mark.

    Raises
    ------
    DataError
        If it cannot be read; also while it is read.
    """
    with readable(path):
        check_regular(path)
        with path.open("rb") as raw:
            decompress = _DECOMPRESSORS.get(path.suffix.lower())
            binary = raw if decompress is None else decompress(raw)
            with io.TextIOWrapper(
                binary, encoding="utf-8-sig", errors="surrogateescape", newline=""
            ) as file:
                yield file


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what goes wrong with a file into a `DataError`."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read: {reason}") from error


def flaw(text: str) -> str | None:
    """Return what makes a text none, or None where nothing does."""
    if "\0" in text:
        return "a NUL"
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        is_byte = 0xDC80 <= code <= 0xDCFF
        return f"the byte 0x{code - 0xDC00:02x}" if is_byte else f"\\u{code:x}, half a character"
    return None


def check_columns(where: str, names: Sequence[str], wanted: Iterable[str]) -> None:
    """Refuse columns that share a name, and those of which one is lacking."""
    twice = [name for name, count in Counter(names).items() if count > 1 and name]
    if twice:
        raise DataError(
            f"{where}: {len(twice)} names stand for several columns: {quoted(twice[0])}"
            if len(twice) > 1
            else f"{where}: two columns are named {quoted(twice[0])}",
            hint="Give each column a name of its own.",
        )
    for name in wanted:
        if name not in names:
            raise DataError(f"{where}: no column {quoted(name)}", hint=_suggestion(name, names))


def _suggestion(name: str, names: Sequence[str]) -> str:
    listed = ", ".join(quoted(there) for there in names[:_MAX_LISTED])
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    folded = {there[:100].casefold().strip(): there for there in names[:_MAX_COMPARED]}
    near = difflib.get_close_matches(name[:100].casefold(), folded, n=1)
    question = f"; did you mean {quoted(folded[near[0]])}?" if near else "."
    return f"There are {listed}{more}{question}"


def check_texts(where: str, names: Iterable[object], row: Iterable[object]) -> None:
    """Refuse a row in which a text is none; `names` are those of its columns."""
    for name, cell in zip(names, row, strict=True):
        found = flaw(cell) if isinstance(cell, str) else None
        if found is not None:
            raise DataError(
                f"{where}, column {quoted(name)}: {found}, where text is expected",
                hint=_NOT_UTF8,
            )
