"""The singular values of a decomposition, and how well they are known.

Numbers alone, of any number of triplets: it holds no vectors, and touches no matrix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from svdcut.svd.certificate import Bounds, bound_cut, bound_spaces, bound_values


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


@dataclass(frozen=True, slots=True)
class MeasuredValues:
    """The values of the triplets at hand, with the measured errors that bound theirs."""

    full_rank: int
    """The most that the rank can be: min(m, n), or less by the shape of a product.

    A rank above it means all of it.
    """

    scale: float
    """The factor from scaled units to the caller's."""

    squares: tuple[float, ...]
    """Squared singular values in scaled units, descending."""

    residuals: tuple[float, ...]
    """Norms of ``a.T @ a @ v - square * v``; see `svdcut.svd.decomposition.Triplets`."""

    couplings: tuple[float, ...]
    """Norms of the part of these that lies in the span of the triplets."""

    energy: float
    """Sum of all squared singular values, in scaled units."""

    rest: float
    """Sum of the squared singular values that are not at hand."""

    next_square: float
    """Largest squared singular value beyond the triplets at hand; 0 when there is none."""

    epsilon: float
    """Of the arithmetic that the vectors are in."""

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

    def bounds(self, k: int) -> Bounds:
        """Bound the error of keeping the first `k` triplets."""
        return bound_cut(
            self.squares,
            self.residuals,
            self.couplings,
            k,
            rest=self.rest,
            beyond=self.next_square,
            epsilon=self.epsilon,
        )

    def value_bound(self, count: int) -> float:
        """Bound the relative error of each of the first `count` singular values."""
        return bound_values(
            self.squares, self.residuals, self.couplings, count, beyond=self.next_square
        )

    def space_bound(self, count: int) -> float:
        """Bound the sine of the angle of each space of the first 1 .. `count` right vectors.

        Of all n of them, which span everything, it may say too much.
        """
        return bound_spaces(
            self.squares, self.residuals, self.couplings, count, beyond=self.next_square
        )
