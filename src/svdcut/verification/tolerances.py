r"""The table of tolerances: how far two honest computations of one number can be apart.

Pure arithmetic. Each tolerance is the sum of what either computation may be off by, so that
no true claim is ever called false.

- **Singular values.** The claim is within `allowed_value_error` of the run's tolerance, the
  second computation within `VALUE_TOLERANCE`: relative to the value, or to `VALUE_FLOOR` of the
  first value, whichever is larger.
  Those of ``--keep bottom`` and ``random`` are not certified one by one: a Gram matrix, with
  its backward error of ``n eps |A|^2``, gives each of them within ``sqrt(n eps) |A|``.
- **Energies** are off by the backward error of a Gram matrix; those of a few leading
  triplets by the rounding of float32. The energy that is cut exceeds the least possible by what
  the certificate allows: ``(1 + excess)^2 - 1`` of it.
- **Two cuts at one rank** that lack energies `a` and `b` against the best cut differ by at
  most ``(sqrt(a) + sqrt(b)) sqrt(l_k + l_{k+1}) / sqrt(l_k - l_{k+1})``, where `l_i` are the
  squared singular values. Proof for one cut: let `P` project onto its space, `v_i` be the
  true vectors, and ``d_i = |P v_i|^2``. Its lack is ``sum_{i<=k} l_i (1 - d_i) - sum_{j>k}
  l_j d_j >= (l_k - l_{k+1}) t`` with ``t = sum_{i<=k} (1 - d_i) = sum_{j>k} d_j``. Its
  difference from the best cut has two orthogonal parts with the squares ``sum_{i<=k}
  l_i (1 - d_i) <= lack * l_k / (l_k - l_{k+1})`` and ``sum_{j>k} l_j d_j <= l_{k+1} t``.
  A set of triplets that is not a leading one is a sum and difference of leading ones.
- **A product of factors** of rank `k` in a precision `u` is off by at most
  ``(terms + 4) u |left| |right|``, where ``|right| = sqrt(k)`` and ``|left|`` is the norm
  that is kept; each entry of a product is a sum of so many terms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from svdcut.choose.keep import Keep
from svdcut.choose.ranks import BACKWARD, Rule
from svdcut.record.manifest import Truncation
from svdcut.svd.certificate import (
    ERROR_FLOOR,
    VALUE_FLOOR,
    VALUE_TOLERANCE,
    MeasuredValues,
    Method,
    allowed_value_error,
)
from svdcut.svd.route import is_few

SUM = 1e-11
"""Relative: the same numbers summed in another order."""

NORM = 1e-9
"""Relative: a norm, from float64 sums over millions of entries in another order."""

SHARE = 1e-12
"""Absolute: a share of counted entries."""

SINGLE, DOUBLE = 2.0**-24, 2.0**-53
"""Units of roundoff."""

_SINGLE_ENERGY = 2.0**-20
"""Relative error of an energy that was measured in float32; a tenth of it was seen."""


def is_close(found: float, claimed: float, relative: float, absolute: float = 0.0) -> bool:
    """Whether two numbers agree; NaN agrees with nothing."""
    return abs(found - claimed) <= max(relative * max(abs(found), abs(claimed)), absolute)


def is_single(cut: Truncation, rule: Rule) -> bool:
    """Whether numbers of a tensor may have been computed in float32: those of a few triplets."""
    whole = rule.known_rank(cut.full_rank) is None and not rule.is_joint
    if cut.keep != Keep.TOP.value or (whole and not cut.svd.rejected):
        return False
    if len(cut.matrices) > 1:
        return True  # one method stands for all experts
    few = cut.svd.method == Method.GRAM.value and is_few(cut.ranks[0], cut.full_rank)
    return few or cut.svd.method == Method.KRYLOV.value


def value_tolerance(
    value: float, first: float, norm: float, size: int, keep: Keep, tolerance: float
) -> float:
    """Return how far two computations of a singular value may be apart.

    Parameters
    ----------
    value, first : float
        The value, and the largest one.
    norm : float
        Of the matrix.
    size : int
        Its full rank.
    keep : Keep
        Which triplets stay.
    tolerance : float
        The option of the run that claims the value.
    """
    relative = VALUE_TOLERANCE + allowed_value_error(tolerance)
    found = relative * max(value, VALUE_FLOOR * first) + size * BACKWARD * first
    if keep is not Keep.TOP:
        found += math.sqrt(size * BACKWARD) * norm
    return found


def norm_tolerance(*, single: bool) -> float:
    """Return the same of the norm of an update, relatively."""
    return NORM + (_SINGLE_ENERGY if single else 0)


def energy_tolerance(cut: Truncation, again: Truncation, *, single: bool) -> float:
    """Return the same of an energy that is kept or cut, as a share of the whole."""
    rounding = energy_rounding(again.full_rank) + (_SINGLE_ENERGY if single else 0)
    excess = max(cut.svd.excess_bound, again.svd.excess_bound)
    if cut.keep == Keep.RANDOM.value or again.update_norm == 0:
        return 2 * (excess + rounding)
    # What the leading triplets leave: with --keep bottom, that is kept.
    best = (again.tail_norm / again.update_norm) ** 2
    if cut.keep == Keep.BOTTOM.value:
        best = again.energy_retained
    return _lack(best, 1.0, excess) + 2 * rounding


def energy_rounding(size: int) -> float:
    """Return the rounding error of a sum of squared singular values, as a share of them all."""
    return size * BACKWARD


def cut_tolerance(measured: MeasuredValues, indices: Sequence[int], excess: float) -> float:
    """Return the norm that two cuts of one matrix may differ by; infinite without a gap.

    Parameters
    ----------
    measured : MeasuredValues
        Of the matrix: at least the values around each end of a run of `indices`.
    indices : sequence of int
        Of the triplets that stay.
    excess : float
        Bound on the relative excess error of either cut.
    """
    chosen, squares = set(indices), (*measured.squares, 0.0)
    last = min(measured.full_rank, len(squares))
    ends = [k for k in range(1, last) if ((k - 1) in chosen) != (k in chosen)]
    # The certificate of scattered triplets is about their energy alone.
    rounding = energy_rounding(measured.full_rank) if len(ends) > 1 else 0
    total = 0.0
    for k in ends:
        gap = squares[k - 1] - squares[k]
        if gap <= 0:
            return math.inf
        best = max(measured.energy - math.fsum(squares[:k]), 0.0)
        lack = _lack(best, measured.energy, excess) + rounding * measured.energy
        total += 2 * math.sqrt(lack * (squares[k - 1] + squares[k]) / gap)
    return total * measured.scale


def _lack(best: float, energy: float, excess: float) -> float:
    """Return the energy that a cut may lack; best errors near zero count as `ERROR_FLOOR`."""
    return excess * (2 + excess) * max(best, ERROR_FLOOR**2 * energy)


def product_tolerance(k: int, terms: int, unit: float, kept: float) -> float:
    """Return the rounding error of a product of thin factors.

    Parameters
    ----------
    k : int
        Its rank.
    terms : int
        How many terms each entry is the sum of.
    unit : float
        Of roundoff.
    kept : float
        Norm of the product.
    """
    return (terms + 4) * unit * math.sqrt(k) * kept
