"""Bytes that wait for their place in a file whose header is not yet known.

Appended as they come, read back by where they lie. It knows nothing of what they mean.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from svdcut.write.tensor_writer import output_error, write_at


@dataclass(frozen=True, slots=True)
class Range:
    """Where some bytes lie."""

    offset: int
    size: int


class Spool:
    """A file of bytes that wait; several threads may append.

    Parameters
    ----------
    path : Path
        It is made where it is not there; what it holds stays.

    Raises
    ------
    OutputError
        If it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        try:
            self._descriptor = os.open(path, flags, 0o666)
            self._end = os.fstat(self._descriptor).st_size
        except OSError as error:
            raise output_error(path, error) from error

    def append(self, data: bytes | bytearray | memoryview) -> Range:
        """Write some bytes behind all others, and return where they lie."""
        view = memoryview(data).cast("B")
        with self._lock:
            place = Range(self._end, len(view))
            self._end += len(view)
        try:
            write_at(self._descriptor, view, place.offset)
        except OSError as error:
            raise output_error(self._path, error) from error
        return place

    def read(self, places: Sequence[Range]) -> bytearray:
        """Return the bytes of some places, one after the other; fewer where the file ends."""
        data = bytearray()
        for place in places:
            data += os.pread(self._descriptor, place.size, place.offset)
        return data

    def clear(self) -> None:
        """Forget everything."""
        os.ftruncate(self._descriptor, 0)
        self._end = 0

    def sync(self) -> None:
        """Put everything on disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)
