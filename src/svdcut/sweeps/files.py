"""A sweep as files: JSON, a table, and a picture."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from svdcut.evaluation.metrics import Evaluation
from svdcut.files.atomic_write import write_whole
from svdcut.shown import safe_cell
from svdcut.sweeps.facts import Sweep

JSON_NAME = "sweep.json"
CSV_NAME = "sweep.csv"
PICTURE_NAME = "sweep.png"
_CUT = ("keep", "rank", "full_rank", "energy_retained", "rounding_share")
"""Columns of what a row cuts; the ends have none."""


def save_sweep(sweep: Sweep, folder: Path) -> None:
    """Write ``sweep.json`` and ``sweep.csv``; what is there is replaced.

    Raises
    ------
    OutputError
        If one cannot be written.
    """
    text = json.dumps(sweep.to_json(), indent=1, allow_nan=False) + "\n"
    write_whole(folder / JSON_NAME, lambda path: path.write_text(text, encoding="utf-8"))
    write_whole(folder / CSV_NAME, lambda path: _write_csv(sweep, path))


def _write_csv(sweep: Sweep, path: Path) -> None:
    rows = list(_rows(sweep))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(map(safe_cell, rows[0]))
        writer.writerows(map(safe_cell, row.values()) for row in rows)


def _rows(sweep: Sweep) -> Iterator[dict[str, object]]:
    """Yield a line for each end and each row; nothing where a number is undefined."""
    groups = list(sweep.finetuned.groups)
    ends = {"base": sweep.base, "finetuned": sweep.finetuned}
    for name, evaluation in ends.items():
        yield {"rule": name, **dict.fromkeys(_CUT)} | _numbers(evaluation, groups)
    for row in sweep.rows:
        yield {
            "rule": str(row.variant.rule),
            **{name: value for name, value in row.to_json().items() if name in _CUT},
        } | _numbers(row.evaluation, groups)


def _numbers(evaluation: Evaluation, groups: list[str]) -> dict[str, object]:
    interval, gap = evaluation.interval, evaluation.gap
    between = evaluation.intervals.get("best_worst")
    found = {name: evaluation.groups.get(name) for name in groups}
    return {
        "accuracy": evaluation.accuracy,
        "accuracy_low": interval.low,
        "accuracy_high": interval.high,
        "size": evaluation.size,
        "worst_group": evaluation.worst_group,
        "worst_group_accuracy": evaluation.worst_group_accuracy,
        "gap_best_worst": gap.best_worst,
        "gap_best_worst_low": None if between is None else between.low,
        "gap_best_worst_high": None if between is None else between.high,
        "gap_average_worst": gap.average_worst,
        "gap_aligned_conflicting": gap.aligned_conflicting,
        **{f"accuracy:{name}": group and group.accuracy for name, group in found.items()},
    }
