"""The files of lm-evaluation-harness, as an evaluation.

Of the results, ``results_DATE.json``, it reads ``results``, ``group_subtasks`` and
``n-samples``; of the samples, ``samples_TASK_DATE.jsonl`` beside it, each row's ``filter``,
metric and ``doc``. Formats: ``lm_eval/loggers/evaluation_tracker.py`` and
``lm_eval/result_schema.py`` of version 0.4.13.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge
from pydantic import Field

from svdcut.errors import CheckpointError, DataError, EvaluationError
from svdcut.evaluation.dataset import Columns, Source, group_rows
from svdcut.evaluation.lines import Row
from svdcut.evaluation.metrics import Evaluation, GroupResult, evaluate_predictions
from svdcut.evaluation.tables import pick_cells, read_rows
from svdcut.files.jsonfile import Bounds, parse_dataclass, quoted, read_json

_METRICS = ("acc", "acc_norm", "exact_match", "accuracy")
"""Those that are accuracies, the first that a task has before others."""

_NO_FILTER = "none"
_BOUNDS = Bounds(num_bytes=256 << 20, num_values=5_000_000)
_START = "results_"
_MAX_LISTED = 10
_CLOSE = 1e-6
"""Within which two accuracies are the same."""

_OLD = "Formats are those of lm_eval 0.4.13: another version may write others."


@dataclass(frozen=True, slots=True)
class _Size:
    """How many samples of a task were evaluated."""

    effective: Annotated[int, Ge(1)]


@dataclass(frozen=True, slots=True)
class _Document:
    """What is read of a results file, by its keys."""

    results: Mapping[str, Mapping[str, Any]]
    """The metrics of each task, and of each group of tasks, by name."""

    n_samples: Annotated[Mapping[str, _Size], Field(alias="n-samples")]

    group_subtasks: Mapping[str, list[str]] = field(default_factory=dict)
    """The parts of each group; lm_eval leaves it out for some tasks, where there are none."""


@dataclass(frozen=True, slots=True)
class _Score:
    """An accuracy: of a task, or of a group of tasks that gives one."""

    name: str
    metric: str
    filter: str
    result: GroupResult
    tasks: tuple[str, ...]
    """What it is of: the task itself, or those of the group."""


@dataclass(frozen=True, slots=True)
class _Sample:
    """One row of a samples file."""

    place: str
    is_right: bool
    cells: Row
    """Of its document."""


def read_harness(folder: Path, columns: Columns, *, seed: int = 0) -> Evaluation:
    """Return the evaluation that lm_eval wrote into a folder.

    The accuracy is the first there is of ``acc``, ``acc_norm``, ``exact_match`` and
    ``accuracy``; where it is given by filters, that of filter ``none``, or else of the first
    in the file. A group of tasks counts by its own accuracy, if it has one; where several
    accuracies remain they are the groups, and the accuracy is their mean, weighted by the
    numbers of samples.

    With columns, which are fields of the documents, it is instead of all samples, each
    counted alike, and by the groups that the columns make.

    Parameters
    ----------
    folder : Path
        What ``--output_path`` names.
    columns : Columns
        Groups, and what shortcuts do; without any, no samples are read.
    seed : int
        Of the intervals of gaps.

    Raises
    ------
    EvaluationError
        If the files are not there, are no such files, or tell no accuracy; or a sample is
        neither right nor wrong.
    """
    try:
        results = _Results(_find_results(folder))
        scores = list(results.scores())
        if not scores:
            raise EvaluationError(
                f"{results.path}: no tasks in it, where one is expected", hint=_OLD
            )
        if columns.grouping:
            return _from_samples(results, scores, columns, seed)
        return _from_scores(scores)
    except DataError as error:
        raise EvaluationError(error.what, hint=error.hint or _OLD) from error


def _find_results(folder: Path) -> Path:
    found = sorted(folder.rglob(f"{_START}*.json"))
    if len(found) == 1:
        return found[0]
    there = found or sorted(path for path in folder.rglob("*") if path.is_file())
    names = [quoted(str(path.relative_to(folder))) for path in there[:_MAX_LISTED]]
    more = f" and {len(there) - _MAX_LISTED} more" if len(there) > _MAX_LISTED else ""
    raise EvaluationError(
        f"--eval-command: expected one file {_START}DATE.json under {{out}}, found "
        f"{', '.join(names) or 'no file at all'}{more}",
        hint="lm_eval writes it with --output_path {out}, once for all --tasks. If it could "
        "not, it said so on stderr.",
    )


# Results


class _Results:
    """A results file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._document = _read_document(path)

    def samples_path(self, task: str) -> Path:
        """Return where the samples of a task are, if they are anywhere."""
        date = self.path.stem.removeprefix(_START)
        return self.path.with_name(f"samples_{task}_{date}.jsonl")

    def scores(self) -> Iterator[_Score]:
        """Yield what accuracies there are, none of them part of another."""
        parts = self._document.group_subtasks
        inner = {part for found in parts.values() for part in found}
        pending = [name for name in self._document.results if name not in inner]
        seen = set()
        while pending:
            name = pending.pop(0)
            key = _pick(self._metrics(name))
            if key is not None and name not in seen:
                tasks = self._tasks(name)
                yield _Score(name, *key, self.result(name, tasks, *key), tasks)
            elif key is None and name in parts and name not in seen:
                pending[:0] = parts[name]
            elif key is None and name not in parts:
                raise self._no_accuracy(name)
            seen.add(name)

    def result(self, name: str, tasks: Iterable[str], metric: str, filter_: str) -> GroupResult:
        """Return an accuracy of a task or a group, which is of the samples of some tasks."""
        key, sizes = f"{metric},{filter_}", self._document.n_samples
        value = self._metrics(name).get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise self._unexpected(f"{key} of {quoted(name)}", value, "a number from 0 to 1")
        for task in tasks:
            if task not in sizes:
                raise self._unexpected(f"n-samples of {quoted(task)}", None, '{"effective": N}')
        return GroupResult(float(value), sum(sizes[task].effective for task in tasks))

    def _metrics(self, name: str) -> Mapping[str, Any]:
        return self._document.results.get(name, {})

    def _tasks(self, name: str) -> tuple[str, ...]:
        """Return the tasks of a group and of the groups in it; of a task, itself."""
        all_parts = self._document.group_subtasks
        seen = {name: None}
        pending = [name]
        while pending:
            parts = [part for part in all_parts.get(pending.pop(), ()) if part not in seen]
            seen.update(dict.fromkeys(parts))
            pending += parts
        return tuple(found for found in seen if found not in all_parts)

    def _unexpected(self, what: str, found: object, expected: str) -> EvaluationError:
        return EvaluationError(
            f"{self.path}: {what}: {quoted(found)}, where {expected} is expected", hint=_OLD
        )

    def _no_accuracy(self, name: str) -> EvaluationError:
        keys = [key for key in self._metrics(name) if "," in key and "_stderr," not in key]
        found = ", ".join(keys[:_MAX_LISTED]) or "no metric"
        return EvaluationError(
            f"{self.path}: {quoted(name)} has no accuracy: expected one of {', '.join(_METRICS)}, "
            f"found {found}",
            hint="Name other tasks, or let a script of your own print an accuracy, without {out}.",
        )


