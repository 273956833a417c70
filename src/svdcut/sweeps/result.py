"""What a sweep measures, as data and as files. It imports no torch, and draws no picture."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svdcut.choose.keep import Keep
from svdcut.choose.ranks import FULL, NOTHING, Rule, parse_rule
from svdcut.evaluation.metrics import Evaluation
from svdcut.files.atomic_write import write_whole
from svdcut.record.summary import puts_much_back
from svdcut.shown import brief, write_csv

SCHEMA = "svdcut/sweep/1"

JSON_NAME = "sweep.json"
CSV_NAME = "sweep.csv"
PICTURE_NAME = "sweep.png"


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to cut all tensors."""

    rule: Rule
    keep: Keep = Keep.TOP

    def __str__(self) -> str:
        return str(self.rule) if self.keep is Keep.TOP else f"{self.keep.value} {self.rule}"

    @property
    def is_end(self) -> bool:
        """Whether it keeps nothing or everything, so that it does not matter what is kept."""
        return self.rule in (NOTHING, FULL)


BASE = Variant(NOTHING)
"""No update at all: base's matrices, with the head and the biases of the fine-tuned side."""


@dataclass(frozen=True, slots=True)
class Row:
    """One cut: what it keeps of all matrices together, and how the model does with it."""

    variant: Variant
    rank: int
    """Triplets that are kept."""

    full_rank: int
    energy_retained: float | None
    """Share of the squared singular values; None where the two sides do not differ."""

    rounding_share: float | None
    """Norm of what storage rounds, over that of what was cut; None where nothing was."""

    evaluation: Evaluation

    @property
    def is_cut(self) -> bool:
        """Whether anything is left out."""
        return self.rank < self.full_rank

    @property
    def puts_much_back(self) -> bool:
        """Whether storage brings back much of what was cut."""
        if self.rounding_share is None or self.energy_retained is None:
            return False
        tail = math.sqrt(max(1 - self.energy_retained, 0.0))
        return puts_much_back(self.rounding_share * tail, tail, 1.0)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return self.cut_to_json() | self.evaluation.to_json()

    def cut_to_json(self) -> dict[str, Any]:
        """Return the part of the JSON object that tells the cut."""
        return {
            "rule": str(self.variant.rule),
            "keep": self.variant.keep.value,
            "rank": self.rank,
            "full_rank": self.full_rank,
            "energy_retained": self.energy_retained,
            "rounding_share": self.rounding_share,
        }

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Row:
        """Return the row that `to_json` made this of."""
        numbers = ("rank", "full_rank", "energy_retained", "rounding_share")
        variant = Variant(parse_rule(document["rule"]), Keep(document["keep"]))
        cut = {name: document[name] for name in numbers}
        return Row(variant=variant, evaluation=Evaluation.from_json(document), **cut)


@dataclass(frozen=True, slots=True)
class Sweep:
    """Both ends, all cuts between them, and the rank to use."""

    __repr__ = brief

    base: Evaluation
    """At rank 0, as ``truncate -k 0`` writes it: with the fine-tuned head and biases."""

    finetuned: Evaluation
    rows: tuple[Row, ...]
    """In the order that was asked for; controls follow."""

    tolerance: float
    """How much accuracy a cut may cost."""

    chosen: Row | None
    """The smallest rank within the tolerance; no group label was looked at."""

    chosen_with_groups: Row | None
    """The smallest gap within the tolerance: a choice by group labels."""

    answer: tuple[str, ...]
    """The same in words, a sentence each."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object, as ``sweep.json`` holds it."""
        return {
            "schema": SCHEMA,
            "base": self.base.to_json(),
            "finetuned": self.finetuned.to_json(),
            "rows": [row.to_json() for row in self.rows],
            "tolerance": self.tolerance,
            "chosen": _choice(self.chosen, needs_group_labels=False),
            "chosen_with_groups": _choice(self.chosen_with_groups, needs_group_labels=True),
            "answer": list(self.answer),
        }

    def save(self, folder: Path) -> None:
        """Write ``sweep.json`` and ``sweep.csv``; what is there is replaced.

        Raises
        ------
        OutputError
            If one cannot be written.
        """
        text = json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n"
        write_whole(folder / JSON_NAME, lambda path: path.write_text(text, encoding="utf-8"))
        write_whole(folder / CSV_NAME, lambda path: write_csv(path, self._lines()))

    def _lines(self) -> Iterator[dict[str, object]]:
        """Yield the cells of each end and each row; None where a number is undefined."""
        names = list(self.finetuned.groups)
        no_cut = dict.fromkeys(self.rows[0].cut_to_json())
        for name, end in (("base", self.base), ("finetuned", self.finetuned)):
            yield no_cut | {"rule": name} | _cells(end, names)
        for row in self.rows:
            yield row.cut_to_json() | _cells(row.evaluation, names)


def _choice(row: Row | None, *, needs_group_labels: bool) -> dict[str, Any] | None:
    if row is None:
        return None
    document = row.to_json()
    start = {name: document.pop(name) for name in ("rule", "keep", "rank")}
    return {**start, "needs_group_labels": needs_group_labels, **document}


def _cells(evaluation: Evaluation, names: list[str]) -> dict[str, object]:
    interval, gap = evaluation.interval, evaluation.gap
    between = evaluation.intervals.get("best_worst")
    groups = {name: evaluation.groups.get(name) for name in names}
    return {
        "accuracy": evaluation.accuracy,
        "accuracy_low": interval.low,
        "accuracy_high": interval.high,
        "size": evaluation.size,
        "worst_group": evaluation.worst_group,
        "worst_group_accuracy": evaluation.worst_group_accuracy,
        "gap_best_worst": gap.best_worst,
        "gap_best_worst_low": between and between.low,
        "gap_best_worst_high": between and between.high,
        "gap_average_worst": gap.average_worst,
        "gap_aligned_conflicting": gap.aligned_conflicting,
        **{f"accuracy:{name}": group and group.accuracy for name, group in groups.items()},
    }
