"""What a sweep asks of whatever evaluates its cuts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from svdcut.choose.options import Options
from svdcut.evaluation.metrics import Evaluation
from svdcut.files.checkpoint import Checkpoint
from svdcut.pair.plan import Plan
from svdcut.record.progress import Observer
from svdcut.record.provenance import InputHashes
from svdcut.sweeps.facts import Variant
from svdcut.sweeps.stored import Decomposed


@dataclass(frozen=True, slots=True)
class Measured:
    """How a cut does."""

    evaluation: Evaluation
    rounding_error: float
    """Norm of what storing it rounds, over all matrices."""


class Bench(Protocol):
    """A place where cuts are evaluated; the fine-tuned side comes first."""

    def finetuned(self) -> Evaluation:
        """Evaluate the fine-tuned side as it is."""

    def evaluate(self, decomposed: Decomposed, variant: Variant) -> Measured:
        """Evaluate a cut."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a bench is set up with."""

    plan: Plan
    options: Options
    folder: Path
    """Of the sweep."""

    loadable: Callable[[InputHashes | None], AbstractContextManager[Checkpoint]]
    """Gives the fine-tuned side as a model can be loaded from it: an adapter merged."""

    until_end: ExitStack
    """Left when the sweep ends."""

    quiet: bool
    observe: Observer
    """Told of each batch that is done."""


class Evaluator(Protocol):
    """How cuts are evaluated."""

    writes_checkpoints: ClassVar[bool]
    """Whether each cut is written as a checkpoint."""

    def identity(self) -> dict[str, str]:
        """Return what shapes an evaluation, in words."""

    def open(self, setting: Setting) -> Bench:
        """Set up a bench; the model is loaded now, if it is to be."""
