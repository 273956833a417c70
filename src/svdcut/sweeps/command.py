"""Evaluate cuts by a command: write a checkpoint, run the command, read what it reports.

A command prints JSON, or has lm-evaluation-harness write ``results_DATE.json``, of which
``results``, ``group_subtasks`` and ``n-samples`` are read. Format of that file:
``lm_eval/loggers/evaluation_tracker.py`` and ``lm_eval/result_schema.py`` of version 0.4.13.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge
from pydantic import Field

from svdcut.errors import CheckpointError, EvaluationError
from svdcut.evaluation.metrics import Evaluation, GroupResult
from svdcut.files.jsonfile import Bounds, parse_dataclass, quoted, read_json
from svdcut.pair.pairing import Pair
from svdcut.pair.plan import Output
from svdcut.record.progress import Observer
from svdcut.record.provenance import InputHashes
from svdcut.sweeps.decomposition import Decomposition
from svdcut.sweeps.options import SweepRequest
from svdcut.sweeps.result import Measured, Variant, read_outcome
from svdcut.truncation.reconstruction import CutMatrix
from svdcut.truncation.run import run_truncation
from svdcut.truncation.tensor_job import Job

CHECKPOINT_NAME = "checkpoint"
"""Name of the folder, within the sweep's own, that a command evaluates."""

_MAX_SAID = 300
"""Characters of its output that a message quotes."""

_STDERR = 2
_PLACEHOLDER = re.compile(r"\{(model|out)\}")

_METRICS = ("acc", "acc_norm", "exact_match", "accuracy")
"""Metrics that are accuracies; the first that a task has counts."""

_NO_FILTER = "none"
_BOUNDS = Bounds(num_bytes=256 << 20, num_values=5_000_000)
_HINT = (
    "Expected is what lm_eval 0.4.13 writes with --output_path {out}. A script of your own may "
    "print an accuracy instead, without {out}."
)


@dataclass(frozen=True, slots=True)
class CommandBench:
    """Writes checkpoints one at a time, evaluates them, and removes them."""

    request: SweepRequest
    hashes: InputHashes
    observe: Observer

    def finetuned(self) -> Evaluation:
        """Evaluate the fine-tuned side; an adapter is merged for that."""
        with self.request.loadable(self.observe, self.hashes) as finetuned:
            folder = finetuned.directory or finetuned.files[0].path
            return self._run(folder, finetuned.source)

    def evaluate(self, decomposed: Decomposition, variant: Variant) -> Measured:
        """Write a cut as a checkpoint, and evaluate that."""
        request = self.request

        def cut(job: Job, pair: Pair) -> Iterator[list[CutMatrix]]:
            return ([matrix] for matrix in decomposed.cut_tensor(variant, pair, job.device))

        with _own_folder(request.options.out / CHECKPOINT_NAME) as folder:
            (made,) = run_truncation(
                request.plan,
                [Output(folder, variant.rule, restart=True)],
                replace(request.shape, keep=variant.keep),
                self.hashes,
                cutter=cut,
            )
            return Measured(self._run(folder, str(folder)), made.totals.rounding_error)

    def _run(self, model: Path, name: str) -> Evaluation:
        """Evaluate a checkpoint; `name` is the user's name for it."""
        called = f"--eval-command on {name}"
        command = self.request.options.eval_command or ""
        if "{out}" not in command:
            return _read_stdout(self._call(command, called, model), called)
        with _own_folder((self.request.options.out / "evaluation").resolve()) as out:
            out.mkdir(parents=True)
            self._call(command, called, model, out)
            return read_harness(out)

    def _call(self, command: str, called: str, model: Path, out: Path | None = None) -> str:
        """Run the command; return what it prints on stdout, unless it writes to `out`."""
        values = {"model": str(model), "out": str(out)}
        words = [
            _PLACEHOLDER.sub(lambda match: values[match[1]], word) for word in shlex.split(command)
        ]
        aside = subprocess.DEVNULL if self.request.options.quiet else _STDERR
        stdout = subprocess.PIPE if out is None else aside
        try:
            done = subprocess.run(
                words, stdout=stdout, encoding="utf-8", errors="replace", check=False
            )
        except OSError as error:
            raise EvaluationError(f"--eval-command: cannot run {words[0]!r}: {error}") from error
        if done.returncode:
            raise EvaluationError(
                f"{called}: exit code {done.returncode}",
                hint="What it said on stderr is above.",
            )
        return done.stdout or ""


