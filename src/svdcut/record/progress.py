"""The progress that an observer of a run is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from svdcut.record.manifest import TensorFact


@dataclass(frozen=True, slots=True)
class Progress:
    """A tensor or a batch of texts is done, or a model is about to be loaded."""

    stage: str
    """``spectra`` (the first pass of a budget), ``truncate``, ``spectrum``, ``merge`` (of an
    adapter, to be loaded), ``load``, or one of those of evaluate, sweep and verify."""

    name: str
    size: int
    """Bytes of the tensor, or texts of the batch."""

    total: int
    """Size of the whole stage; 0 where nothing is counted."""

    facts: tuple[TensorFact, ...] = ()
    """Facts of the written tensor, for each output."""

    resumed: bool = False
    """True if an earlier run had done it."""


Observer = Callable[[Progress], None]
