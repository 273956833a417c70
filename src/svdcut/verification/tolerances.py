r"""How far a true claim can be from a second computation, and why.

Pure arithmetic. In every case the sum of what the claim may be off by and of what the
second computation may be off by, so that no true claim is ever called false.

- A singular value is certified to 1e-5 of itself, or 1e-7 of the first where that is
  more; the second computation to a tenth of that. Those of ``--keep bottom`` and
  ``random`` are not certified one by one: a Gram matrix, with its backward error of
  ``n eps |A|^2``, gives each of them within ``sqrt(n eps) |A|``.
- Energies: the eigenvalues of a Gram matrix are off by its backward error, those that the
  Krylov route measures in float32 by its roundoff (at most a tenth of `_SINGLE_ENERGY` was
  seen); and the energy cut is above the best possible one by what the certificate allows:
  ``(1 + excess)^2 - 1`` of the best, best errors below 1e-6 of the norm counting as that.
- Two cuts of one matrix at rank `k` that lack energies `a` and `b` against the best one
  differ by at most ``(sqrt(a) + sqrt(b)) sqrt(l_k + l_{k+1}) / sqrt(l_k - l_{k+1})``, with
  `l_i` the squared singular values. For one cut, let `P` project onto its space and `v_i`
  be the true vectors; ``d_i = |P v_i|^2``. Its lack is ``sum_{i<=k} l_i (1 - d_i) -
  sum_{j>k} l_j d_j >= (l_k - l_{k+1}) t`` with ``t = sum_{i<=k} (1 - d_i) = sum_{j>k} d_j``.
  Its difference from the best cut has two parts at right angles, of squares
  ``sum_{i<=k} l_i (1 - d_i)``, which is at most ``lack * l_k / (l_k - l_{k+1})``, and
  ``sum_{j>k} l_j d_j <= l_{k+1} t``.
- A product of factors of rank `k` in a precision `u` is off by at most
  ``(k + 4) u |left| |right|``, with ``|right| = sqrt(k)`` and ``|left|`` the norm that is kept;
  the left factor itself, a product over `n` columns in float32, by ``n u`` more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from svdcut.choose.keep import Keep
from svdcut.choose.ranks import BACKWARD
from svdcut.svd.certificate import ERROR_FLOOR, VALUE_FLOOR, VALUE_TOLERANCE

OWN_VALUE_TOLERANCE = VALUE_TOLERANCE / 10
"""What the second computation is certified to."""

_SINGLE_ENERGY = 2.0**-20
"""Relative rounding error of an energy that was measured in float32."""

SINGLE, DOUBLE = 2.0**-24, 2.0**-53
"""Units of roundoff."""


def value_tolerance(value: float, first: float, norm: float, size: int, keep: Keep) -> float:
    """Return how far a claim of a singular value may be off.

    Parameters
    ----------
    value, first : float
        The value, and the largest one.
    norm : float
        Of the matrix.
    size : int
        Its short side.
    keep : Keep
        Which triplets stay.
    """
    certified = VALUE_TOLERANCE + 2 * OWN_VALUE_TOLERANCE
    tolerance = certified * max(value, VALUE_FLOOR * first) + size * BACKWARD * first
    if keep is not Keep.TOP:
        tolerance += math.sqrt(size * BACKWARD) * norm
    return tolerance


def lack(best: float, norm: float, excess: float) -> float:
    """Return the energy that a cut may lack against the best one.

    Parameters
    ----------
    best, norm : float
        The least error at that rank, and the norm of the matrix.
    excess : float
        Bound on the relative excess of the error.
    """
    floor = max(best, ERROR_FLOOR * norm)
    return excess * (2 + excess) * floor * floor


def energy_rounding(norm: float, size: int, *, single: bool = False) -> float:
    """Return how far sums of squared singular values may be off.

    Parameters
    ----------
    norm : float
        Of the matrix.
    size : int
        Its short side.
    single : bool
        Whether they may have been measured in float32.
    """
    return (size * BACKWARD + single * _SINGLE_ENERGY) * norm * norm


def cut_difference(squares: Sequence[float], k: int, lacks: Sequence[float]) -> float:
    """Bound the difference of two cuts at rank `k`; infinite without a gap.

    Parameters
    ----------
    squares : sequence of float
        Squared singular values, descending.
    k : int
        Above 0, below the full rank.
    lacks : sequence of float
        The energy that each lacks.
    """
    gap = squares[k - 1] - squares[k]
    if gap <= 0:
        return math.inf
    total = math.fsum(math.sqrt(value) for value in lacks)
    return total * math.sqrt((squares[k - 1] + squares[k]) / gap)


def product_rounding(k: int, terms: int, unit: float, kept: float) -> float:
    """Bound the rounding error of a product of thin factors.

    Parameters
    ----------
    k : int
        Rank.
    terms : int
        Terms of the sums that each entry is made by.
    unit : float
        Of roundoff.
    kept : float
        Norm of the left factor; the right one is orthonormal.
    """
    return (terms + 4) * unit * math.sqrt(k) * kept
