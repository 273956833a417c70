"""The noise edge: the largest singular value that storage rounding explains.

Pure arithmetic; what is known of the rounding is measured elsewhere. What the edge rests
on, and where it fails, is in docs/noise.md.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

_TRACY_WIDOM_99 = 2.02
"""99 % quantile of the Tracy-Widom law of order 1."""

_FEW_ZEROS = 0.1
"""Share of exact zeros up to which an update is so far above its rounding that the measured
variances tell all."""

_HEADROOM = 1.02
"""Margin on the edge: one update in a hundred exceeds a 99 % quantile, and a checkpoint has
hundreds (measured)."""

_UNEVEN = 1.5
"""How far exact zeros raise an edge, as a multiple of their share: their errors are not random
(measured)."""

_BEND = 0.5
"""Bend of a value, as a share of it, where all of an update is lost in the unit (measured)."""

_CLASS_WIDTH = 0.1
"""Width of a class of variances, as a logarithm; within a class their spread matters little."""

_SMALLEST_CLASS = -100

_HALVINGS = 26


@dataclass(frozen=True, slots=True)
class Margins:
    """Sums by row and by column of the variances of a matrix's entries."""

    rows: NDArray[np.float64]
    columns: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Storage:
    """Statistics of rounding from one pass over the stored values."""

    rounding: Margins
    """Expected squares of the rounding errors: ulp^2 / 12 of the fine-tuned values."""

    observed: Margins | None = None
    """As `rounding`, but the square of the update itself where that is at most one ulp; None for
    weights, which are not a difference."""

    zero_fraction: float = 0.0
    """Share of the update's entries that are exactly zero; 0 for weights, where a zero is no
    lost update."""

    within_unit: float = 0.0
    """Sum of the squares of the update, each at most one ulp."""


def noise_edge(m: int, n: int, entry_rms: float) -> float:
    """Return the largest singular value to expect of white noise.

    Parameters
    ----------
    m, n : int
        Shape.
    entry_rms : float
        Standard deviation of an entry.

    Returns
    -------
    float
        Exceeded by noise alone in about one matrix of a hundred.

    References
    ----------
    .. [1] I. Johnstone, "On the distribution of the largest eigenvalue in principal
       components analysis", 2001; the centring with halves is Z. Ma, 2012.
    """
    a, b = math.sqrt(m - 0.5), math.sqrt(n - 0.5)
    center = (a + b) ** 2
    spread = (a + b) * (1 / a + 1 / b) ** (1 / 3)
    return entry_rms * math.sqrt(center + _TRACY_WIDOM_99 * spread)


def variance_edge(variances: Margins) -> float:
    """Return the largest singular value to expect of uneven noise.

    Parameters
    ----------
    variances : Margins
        Of independent entries. Entry (i, j) is taken to have the variance
        ``rows[i] columns[j] / total``.

    Returns
    -------
    float
        As `noise_edge`, which it is for equal variances; 0 where all are 0.

    Notes
    -----
    With a and b the margins as shares of their sums, the edge of the limiting law is

        total * min over h > 0 of h / (p q),
        sum a p / (1 - a p) = h = sum b q / (1 - b q):

    Lehner's formula, whose variables a variance of rank one reduces to two. The finite
    size is allowed for as with equal variances. Margins are put into classes: one solve
    costs the number of classes, not of rows.

    References
    ----------
    .. [1] F. Lehner, "Computing norms of free operators with matrix coefficients", 1999.
    .. [2] A. Bandeira et al., "Matrix concentration inequalities and free probability",
       arXiv:2108.06312: how near matrices come to that norm.
    """
    total = min(float(variances.rows.sum()), float(variances.columns.sum()))
    if total == 0:
        return 0.0
    m, n = len(variances.rows), len(variances.columns)
    finite = noise_edge(m, n, 1.0) / (math.sqrt(m) + math.sqrt(n))
    rows, columns = _classes(variances.rows), _classes(variances.columns)

    def square(log_h: NDArray[np.float64]) -> NDArray[np.float64]:
        h = np.exp(log_h)
        return h / (_saturation(rows, h) * _saturation(columns, h))

    return finite * math.sqrt(total * _minimum(square, -3.0, math.log(m * n) / 2 + 1))


