"""What singular values say in one number.

Pure arithmetic; it decomposes nothing and imports no torch.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate


def stable_rank(s: Sequence[float], norm: float) -> float | None:
    """Return ``norm^2 / s_1^2``, or None for a matrix of zeros.

    Parameters
    ----------
    s : sequence of float
        Singular values, descending; the first is enough.
    norm : float
        Frobenius norm.
    """
    return (norm / s[0]) ** 2 if s and s[0] > 0 else None


def effective_rank(s: Sequence[float]) -> float | None:
    """Return the exponential of the entropy of the values' shares, or None for zeros.

    Parameters
    ----------
    s : sequence of float
        All singular values.

    References
    ----------
    .. [1] O. Roy, M. Vetterli, "The effective rank: a measure of effective
       dimensionality", EUSIPCO 2007. The values are not squared.
    """
    total = math.fsum(s)
    if total == 0:
        return None
    shares = (value / total for value in s)
    return math.exp(-math.fsum(p * math.log(p) for p in shares if p > 0))


def energy_curve(s: Sequence[float], norm: float) -> list[float]:
    """Return the share of the energy that each rank from 1 on keeps.

    Parameters
    ----------
    s : sequence of float
        Singular values, descending; all or the leading ones.
    norm : float
        Frobenius norm.
    """
    if norm == 0:
        return [1.0] * len(s)
    return [min(share, 1.0) for share in accumulate((value / norm) ** 2 for value in s)]


def energy_distance(
    first: tuple[Sequence[float], float], second: tuple[Sequence[float], float]
) -> float | None:
    """Return the largest difference between two energy curves, 0 to 1, or None for zeros.

    Parameters
    ----------
    first, second : tuple of sequence of float, and float
        Singular values, descending, all or the leading ones; and the Frobenius norm.

    Notes
    -----
    The Kolmogorov-Smirnov distance between the places of the energy, over the ranks that
    both have.
    """
    if not (first[1] and second[1]):
        return None
    curves = zip(energy_curve(*first), energy_curve(*second), strict=False)
    return max((abs(ours - theirs) for ours, theirs in curves), default=None)


def head_rank(s: Sequence[float], norm: float, share: float) -> int | None:
    """Return the smallest rank with a share of the energy, or None where it is beyond `s`.

    Parameters
    ----------
    s : sequence of float
        The leading singular values, descending. Of all of them, see `rank_for_energy`.
    norm : float
        Frobenius norm.
    share : float
        Above 0, below 1.
    """
    place = bisect_left(energy_curve(s, norm), share)
    return place + 1 if place < len(s) else None
