"""Cuts of a sweep evaluated in memory, on data or by a function."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from svdcut.evaluation.dataset import Dataset
from svdcut.evaluation.metrics import Evaluation
from svdcut.evaluation.model import find_kind, load_model
from svdcut.evaluation.run import run_evaluation
from svdcut.evaluation.scores import ScoringOptions
from svdcut.evaluation.scoring import load_predictor
from svdcut.files.checkpoint import Checkpoint
from svdcut.record.progress import Progress
from svdcut.sweeps.bench import Bench, Measured, Setting
from svdcut.sweeps.facts import Variant
from svdcut.sweeps.outcome import read_outcome
from svdcut.sweeps.stored import Decomposed
from svdcut.sweeps.swap import SwappedModel


@dataclass(frozen=True, slots=True)
class DataEvaluator:
    """Evaluates on labelled texts."""

    writes_checkpoints: ClassVar[bool] = False

    dataset: Dataset
    options: ScoringOptions
    seed: int

    def identity(self) -> dict[str, str]:
        """Return the data by its hash, and the options."""
        options = {
            f"--{name.replace('_', '-')}": str(value)
            for name, value in asdict(self.options).items()
            if name != "device"
        }
        return {"DATA": _digest(self.dataset), "evaluation --seed": str(self.seed), **options}

    def open(self, setting: Setting) -> Bench:
        """Load the model, and tokenise the data once."""
        find_kind(setting.plan.finetuned)  # an adapter is not merged in vain
        with setting.loadable(None) as loaded:
            setting.observe(Progress("load", loaded.source, 0, 0))
            predictor = load_predictor(loaded, self.dataset, self.options, quiet=setting.quiet)

            def evaluate(_model: Any) -> Evaluation:  # noqa: ANN401
                found, _ = run_evaluation(
                    predictor, self.dataset, seed=self.seed, observe=setting.observe
                )
                return found

            return _InMemory(setting, loaded, predictor.model, evaluate)


def _digest(dataset: Dataset) -> str:
    columns = [
        getattr(dataset, name) for name in ("texts", "pairs", "labels", "groups", "aligned", "rows")
    ]
    return "sha256 " + hashlib.sha256(json.dumps(columns).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class FunctionEvaluator:
    """Evaluates by a function that takes the model."""

    writes_checkpoints: ClassVar[bool] = False

    function: Callable[[Any], object]
    options: ScoringOptions

    def identity(self) -> dict[str, str]:
        """Return the name of the function: what is in it cannot be known."""
        name = getattr(self.function, "__qualname__", type(self.function).__qualname__)
        return {"the evaluating function": name, "dtype": self.options.dtype}

    def open(self, setting: Setting) -> Bench:
        """Load the model."""
        find_kind(setting.plan.finetuned)
        with setting.loadable(None) as loaded:
            model = load_model(loaded, self.options, quiet=setting.quiet).model

            def evaluate(swapped: Any) -> Evaluation:  # noqa: ANN401
                return read_outcome(self.function(swapped), "evaluate")

            return _InMemory(setting, loaded, model, evaluate)


class _InMemory:
    """Evaluates by swapping the weights of one model."""

    def __init__(
        self,
        setting: Setting,
        loaded: Checkpoint,
        model: Any,  # noqa: ANN401
        evaluate: Callable[[Any], Evaluation],
    ) -> None:
        self._model = model
        self._evaluate = evaluate
        self._swapped = SwappedModel(model, setting.plan, loaded)

    def finetuned(self) -> Evaluation:
        return self._evaluate(self._model)

    def evaluate(self, decomposed: Decomposed, variant: Variant) -> Measured:
        rounding_error = self._swapped.put(decomposed, variant)
        return Measured(self._evaluate(self._model), rounding_error)
