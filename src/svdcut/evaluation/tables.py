"""Read tables row by row: CSV, TSV, JSON Lines, JSON and Parquet."""

from __future__ import annotations

import bz2
import csv
import difflib
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from svdcut.errors import DataError
from svdcut.files.jsonfile import check_regular, quoted

_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open}
_MAX_LISTED = 20
_HINT = (
    "Text is UTF-8; a CSV field with delimiters, quotes or line breaks stands in quotes; each line "
    "of JSON Lines is an object; a .json file may be a list of objects."
)


def read_rows(path: Path, wanted: Sequence[str]) -> Iterator[list[object]]:
    """Yield some columns of a table, row by row; blank lines are skipped.

    Parameters
    ----------
    path : Path
        ``.csv``, ``.tsv``, ``.jsonl``, ``.json`` (a list of objects, or JSON Lines) or
        ``.parquet``; text may be compressed, as ``.csv.gz`` or ``.csv.bz2``.
    wanted : sequence of str
        Names of columns.

    Yields
    ------
    list
        The cells of a row in the order of `wanted`: text in CSV and TSV, else any value.

    Raises
    ------
    DataError
        If the file cannot be read, has another format than its name says, lacks a column or
        has it twice, or a row differs from the others.
    """
    read = _reader(path)
    number = 0
    try:
        check_regular(path)
        for number, cells in enumerate(_pick(read(path, wanted), wanted), 1):  # noqa: B007
            yield cells
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read: {reason}") from error
    except (csv.Error, ValueError, RecursionError) as error:
        raise DataError(f"{path}: row {number + 1}: {error}", hint=_HINT) from error


def _pick(rows: Iterator[Any], wanted: Sequence[str]) -> Iterator[list[object]]:
    for row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"{quoted(row)}, where an object is expected")  # noqa: TRY004
        if not all(name in row for name in wanted):
            _check_columns(list(row), wanted)
        yield [row[name] for name in wanted]


def _reader(path: Path) -> Callable[[Path, Sequence[str]], Iterator[Any]]:
    *_, kind, last = "", "", *(suffix.lower() for suffix in path.suffixes)
    read = _READERS.get(last)
    if last in _OPENERS and kind != ".parquet":
        read = _READERS.get(kind)
    if read is None:
        raise DataError(
            f"{path}: its name does not end as that of a table",
            hint=f"Tables are {', '.join(_READERS)}; text may be compressed, as .csv.gz.",
        )
    return read


def _open(path: Path) -> TextIO:
    opener = _OPENERS.get(path.suffix.lower(), open)
    file: TextIO = opener(path, "rt", encoding="utf-8-sig", newline="")
    return file


def _check_columns(names: Sequence[str], wanted: Sequence[str]) -> None:
    for name in wanted:
        count = names.count(name)
        if count > 1:
            raise ValueError(f"{count} columns are named {quoted(name)}")
        if not count:
            listed = ", ".join(map(quoted, names[:_MAX_LISTED]))
            more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
            near = difflib.get_close_matches(name, names[:_MAX_LISTED], n=1)
            question = f"; did you mean {quoted(near[0])}?" if near else ""
            raise ValueError(f"no column {quoted(name)} among {listed}{more}{question}")


def _delimited(dialect: str, path: Path, wanted: Sequence[str]) -> Iterator[dict[str, str]]:
    with _open(path) as file:
        rows = filter(None, csv.reader(file, dialect, strict=True))
        header = next(rows, None)
        if header is None:
            raise ValueError("no names of columns, which stand in the first line")
        _check_columns(header, wanted)
        for row in rows:
            if len(row) != len(header):
                raise ValueError(f"{len(row)} fields, where the header names {len(header)}")
            yield dict(zip(header, row, strict=True))


def _json(path: Path, wanted: Sequence[str]) -> Iterator[Any]:
    with _open(path) as file:
        is_list = file.read(1024).lstrip().startswith("[")
        file.seek(0)
        yield from json.load(file) if is_list else _json_lines(path, wanted)


def _json_lines(path: Path, _: Sequence[str]) -> Iterator[Any]:
    with _open(path) as file:
        yield from (json.loads(line) for line in file if not line.isspace())


def _parquet(path: Path, wanted: Sequence[str]) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DataError(
            f"{path}: Parquet needs pyarrow, which is not installed",
            hint="pip install pyarrow, or save it as CSV or JSON Lines.",
        ) from error
    try:
        with pq.ParquetFile(path) as file:
            _check_columns(file.schema_arrow.names, wanted)
            for batch in file.iter_batches(columns=list(wanted)):
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise ValueError(f"not readable as Parquet: {error}") from error


_READERS: dict[str, Callable[[Path, Sequence[str]], Iterator[Any]]] = {
    ".csv": partial(_delimited, "excel"),
    ".tsv": partial(_delimited, "excel-tab"),
    ".jsonl": _json_lines,
    ".json": _json,
    ".parquet": _parquet,
}
