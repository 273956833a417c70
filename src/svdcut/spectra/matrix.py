"""The spectrum of one matrix, and what singular values say in one number.

Pure arithmetic; it decomposes nothing and imports no torch. The columns are in `columns`.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from svdcut.shown import brief_items

RESOLUTION = 1e-7
"""Share of the first singular value. Below it lies what float32 inputs do not resolve."""

Value = str | int | float | None
"""Value of a column for one matrix; None where it is not known."""


@dataclass(frozen=True, slots=True)
class Intruders:
    """Leading left vectors of a fine-tuned matrix, compared with all of base's.

    Ten vectors, or as many as the matrix has; none for a matrix of zeros.
    """

    cosines: tuple[float, ...]
    """For each vector the largest cosine with any left vector of base, 0 to 1."""

    threshold: float

    @property
    def count(self) -> int:
        """Return how many match no vector of base."""
        return sum(cosine < self.threshold for cosine in self.cosines)


@dataclass(frozen=True, slots=True)
class Spectrum:
    """The singular values of one matrix, and the numbers that follow from them.

    Every column of `svdcut.spectra.columns` is an attribute too, as ``matrix.stable_rank``.
    """

    singular_values: Sequence[float]
    """Descending; all min(m, n), or the leading ones that were asked for."""

    full_rank: int
    """min(m, n), or less for a product of factors."""

    size: int
    """Number of entries."""

    norm: float
    """Frobenius norm."""

    base_norm: float | None
    """Frobenius norm of base's matrix; None where the values are those of weights."""

    noise_edge: float | None
    """Largest singular value that storage rounding explains; None where it is not known."""

    zero_fraction: float
    """Share of the entries that are exactly zero."""

    method: str
    """gram, krylov, exact or factored; none for a matrix of zeros."""

    value_bound: float
    """Largest relative error of a singular value."""

    intruders: Intruders | None = None
    numbers: Mapping[str, Value] = field(default_factory=dict)
    """Values by the key of the column: filled by `svdcut.spectra.columns.describe`."""

    def __getattr__(self, key: str) -> Any:  # noqa: ANN401 - of whatever type the column is
        """Return what a column holds."""
        try:
            return self.numbers[key]
        except KeyError:
            raise AttributeError(f"a spectrum has no {key!r}") from None

    def __repr__(self) -> str:
        """Return the numbers, and how many singular values there are."""
        return brief_items("Spectrum", {"singular_values": self.singular_values, **self.numbers})

    @property
    def resolution(self) -> float:
        """Singular values below it are only known to be smaller."""
        return RESOLUTION * self.singular_values[0]

    @property
    def is_whole(self) -> bool:
        """Whether all singular values are at hand."""
        return len(self.singular_values) == self.full_rank


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
