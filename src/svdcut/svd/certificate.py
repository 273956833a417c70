r"""Bounds on what a set of approximate triplets can have missed.

Pure arithmetic on squared singular values; it touches no matrix.

Let `M` be the Gram matrix of `A` and `v_i` orthonormal with `rho_i = |A v_i|^2` and
residuals `M v_i - rho_i v_i` of norm `e_i`, of which a part of norm `c_i` lies in the
span of the `v_i`: rounding, mostly. Let `h_j` bound the spectrum of `M` on the
complement of `v_1 .. v_j`. Then, for the true squared values `lambda_i`, the energy
that the first `k` triplets lack, ``sum_{i<=k} (lambda_i - rho_i)``, is at most

1. ``sum_{i<=k} (sqrt(g_i^2 + 4 e_i^2) - g_i) / 2``, ``g_i = rho_i - h_k``;
2. ``sum_{i<=j} e_i^2 / max(rho_i - rho_k, g) + sqrt(b sum c_i^2) / 2`` for any ``j >= k``
   with a gap ``g = rho_k - h_j > 0``; the last sum is over the `b` of the first `j`
   triplets with ``rho_i - rho_k < g``.

Both follow from Ky Fan's principle, ``sum lambda_i = max trace X^T M X`` over
orthonormal `X` of `k` columns. Split `X` into its part along the `v_i`, rows of
squared norm ``d_i``, and its part across, of squared norm `t` in all. What couples
`v_i` to anything else gains at most ``2 e_i sqrt(d_i (1 - d_i))``; what couples any
subset to the part across, ``2 sqrt(sum e_i^2) sqrt(t)`` together; and `b` of them among
themselves, half the nuclear norm of a matrix without a trace. Weight that moves
across gains `h` and loses `rho_i` (1), or is made up for at `rho_k` (2). Maximise
over the `d_i` and `t`.

With ``k = 1`` on the complement of the first `j`, the same two bounds, and the largest
eigenvalue of ``[[rho_{j+1}, sqrt(sum e_i^2)], [., h]]``, give `h_j` from those after it.
By Courant and Fischer ``lambda_{j+1} <= h_j``, which bounds each single value.
"""

from __future__ import annotations

import math
import operator
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate

VALUE_TOLERANCE = 1e-5
"""Relative error allowed in a singular value that is reported; see `allowed_value_error`."""

VALUE_FLOOR = 1e-2
"""Values below this share of the first are held to the absolute accuracy that it gives them."""

RESOLUTION = VALUE_TOLERANCE * VALUE_FLOOR
"""Share of the first value below which no value is told from zero."""

SPACE_GAP = 1e-3
"""Squared values that differ by less, relatively, count as equal where vectors matter.

Storage in 16 bits moves the vectors of weights further.
"""

ERROR_FLOOR = 1e-6
"""Best errors below this share of the norm count as this: it is near what float32 resolves."""

_FACTOR_ROUNDING = 4.0
"""Rounding error of the kept part, relative to its norm, in units of epsilon."""


