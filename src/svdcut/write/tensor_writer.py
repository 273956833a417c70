"""Bytes of one tensor on their way into a file."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from svdcut.errors import OutputError
from svdcut.files.tensorfile import TensorEntry


class TensorSink:
    """Takes the bytes of one tensor, in order.

    Parameters
    ----------
    descriptor : int
        Of the file.
    entry : TensorEntry
        Where they go.
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
        try:
            write_at(self._descriptor, view, self._entry.offset + self._done)
        except OSError as error:
            raise output_error(self._entry.path, error) from error
        self._done += len(view)

    def finish(self) -> str:
        """Return the sha256 of the tensor, once all of it is written."""
        if self._done != self._entry.size_bytes:
            raise ValueError(
                f"tensor {self._entry.name!r}: {self._done} of {self._entry.size_bytes} bytes"
            )
        return self._digest.hexdigest()


def write_at(descriptor: int, view: memoryview, offset: int) -> None:
    """Write all of `view`, however little the system takes at a time."""
    while view:
        count = os.pwrite(descriptor, view, offset)
        offset += count
        view = view[count:]


def output_error(path: Path, error: OSError) -> OutputError:
    """Return the error to raise where the system refused to write."""
    return OutputError(f"{path}: cannot be written: {error.strerror or error}")
