"""Make a manifest of the facts of its tensors; sum it up, by groups that fit on a screen.

Tensors whose names differ in numbers alone are one group. It formats no table.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone

from svdcut import __version__
from svdcut.choose.options import Options
from svdcut.choose.ranks import Rule
from svdcut.names import collapse_numbers
from svdcut.pair.pairing import Pairing
from svdcut.pair.plan import Plan
from svdcut.record.manifest import (
    Manifest,
    MatchingFact,
    Source,
    TensorFact,
    Totals,
    Truncation,
)

_ROUNDING_SHARE = 0.1
"""Rounding above this share of what was cut deserves a warning."""

_HARMLESS_ROUNDING = 1e-6
"""Rounding below this share of the update's norm is float32's own, and cannot be avoided."""


def describe_run(
    plan: Plan,
    options: Options,
    rule: Rule,
    facts: Mapping[str, TensorFact],
    sources: tuple[Source, Source],
    machinery: Mapping[str, str],
    seconds: float,
) -> Manifest:
    """Return the manifest of one output, without its command and its files."""
    return Manifest(
        svdcut_version=__version__,
        torch_version=machinery["torch"],
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        device=machinery["device"],
        command=(),
        base=sources[0],
        finetuned=sources[1],
        options=options.to_json(rule),
        totals=sum_totals(facts, seconds),
        tensors=facts,
        base_only=plan.pairing.base_only,
        matching=describe_matching(plan.pairing),
    )


def describe_matching(pairing: Pairing) -> MatchingFact:
    """Return how the tensors of both sides were matched."""
    matching = pairing.matching
    return MatchingFact(matching.renames, matching.wrappers, pairing.unmatched)


def sum_totals(facts: Mapping[str, TensorFact], seconds: float) -> Totals:
    """Return the sums over all tensors."""
    cuts = [fact.truncation for fact in facts.values() if fact.truncation]
    norm = math.hypot(*(cut.update_norm for cut in cuts))
    tail = math.hypot(*(cut.tail_norm for cut in cuts))
    return Totals(
        tensors=len(facts),
        truncated=len(cuts),
        copied=len(facts) - len(cuts),
        rank=sum(sum(cut.ranks) for cut in cuts),
        full_rank=sum(cut.full_rank * len(cut.matrices) for cut in cuts),
        energy_retained=1 - (tail / norm) ** 2 if norm else None,
        tail_norm=tail,
        rounding_error=math.hypot(*(cut.rounding_error for cut in cuts)),
        parameters_kept=sum(fact.parameters_kept for fact in facts.values()),
        seconds=round(seconds, 3),
    )


@dataclass(frozen=True, slots=True)
class Group:
    """Truncated tensors of one kind."""

    name: str
    """Their common name, with ``*`` for the number of the layer."""

    shape: tuple[int, ...]
    ranks: tuple[int, ...]
    full_rank: int
    energy_retained: float
    tail_norm: float
    rounding_error: float
    count: int

    def rank_text(self) -> str:
        """Return the rank, or its range."""
        low, high = min(self.ranks), max(self.ranks)
        return str(low) if low == high else f"{low}-{high}"


def summarize(manifest: Manifest) -> list[Group]:
    """Return the groups of a manifest, in the order of the tensors."""
    gathered: dict[tuple[str, tuple[int, ...]], list[Truncation]] = {}
    for name, fact in manifest.tensors.items():
        if fact.truncation is not None:
            key = (collapse_numbers(name), fact.shape)
            gathered.setdefault(key, []).append(fact.truncation)
    return [_group(name, shape, members) for (name, shape), members in gathered.items()]


def _group(name: str, shape: tuple[int, ...], members: list[Truncation]) -> Group:
    norm = _norm(member.update_norm for member in members)
    tail = _norm(member.tail_norm for member in members)
    return Group(
        name=name,
        shape=shape,
        ranks=tuple(rank for member in members for rank in member.ranks),
        full_rank=members[0].full_rank,
        energy_retained=1 - (tail / norm) ** 2 if norm else 1.0,
        tail_norm=tail,
        rounding_error=_norm(member.rounding_error for member in members),
        count=len(members),
    )


def _norm(values: Iterable[float]) -> float:
    return math.hypot(*values)


def puts_much_back(rounding: float, tail: float, norm: float) -> bool:
    """Return whether rounding in storage brings back much of the tail, for an update of `norm`."""
    return rounding > max(_ROUNDING_SHARE * tail, _HARMLESS_ROUNDING * norm)
