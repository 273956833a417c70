"""Tensors that an adapter stores whole although base, or a tie, has them already.

PEFT writes embeddings out although it only added to them, and heads although they are the
embedding. This compares bytes, of such tensors alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import permutations

from svdcut.adapter.application import Application
from svdcut.adapter.peft_config import PeftConfig
from svdcut.errors import MismatchError
from svdcut.files.checkpoint import Checkpoint
from svdcut.files.jsonfile import quoted
from svdcut.files.tensorfile import Dtype, TensorEntry, read_bytes
from svdcut.names import HEAD, tied_part

_PIECE_BYTES = 1 << 22


def drop_copies(applied: Application, config: PeftConfig, base: Checkpoint) -> Application:
    """Leave out what is stored whole and is the same as base's, or as what it is tied to.

    Raises
    ------
    CheckpointError
        If a file cannot be read.
    MismatchError
        If the embedding was trained apart from a head that base stores as one with it, or
        has more rows than the head.
    """
    replaced = {
        name: entry
        for name, entry in applied.replaced.items()
        if not _same(entry, base.tensors[name])
    }
    _refuse_uneven(replaced, config, base)
    added = dict(applied.added)
    if base.ties_embeddings and not _heads(base.tensors):
        embeddings = [entry for name, entry in replaced.items() if tied_part(name) is not None]
        heads = _heads(added)
        if embeddings and not heads:
            _refuse_parted(embeddings[0], config, base)
        for name in heads:
            if any(_same(added[name], entry) for entry in embeddings):
                del added[name]
    return replace(applied, replaced=replaced, added=added)


def unties(applied: Application) -> bool:
    """Whether the result has a head of its own, whatever base's config says."""
    return bool(_heads(applied.added))


def _heads(names: Iterable[str]) -> list[str]:
    return [name for name in names if tied_part(name) == HEAD]


def _same(one: TensorEntry, other: TensorEntry) -> bool:
    """Whether two tensors hold the same; the first may be float32, the second bfloat16."""
    # Training in 4 bits saves embeddings of bfloat16 in float32: with zeros behind.
    widens = (one.dtype, other.dtype) == (Dtype.F32, Dtype.BF16)
    if one.shape != other.shape or not (widens or one.dtype is other.dtype):
        return False
    for start in range(0, other.size_bytes, _PIECE_BYTES):
        stop = min(start + _PIECE_BYTES, other.size_bytes)
        theirs = read_bytes(other, start, stop)
        if widens:
            import numpy as np

            theirs = bytearray((np.frombuffer(theirs, "<u2").astype("<u4") << 16).tobytes())
            start, stop = 2 * start, 2 * stop  # noqa: PLW2901
        if read_bytes(one, start, stop) != theirs:
            return False
    return True


def _refuse_uneven(
    replaced: Mapping[str, TensorEntry], config: PeftConfig, base: Checkpoint
) -> None:
    """Refuse an embedding and a head of different numbers of tokens, where base's were alike."""
    parts = {name: entry for name, entry in base.tensors.items() if tied_part(name) is not None}
    for name, other in permutations(parts, 2):
        rows, ours = parts[name].shape[:1], replaced.get(name, parts[name]).shape[:1]
        if ours != rows == parts[other].shape[:1] and other not in replaced:
            raise MismatchError(
                f"{config.path.parent}: {quoted(name)} has {ours[0]} rows in it, and of base "
                f"{quoted(other)} {rows[0]}, which is not in it",
                hint="Save the adapter with both, as modules_to_save.",
            )


def _refuse_parted(entry: TensorEntry, config: PeftConfig, base: Checkpoint) -> None:
    module = entry.name.removesuffix(".weight").rpartition(".")[2]
    saved = {name.rpartition(".")[2] for name in config.modules_to_save}
    if config.ensure_weight_tying or module not in saved:
        return
    raise MismatchError(
        f"{config.path.parent} trained {quoted(entry.name)} alone, and {base.source} stores it "
        "and the head as one: the head would change with it",
        hint="Save base with both: set tie_word_embeddings to false, clone the head's weight, "
        "and save_pretrained().",
    )