def allowed_value_error(tolerance: float) -> float:
    """Return the relative error allowed in singular values beside an excess of `tolerance`.

    Who asks for a coarse cut does not wait for finer values.
    """
    return max(VALUE_TOLERANCE, tolerance)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds on a cut at one rank."""

    excess: float
    """Relative excess of the error over the best possible one, at most."""

    value: float
    """Relative error of the singular values around the cut, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RitzValues:
    """The squared values of the triplets at hand, and the measured errors that bound theirs."""

    squares: Sequence[float]
    """`rho_i`: squared singular values, descending."""

    residuals: Sequence[float]
    """`e_i`: norms of ``a.T @ a @ v - square * v``; see `svdcut.svd.decomposition.Triplets`."""

    couplings: Sequence[float]
    """`c_i`: norms of the part of these that lies in the span of the triplets."""

    beyond: float
    """Largest squared singular value that is not at hand; 0 where there is none."""

    rest: float = 0.0
    """Sum of the squared singular values that are not at hand."""

    epsilon: float = 0.0
    """Machine epsilon of the vectors' dtype."""

    def bounds(self, k: int) -> Bounds:
        """Bound the error of keeping the first `k` triplets.

        Parameters
        ----------
        k : int
            Less than the number of triplets at hand, unless these are all.

        Returns
        -------
        Bounds
            `value` covers the first value, the last kept one, the next, and the norm of
            the tail.

        Notes
        -----
        O(j log j) for `j` triplets.
        """
        squares, count = self.squares, len(self.squares)
        kept, cut = math.fsum(squares[:k]), math.fsum(squares[k:]) + self.rest
        energy = kept + cut
        if energy == 0:
            return Bounds(0.0, 0.0)
        h = self.complement_bounds()
        value = max(self._value_error(i, h) for i in {0, max(k - 1, 0), min(k, count - 1)})
        # Where the tail is measured as a whole (rest > 0), no sum of its values is needed. Else it
        # may be less than that sum by what rounding moved, down to nothing.
        moved = 0.0 if self.rest > 0 else math.fsum(self.residuals[k:])
        tail_error = moved / max(2 * math.sqrt(cut), math.sqrt(moved)) if moved else 0.0
        tail_error /= max(math.sqrt(cut), VALUE_FLOOR * math.sqrt(energy))
        whole = k in (0, count)
        lacking = 0.0 if whole else min(self.excess_energy(k, h[k]), self.gap_energy(k, h))
        # The rounding of the factors is at right angles to the tail: it adds in squares.
        lacking += (_FACTOR_ROUNDING * self.epsilon) ** 2 * kept
        best = math.sqrt(max(cut - moved - lacking, 0.0))
        above = lacking / (math.hypot(best, math.sqrt(lacking)) + best) if lacking else 0.0
        return Bounds(
            excess=above / max(best, ERROR_FLOOR * math.sqrt(energy)), value=max(value, tail_error)
        )

    def value_bound(self, count: int) -> float:
        """Bound the relative error of each of the first `count` singular values."""
        h = self.complement_bounds()
        places = range(min(count, len(self.squares)))
        return max((self._value_error(i, h) for i in places), default=0.0)

    def space_bound(self, count: int) -> float:
        """Bound the angles of the spaces of the first 1, 2, ... `count` right vectors.

        Parameters
        ----------
        count : int
            Less than all, unless `beyond` is 0.

        Returns
        -------
        float
            Sine of the angle to the true space, at most. Where the squared values on both
            sides of a space differ by less than `SPACE_GAP` of themselves, the bound is that
            of a gap as large: such vectors may mix.

        Notes
        -----
        The sine theorem [1]_: the norm of the residuals over the distance of the Ritz values
        from the spectrum of the true complement, ``lambda_{k+1} <= h_k``.

        References
        ----------
        .. [1] C. Davis, W. Kahan, "The rotation of eigenvectors by a perturbation. III",
           SIAM Journal on Numerical Analysis 7, 1970.
        """
        h = self.complement_bounds()
        energies = list(accumulate(residual * residual for residual in self.residuals[:count]))
        gaps = [max(rho - h[i + 1], SPACE_GAP * rho) for i, rho in enumerate(self.squares[:count])]
        sines = (math.sqrt(e) / gap for e, gap in zip(energies, gaps, strict=True) if gap > 0)
        return max(sines, default=0.0)

    def complement_bounds(self) -> list[float]:
        """Return `h_j` for every `j` from 0 to the number of triplets.

        Notes
        -----
        O(j log j): of all places where a gap may be, those at distances 1, 2, 4, ...
        and the last are looked at.
        """
        count = len(self.squares)
        energies = _sums_from_the_end(self.residuals)
        inner = _sums_from_the_end(self.couplings)
        h = [self.beyond] * (count + 1)
        for j in range(count - 1, -1, -1):
            top = self.squares[j]
            half = (top - self.beyond) / 2
            bound = (top + self.beyond) / 2 + math.hypot(half, math.sqrt(energies[j]))
            moved = _moved(top - h[j + 1], self.residuals[j])
            bound = min(bound + math.sqrt(inner[j]), top + moved)
            for end in _candidates(j + 1, count):
                gap = top - h[end]
                if gap > 0:
                    missed = max(energies[j] - energies[end], 0.0) / gap
                    bound = min(bound, top + missed + math.sqrt(max(inner[j] - inner[end], 0.0)))
            h[j] = bound
        return h

    def excess_energy(self, k: int, beyond: float) -> float:
        """Return bound 1 on the energy that the first `k` triplets lack.

        Parameters
        ----------
        k : int
        beyond : float
            `h_k`, the largest squared singular value of their complement.
        """
        pairs = zip(self.squares[:k], self.residuals[:k], strict=True)
        return math.fsum(_moved(rho - beyond, e) for rho, e in pairs)

    def gap_energy(self, k: int, h: Sequence[float]) -> float:
        """Return bound 2 on the energy that the first `k` triplets lack.

        Parameters
        ----------
        k : int
            At least 1.
        h : sequence of float
            From `complement_bounds`.

        Returns
        -------
        float
            The least over some choices of `j`; infinite where none has a gap.
        """
        squares, edge = self.squares, self.squares[k - 1]
        best = math.inf
        for j in _candidates(k, len(squares)):
            gap = edge - h[j]
            if gap > 0:
                pairs = zip(squares[:j], self.residuals[:j], strict=True)
                missed = math.fsum(e * e / max(rho - edge, gap) for rho, e in pairs)
                near = bisect_right(squares, -(edge + gap), 0, k, key=operator.neg)
                inner = math.fsum(c * c for c in self.couplings[near:j])
                best = min(best, missed + math.sqrt((j - near) * inner) / 2)
        return best

    def _value_error(self, index: int, h: Sequence[float]) -> float:
        """Return the relative error of one singular value, at most."""
        square, floor = self.squares[index], VALUE_FLOOR**2 * self.squares[0]
        # Rounding moves a value by the norm of what it couples to values of its size.
        start = bisect_left(self.squares, -2 * square, 0, index, key=operator.neg)
        moved = h[index] - square + max(self.couplings[start:])
        if moved <= 0:
            return 0.0
        root = math.sqrt(square)
        return moved / (math.sqrt(square + moved) + root) / math.sqrt(max(square, floor))


