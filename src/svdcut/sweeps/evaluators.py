"""How each cut of a sweep is evaluated: on data, by a function, or by a command."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

from svdcut.checkpoint import Checkpoint
from svdcut.errors import EvaluationError
from svdcut.evaluation.dataset import Columns, Dataset
from svdcut.evaluation.metrics import Evaluation, evaluate_predictions
from svdcut.evaluation.model import find_kind, load_model
from svdcut.evaluation.scores import ScoringOptions
from svdcut.evaluation.scoring import load_predictor
from svdcut.options import Options
from svdcut.plan import Output, Plan
from svdcut.progress import Observer
from svdcut.provenance import InputHashes
from svdcut.sweeps.facts import Variant
from svdcut.sweeps.harness import read_harness
from svdcut.sweeps.outcome import read_outcome
from svdcut.sweeps.stored import Decomposed
from svdcut.sweeps.swap import SwappedModel
from svdcut.truncation import run_truncation

CHECKPOINT_NAME = "checkpoint"
"""Of the folder, within that of a sweep, that a command evaluates."""

_MAX_SAID = 300
"""Characters of what a failed command said."""

_STDERR = 2
_PLACEHOLDER = re.compile(r"\{(model|out)\}")


class Bench(Protocol):
    """A place where cuts are evaluated; the fine-tuned side comes first."""

    def finetuned(self) -> Evaluation:
        """Evaluate the fine-tuned side as it is."""

    def evaluate(self, decomposed: Decomposed, variant: Variant) -> Evaluation:
        """Evaluate a cut."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a bench is set up with."""

    plan: Plan
    options: Options
    folder: Path
    """Of the sweep."""

    loadable: Callable[[], AbstractContextManager[Checkpoint]]
    """Gives the fine-tuned side as a model can be loaded from it: an adapter merged."""

    quiet: bool
    observe: Observer
    """Told of each batch that is done."""


class Evaluator(Protocol):
    """How cuts are evaluated."""

    writes_checkpoints: ClassVar[bool]
    """Whether each cut is written as a checkpoint, so that no factors are kept."""

    def identity(self) -> dict[str, str]:
        """Return what shapes an evaluation, in words."""

    def open(self, setting: Setting) -> Bench:
        """Set up a bench; the model is loaded now, if it is to be."""


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
        with setting.loadable() as loaded:
            predictor = load_predictor(loaded, self.dataset, self.options, quiet=setting.quiet)

            def evaluate(_model: Any) -> Evaluation:  # noqa: ANN401
                found = predictor.predict(setting.observe)
                correct = found.matches(self.dataset.labels)
                return evaluate_predictions(
                    correct, self.dataset, seed=self.seed, num_truncated=found.num_truncated
                )

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
        with setting.loadable() as loaded:
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

    def evaluate(self, decomposed: Decomposed, variant: Variant) -> Evaluation:
        self._swapped.put(decomposed, variant)
        return self._evaluate(self._model)


@dataclass(frozen=True, slots=True)
class CommandEvaluator:
    """Evaluates by a command of the user's own, on checkpoints that are written for it."""

    writes_checkpoints: ClassVar[bool] = True

    command: str
    """With ``{model}`` where the folder of the checkpoint goes, and perhaps ``{out}`` for an
    empty folder, from which the files of lm-evaluation-harness are read then."""

    columns: Columns
    """Of the documents in those files."""

    seed: int
    """Of the intervals of gaps."""

    @property
    def writes_files(self) -> bool:
        """Whether the outcome is in files, and not on stdout."""
        return "{out}" in self.command

    def identity(self) -> dict[str, str]:
        """Return the command, and the options by which its files are read."""
        command = {"--eval-command": self.command}
        if not (self.writes_files and self.columns.grouping):
            return command
        columns = self.columns
        named = {
            "--group": columns.group,
            "--group-columns": columns.group_columns,
            "--label": (columns.label,) if columns.group_columns else (),
            "--aligned": () if columns.aligned is None else (columns.aligned,),
        }
        given = {option: shlex.join(names) for option, names in named.items() if names}
        return {**command, **given, "evaluation --seed": str(self.seed)}

    def open(self, setting: Setting) -> Bench:
        """Set up; no model is loaded."""
        return _OnDisk(setting, self)


@dataclass(frozen=True, slots=True)
class _OnDisk:
    """Evaluates checkpoints that are written, one at a time, and removed."""

    setting: Setting
    evaluator: CommandEvaluator

    def finetuned(self) -> Evaluation:
        with self.setting.loadable() as finetuned:
            folder = finetuned.directory or finetuned.files[0].path
            return self._run(folder, finetuned.source)

    def evaluate(self, decomposed: Decomposed, variant: Variant) -> Evaluation:
        setting = self.setting
        folder = setting.folder / CHECKPOINT_NAME
        shutil.rmtree(folder, ignore_errors=True)
        options = replace(setting.options, keep=variant.keep)
        with InputHashes(setting.plan) as hashes:
            output = Output(folder, variant.rule, restart=True)
            cutter = decomposed.cut_tensor if decomposed.describes(variant) else None
            run_truncation(setting.plan, [output], options, hashes, cutter=cutter)
        try:
            return self._run(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _run(self, model: Path, name: str | None = None) -> Evaluation:
        """Evaluate a checkpoint; `name` is what the user calls it."""
        evaluator, called = self.evaluator, f"--eval-command on {name or model}"
        if not evaluator.writes_files:
            return _read_stdout(self._call(called, model), called)
        out = (self.setting.folder / "evaluation").resolve()
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        try:
            self._call(called, model, out)
            return read_harness(out, evaluator.columns, seed=evaluator.seed)
        finally:
            shutil.rmtree(out, ignore_errors=True)

    def _call(self, called: str, model: Path, out: Path | None = None) -> str:
        """Run the command; return what it says on stdout, unless it writes to `out`."""
        values = {"model": str(model), "out": str(out)}
        words = [
            _PLACEHOLDER.sub(lambda match: values[match[1]], word)
            for word in shlex.split(self.evaluator.command)
        ]
        aside = subprocess.DEVNULL if self.setting.quiet else _STDERR
        stdout = subprocess.PIPE if out is None else aside
        try:
            done = subprocess.run(words, stdout=stdout, text=True, check=False)
        except OSError as error:
            raise EvaluationError(f"--eval-command: cannot run {words[0]!r}: {error}") from error
        if done.returncode:
            raise EvaluationError(
                f"{called}: exit code {done.returncode}",
                hint="What it said on stderr is above.",
            )
        return done.stdout or ""


def _read_stdout(said: str, called: str) -> Evaluation:
    try:
        document = json.loads(said)
    except ValueError as error:
        raise EvaluationError(
            f"{called}: expected one JSON document on stdout, found {said[:_MAX_SAID]!r}",
            hint='As {"accuracy": 0.9}; for files of lm_eval, name {out} in the command.',
        ) from error
    return read_outcome(document, called)
