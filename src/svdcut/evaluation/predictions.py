"""What a model predicted, and the file of it: a row for each row of the data."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svdcut.errors import UsageError
from svdcut.evaluation.answers import Answers, Kind
from svdcut.evaluation.dataset import Dataset
from svdcut.files.atomic_write import write_whole
from svdcut.shown import write_csv


@dataclass(frozen=True, slots=True)
class Predictions:
    """The label that a model gives each row of a dataset, and how sure it is."""

    kind: Kind
    answers: Answers
    predicted: tuple[str, ...]
    """One of the labels for each row; the first where several are equally likely."""

    scores: tuple[tuple[float, ...], ...]
    """For each row and label, the natural logarithm of its probability: of the class, or of
    the word given the prompt, which is divided by its length where that was asked for."""

    num_truncated: int
    """Rows that were too long for the model, and were cut."""

    chat_template: bool | None
    """Whether prompts were messages in a chat template; None of a classifier."""

    device: str
    dtype: str

    def matches(self, labels: Sequence[str]) -> list[bool]:
        """Return which rows have the right label."""
        return [ours == theirs for ours, theirs in zip(self.predicted, labels, strict=True)]


def check_suffix(path: Path) -> None:
    """Refuse a name that says no format.

    Raises
    ------
    UsageError
        If it ends neither in ``.csv`` nor in ``.jsonl``.
    """
    if path.suffix not in _WRITERS:
        raise UsageError(
            f"--predictions {path}: expected a name that ends in {' or '.join(_WRITERS)}"
        )


def save_predictions(predictions: Predictions, dataset: Dataset, path: Path) -> None:
    """Write predictions beside labels and groups.

    Parameters
    ----------
    predictions : Predictions
        Of the dataset.
    dataset : Dataset
        What was predicted.
    path : Path
        A ``.csv`` file, whose columns are ``row``, ``label``, ``predicted``, ``correct`` (1
        or 0), ``groups`` (with ``;`` between them), the further columns of the data, and
        ``score:LABEL`` for each label; or a ``.jsonl`` file of objects with the same keys,
        where ``columns`` and ``scores`` are objects and ``groups`` is a list.

    Raises
    ------
    OutputError
        If it cannot be written; what was there is as before.
    """
    write_whole(path, lambda place: _WRITERS[path.suffix](place, _rows(predictions, dataset)))


def _rows(predictions: Predictions, dataset: Dataset) -> Iterator[dict[str, Any]]:
    labels = predictions.answers.labels
    # Labels have a place of their own.
    extra = {
        name: dataset.table[name]
        for name in dataset.columns.values
        if dataset.table[name] != dataset.labels
    }
    for place, number in enumerate(dataset.rows):
        label, predicted = dataset.labels[place], predictions.predicted[place]
        yield {
            "row": number,
            "label": label,
            "predicted": predicted,
            "correct": predicted == label,
            "groups": list(dataset.groups[place]),
            "columns": {name: values[place] for name, values in extra.items()},
            "scores": dict(zip(labels, predictions.scores[place], strict=True)),
        }


def _write_jsonl(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)


def _write_csv(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    write_csv(path, map(_flat, rows))


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    own = {key: row[key] for key in ("row", "label", "predicted")}
    own |= {"correct": int(row["correct"]), "groups": ";".join(row["groups"])}
    scores = {f"score:{label}": score for label, score in row["scores"].items()}
    # A column of the data may be called as one of these: it is the one that gets another name.
    columns = {
        f"data:{name}" if name in own or name in scores else name: value
        for name, value in row["columns"].items()
    }
    return own | columns | scores


_WRITERS = {".csv": _write_csv, ".jsonl": _write_jsonl}
