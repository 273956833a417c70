"""The whole result before any weight is read: every tensor, file and offset.

A pure function of headers and options; it writes nothing and imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from svdcut.choose.options import STORED_DTYPES, Options, StoredDtype
from svdcut.choose.ranks import Rule
from svdcut.errors import UsageError
from svdcut.files.checkpoint import Checkpoint
from svdcut.files.tensorfile import Dtype, FileLayout, TensorEntry, lay_out, size_bytes
from svdcut.pair.pairing import Action, Pair, Pairing, check_patterns, pair_tensors

_SHARD_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*[KMGT]B", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of the result, and where its bytes go."""

    pair: Pair
    target: TensorEntry


class Form(str, Enum):
    """The kind of a result."""

    CHECKPOINT = "checkpoint"
    ADAPTER = "adapter"


@dataclass(frozen=True, slots=True)
class Output:
    """One result of a run: where it goes, and the rule that makes it."""

    path: Path
    rule: Rule
    restart: bool = False
    """Whether to drop unfinished work there."""

    force: bool = False
    """Whether to replace what svdcut wrote there before."""

    form: Form = Form.CHECKPOINT


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a run will write."""

    base: Checkpoint
    finetuned: Checkpoint
    pairing: Pairing
    tensors: tuple[PlannedTensor, ...]
    files: tuple[FileLayout, ...]
    index: Mapping[str, Any] | None

    @property
    def num_truncated(self) -> int:
        """Number of tensors to truncate."""
        return sum(tensor.pair.action is Action.TRUNCATE for tensor in self.tensors)

    @property
    def size_bytes(self) -> int:
        """Bytes of all weight files."""
        return sum(file.size_bytes for file in self.files)


def make_plan(base: Checkpoint, finetuned: Checkpoint, options: Options) -> Plan:
    """Plan a truncation.

    Parameters
    ----------
    base, finetuned : Checkpoint
        The two sides.
    options : Options
        What the user asked for.

    Returns
    -------
    Plan
        Every tensor with its action, file and offset.

    Raises
    ------
    MismatchError, QuantizedError, UsageError
        As `pair_tensors` does.
    """
    pairing = pair_tensors(
        base,
        finetuned,
        only=options.only,
        skip=options.skip,
        drop=options.drop,
        rest=options.rest,
        renames=options.map,
    )
    names = list(finetuned.tensors)
    check_patterns("--rank-for", [override.pattern for override in options.rank_for], names)
    stored = {
        pair.name: (_stored_dtype(pair, options.dtype), pair.finetuned.shape)
        for pair in pairing.pairs
    }
    shards = _shards(finetuned, stored, options.max_shard_size)
    metadata = finetuned.metadata or {"format": "pt"}
    files = tuple(
        lay_out(shard, {name: stored[name] for name in members}, metadata)
        for shard, members in shards.items()
    )
    targets = {entry.name: entry for file in files for entry in file.entries}
    return Plan(
        base=base,
        finetuned=finetuned,
        pairing=pairing,
        tensors=tuple(PlannedTensor(pair, targets[pair.name]) for pair in pairing.pairs),
        files=files,
        index=_index(finetuned, files),
    )


def _stored_dtype(pair: Pair, wanted: StoredDtype) -> Dtype:
    if pair.action is Action.COPY_BASE:
        assert pair.base is not None
        return pair.base.dtype
    if pair.action is Action.TRUNCATE and wanted is not StoredDtype.AUTO:
        return STORED_DTYPES[wanted]
    return pair.finetuned.dtype


def _shards(
    finetuned: Checkpoint,
    stored: Mapping[str, tuple[Dtype, tuple[int, ...]]],
    max_shard_size: str | None,
) -> dict[str, Sequence[str]]:
    """Return the names of each file's tensors, in order."""
    if max_shard_size is None:
        return dict(finetuned.shards)
    size = _SHARD_SIZE.fullmatch(max_shard_size.strip())
    if size is None or float(size[1]) == 0:
        raise UsageError(
            f"--max-shard-size {max_shard_size!r}: expected a size as '5GB' or '500MB'"
        )
    # Imported here: the default layout needs no library, and starts faster without.
    from huggingface_hub import split_state_dict_into_shards_factory

    split = split_state_dict_into_shards_factory(
        dict(stored),
        get_storage_size=lambda tensor: size_bytes(*tensor),
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    return dict(split.filename_to_tensors)


def _index(finetuned: Checkpoint, files: Sequence[FileLayout]) -> dict[str, Any] | None:
    if finetuned.index is None and len(files) == 1:
        return None
    metadata = dict((finetuned.index or {}).get("metadata") or {})
    metadata["total_size"] = sum(e.size_bytes for file in files for e in file.entries)
    weight_map = {entry.name: file.name for file in files for entry in file.entries}
    return {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