def _read_document(path: Path) -> _Document:
    try:
        return parse_dataclass(_Document, read_json(path, _BOUNDS))
    except (CheckpointError, ValueError) as error:
        what = error.what if isinstance(error, CheckpointError) else f"{path}: {error}"
        raise EvaluationError(what, hint=f"It is no results file of lm_eval. {_OLD}") from error


def _pick(metrics: Iterable[str]) -> tuple[str, str] | None:
    """Return the metric that is the accuracy, and its filter; None if there is none."""
    keys = [key.partition(",") for key in metrics]
    for metric in _METRICS:
        filters = [name for found, comma, name in keys if comma and found == metric]
        if filters:
            return metric, _NO_FILTER if _NO_FILTER in filters else filters[0]
    return None


def _from_scores(scores: list[_Score]) -> Evaluation:
    if len(scores) == 1:
        (found,) = (score.result for score in scores)
        return Evaluation(found.accuracy, found.size)
    groups = {score.name: score.result for score in sorted(scores, key=lambda score: score.name)}
    size = sum(found.size for found in groups.values())
    mean = math.fsum(found.accuracy * found.size for found in groups.values()) / size
    return Evaluation(min(mean, 1.0), size, groups)


# Samples


def _from_samples(
    results: _Results, scores: list[_Score], columns: Columns, seed: int
) -> Evaluation:
    wanted = columns.grouping
    asked = dict.fromkeys((task, s.metric, s.filter) for s in scores for task in s.tasks)
    samples = [sample for key in asked for sample in _read_samples(results, *key, wanted)]
    source = Source(f"{results.path.parent}: samples", lambda number: samples[number - 1].place)
    grouping = group_rows(source, (sample.cells for sample in samples), columns)
    return evaluate_predictions([sample.is_right for sample in samples], grouping, seed=seed)


def _read_samples(
    results: _Results, task: str, metric: str, filter_name: str, wanted: tuple[str, ...]
) -> list[_Sample]:
    path = results.samples_path(task)
    if not path.exists():
        raise EvaluationError(
            f"{path}: no such file: the samples of {quoted(task)} are expected there, for "
            f"{', '.join(map(quoted, wanted))}",
            hint="Add --log_samples to the command, or leave out --group and its kin.",
        )
    samples = []
    for number, row in enumerate(read_rows(path, ("doc", "filter", metric)), 1):
        document, found, value = row
        if found == filter_name:
            place = f"{path}: row {number}"
            is_right = _is_right(place, metric, value)
            samples.append(_Sample(place, is_right, pick_cells(f"{place}: doc", document, wanted)))
    expected = results.result(task, (task,), metric, filter_name)
    _refuse_other(path, f"{metric},{filter_name}", samples, expected)
    return samples


def _is_right(place: str, metric: str, value: object) -> bool:
    if isinstance(value, (int, float)) and value in {0, 1}:
        return bool(value)
    raise EvaluationError(
        f"{place}: {metric}: {quoted(value)}, where 0 or 1 is expected",
        hint="Groups are counted over what is right or wrong. Leave out --group and its kin, or "
        "choose a task whose samples are.",
    )


def _refuse_other(path: Path, key: str, samples: list[_Sample], expected: GroupResult) -> None:
    """Refuse samples that the results are not of: a part of them, or of another run."""
    num_right = sum(sample.is_right for sample in samples)
    accuracy, size = expected.accuracy, expected.size
    if len(samples) != size or not math.isclose(num_right / size, accuracy, abs_tol=_CLOSE):
        raise EvaluationError(
            f"{path}: {num_right} of {len(samples)} samples right by {key}, where the results "
            f"say {accuracy:.6g} of {size}",
            hint="The accuracy is to be the mean over the samples: the task has another "
            "aggregation, or the file is not whole. Leave out --group and its kin.",
        )
