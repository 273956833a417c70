"""Which matrices of a checkpoint have a spectrum, from headers alone.

It reads no weights and imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from svdcut.checkpoint import Checkpoint
from svdcut.names import model_order
from svdcut.pairing import Action, Pair, Pairing, pair_tensors, select_matrices
from svdcut.spectra.facts import Subject


@dataclass(frozen=True, slots=True)
class SpectraOptions:
    """Every option that shapes the spectra."""

    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    renames: Mapping[str, str] = field(default_factory=dict)
    top: int | None = None
    intruders: bool = False
    device: str = "auto"


@dataclass(frozen=True, slots=True)
class SpectraPlan:
    """What to read, and of what."""

    base: Checkpoint | None
    checkpoint: Checkpoint
    pairs: tuple[Pair, ...]
    """The matrices, in the order of the model."""

    left_out: tuple[str, ...]
    pairing: Pairing | None
    """How the two sides were matched; None where there is one side."""

    @property
    def places(self) -> list[Path]:
        """The folders of the checkpoints, or their files where they are bare."""
        sides = [side for side in (self.base, self.checkpoint) if side is not None]
        return [side.directory or side.files[0].path for side in sides]

    @property
    def subject(self) -> Subject:
        """Of what the spectra are."""
        return Subject.WEIGHTS if self.base is None else Subject.UPDATE


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
            base, checkpoint, only=options.only, skip=options.skip, renames=options.renames
        )
        pairs = [pair for pair in pairing.pairs if pair.action is Action.TRUNCATE]
    ordered = sorted(pairs, key=lambda pair: model_order(pair.name))
    names = {pair.name for pair in pairs}
    left_out = tuple(name for name in checkpoint.tensors if name not in names)
    return SpectraPlan(base, checkpoint, tuple(ordered), left_out, pairing)
