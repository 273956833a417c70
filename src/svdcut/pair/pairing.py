"""Match the tensors of two checkpoints, and say what happens to each.

A pure function of headers and options: it reads no weights and imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from functools import partial

from svdcut.choose.options import Rest
from svdcut.errors import MismatchError, UsageError, listed
from svdcut.files.checkpoint import Checkpoint
from svdcut.files.lora_factors import LowRankEntry
from svdcut.files.tensorfile import TensorEntry
from svdcut.names import (
    collapse_numbers,
    is_bias,
    is_expert_stack,
    is_task_head,
    tied_part,
)
from svdcut.pair.matching import (
    Fits,
    Matching,
    match_names,
    may_descend,
    rename_tensors,
    tied_partner,
)
from svdcut.pair.quantization import refuse_quantized


class Action(str, Enum):
    """What happens to a tensor."""

    TRUNCATE = "truncate"
    COPY_FINETUNED = "copy_finetuned"
    COPY_BASE = "copy_base"
    UNCHANGED = "unchanged"
    DROP = "drop"
    """An adapter leaves it as it is in base, because that was asked for."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One tensor of the result and where it comes from."""

    name: str
    action: Action
    finetuned: TensorEntry
    base: TensorEntry | None
    seed_name: str
    """Seed of its decomposition: copies of one tied matrix share it, and their result."""

    update: LowRankEntry | None = None
    """Update that an adapter adds to `finetuned`, which is then mostly base's own tensor."""

    @property
    def stacked(self) -> bool:
        """Whether it is a stack of expert matrices, each with a rank of its own."""
        shape = self.finetuned.shape
        experts = 1 if self.update is None else self.update.experts
        return is_expert_stack(self.name, shape) or (len(shape) == 3 and experts > 1)

    @property
    def factors(self) -> LowRankEntry | None:
        """The factors that make all of the update; None where it is dense."""
        if self.update is None or self.update.magnitude is not None:
            return None
        # It is dense where the adapter stores the tensor whole too.
        return self.update if self.finetuned == self.base else None

    @property
    def full_ranks(self) -> list[int]:
        """The most that the update's rank can be, of each matrix."""
        most = [min(shape) for shape in self.matrices]
        return most if self.factors is None else [min(r, self.factors.rank) for r in most]

    @property
    def shared_rows(self) -> int:
        """Number of leading rows that both sides have; all where base lacks the tensor."""
        if self.base is None:
            return self.finetuned.shape[0]
        return min(self.finetuned.shape[0], self.base.shape[0])

    @property
    def new_rows(self) -> int:
        """Number of following rows that base lacks."""
        return 0 if self.stacked else self.finetuned.shape[0] - self.shared_rows

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """Shapes of the matrices to truncate, one unless it is a stack."""
        shape = self.finetuned.shape
        if self.stacked:
            return [(shape[1], shape[2])] * shape[0]
        return [(self.shared_rows, math.prod(shape[1:]))]


@dataclass(frozen=True, slots=True)
class Pairing:
    """All tensors of the result, in the order of the fine-tuned files."""

    pairs: tuple[Pair, ...]
    base_only: tuple[str, ...]
    matching: Matching
    """How the names were matched."""

    unmatched: tuple[str, ...]
    """Matrices that would be truncated, had base a tensor to compare them with."""

    @property
    def base_prefix(self) -> str | None:
        """Prefix taken from base's names, where most weights needed it."""
        return (self.matching.renames[0].base or None) if self.matching.renames else None

    @property
    def finetuned_prefix(self) -> str | None:
        """Prefix taken from the fine-tuned names, where most weights needed it."""
        return (self.matching.renames[0].finetuned or None) if self.matching.renames else None


def pair_tensors(
    base: Checkpoint,
    finetuned: Checkpoint,
    *,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    drop: Sequence[str] = (),
    rest: Rest = Rest.FINETUNED,
    renames: Mapping[str, str] | None = None,
) -> Pairing:
    """Match two checkpoints by name and decide on every tensor.

    Parameters
    ----------
    base, finetuned : Checkpoint
        The two sides.
    only, skip : sequence of str
        Globs on the names of the fine-tuned side: which tensors to truncate.
    drop : sequence of str
        Globs likewise: which to leave as they are in base, whatever they are.
    rest : Rest
        Where the others come from.
    renames : mapping of str to str
        Prefixes of base's names, old to new.

    Returns
    -------
    Pairing
        What happens to each tensor.

    Raises
    ------
    QuantizedError
        If a side is quantised.
    MismatchError
        If the sides share no tensor, or shapes do not fit; all of them are listed.
    UsageError
        If a glob or a rename matches nothing.
    """
    for side in (base, finetuned):
        refuse_quantized(side)
    _check_globs(finetuned, ("--only", only), ("--skip", skip), ("--drop", drop))
    # The names of an adapter were matched when it was opened.
    old_to_new = {} if finetuned.is_adapter else renames or {}
    renamed = rename_tensors(base.tensors, old_to_new, base.source)
    fits = partial(may_descend, sizes=(finetuned.vocab_size, base.vocab_size))
    matching = match_names(renamed, dict(finetuned.tensors), fits)
    pairs: list[Pair] = []
    for name, entry in finetuned.tensors.items():
        other = matching.partners.get(name) or tied_partner(entry, base)
        fitting = other is None or fits(entry, other)
        if not fitting and is_task_head(name):
            other = None  # the head of another task: there is no update to speak of
        update = finetuned.updates.get(name)
        action = _decide(entry, other, rest, wanted=fitting and _is_wanted(name, only, skip))
        if finetuned.is_adapter and update is None and entry == other:
            action = Action.UNCHANGED  # an adapter leaves it alone
        if _matches(name, drop):
            action = Action.DROP
        pairs.append(Pair(name, action, entry, other, _seed_name(name, finetuned), update))
    wanted = [p for p in pairs if _is_wanted(p.name, only, skip) and p.action is not Action.DROP]
    if not matching.partners:
        raise _nothing_shared(base, finetuned)
    _refuse_mismatches(base, finetuned, [p for p in wanted if p.base and _differs(p, p.base, fits)])
    used = {pair.base.name for pair in pairs if pair.base is not None}
    return Pairing(
        pairs=tuple(pairs),
        base_only=tuple(name for name in base.tensors if name not in used),
        matching=matching,
        unmatched=tuple(
            p.name for p in wanted if p.base is None and _truncatable(p.finetuned, p.finetuned)
        ),
    )


