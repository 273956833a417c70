"""Read the header of a safetensors file, and trust nothing in it.

Whatever is accepted here, the safetensors library accepts too. Memory is bounded
whatever the text.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeGuard

from svdcut.errors import CheckpointError
from svdcut.files.jsonfile import check_num_values, check_regular, parse_int, quoted, unique
from svdcut.files.tensorfile import LENGTH_BYTES, Dtype, TensorEntry, TensorFile

_MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library."""

_MAX_SIZE = 2**63 - 1
"""Of a file; larger numbers are not even printed."""

_MAX_HEADER_VALUES = 5_000_000
"""Of JSON; half a million tensors have fewer. Bounds the memory, whatever the text."""

_MAX_NAME = 1000
"""Characters of a tensor's name: real ones have 200. Bounds the work on names."""

_MAGIC_BYTES = 32
_MAX_DIMENSIONS = 64
"""As torch."""

_FIELDS = frozenset({"dtype", "shape", "data_offsets"})

_PICKLED = "It was renamed, not converted. Load it where you trust it, and save it as safetensors."

_FOREIGN = {
    b"version https://git-lfs": (
        "a pointer of Git LFS, not the weights",
        "Fetch the weights: git lfs install, then git lfs pull in that folder.",
    ),
    b"<": (
        "a web page or XML, not the weights",
        "A download saved an error or log-in page; fetch the file again.",
    ),
    b"PK\x03\x04": (
        "a zip archive, as torch.save writes",
        _PICKLED,
    ),
    b"\x80": (
        "a pickle",
        _PICKLED,
    ),
    b"GGUF": ("a GGUF file", "Use the safetensors checkpoint that it was made from."),
    b"\x89HDF": ("an HDF5 file", "Save the model as safetensors."),
}
"""What is found in place of weights, by its first bytes."""


def read_header(path: Path) -> TensorFile:
    """Read and check the header of a safetensors file.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    TensorFile
        Its entries in file order.

    Raises
    ------
    CheckpointError
        If the file cannot be read, or is not well-formed: every offset, shape and
        size is checked against the others and against the length of the file.

    Notes
    -----
    Reads the header alone.
    """
    try:
        check_regular(path)
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            size = status.st_size
            length = _check_start(path, file.read(_MAGIC_BYTES), size)
            file.seek(LENGTH_BYTES)
            header = _parse_header(path, file.read(length))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    metadata = header.pop("__metadata__", {})
    if not _is_text_map(metadata):
        raise _malformed(path, "'__metadata__' is not a map of strings")
    begin = LENGTH_BYTES + length
    entries = [_make_entry(path, name, place, begin) for name, place in header.items()]
    del header
    entries.sort(key=lambda entry: (entry.offset, entry.offset + entry.size_bytes))
    _check_contiguous(path, entries, begin, size)
    return TensorFile(path, size, tuple(entries), metadata, status.st_mtime_ns)


def _check_start(path: Path, start: bytes, size: int) -> int:
    """Return the length of the header; say what the file is if it cannot be one."""
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    if size >= LENGTH_BYTES and length <= min(size - LENGTH_BYTES, _MAX_HEADER_BYTES):
        return length
    if size == 0:
        raise _malformed(path, "it is empty")
    if length > _MAX_HEADER_BYTES:
        for magic, (what, hint) in _FOREIGN.items():
            if start.startswith(magic):
                raise _malformed(path, f"it is {what}", hint)
    if length > size - LENGTH_BYTES:
        raise _malformed(path, f"a header of {length} bytes in a file of {size}")
    raise _malformed(path, f"a header of {length} bytes, more than 100 MB")


_DAMAGED = "The file is damaged or was cut off; fetch or save it again."


def _malformed(path: Path, what: str, hint: str = _DAMAGED) -> CheckpointError:
    return CheckpointError(f"{path}: not a well-formed safetensors file: {what}", hint=hint)


class _Place(NamedTuple):
    """A valid entry without its name, in a fraction of the memory of its JSON."""

    dtype: Dtype
    shape: tuple[int, ...]
    begin: int


def _parse_header(path: Path, raw: bytes) -> dict[str, Any]:
    """Parse a header; by the letter, which Python's parser does not by itself."""
    try:
        # Decoded here: json would take UTF-16 too, and half surrogate pairs.
        text = raw.decode("utf-8")
        del raw
        if not text.startswith("{"):
            raise _malformed(path, "the header is not a JSON object")
        check_num_values(text, _MAX_HEADER_VALUES)
        header: dict[str, Any] = json.loads(
            text,
            object_pairs_hook=_make_object,
            parse_int=_parse_size,
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
        )
    except ValueError as error:
        raise _malformed(path, f"the header is not valid JSON ({error})") from error
    except RecursionError as error:
        raise _malformed(path, "the header is nested too deep") from error
    if not isinstance(header, dict):
        raise _malformed(path, "the header is a single entry")
    return header


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _Place:
    fields = unique(pairs)
    try:
        return _parse_place(fields)
    except ValueError:
        return fields  # the metadata, or refused later, when its name is known


def _parse_place(fields: object) -> _Place:
    if not isinstance(fields, dict) or not fields.keys() >= _FIELDS:
        raise ValueError("is not an object of dtype, shape and data_offsets")
    if any(isinstance(fields[key], (dict, list, tuple)) for key in fields.keys() - _FIELDS):
        raise ValueError("has a further field that is no plain value")
    kind, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    try:
        dtype = Dtype(kind)
    except ValueError:
        raise ValueError(f"has the unknown dtype {quoted(kind)}") from None
    if not _is_sizes(shape) or not _is_sizes(offsets) or len(offsets) != 2:
        raise ValueError("has no valid shape and data_offsets")
    if len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"has {len(shape)} dimensions, more than {_MAX_DIMENSIONS}")
    num_bits = math.prod(shape) * dtype.bits
    begin, end = offsets
    if num_bits > 8 * _MAX_SIZE:
        raise ValueError("is larger than a file can be")
    if num_bits != 8 * (end - begin):
        raise ValueError(f"takes {end - begin} bytes, its shape and dtype make {num_bits / 8:.10g}")
    return _Place(dtype, tuple(shape), begin)


def _parse_size(text: str) -> int:
    if text == "-0":
        _refuse_number(text)
    return parse_int(text)


def _refuse_number(text: str) -> NoReturn:
    raise ValueError(f"the number {quoted(text)}")


def _is_text_map(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


def _is_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(
        isinstance(item, int) and not isinstance(item, bool) and 0 <= item <= _MAX_SIZE
        for item in value
    )


def _make_entry(path: Path, name: str, place: object, start: int) -> TensorEntry:
    if not isinstance(place, _Place):
        try:
            place = _parse_place(place)
        except ValueError as error:
            raise _malformed(path, f"the entry of {quoted(name)} {error}") from None
    if len(name) > _MAX_NAME:
        what = f"the name {quoted(name)} has {len(name)} characters, more than {_MAX_NAME}"
        raise _malformed(path, what, "No real model has such names; was the file made to do harm?")
    return TensorEntry(name, place.dtype, place.shape, path, start + place.begin)


def _check_contiguous(path: Path, entries: list[TensorEntry], start: int, size: int) -> None:
    position = start
    for entry in entries:
        if entry.offset != position:
            kind = "a hole before" if entry.offset > position else "an overlap at"
            raise _malformed(path, f"{kind} tensor {quoted(entry.name)}")
        position += entry.size_bytes
    if position != size:
        raise _malformed(path, f"its tensors end at byte {position}, the file at {size}")
