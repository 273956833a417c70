"""Plan which matrices of one checkpoint, or of a pair, to measure; from headers alone.

It reads no weights and imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from svdcut.files.checkpoint import Checkpoint
from svdcut.names import model_order, tied_part
from svdcut.pair.pairing import Action, Pair, Pairing, pair_tensors, select_matrices
from svdcut.spectra.facts import Subject
from svdcut.spectra.options import SpectraOptions


@dataclass(frozen=True, slots=True)
class SpectraPlan:
    """The matrices to read, and their checkpoints."""

    base: Checkpoint | None
    checkpoint: Checkpoint
    pairs: tuple[Pair, ...]
    """The matrices, in the order of the model."""

    left_out: tuple[str, ...]
    pairing: Pairing | None
    """How the names of the two sides match; None for a single checkpoint."""

    @property
    def places(self) -> list[Path]:
        """The folders of the checkpoints, or their files where they are bare."""
        sides = [side for side in (self.base, self.checkpoint) if side is not None]
        return [side.directory or side.files[0].path for side in sides]

    @property
    def subject(self) -> Subject:
        """Return whether spectra are of the update or of the weights."""
        return Subject.WEIGHTS if self.base is None else Subject.UPDATE


@dataclass(frozen=True, slots=True)
class ComparisonPlan:
    """The plans of two updates of one base, and the tensors to compare."""

    first: SpectraPlan
    second: SpectraPlan
    rank: int
    """Rank of the spaces to compare."""

    tasks: tuple[tuple[Pair, ...], ...]
    """The tensors of both: two where they are compared, one where one has no counterpart."""

    @property
    def places(self) -> list[Path]:
        """The folders of the three checkpoints, or their files where they are bare."""
        return [*self.first.places, *self.second.places]

    @property
    def unmatched(self) -> tuple[str, ...]:
        """Names of the tensors that are not compared."""
        return tuple(dict.fromkeys(task[0].name for task in self.tasks if len(task) == 1))


def plan_comparison(
    base: Checkpoint,
    finetuned: Checkpoint,
    other: Checkpoint,
    rank: int,
    options: SpectraOptions,
) -> ComparisonPlan:
    """Find the matrices of two updates, and those that both have.

    Parameters
    ----------
    base : Checkpoint
        What to subtract from both.
    finetuned, other : Checkpoint
        The two fine-tuned sides. Their names may differ: tensors belong together that
        are paired with one tensor of base, in one shape.
    rank : int
        Of the spaces to compare.
    options : SpectraOptions
        What the user asked for.

    Raises
    ------
    MismatchError, QuantizedError, UsageError
        As `pair_tensors` does, for either side.
    """
    first, second = (plan_spectra(base, side, options) for side in (finetuned, other))
    left: dict[str | None, list[Pair]] = {}
    for pair in second.pairs:
        left.setdefault(_base_name(pair), []).append(pair)
    tasks = []
    for pair in first.pairs:
        candidates = left.get(_base_name(pair), [])
        found = _counterpart(pair, candidates)
        if found is not None:
            candidates.remove(found)
        tasks.append((pair,) if found is None else (pair, found))
    alone = [pair for pair in second.pairs if pair in left[_base_name(pair)]]
    return ComparisonPlan(first, second, rank, (*tasks, *((pair,) for pair in alone)))


def _counterpart(pair: Pair, candidates: Sequence[Pair]) -> Pair | None:
    # Base may tie what a fine-tuned side stores twice: embeddings belong to embeddings then.
    fitting = [other for other in candidates if other.matrices == pair.matrices]
    part = tied_part(pair.name)
    return min(fitting, key=lambda other: tied_part(other.name) != part, default=None)


def _base_name(pair: Pair) -> str | None:
    return None if pair.base is None else pair.base.name


def plan_spectra(
    base: Checkpoint | None, checkpoint: Checkpoint, options: SpectraOptions
) -> SpectraPlan:
    """Find the matrices of a checkpoint, or those of an update.

    Parameters
    ----------
    base : Checkpoint or None
        What to subtract, if anything.
    checkpoint : Checkpoint
        The fine-tuned side, or the only one.
    options : SpectraOptions
        What the user asked for.

    Raises
    ------
    MismatchError, QuantizedError, UsageError
        As `pair_tensors` does.
    """
    pairing = None
    if base is None:
        pairs: Sequence[Pair] = select_matrices(checkpoint, only=options.only, skip=options.skip)
    else:
        pairing = pair_tensors(
            base, checkpoint, only=options.only, skip=options.skip, renames=options.map
        )
        pairs = [pair for pair in pairing.pairs if pair.action is Action.TRUNCATE]
    ordered = sorted(pairs, key=lambda pair: model_order(pair.name))
    names = {pair.name for pair in pairs}
    left_out = tuple(name for name in checkpoint.tensors if name not in names)
    return SpectraPlan(base, checkpoint, tuple(ordered), left_out, pairing)