def select_matrices(
    checkpoint: Checkpoint, *, only: Sequence[str] = (), skip: Sequence[str] = ()
) -> tuple[Pair, ...]:
    """Return the tensors of one checkpoint that are matrices, without a base.

    Parameters
    ----------
    checkpoint : Checkpoint
        The one side.
    only, skip : sequence of str
        Globs on its names.

    Raises
    ------
    QuantizedError
        If it is quantised.
    UsageError
        If a glob matches nothing.
    """
    refuse_quantized(checkpoint)
    _check_globs(checkpoint, ("--only", only), ("--skip", skip))
    return tuple(
        Pair(name, Action.COPY_FINETUNED, entry, None, _seed_name(name, checkpoint))
        for name, entry in checkpoint.tensors.items()
        if _truncatable(entry, entry) and _is_wanted(name, only, skip)
    )


def _check_globs(checkpoint: Checkpoint, *globs: tuple[str, Sequence[str]]) -> None:
    for option, patterns in globs:
        check_patterns(option, patterns, list(checkpoint.tensors))


def check_patterns(option: str, patterns: Sequence[str], names: Sequence[str]) -> None:
    """Refuse a glob that matches no name: it is a slip of the pen."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            examples = ", ".join(repr(name) for name in names[:3])
            raise UsageError(
                f"{option} {pattern!r} matches no tensor",
                hint=f"Names look like {examples}. Quote the pattern: '*embed*'.",
            )


def _is_wanted(name: str, only: Sequence[str], skip: Sequence[str]) -> bool:
    return (not only or _matches(name, only)) and not _matches(name, skip)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _seed_name(name: str, finetuned: Checkpoint) -> str:
    tied = finetuned.ties_embeddings and tied_part(name) is not None
    return "tied embeddings" if tied else name


def _differs(pair: Pair, base: TensorEntry, fits: Fits) -> bool:
    """Whether the shapes of a pair say that base is another model's.

    Those of integers, and of matrices of one row, do not.
    """
    ours = pair.finetuned
    floats = ours.dtype.is_plain_float and base.dtype.is_plain_float
    one_row = len(ours.shape) >= 2 and ours.shape[:1] == base.shape[:1] == (1,)
    return floats and not one_row and not fits(ours, base)


def _decide(
    finetuned: TensorEntry, base: TensorEntry | None, rest: Rest, *, wanted: bool
) -> Action:
    if base is not None and wanted and _truncatable(finetuned, base):
        return Action.TRUNCATE
    if base is not None and rest is Rest.BASE and base.shape == finetuned.shape:
        return Action.COPY_BASE
    return Action.COPY_FINETUNED


def _truncatable(finetuned: TensorEntry, base: TensorEntry) -> bool:
    if not (finetuned.dtype.is_plain_float and base.dtype.is_plain_float):
        return False
    shape = finetuned.shape
    if len(shape) < 2 or len(base.shape) != len(shape) or is_bias(finetuned.name):
        return False
    if is_expert_stack(finetuned.name, shape):
        return shape == base.shape and shape[0] >= 1 and min(shape[1:]) >= 2
    return min(shape[0], base.shape[0], math.prod(shape[1:])) >= 2


def _nothing_shared(base: Checkpoint, finetuned: Checkpoint) -> MismatchError:
    return MismatchError(
        f"{base.source} and {finetuned.source} share no tensor: base has names like "
        f"{next(iter(base.tensors), 'none')!r}, the fine-tuned side like "
        f"{next(iter(finetuned.tensors), 'none')!r}",
        hint="If only a prefix differs, name it: --map OLD=NEW renames base's.",
    )


def _refuse_mismatches(base: Checkpoint, finetuned: Checkpoint, mismatches: Sequence[Pair]) -> None:
    if mismatches:
        noun = "tensor differs" if len(mismatches) == 1 else "tensors differ"
        raise MismatchError(
            f"{len(mismatches)} {noun} in shape between {base.source} and "
            f"{finetuned.source}:{listed(_describe_mismatches(mismatches))}",
            hint="Is this the base that the model was fine-tuned from? --skip GLOB copies "
            "a tensor from the fine-tuned side, whatever its shape.",
        )


def _describe_mismatches(mismatches: Iterable[Pair]) -> list[str]:
    """Return a line for each kind of mismatch; layers that differ alike are one kind."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for pair in mismatches:
        assert pair.base is not None
        shapes = f"base {list(pair.base.shape)}, fine-tuned {list(pair.finetuned.shape)}"
        kinds.setdefault((collapse_numbers(pair.name), shapes), []).append(pair.name)
    return [
        f"{names[0]!r}: {shapes}"
        if len(names) == 1
        else f"{name!r} ({len(names)} tensors): {shapes}"
        for (name, shapes), names in kinds.items()
    ]
