"""Where rank rules would cut: the rank and the energy that each would keep.

Pure arithmetic on spectra; it cuts nothing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from svdcut.choose.ranks import Energy, Fixed, Noise, Rule, parse_rules
from svdcut.spectra.columns import ABOVE_NOISE_EDGE
from svdcut.spectra.facts import Spectra
from svdcut.spectra.matrix import Spectrum, head_rank

RULES = parse_rules("4,16,64,256,energy=0.9,energy=0.99,noise")
"""Rules that a user is likely to try."""


@dataclass(frozen=True, slots=True)
class CutPoint:
    """Ranks and energy that one rule would keep."""

    rule: Rule
    lowest: int
    """Rank of the matrix that keeps least."""

    median: float
    highest: int
    rank: int
    """Sum over all matrices."""

    full_rank: int
    """Sum over all matrices."""

    energy: float | None
    """Share of the energy kept; None where the values at hand do not tell."""


def cut_points(spectra: Spectra, rules: Sequence[Rule] = RULES) -> list[CutPoint]:
    """Return where rules would cut, as far as the values at hand tell.

    Parameters
    ----------
    spectra : Spectra
        Of an update.
    rules : sequence of Rule
        But for budgets, which are spent over all tensors.

    Returns
    -------
    list of CutPoint
        One for each rule whose rank is known for every matrix, but for fixed ranks
        beyond every matrix's.
    """
    matrices = [matrix for _, matrix in spectra.matrices]
    if not matrices:
        return []
    most = max(matrix.full_rank for matrix in matrices)
    points = []
    for rule in rules:
        if isinstance(rule, Fixed) and rule.value >= most:
            continue
        ranks = [rank for matrix in matrices if (rank := _rank(rule, matrix)) is not None]
        if len(ranks) == len(matrices):
            points.append(_point(rule, matrices, ranks))
    return points


def _point(rule: Rule, matrices: Sequence[Spectrum], ranks: Sequence[int]) -> CutPoint:
    pairs = list(zip(matrices, ranks, strict=True))
    norm = math.hypot(*(matrix.norm for matrix in matrices))
    kept = math.hypot(*(math.hypot(*matrix.singular_values[:rank]) for matrix, rank in pairs))
    at_hand = all(rank <= len(matrix.singular_values) for matrix, rank in pairs)
    return CutPoint(
        rule=rule,
        lowest=min(ranks),
        median=statistics.median(ranks),
        highest=max(ranks),
        rank=sum(ranks),
        full_rank=sum(matrix.full_rank for matrix in matrices),
        energy=min((kept / norm) ** 2, 1.0) if norm and at_hand else None,
    )


def _rank(rule: Rule, matrix: Spectrum) -> int | None:
    """Return the rank that a rule means, or None where the values at hand do not tell."""
    if isinstance(rule, Noise):
        above = ABOVE_NOISE_EDGE.of(matrix)
        return None if above is None else int(above)
    s, known = matrix.singular_values, rule.known_rank(matrix.full_rank)
    if matrix.is_whole or (known is not None and known <= len(s)):
        return rule.rank(s, matrix.full_rank)
    return head_rank(s, matrix.norm, rule.share) if isinstance(rule, Energy) else None
