"""Turn the results of a run into the facts of a manifest.

Arithmetic on numbers that others measured; no tensor passes through here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from svdcut.choose.cut import Cut, is_certified
from svdcut.choose.options import Options
from svdcut.choose.ranks import Rule
from svdcut.pair.pairing import Pair
from svdcut.pair.plan import Plan
from svdcut.record.manifest import MatrixFact, SvdFact, TensorFact, Totals, Truncation
from svdcut.svd.measured import MeasuredValues


@dataclass(frozen=True, slots=True)
class MatrixResult:
    """What was done to one matrix for one output."""

    cut: Cut
    measured: MeasuredValues
    rounding_square: float
    """Sum of squares of ``stored - intended``."""

    zero_fraction: float


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


def sum_totals(plan: Plan, records: Sequence[TensorFact], seconds: float) -> Totals:
    """Return the sums over all tensors."""
    rank = full_rank = parameters = 0
    truncations = []
    for planned, record in zip(plan.tensors, records, strict=True):
        if record.truncation is None:
            continue
        truncations.append(record.truncation)
        pair = planned.pair
        ranks = zip(record.truncation.ranks, pair.matrices, pair.full_ranks, strict=True)
        for k, shape, most in ranks:
            rank += k
            full_rank += most
            parameters += k * sum(shape)
    norm = math.hypot(*(t.update_norm for t in truncations))
    tail = math.hypot(*(t.tail_norm for t in truncations))
    return Totals(
        tensors=len(records),
        truncated=len(truncations),
        copied=len(records) - len(truncations),
        rank=rank,
        full_rank=full_rank,
        energy_retained=1 - (tail / norm) ** 2 if norm else None,
        tail_norm=tail,
        rounding_error=math.hypot(*(t.rounding_error for t in truncations)),
        parameters_kept=parameters,
        seconds=round(seconds, 3),
    )
