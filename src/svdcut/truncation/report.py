"""Turn the results of a run into the facts of a manifest.

Arithmetic on numbers; it touches no tensor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from svdcut import __version__
from svdcut.choose.cut import Cut, is_certified
from svdcut.choose.options import Options
from svdcut.choose.ranks import Rule
from svdcut.pair.pairing import Pair
from svdcut.pair.plan import Plan
from svdcut.record.manifest import (
    Manifest,
    MatchingFact,
    MatrixFact,
    Source,
    SvdFact,
    TensorFact,
    Totals,
    Truncation,
)
from svdcut.svd.measured import MeasuredValues


@dataclass(frozen=True, slots=True)
class MatrixResult:
    """What was done to one matrix for one output."""

    cut: Cut
    measured: MeasuredValues
    zero_fraction: float
    equal_bytes: bool
    """Whether the two sides are stored alike to the last bit."""

    rounding_square: float = 0.0
    """Sum of squares of ``stored - intended``."""


def describe_truncation(
    pair: Pair,
    rule: Rule,
    options: Options,
    results: Sequence[MatrixResult],
) -> Truncation:
    """Return the facts of one tensor from those of its matrices."""
    cuts = [result.cut for result in results]
    kept = math.hypot(*(cut.kept_norm for cut in cuts))
    tail = math.hypot(*(cut.tail_norm for cut in cuts))
    norm = math.hypot(kept, tail)
    # The expert that needed the most care stands for the stack.
    hardest = max(results, key=lambda result: result.cut.bounds.excess)
    rejected = {route for result in results for route in result.measured.rejected}
    return Truncation(
        rule=str(rule),
        keep=options.keep.value,
        rows=pair.matrices[0][0],
        full_rank=pair.full_ranks[0],
        energy_retained=(kept / norm) ** 2 if norm else 1.0,
        update_norm=norm,
        tail_norm=tail,
        rounding_error=math.sqrt(math.fsum(result.rounding_square for result in results)),
        zero_fraction=math.fsum(r.zero_fraction for r in results) / len(results),
        svd=SvdFact(
            method=hardest.measured.method.value,
            proof=hardest.measured.proof.value,
            residual=max(cut.residual for cut in cuts),
            excess_bound=max(cut.bounds.excess for cut in cuts),
            value_bound=max(cut.bounds.value for cut in cuts),
            certified=all(is_certified(cut.bounds, options.tolerance) for cut in cuts),
            rejected=tuple(sorted(rejected)),
        ),
        matrices=tuple(
            MatrixFact(cut.rank, cut.sigma_first, cut.sigma_last_kept, cut.sigma_next, cut.edge)
            for cut in cuts
        ),
    )


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
    pairing = plan.pairing
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
        base_only=pairing.base_only,
        matching=MatchingFact(
            pairing.matching.renames, pairing.matching.wrappers, pairing.unmatched
        ),
    )


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