@contextmanager
def _own_folder(path: Path) -> Iterator[Path]:
    """Yield a path with nothing there, and remove what is there in the end."""
    shutil.rmtree(path, ignore_errors=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _read_stdout(said: str, called: str) -> Evaluation:
    try:
        document = json.loads(said)
    except (ValueError, RecursionError) as error:
        raise EvaluationError(
            f"{called}: expected one JSON document on stdout, found {said[:_MAX_SAID]!r}",
            hint='As {"accuracy": 0.9}; for files of lm_eval, name {out} in the command.',
        ) from error
    return read_outcome(document, called)


# The results of lm-evaluation-harness


@dataclass(frozen=True, slots=True)
class _Size:
    """The number of samples of a task that were evaluated."""

    effective: Annotated[int, Ge(1)]


@dataclass(frozen=True, slots=True)
class _Results:
    """The parts of a results file that are read."""

    results: Mapping[str, Mapping[str, Any]]
    """The metrics of each task and of each group of tasks, by name."""

    n_samples: Annotated[Mapping[str, _Size], Field(alias="n-samples")]

    group_subtasks: Mapping[str, list[str]] = field(default_factory=dict)
    """The parts of each group; lm_eval may leave this out if there are no groups."""

    def parts(self, name: str) -> set[str]:
        """Return the groups and tasks in a group, at any depth; a task has none."""
        found: set[str] = set()
        pending = [name]
        while pending:
            parts = set(self.group_subtasks.get(pending.pop(), ())) - found
            found |= parts
            pending += parts
        return found

    def score(self, name: str) -> GroupResult | None:
        """Return the accuracy of a task or a group, if it has one; raise `ValueError` if wrong."""
        key = _accuracy_key(self.results[name])
        if key is None:
            return None
        value = self.results[name][key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ValueError(f"{key} of {quoted(name)}: {quoted(value)}: expected 0 to 1")
        tasks = self.parts(name) - self.group_subtasks.keys() or {name}
        if missing := sorted(tasks - self.n_samples.keys()):
            raise ValueError(f"n-samples of {quoted(missing[0])}: missing")
        return GroupResult(float(value), sum(self.n_samples[task].effective for task in tasks))


def read_harness(folder: Path) -> Evaluation:
    """Return the evaluation that lm_eval wrote into the folder of ``--output_path``.

    The accuracy of a task is its first metric of ``acc``, ``acc_norm``, ``exact_match`` and
    ``accuracy``, under filter ``none`` or else the first one in the file. A group of tasks counts
    by its own accuracy, if it has one. If several accuracies remain, they become the groups, and
    the accuracy is their mean, weighted by the numbers of samples.

    Raises
    ------
    EvaluationError
        If there is not exactly one results file, or it has no accuracy.
    """
    found = sorted(folder.rglob("results_*.json"))
    if len(found) != 1:
        raise EvaluationError(
            f"--eval-command: {len(found)} files results_DATE.json under {{out}}, where one is "
            "expected",
            hint=_HINT,
        )
    (path,) = found
    try:
        return _evaluation(parse_dataclass(_Results, read_json(path, _BOUNDS)))
    except CheckpointError as error:
        raise EvaluationError(error.what, hint=_HINT) from error
    except ValueError as error:
        raise EvaluationError(f"{path}: {error}", hint=_HINT) from error


def _evaluation(document: _Results) -> Evaluation:
    scores = {name: document.score(name) for name in sorted(document.results)}
    inner = {part for name, score in scores.items() if score for part in document.parts(name)}
    found = {name: score for name, score in scores.items() if score and name not in inner}
    silent = scores.keys() - found.keys() - inner - document.group_subtasks.keys()
    if silent or not found:
        name = min(silent, default="it")
        raise ValueError(f"{quoted(name)} has no accuracy: expected one of {', '.join(_METRICS)}")
    if len(found) == 1:
        (score,) = found.values()
        return Evaluation(score.accuracy, score.size)
    size = sum(score.size for score in found.values())
    mean = math.fsum(score.accuracy * score.size for score in found.values()) / size
    return Evaluation(min(mean, 1.0), size, found)


def _accuracy_key(metrics: Iterable[str]) -> str | None:
    """Return the key, ``METRIC,FILTER``, of the metric that is the accuracy."""
    for metric in _METRICS:
        keys = [key for key in metrics if key.startswith(f"{metric},")]
        if keys:
            plain = f"{metric},{_NO_FILTER}"
            return plain if plain in keys else keys[0]
    return None