def _sums_from_the_end(values: Sequence[float]) -> list[float]:
    """Return the sums of squares of ``values[j:]``, for every `j`."""
    return [*accumulate((value * value for value in reversed(values)), initial=0.0)][::-1]


def _candidates(first: int, last: int) -> Iterator[int]:
    """Yield `first`, places at twice the distance each, and `last`."""
    step = 1
    while first < last:
        yield first
        first += step
        step *= 2
    yield last


def _moved(gap: float, residual: float) -> float:
    """Return ``(sqrt(gap^2 + 4 residual^2) - gap) / 2``."""
    root = math.hypot(gap, 2 * residual)
    if gap <= 0:
        return (root - gap) / 2
    return 2 * residual * residual / (root + gap)  # the form that does not cancel


class Method(str, Enum):
    """How the triplets were computed."""

    EXACT = "exact"
    GRAM = "gram"
    KRYLOV = "krylov"
    FACTORED = "factored"
    NONE = "none"


class Proof(str, Enum):
    """Why the triplets are known to be the leading ones."""

    SPECTRUM = "spectrum"
    """All singular values were computed that are not zero by the shape, or a Cholesky factor of
    what the leading ones leave of the Gram matrix proves that none is missed."""

    RANDOM_START = "random_start"
    """A Krylov space of many random vectors holds no larger triplet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredValues(RitzValues):
    """The values of a decomposition, in units of the scaled matrix, without any vector."""

    full_rank: int
    """The most that the rank can be: min(m, n), or less by the shape of a product.

    A rank above it means all of it.
    """

    scale: float
    """The factor from scaled units to the caller's."""

    energy: float
    """Sum of all squared singular values, in scaled units."""

    method: Method
    proof: Proof
    rejected: tuple[str, ...] = ()
    """The routes that were tried before and missed the bound."""

    @property
    def is_complete(self) -> bool:
        """Whether all values are at hand that may be more than zero."""
        return len(self.squares) == self.full_rank

    @property
    def norm(self) -> float:
        """Frobenius norm of the caller's matrix."""
        return math.sqrt(self.energy) * self.scale

    def singular_values(self) -> list[float]:
        """Return the singular values at hand, descending, in the caller's units."""
        return [math.sqrt(max(square, 0.0)) * self.scale for square in self.squares]
