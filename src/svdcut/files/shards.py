"""The index of a checkpoint in several files: which they are, and what it says of each tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from svdcut.errors import CheckpointError
from svdcut.files.filenames import INCOMPLETE, MAX_TENSORS, check_own, is_there
from svdcut.files.jsonfile import Bounds, quoted, read_json

_BOUNDS = Bounds(num_bytes=100_000_000, num_values=2 * MAX_TENSORS)
_WRONG_INDEX = "The index is damaged or not of this checkpoint; fetch or save it again."


def read_index(path: Path) -> tuple[Mapping[str, Any], list[str]]:
    """Return an index, and the names of the files that it tells of, which are there.

    Parameters
    ----------
    path : Path
        Of the index.

    Raises
    ------
    CheckpointError
        If it is no index, or a file is missing.
    """
    check_own(path, path.parent)
    index = read_json(path, _BOUNDS)
    weight_map, metadata = index.get("weight_map"), index.get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        raise CheckpointError(f"{path}: 'metadata' is not an object", hint=_WRONG_INDEX)
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: has no 'weight_map'", hint=_WRONG_INDEX)
    for name in weight_map.values():
        beside = isinstance(name, str) and Path(name).name == name
        if not (beside and name.endswith(".safetensors")):
            raise CheckpointError(
                f"{path}: names {quoted(name)}, which is not a .safetensors file beside it",
                hint=_WRONG_INDEX,
            )
    names = sorted(set(weight_map.values()))
    for name in names:
        if not is_there(path.parent / name):
            raise _missing_shard(path, name)
    return index, names


def _missing_shard(path: Path, name: str) -> CheckpointError:
    unfinished = [found.name for found in path.parent.glob("*.incomplete")]
    more = f"; {quoted(unfinished[0])} is a download that did not finish" if unfinished else ""
    return CheckpointError(
        f"{path}: names {quoted(name)}, which is not there{more}", hint=INCOMPLETE
    )


def check_index(path: Path, index: Mapping[str, Any], actual: Mapping[str, str]) -> None:
    """Raise unless each tensor is where an index says.

    Parameters
    ----------
    path : Path
        Of the index.
    index : mapping
        As `read_index` returned it.
    actual : mapping
        From the names of tensors to those of the files that hold them.
    """
    weight_map = index["weight_map"]
    wrong = [
        name
        for name in weight_map.keys() | actual.keys()
        if weight_map.get(name) != actual.get(name)
    ]
    if wrong:
        name = min(wrong)
        raise CheckpointError(
            f"{path}: tensors that are not where it says: {len(wrong)}, as {quoted(name)} "
            f"(index: {weight_map.get(name, 'nowhere')}, found: {actual.get(name, 'nowhere')})",
            hint="Shards of different saves lie in one folder; fetch or save it again.",
        )
