"""Accuracies from the results file of lm-evaluation-harness.

Of ``results_DATE.json`` it reads ``results``, ``group_subtasks`` and ``n-samples``. Format:
``lm_eval/loggers/evaluation_tracker.py`` and ``lm_eval/result_schema.py`` of version 0.4.13.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge
from pydantic import Field

from svdcut.errors import CheckpointError, EvaluationError
from svdcut.evaluation.metrics import Evaluation, GroupResult
from svdcut.files.jsonfile import Bounds, parse_dataclass, quoted, read_json

_METRICS = ("acc", "acc_norm", "exact_match", "accuracy")
"""Metrics that are accuracies, in the order in which they are looked for."""

_NO_FILTER = "none"
_BOUNDS = Bounds(num_bytes=256 << 20, num_values=5_000_000)
_HINT = (
    "Expected is what lm_eval 0.4.13 writes with --output_path {out}. A script of your own may "
    "print an accuracy instead, without {out}."
)


@dataclass(frozen=True, slots=True)
class _Size:
    """How many samples of a task were evaluated."""

    effective: Annotated[int, Ge(1)]


@dataclass(frozen=True, slots=True)
class _Results:
    """What is read of a results file, by its keys."""

    results: Mapping[str, Mapping[str, Any]]
    """The metrics of each task, and of each group of tasks, by name."""

    n_samples: Annotated[Mapping[str, _Size], Field(alias="n-samples")]

    group_subtasks: Mapping[str, list[str]] = field(default_factory=dict)
    """The parts of each group; lm_eval leaves it out for some tasks, where there are none."""

    def parts(self, name: str) -> set[str]:
        """Return the groups and tasks in a group, at any depth; of a task, nothing."""
        found: set[str] = set()
        pending = [name]
        while pending:
            parts = set(self.group_subtasks.get(pending.pop(), ())) - found
            found |= parts
            pending += parts
        return found

    def score(self, name: str) -> GroupResult | None:
        """Return the accuracy of a task or a group, if it has one.

        Raises
        ------
        ValueError
            If it makes no sense.
        """
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
    """Return the evaluation that lm_eval wrote into a folder.

    The accuracy is the first there is of ``acc``, ``acc_norm``, ``exact_match`` and
    ``accuracy``; where it is given by filters, that of filter ``none``, or else of the first
    in the file. A group of tasks counts by its own accuracy, if it has one; where several
    accuracies remain they are the groups, and the accuracy is their mean, weighted by the
    numbers of samples.

    Parameters
    ----------
    folder : Path
        What ``--output_path`` names.

    Raises
    ------
    EvaluationError
        If there is not one results file, or it tells no accuracy.
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
