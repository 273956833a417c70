"""What a sweep measures, as plain data. It imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from svdcut.choose.keep import Keep
from svdcut.choose.ranks import FULL, NOTHING, Rule, parse_rule
from svdcut.evaluation.metrics import Evaluation
from svdcut.record.summary import puts_much_back
from svdcut.shown import brief

SCHEMA = "svdcut/sweep/1"


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
class Cost:
    """What a cut keeps, over all matrices."""

    rank: int
    """How many triplets, of all matrices together."""

    full_rank: int
    energy_retained: float | None
    """Share of the squared singular values; None where the two sides do not differ."""

    @property
    def is_cut(self) -> bool:
        """Whether anything is left out."""
        return self.rank < self.full_rank


@dataclass(frozen=True, slots=True)
class Row:
    """One cut and how it does."""

    variant: Variant
    cost: Cost
    evaluation: Evaluation
    rounding_share: float | None = None
    """Norm of what storage rounds, over that of what was cut; None where nothing was."""

    @property
    def puts_much_back(self) -> bool:
        """Whether storage brings back much of what was cut."""
        energy = self.cost.energy_retained
        if self.rounding_share is None or energy is None:
            return False
        tail = math.sqrt(max(1 - energy, 0.0))
        return puts_much_back(self.rounding_share * tail, tail, 1.0)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            "rule": str(self.variant.rule),
            "keep": self.variant.keep.value,
            "rank": self.cost.rank,
            "full_rank": self.cost.full_rank,
            "energy_retained": self.cost.energy_retained,
            "rounding_share": self.rounding_share,
            **self.evaluation.to_json(),
        }

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Row:
        """Return the row that `to_json` made this of."""
        cost = Cost(*(document[name] for name in ("rank", "full_rank", "energy_retained")))
        variant = Variant(parse_rule(document["rule"]), Keep(document["keep"]))
        return Row(variant, cost, Evaluation.from_json(document), document["rounding_share"])


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


def _choice(row: Row | None, *, needs_group_labels: bool) -> dict[str, Any] | None:
    if row is None:
        return None
    document = row.to_json()
    start = {name: document.pop(name) for name in ("rule", "keep", "rank")}
    return {**start, "needs_group_labels": needs_group_labels, **document}
