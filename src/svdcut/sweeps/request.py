"""What a sweep is to do, and the three ways to evaluate its cuts. It imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from svdcut.choose.options import Options
from svdcut.errors import EvaluationError
from svdcut.evaluation.dataset import Dataset
from svdcut.evaluation.metrics import Evaluation
from svdcut.evaluation.options import DataOptions
from svdcut.files.checkpoint import Checkpoint
from svdcut.pair.plan import Plan
from svdcut.record.progress import Observer, Progress
from svdcut.record.provenance import InputHashes
from svdcut.sweeps.options import SweepOptions
from svdcut.sweeps.result import Variant

if TYPE_CHECKING:
    from svdcut.sweeps.decomposition import Decomposition

_EXPECTED = (
    'Expected an accuracy from 0 to 1, {"accuracy": ...} with "size" and "groups" '
    '({NAME: {"accuracy", "size"}}) where they are known, or what svdcut evaluate --json prints.'
)


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

    def evaluate(self, decomposed: Decomposition, variant: Variant) -> Measured:
        """Evaluate a cut."""


class Evaluator(Protocol):
    """How cuts are evaluated."""

    writes_checkpoints: ClassVar[bool]
    """Whether each cut is written as a checkpoint."""

    def identity(self) -> dict[str, str]:
        """Return what shapes an evaluation, in words."""

    def open(self, request: SweepRequest, until_end: ExitStack, observe: Observer) -> Bench:
        """Set up a bench, with what `until_end` closes; a model to evaluate is loaded now."""


@dataclass(frozen=True, slots=True)
class SweepRequest:
    """A sweep that can be carried out: checked, planned, the data read."""

    plan: Plan
    shape: Options
    """Of the cuts, as the plan was made with."""

    variants: tuple[Variant, ...]
    evaluator: Evaluator
    options: SweepOptions

    def loadable(
        self, observe: Observer, hashes: InputHashes | None = None
    ) -> AbstractContextManager[Checkpoint]:
        """Yield the fine-tuned side as a model can be loaded from it: an adapter merged."""
        from svdcut.truncation.merging import loadable

        plan = self.plan
        return loadable(
            plan.base,
            plan.finetuned,
            self.shape,
            within=self.options.out,
            hashes=hashes,
            observe=observe,
        )


def read_outcome(value: object, source: str) -> Evaluation:
    """Return the evaluation that a user's own evaluator means.

    Parameters
    ----------
    value : object
        An `Evaluation`; an accuracy; or a mapping with an accuracy, which may be what
        ``svdcut evaluate --json`` prints.
    source : str
        Who says so, for messages.

    Raises
    ------
    EvaluationError
        If it is none of these.
    """
    if isinstance(value, Evaluation):
        return value
    try:
        return Evaluation.from_json(value if isinstance(value, Mapping) else {"accuracy": value})
    except ValueError as error:
        raise EvaluationError(f"{source}: no evaluation: {error}", hint=_EXPECTED) from error


@dataclass(frozen=True, slots=True)
class DataEvaluator:
    """Evaluates on labelled texts, a model whose weights are replaced in memory."""

    writes_checkpoints: ClassVar[bool] = False

    dataset: Dataset
    options: DataOptions

    def identity(self) -> dict[str, str]:
        """Return the data by its hash, and the options."""
        names = ("prompt", "labels", "normalize", "chat_template", "batch_size")
        options = {name: str(getattr(self.options, name)) for name in names}
        return {"DATA": _digest(self.dataset), "seed": str(self.options.seed), **options}

    def open(self, request: SweepRequest, until_end: ExitStack, observe: Observer) -> Bench:  # noqa: ARG002
        """Load the model, and tokenise the data once."""
        from svdcut.evaluation.scoring import load_predictor
        from svdcut.sweeps.swap import open_in_memory

        def load(checkpoint: Checkpoint) -> tuple[Any, Callable[[], Evaluation]]:
            observe(Progress("load", checkpoint.source, 0, 0))
            predictor = load_predictor(
                checkpoint, self.dataset, self.options, quiet=request.options.quiet
            )
            return predictor.model, lambda: predictor.evaluate(
                seed=self.options.seed, observe=observe
            )[0]

        return open_in_memory(request, load, observe)


def _digest(dataset: Dataset) -> str:
    columns = [
        getattr(dataset, name) for name in ("texts", "pairs", "labels", "groups", "aligned", "rows")
    ]
    return "sha256 " + hashlib.sha256(json.dumps(columns).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class FunctionEvaluator:
    """Evaluates by a function that takes the model, whose weights are replaced in memory."""

    writes_checkpoints: ClassVar[bool] = False

    function: Callable[[Any], object]
    options: DataOptions

    def identity(self) -> dict[str, str]:
        """Return the name of the function: what is in it cannot be known."""
        name = getattr(self.function, "__qualname__", type(self.function).__qualname__)
        return {"the evaluating function": name}

    def open(self, request: SweepRequest, until_end: ExitStack, observe: Observer) -> Bench:  # noqa: ARG002
        """Load the model."""
        from svdcut.evaluation.model import load_model
        from svdcut.sweeps.swap import open_in_memory

        def load(checkpoint: Checkpoint) -> tuple[Any, Callable[[], Evaluation]]:
            model = load_model(checkpoint, self.options, quiet=request.options.quiet).model
            return model, lambda: read_outcome(self.function(model), "evaluate")

        return open_in_memory(request, load, observe)


@dataclass(frozen=True, slots=True)
class CommandEvaluator:
    """Evaluates by a command of the user's own, on checkpoints that are written for it."""

    writes_checkpoints: ClassVar[bool] = True

    command: str
    """With ``{model}`` where the folder of the checkpoint goes, and perhaps ``{out}`` for an
    empty folder, from which the files of lm-evaluation-harness are read then."""

    @property
    def writes_files(self) -> bool:
        """Whether the outcome is in files, and not on stdout."""
        return "{out}" in self.command

    def identity(self) -> dict[str, str]:
        """Return the command."""
        return {"--eval-command": self.command}

    def open(self, request: SweepRequest, until_end: ExitStack, observe: Observer) -> Bench:
        """Set up; no model is loaded. The inputs are hashed once, for all checkpoints."""
        from svdcut.sweeps.command import CommandBench

        hashes = until_end.enter_context(InputHashes(request.plan))
        return CommandBench(request, self, hashes, observe)