def _classes(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return classes of like values: how many of each, and their means as shares of the sum."""
    positive = values[values > 0]
    numbers = np.floor(np.log(positive / positive.max()) / _CLASS_WIDTH).clip(_SMALLEST_CLASS)
    _, place = np.unique(numbers, return_inverse=True)
    counts = np.bincount(place).astype(np.float64)
    return counts, np.bincount(place, positive) / counts / positive.sum()


def _saturation(
    classes: tuple[NDArray[np.float64], NDArray[np.float64]], h: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the p with ``sum a p / (1 - a p) = h``, for each h."""
    counts, shares = classes
    low, high = np.zeros_like(h), np.full_like(h, 1 / shares.max())
    for _ in range(_HALVINGS):
        p = (low + high) / 2
        parts = np.multiply.outer(p, shares)
        below = (parts / (1 - parts)) @ counts < h
        low, high = np.where(below, p, low), np.where(below, high, p)
    return (low + high) / 2


def _minimum(
    function: Callable[[NDArray[np.float64]], NDArray[np.float64]], low: float, high: float
) -> float:
    """Return the minimum of a unimodal function, by grids that close in on it."""
    best = math.inf
    for _ in range(3):
        places = np.linspace(low, high, 32)
        values = function(places)
        least = int(values.argmin())
        best = min(best, float(values[least]))
        low, high = places[max(least - 1, 0)], places[min(least + 1, len(places) - 1)]
    return best


def update_edge(
    storage: Storage | None, shape: Sequence[int], s: Sequence[float] | None
) -> float | None:
    """Return the edge above which singular values are no noise.

    Parameters
    ----------
    storage : Storage or None
        Of the fine-tuned side; None where nothing was stored rounded, as an adapter's update.
    shape : sequence of int
        Of the matrix.
    s : sequence of float, or None
        As for `storage_edge`.

    Returns
    -------
    float or None
        See `storage_edge`. Without rounding of storage, ``max(m, n) * eps`` of the first
        value: what float64 does not tell from zero, as numpy and torch count ranks.
    """
    if storage is not None:
        return storage_edge(storage, s)
    return max(shape) * sys.float_info.epsilon * s[0] if s else None


def storage_edge(storage: Storage, s: Sequence[float] | None) -> float | None:
    """Return the noise edge of a stored update, or of stored weights.

    Parameters
    ----------
    storage : Storage
        What was measured.
    s : sequence of float, or None
        All min(m, n) singular values, descending; None where only some are known.

    Returns
    -------
    float or None
        None where a tenth of the update is exactly zero and `s` is not given.

    Notes
    -----
    Rounding has at most the variance that the unit in the last place gives it. Where an
    update is below that unit, its error is about as large as itself, and what is stored
    of it bounds the variance: the smaller of the two edges holds. Zeros hold errors that
    are not random, so that the first edge is raised with their share.

    With many zeros both overstate, and the spectrum is asked: see `_lowered`, and
    `_leftover` for what it must not be lowered to.
    """
    edge = variance_edge(storage.rounding)
    if storage.observed is None:
        return edge
    edge *= 1 + _UNEVEN * storage.zero_fraction
    observed = variance_edge(storage.observed)
    edge = _HEADROOM * min(edge, observed)
    if storage.zero_fraction < _FEW_ZEROS:
        return edge
    if s is None:
        return None
    total = float(storage.observed.rows.sum())
    if not s or s[0] == 0 or total == 0:
        return edge
    edge = _lowered(edge, observed / math.sqrt(total), storage.observed, s)
    return max(edge, _leftover(edge, storage, s))


def _lowered(edge: float, per_norm: float, variances: Margins, s: Sequence[float]) -> float:
    """Return the edge that fits what lies below it.

    From the largest value on, each is compared with the geometric mean of two edges: the
    one given, which overstates, and that of noise whose norm is that of the values
    below, which signals among those raise and a wrong shape of the variances lowers.
    The first value that is not above it is noise, and so is all that follows.

    Parameters
    ----------
    edge : float
        Of the variances; it is not exceeded.
    per_norm : float
        Edge of noise of unit norm.
    variances : Margins
        Rows and columns without any have no noise.
    s : sequence of float
        As for `storage_edge`.

    Returns
    -------
    float
        At most `edge`.
    """
    m, n = (int(np.count_nonzero(sums)) for sums in (variances.rows, variances.columns))
    rests = list(accumulate(value * value for value in reversed(s)))[::-1]
    lowered = edge
    for removed in range(1, min(m, n, len(s))):
        # With each value that is set aside, noise loses a row and a column.
        energy = rests[removed] * m / (m - removed) * n / (n - removed)
        lowered = math.sqrt(edge * min(edge, per_norm * math.sqrt(energy)))
        if s[removed - 1] <= lowered:
            break
    return lowered


def _leftover(edge: float, storage: Storage, s: Sequence[float]) -> float:
    """Return the largest singular value of what is left of a rounded low-rank update.

    The mean of a rounded value is an odd function of the value, and no straight one
    below the unit in the last place: its bend is of low rank too. It grows with the
    values above the edge and with what of the update is lost in the unit.
    """
    above = [value for value in s if value > edge]
    if not above:
        return 0.0
    energy = math.fsum(value * value for value in s)
    lost = storage.zero_fraction * min(1.0, storage.within_unit / energy)
    leading = math.fsum(value * value for value in above)
    return _BEND * lost * math.sqrt(leading / _spread(above))


def _spread(s: Sequence[float]) -> float:
    """Return how many equal values have the same sums of squares and fourth powers."""
    squares = [(value / s[0]) ** 2 for value in s]
    return math.fsum(squares) ** 2 / math.fsum(x * x for x in squares)
