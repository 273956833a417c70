r"""Bounds on what a set of approximate triplets can have missed.

Pure arithmetic on squared singular values; it touches no matrix.

Let `M` be the Gram matrix of `A` and `v_i` orthonormal with `rho_i = |A v_i|^2`
and residuals `e_i = |M v_i - rho_i v_i|`. Let `h` bound the spectrum of `M` on
the complement of `v_1 .. v_j`. Then, for the true squared values `lambda_i`, the
energy that the first `k` triplets lack, ``sum_{i<=k} (lambda_i - rho_i)``, is at most

1. ``sum_{i<=k} (sqrt(g_i^2 + 4 e_i^2) - g_i) / 2``, ``g_i = rho_i - h``, for ``j = k``;
2. ``sum_{i<=j} e_i^2 / max(rho_i - rho_k, rho_k - h)`` for any ``j >= k`` with a gap.

Both follow from Ky Fan's principle, ``sum lambda_i = max trace X^T M X`` over
orthonormal `X` of `k` columns. Split `X` into its part along the `v_i`, rows of
squared norm ``d_i``, and its part across, of squared norm `t` in all. The `v_i`
and the rest are coupled by at most ``2 e_i sqrt(d_i (1 - d_i))`` each, and those of
any subset by at most ``2 sqrt(sum e_i^2) sqrt(t)`` together. Weight that moves
across gains `h` and loses `rho_i` (1), or is made up for at `rho_k` (2). Maximise
over the `d_i` and `t`. Each term of the sum is at least zero (Cauchy interlacing),
so a bound on the sum bounds each singular value too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

VALUE_TOLERANCE = 1e-5
"""Relative error allowed in a singular value that is reported."""

VALUE_FLOOR = 1e-8
"""Values below this share of the first are held to the accuracy that it has."""

ERROR_FLOOR = 2.0**-24
"""Best errors below this share of the norm count as this: float32 cannot store less."""

_FACTOR_ROUNDING = 4.0
"""Rounding error of the kept part, relative to its norm, in units of epsilon."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is known of a cut at one rank."""

    excess: float
    """Relative excess of the error over the best possible one, at most."""

    value: float
    """Relative error of the singular values around the cut, at most."""


def excess_energy(squares: Sequence[float], residuals: Sequence[float], beyond: float) -> float:
    """Return bound 1 on the energy that the leading triplets lack.

    Parameters
    ----------
    squares, residuals : sequence of float
        `rho_i` and `e_i` of the kept triplets.
    beyond : float
        `h`, the largest squared singular value of the complement.
    """
    total = 0.0
    for rho, e in zip(squares, residuals, strict=True):
        gap = max(rho - beyond, 0.0)
        # (sqrt(g^2 + 4 e^2) - g) / 2, in the form that does not cancel.
        root = math.hypot(gap, 2 * e)
        total += 2 * e * e / (root + gap) if root + gap > 0 else 0.0
    return total


def gap_energy(
    squares: Sequence[float], residuals: Sequence[float], k: int, beyond: float
) -> float:
    """Return bound 2 on the energy that the first `k` triplets lack.

    Parameters
    ----------
    squares, residuals : sequence of float
        `rho_i` and `e_i` of all triplets at hand.
    k : int
        At least 1.
    beyond : float
        Largest squared singular value that is not at hand.

    Returns
    -------
    float
        The least over some choices of `j`; infinite where none has a gap.
    """
    edge = squares[k - 1]
    best = math.inf
    j = k
    while True:
        h = squares[j] + residuals[j] if j < len(squares) else beyond
        gap = edge - h
        if gap > 0:
            pairs = zip(squares[:j], residuals[:j], strict=True)
            best = min(best, math.fsum(e * e / max(rho - edge, gap) for rho, e in pairs))
        if j == len(squares):
            return best
        j = min(len(squares), max(j + 1, k + 2 * (j - k)))


def bound_cut(
    squares: Sequence[float],
    residuals: Sequence[float],
    k: int,
    *,
    rest: float,
    beyond: float,
    epsilon: float,
) -> Bounds:
    """Bound the error of keeping the first `k` of the triplets at hand.

    Parameters
    ----------
    squares, residuals : sequence of float
        Of all triplets at hand, descending; more than `k` of them unless `k` is
        the full rank.
    k : int
        Rank of the cut, 0 to all.
    rest : float
        Sum of the squared singular values that are not at hand.
    beyond : float
        Largest squared singular value that is not at hand.
    epsilon : float
        Of the arithmetic that the factors were made in.

    Returns
    -------
    Bounds
        `value` covers the first value, the last kept one, the next, and the norm of
        the tail.

    Notes
    -----
    O(number of triplets).
    """
    kept, cut = math.fsum(squares[:k]), math.fsum(squares[k:]) + rest
    energy = kept + cut
    if energy == 0:
        return Bounds(0.0, 0.0)
    coupling = math.sqrt(math.fsum(e * e for e in residuals))

    def square_bound(index: int) -> float:
        return min(gap_energy(squares, residuals, index + 1, beyond), coupling)

    floor = VALUE_FLOOR**2 * squares[0]
    # |s - s'| <= |s^2 - s'^2| / s'
    value = max(
        square_bound(index) / (2 * max(squares[index], floor))
        for index in {0, max(k - 1, 0), min(k, len(squares) - 1)}
    )
    # Where the tail is measured as a whole (rest > 0), no sum of its values is needed.
    tail_error = 0.0 if rest > 0 else math.fsum(residuals[k:])
    tail_error /= 2 * max(cut, VALUE_FLOOR**2 * energy)
    if k == 0 or k == len(squares):
        lacking = 0.0
    else:
        following = squares[k] + square_bound(k)
        lacking = min(
            excess_energy(squares[:k], residuals[:k], following),
            gap_energy(squares, residuals, k, beyond),
        )
    # The rounding of the factors is at right angles to the tail: it adds in squares.
    lacking += (_FACTOR_ROUNDING * epsilon) ** 2 * kept
    best = max(cut - lacking, ERROR_FLOOR**2 * energy)
    return Bounds(excess=lacking / (2 * best), value=max(value, tail_error))
