"""Predictions as a file, a row for each row of the data."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from svdcut.errors import UsageError
from svdcut.evaluation.dataset import Dataset
from svdcut.evaluation.scores import Predictions
from svdcut.files.atomic_write import write_whole
from svdcut.shown import safe_cell


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
    # The labels are among the columns of the data too; they have a place of their own.
    extra = {name: values for name, values in dataset.extra.items() if values != dataset.labels}
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
    writer = None
    with path.open("w", encoding="utf-8", newline="") as file:
        for row in map(_flat, rows):
            if writer is None:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(map(safe_cell, row))
            writer.writerow(map(safe_cell, row.values()))


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


_WRITERS: Mapping[str, Callable[[Path, Iterator[dict[str, Any]]], None]] = {
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
}
