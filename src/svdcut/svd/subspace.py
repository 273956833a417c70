"""The leading singular spaces of a matrix, orthonormal in float64.

The engine finds the triplets. The module compares no checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from svdcut.svd.certificate import RESOLUTION, MeasuredValues
from svdcut.svd.decomposition import Decomposition, multiply
from svdcut.svd.engine import decompose
from svdcut.svd.product import Product

SPACE_TOLERANCE = 1e-2
"""Sine of the angle allowed between a space and the true one; most are far nearer."""

_EXCESS = 1e-10
"""Excess that an iteration aims for. The error of vectors is about the root of that of energies."""


@dataclass(frozen=True, slots=True)
class LeadingSpaces:
    """Leading left and right singular vectors of a matrix, at most as many as asked for."""

    left: Tensor
    """(m, k) float64, orthonormal; the first `j` columns span the space of rank `j`."""

    right: Tensor
    """(n, k) float64, likewise."""

    values: tuple[float, ...]
    """Singular values at hand, descending; there may be more than k."""

    @property
    def rank(self) -> int:
        """Number of vectors, k."""
        return self.left.shape[1]

    def gap(self, k: int) -> float:
        """Return the gap between the k-th value and the next, relative to the k-th: 0 to 1."""
        return 1 - self.values[k] / self.values[k - 1] if k < len(self.values) else 1.0


def leading_spaces(
    a: Tensor | Product, rank: int, *, seed: int, escalate: Callable[[int], object] = lambda _: None
) -> LeadingSpaces:
    """Return the spaces of the leading singular vectors of a matrix.

    Parameters
    ----------
    a : Tensor of shape (m, n), float32 or float64, or Product
        Finite; a tensor is scaled in place.
    rank : int
        How many vectors are wanted. Those whose values are below `RESOLUTION` of the
        first are left out: the matrix has none there.
    seed : int
        Of the engine's random blocks.
    escalate : callable
        As for `svdcut.svd.engine.decompose`.

    Returns
    -------
    LeadingSpaces
        Each space of 1, 2, ... vectors is within `SPACE_TOLERANCE` of the true one. Vectors
        whose squared values differ by less than `SPACE_GAP` may mix.

    Raises
    ------
    SolverError
        If no route converges.

    Notes
    -----
    Costs as much as a truncation at that rank. For 2048 x 2048 of noise at rank 16 that is
    0.4 s; all values take 1.0 s, all vectors 3.3 s (measured, CPU). The vectors of the long
    side are the matrix times those of the short side, in float64. Errors of the short side's
    vectors lie along smaller triplets, so the products are no further off.
    """

    def accept(found: Decomposition) -> bool:
        values = found.measured()
        count = min(_num_nonzero(values, rank), found.matrix.shape[1] - 1)
        return values.space_bound(count) <= SPACE_TOLERANCE

    found = decompose(a, rank, accept=accept, tolerance=_EXCESS, seed=seed, escalate=escalate)
    values = found.measured()
    short = found.triplets.right[:, : _num_nonzero(values, rank)].double()
    long = multiply(found.matrix, short)
    left, right = (short, long) if found.transposed else (long, short)
    return LeadingSpaces(_orthonormal(left), _orthonormal(right), tuple(values.singular_values()))


def _num_nonzero(measured: MeasuredValues, rank: int) -> int:
    values = measured.singular_values()[:rank]
    return sum(value > RESOLUTION * values[0] for value in values)


def _orthonormal(columns: Tensor) -> Tensor:
    """Return an orthonormal basis of each leading part of the columns; signs may flip."""
    return torch.linalg.qr(columns / columns.norm(dim=0)).Q if columns.shape[1] else columns


def principal_cosines(first: Tensor, second: Tensor) -> tuple[float, ...]:
    """Return the cosines of the principal angles between two spaces, descending.

    Parameters
    ----------
    first, second : Tensor of shape (m, k), float64
        Orthonormal.

    Notes
    -----
    The singular values of ``first.T @ second`` [1]_, exact to rounding. Cosines do not
    distinguish angles below 1e-8 from zero.

    References
    ----------
    .. [1] A. Bjorck, G. Golub, "Numerical methods for computing angles between linear
       subspaces", Math. Comp. 27, 1973.
    """
    if not first.shape[1]:
        return ()
    return tuple(torch.linalg.svdvals(first.T @ second).clamp(0, 1).tolist())
