"""Bytes on their way into files: a tensor at its offset, or put aside until it has one.

It knows nothing of what the bytes mean.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from svdcut.errors import OutputError
from svdcut.files.tensorfile import TensorEntry

_PARTS = "parts"
"""Kind of a record of where the parts of a tensor lie in the staging file."""


class TensorWriter:
    """Writes the bytes of one tensor, in order.

    Parameters
    ----------
    descriptor : int
        The open file.
    entry : TensorEntry
        The place of the tensor.
    """

    def __init__(self, descriptor: int, entry: TensorEntry) -> None:
        self._descriptor = descriptor
        self._entry = entry
        self._done = 0
        self._digest = hashlib.sha256()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write the next bytes."""
        view = memoryview(data).cast("B")
        if self._done + len(view) > self._entry.size_bytes:
            raise ValueError(f"too many bytes for tensor {self._entry.name!r}")
        self._digest.update(view)
        with writing(self._entry.path):
            write_at(self._descriptor, view, self._entry.offset + self._done)
        self._done += len(view)

    def finish(self) -> str:
        """Return the sha256 of the tensor, once all of it is written."""
        if self._done != self._entry.size_bytes:
            raise ValueError(
                f"tensor {self._entry.name!r}: {self._done} of {self._entry.size_bytes} bytes"
            )
        return self._digest.hexdigest()


class Range(NamedTuple):
    """The place of some bytes in a file."""

    file: int
    """Index of the staging file."""

    offset: int
    size: int


def staging_name(index: int | str) -> str:
    """Return the name of a staging file."""
    return f"staging-{index}"


class Staging:
    """A file of bytes that wait for their place; several threads may append.

    Parameters
    ----------
    path : Path
        The file; those of other workers lie beside it. What they hold stays.
    find, record : callable
        `svdcut.write.writer.CheckpointWriter.find` and `record`, to remember where parts lie.
    index : int
        Index of the file among those of all workers.

    Raises
    ------
    OSError
        If it cannot be opened.
    """

    def __init__(
        self,
        path: Path,
        find: Callable[[str, str], object],
        record: Callable[[str, str, object], None],
        index: int = 0,
    ) -> None:
        self._path, self._index = path, index
        self._find, self._record = find, record
        self._lock = threading.Lock()
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        self._end = os.fstat(self.descriptor).st_size

    def append(self, data: bytes | bytearray | memoryview) -> Range:
        """Write some bytes behind all others, and return where they lie."""
        view = memoryview(data).cast("B")
        with self._lock:
            place = Range(self._index, self._end, len(view))
            self._end += len(view)
        with writing(self._path):
            write_at(self.descriptor, view, place.offset)
        return place

    def read(self, place: Range) -> bytearray:
        """Return the bytes of a place; fewer where the file ends."""
        if place.file == self._index:
            return bytearray(os.pread(self.descriptor, place.size, place.offset))
        path = self._path.with_name(staging_name(place.file))
        if not path.exists():
            return bytearray()
        with path.open("rb") as file:
            return bytearray(os.pread(file.fileno(), place.size, place.offset))

    def record_parts(self, name: str, places: Iterable[Range]) -> None:
        """Record where the parts of a tensor lie, before the tensor itself is recorded."""
        self._record(_PARTS, name, list(places))

    def parts(self, name: str) -> list[Range]:
        """Return where the parts of a tensor lie; none if it has none."""
        found = self._find(_PARTS, name)
        return [Range(*place) for place in found] if isinstance(found, list) else []


def write_at(descriptor: int, view: memoryview, offset: int) -> None:
    """Write all of `view`, however little the system takes at a time."""
    while view:
        count = os.pwrite(descriptor, view, offset)
        offset += count
        view = view[count:]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise `OutputError` where the system refuses to write to a path."""
    try:
        yield
    except OSError as error:
        raise output_error(path, error) from error


def output_error(path: Path, error: OSError) -> OutputError:
    """Return the error to raise where the system refused to write."""
    return OutputError(f"{path}: cannot be written: {error.strerror or error}")
