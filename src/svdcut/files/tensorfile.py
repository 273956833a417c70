"""The safetensors file format: tensor entries, layouts and raw bytes.

It knows nothing of checkpoints made of several files, and imports no torch.

Format: an unsigned little-endian 64-bit header length, the header in JSON, then
the tensors' bytes without holes. See https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from svdcut.errors import CheckpointError
from svdcut.files.jsonfile import quoted

LENGTH_BYTES = 8
"""Bytes of the number at the start of a file: the length of the header."""

_COPY_BYTES = 2 << 20
_HASH_BYTES = 2 << 20


class Dtype(str, Enum):
    """Element types by their names in the format."""

    BOOL = "BOOL"
    U8 = "U8"
    I8 = "I8"
    U16 = "U16"
    I16 = "I16"
    U32 = "U32"
    I32 = "I32"
    U64 = "U64"
    I64 = "I64"
    F16 = "F16"
    BF16 = "BF16"
    F32 = "F32"
    F64 = "F64"
    C64 = "C64"
    F8_E4M3 = "F8_E4M3"
    F8_E5M2 = "F8_E5M2"
    F8_E4M3FNUZ = "F8_E4M3FNUZ"
    F8_E5M2FNUZ = "F8_E5M2FNUZ"
    F8_E8M0 = "F8_E8M0"
    F6_E2M3 = "F6_E2M3"
    F6_E3M2 = "F6_E3M2"
    F4 = "F4"

    @property
    def bits(self) -> int:
        """Size of one element."""
        return _BITS[self]

    @property
    def is_plain_float(self) -> bool:
        """Whether arithmetic on the elements means something by itself."""
        return self in _PLAIN_FLOATS

    @property
    def is_quantized(self) -> bool:
        """Whether the elements are codes that need scales kept elsewhere."""
        return self.value.startswith(("F8_", "F6_", "F4"))


_PLAIN_FLOATS = frozenset({Dtype.F16, Dtype.BF16, Dtype.F32, Dtype.F64})
_BITS = {
    **dict.fromkeys((Dtype.U64, Dtype.I64, Dtype.F64, Dtype.C64), 64),
    **dict.fromkeys((Dtype.U32, Dtype.I32, Dtype.F32), 32),
    **dict.fromkeys((Dtype.U16, Dtype.I16, Dtype.F16, Dtype.BF16), 16),
    **dict.fromkeys((Dtype.F6_E2M3, Dtype.F6_E3M2), 6),
    Dtype.F4: 4,
}
_BITS |= {dtype: 8 for dtype in Dtype if dtype not in _BITS}


def size_bytes(dtype: Dtype, shape: tuple[int, ...]) -> int:
    """Return the bytes that a tensor takes."""
    return math.prod(shape) * dtype.bits // 8


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies."""

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    path: Path
    offset: int
    """Where its first byte is, from the start of the file."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor."""
        return size_bytes(self.dtype, self.shape)


@dataclass(frozen=True, slots=True)
class TensorFile:
    """The header of one file."""

    path: Path
    size_bytes: int
    entries: tuple[TensorEntry, ...]
    """In the order of their bytes."""

    metadata: Mapping[str, str]
    modified_ns: int
    """When it was last modified, as the system tells it."""


@dataclass(frozen=True, slots=True)
class FileLayout:
    """A file to write: its header's bytes, and where each tensor goes."""

    name: str
    header: bytes
    entries: tuple[TensorEntry, ...]
    size_bytes: int


def lay_out(
    name: str,
    tensors: Mapping[str, tuple[Dtype, tuple[int, ...]]],
    metadata: Mapping[str, str],
) -> FileLayout:
    """Place tensors in a file, one after the other.

    Parameters
    ----------
    name : str
        Name of the file.
    tensors : mapping
        From the tensor's name to its dtype and shape, in the order to be written.
    metadata : mapping
        Goes into the header; sorted, so that equal inputs give equal bytes.

    Returns
    -------
    FileLayout
        With every offset final.
    """
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    position = 0
    for tensor, (dtype, shape) in tensors.items():
        end = position + size_bytes(dtype, shape)
        header[tensor] = {
            "dtype": dtype.value,
            "shape": list(shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    start = LENGTH_BYTES + len(text)
    entries = tuple(
        TensorEntry(tensor, dtype, shape, Path(name), start + header[tensor]["data_offsets"][0])
        for tensor, (dtype, shape) in tensors.items()
    )
    prefix = len(text).to_bytes(LENGTH_BYTES, "little") + text
    return FileLayout(name, prefix, entries, start + position)


def read_bytes(entry: TensorEntry, start: int = 0, stop: int | None = None) -> bytearray:
    """Read some or all bytes of a tensor.

    Parameters
    ----------
    entry : TensorEntry
        The tensor.
    start, stop : int
        Range within the tensor, in bytes.

    Returns
    -------
    bytearray
        Writable, so that it can back a tensor without a copy.

    Raises
    ------
    CheckpointError
        If the file has become shorter or unreadable.
    """
    stop = entry.size_bytes if stop is None else stop
    buffer = bytearray(stop - start)
    read_into(entry, start, memoryview(buffer))
    return buffer


def read_into(entry: TensorEntry, start: int, view: memoryview) -> None:
    """Fill `view` with the bytes of a tensor from `start` on; raises as `read_bytes`."""
    try:
        with entry.path.open("rb", buffering=0) as file:
            done = 0
            while done < len(view):
                count = os.preadv(file.fileno(), [view[done:]], entry.offset + start + done)
                if count == 0:
                    raise CheckpointError(f"{entry.path}: ends within tensor {quoted(entry.name)}")
                done += count
    except OSError as error:
        raise CheckpointError(f"{entry.path}: cannot be read: {error.strerror}") from error


def iterate_bytes(entry: TensorEntry) -> Iterator[bytearray]:
    """Yield the bytes of a tensor in pieces of some megabytes."""
    for start in range(0, entry.size_bytes, _COPY_BYTES):
        yield read_bytes(entry, start, min(start + _COPY_BYTES, entry.size_bytes))


def hash_file(path: Path, stop: threading.Event) -> str:
    """Return the sha256 of a file, or an empty string if `stop` is set meanwhile.

    Raises
    ------
    CheckpointError
        If it cannot be read.
    """
    digest = hashlib.sha256()
    # One large buffer: between the pieces, other threads may keep the interpreter.
    buffer = memoryview(bytearray(_HASH_BYTES))
    try:
        with path.open("rb", buffering=0) as file:
            while (count := file.readinto(buffer)) and not stop.is_set():
                digest.update(buffer[:count])
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    return "" if stop.is_set() else digest.hexdigest()
