"""The noise edge: the largest singular value that storage rounding explains.

Pure arithmetic; the root mean square of the rounding is measured elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

_TRACY_WIDOM_99 = 2.02
"""99 % quantile of the Tracy-Widom law of order 1."""

_SPARSE = 0.25
"""With more exact zeros than this, the rounding of an update is not white (measured)."""


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


def bulk_rms(s: Sequence[float], m: int, n: int) -> float:
    """Return the standard deviation of the white noise whose median value is that of `s`.

    Parameters
    ----------
    s : sequence of float
        All min(m, n) singular values, descending.
    m, n : int
        Shape.

    References
    ----------
    .. [1] M. Gavish, D. Donoho, "The optimal hard threshold for singular values is
       4/sqrt(3)", arXiv:1305.5870, section III.C.
    """
    middle = len(s) // 2
    median = s[middle] if len(s) % 2 else (s[middle - 1] + s[middle]) / 2
    return median / math.sqrt(marchenko_pastur_median(min(m, n) / max(m, n)) * max(m, n))


@lru_cache(maxsize=1024)
def marchenko_pastur_median(beta: float) -> float:
    """Return the median of the Marchenko-Pastur law of aspect ratio `beta`, 0 < beta <= 1.

    Notes
    -----
    Its density is ``sqrt((b - x) (x - a)) / (2 pi beta x)`` on ``a, b = (1 -+ sqrt(beta))^2``;
    ``x = c - d cos(t)`` takes the square roots at its ends away.
    """
    a, b = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2
    center, radius = (a + b) / 2, (b - a) / 2
    steps = 4000
    total = 0.0
    for i in range(steps):
        t = (i + 0.5) * math.pi / steps
        x = center - radius * math.cos(t)
        weight = (radius * math.sin(t)) ** 2 / (2 * math.pi * beta * x) * math.pi / steps
        if total + weight >= 0.5:
            return x
        total += weight
    return b


def storage_edge(
    s: Sequence[float], m: int, n: int, rounding_rms: float, zero_fraction: float
) -> float:
    """Return the noise edge of a stored update.

    The unit in the last place bounds what rounding explains. Where the update is
    well above it, rounding is white noise, and the bulk of the spectrum may show
    that there is less of it. Where many entries are exactly zero it is not: an
    error is then about the update itself, sparse and uneven, and the bulk says
    nothing of its largest values (measured: up to a hundred values too many).

    Parameters
    ----------
    s : sequence of float
        All singular values of the update, descending.
    m, n : int
        Shape.
    rounding_rms : float
        Root mean square of the rounding error of an entry, of both sides, from
        the unit in the last place of the stored weights.
    zero_fraction : float
        Share of the update's entries that are exactly zero.
    """
    edge = noise_edge(m, n, rounding_rms)
    if zero_fraction > _SPARSE:
        return edge
    return min(edge, noise_edge(m, n, bulk_rms(s, m, n)))
