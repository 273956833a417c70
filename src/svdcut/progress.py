"""What an observer of a run is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from svdcut.manifest import TensorFact


@dataclass(frozen=True, slots=True)
class Progress:
    """A tensor is done."""

    stage: str
    """``spectra`` (the first pass of a budget), ``truncate``, ``spectrum``, ``merge`` (of an
    adapter, to be loaded), or one of those of evaluate, sweep and verify."""

    name: str
    size_bytes: int
    total_bytes: int
    """Of all tensors of the stage."""

    facts: tuple[TensorFact, ...] = ()
    """What was written, for each output."""

    resumed: bool = False
    """Whether an earlier run had done it."""


Observer = Callable[[Progress], None]
