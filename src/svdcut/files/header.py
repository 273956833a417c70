"""Read what says where tensors lie: the header of a safetensors file, the index of several.

A stranger may have made them. The safetensors library parses and checks a header: offsets, shapes
and sizes against each other and against the file. This module bounds the memory and words the
errors.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from svdcut.errors import CheckpointError
from svdcut.files.filenames import MAX_TENSORS, check_own
from svdcut.files.jsonfile import Bounds, check_num_values, check_regular, quoted, read_json
from svdcut.files.tensorfile import LENGTH_BYTES, Dtype, TensorEntry, TensorFile
from svdcut.shown import printable

_MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library."""

_MAX_HEADER_VALUES = 5_000_000
"""Bounds the memory that parsing takes; half a million tensors have fewer."""

_MAX_NAME = 1000
"""Characters of a tensor's name: real ones have 200. Bounds the work on names."""

_MAX_DIMENSIONS = 64
"""As torch."""

_MAX_REASON = 200

_INDEX_BOUNDS = Bounds(num_bytes=100_000_000, num_values=2 * MAX_TENSORS)
_FILE_NAME = re.compile(r"(?!.*\.\.)[^/\\*?\[\x00-\x1f]+\.safetensors")
"""Names a file beside the index: no path, and nothing that a pattern could mean."""

_WRONG_INDEX = "The index is damaged or not of this checkpoint; fetch or save it again."
_DAMAGED = "The file is damaged or was cut off; fetch or save it again."
_PICKLED = "It was renamed, not converted. Load it where you trust it, and save it as safetensors."

_FOREIGN = {
    b"version https://git-lfs": (
        "it is a pointer of Git LFS, not the weights",
        "Fetch the weights: git lfs install, then git lfs pull in that folder.",
    ),
    b"<": (
        "it is a web page or XML, not the weights",
        "A download saved an error or log-in page; fetch the file again.",
    ),
    b"PK\x03\x04": ("it is a zip archive, as torch.save writes", _PICKLED),
    b"\x80": ("it is a pickle", _PICKLED),
    b"GGUF": ("it is a GGUF file", "Use the safetensors checkpoint that it was made from."),
    b"\x89HDF": ("it is an HDF5 file", "Save the model as safetensors."),
}
"""Other formats by their first bytes: what to say, and what to do."""


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
        If the file cannot be read, or is not well-formed.

    Notes
    -----
    Reads the header alone.
    """
    try:
        check_regular(path)
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if length <= _MAX_HEADER_BYTES:
                check_num_values(file.read(length), _MAX_HEADER_VALUES)
        entries, metadata = _parse(path, LENGTH_BYTES + length)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing header: ").replace("`", "'")
        sizes = f"a header of {length} bytes in a file of {status.st_size}"
        raise _foreign(path) or _malformed(path, f"{_shortened(reason)} ({sizes})") from error
    except ValueError as error:
        raise _malformed(path, str(error)) from error
    return TensorFile(path, status.st_size, tuple(entries), metadata, status.st_mtime_ns)


def _parse(path: Path, offset: int) -> tuple[list[TensorEntry], dict[str, str]]:
    """Return the entries, which follow each other from `offset` on without holes, and metadata."""
    entries = []
    with safe_open(path, "numpy") as file:
        for name in file.offset_keys():
            tensor = file.get_slice(name)
            entry = TensorEntry(
                name, Dtype(tensor.get_dtype()), tuple(tensor.get_shape()), path, offset
            )
            _check_bounds(entry)
            entries.append(entry)
            offset += entry.size_bytes
        metadata = file.metadata()
    # The library leaves open in which order empty tensors at one place come.
    entries.sort(key=lambda entry: (entry.offset, entry.size_bytes > 0, entry.name))
    return entries, metadata or {}


def _check_bounds(entry: TensorEntry) -> None:
    if len(entry.name) > _MAX_NAME:
        length = f"{len(entry.name)} characters, more than {_MAX_NAME}"
        raise ValueError(f"the name {quoted(entry.name)} has {length}")
    if len(entry.shape) > _MAX_DIMENSIONS:
        dimensions = f"{len(entry.shape)} dimensions, more than {_MAX_DIMENSIONS}"
        raise ValueError(f"tensor {quoted(entry.name)} has {dimensions}")


def _foreign(path: Path) -> CheckpointError | None:
    """Return the error of a file of another format, known by its first bytes."""
    with path.open("rb") as file:
        start = file.read(max(map(len, _FOREIGN)))
    # As the length of a header such bytes would be beyond the limit, but for short ones.
    if int.from_bytes(start[:LENGTH_BYTES], "little") <= _MAX_HEADER_BYTES:
        return None
    found = (words for magic, words in _FOREIGN.items() if start.startswith(magic))
    return next((_malformed(path, what, hint) for what, hint in found), None)


def _shortened(reason: str) -> str:
    """Return the library's reason, which may hold a stranger's name, on one line."""
    line = printable(reason)
    return line if len(line) <= _MAX_REASON else f"{line[:_MAX_REASON]}..."


def _malformed(path: Path, what: str, hint: str = _DAMAGED) -> CheckpointError:
    return CheckpointError(f"{path}: not a well-formed safetensors file: {what}", hint=hint)


def read_index(path: Path) -> tuple[Mapping[str, Any], list[str]]:
    """Return an index, and the names of the files of weights that it tells of, sorted.

    Raises
    ------
    CheckpointError
        If it is no index.
    """
    check_own(path, path.parent)
    index = read_json(path, _INDEX_BOUNDS)
    weight_map, metadata = index.get("weight_map"), index.get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        raise CheckpointError(f"{path}: 'metadata' is not an object", hint=_WRONG_INDEX)
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: has no 'weight_map'", hint=_WRONG_INDEX)
    for name in weight_map.values():
        if not (isinstance(name, str) and _FILE_NAME.fullmatch(name)):
            raise CheckpointError(
                f"{path}: names {quoted(name)}, which is not a .safetensors file beside it",
                hint=_WRONG_INDEX,
            )
    return index, sorted(set(weight_map.values()))


def check_index(path: Path, index: Mapping[str, Any], tensors: Mapping[str, TensorEntry]) -> None:
    """Raise unless each tensor is where the index says."""
    said: Mapping[str, str] = index["weight_map"]
    found = {name: entry.path.name for name, entry in tensors.items()}
    wrong = [name for name in said.keys() | found.keys() if said.get(name) != found.get(name)]
    if wrong:
        name = min(wrong)
        raise CheckpointError(
            f"{path}: tensors that are not where it says: {len(wrong)}, as {quoted(name)} "
            f"(index: {said.get(name, 'nowhere')}, found: {found.get(name, 'nowhere')})",
            hint="Shards of different saves lie in one folder; fetch or save it again.",
        )
