"""Data that routes return: triplets of a matrix, and bounds on them.

It does not compute a decomposition; `dense`, `krylov` and `factored` do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from svdcut.svd.certificate import MeasuredValues, Method, Proof
from svdcut.svd.product import Product, full_rank

_LIBRARIES = ("lapack", "cusolver", "cublas", "magma")


_HARMLESS_EXPONENT = 20
"""Entries up to two to this power, or down to its inverse, leave float32 room for squares."""


class SolverError(Exception):
    """No route could decompose a matrix: LAPACK or its like failed at the last one."""


def is_solver_failure(error: RuntimeError) -> bool:
    """Return whether a linear algebra library failed, so that another route may succeed."""
    if isinstance(error, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
        return True
    # A status other than "no convergence" comes as a plain RuntimeError.
    return any(name in str(error).lower() for name in _LIBRARIES)


@contextmanager
def solver_errors() -> Iterator[None]:
    """Turn a library failure into a `SolverError`, for calls with no other route left."""
    try:
        yield
    except RuntimeError as failure:
        if is_solver_failure(failure):
            raise SolverError(str(failure)) from failure
        raise


@dataclass(frozen=True, slots=True)
class Triplets:
    """Triplets of a matrix, in the units that the decomposition works in.

    With `a` the scaled matrix, its short side along the columns,
    ``left = a @ right``; triplet `i` is column `i` of both.
    """

    right: Tensor
    """(n, j), orthonormal columns."""

    left: Tensor | None
    """(m, j), or None where it is cheaper to compute on demand."""

    squares: Tensor
    """(j,) float64, descending: squared singular values."""

    residuals: Tensor
    """(j,) float64: measured norms of ``a.T @ a @ v - square * v``, of which the part
    along larger triplets may count by the ratio of their values."""

    couplings: Tensor
    """(j,) float64: norms of the part of these that lies in the span of `right`."""

    def first(self, count: int) -> Triplets:
        """Return the leading ones, as views."""
        return Triplets(
            right=self.right[:, :count],
            left=None if self.left is None else self.left[:, :count],
            squares=self.squares[:count],
            residuals=self.residuals[:count],
            couplings=self.couplings[:count],
        )


@dataclass(frozen=True, slots=True)
class Basis:
    """Vectors whose span nearly contains the leading right vectors of a matrix."""

    right: Tensor
    """(n, j), nearly orthonormal."""

    beyond: float
    """Bound on the squared singular values of the matrix on the complement."""

    proof: Proof
    """Why that is a bound."""

    images: Tensor | None = None
    """(m, j): products of the matrix with `right`, if known."""


@dataclass(frozen=True, slots=True)
class Dominant:
    """Leading values so large that rounding hides the other wanted ones."""

    right: Tensor
    """(n, h): their approximate right vectors."""


@dataclass(frozen=True, slots=True)
class Leading:
    """Leading triplets, and bounds on those beyond them."""

    triplets: Triplets
    beyond: float
    """Bound on the squared values beyond them; 0 if there are none."""

    rest: float
    """The energy beyond them."""

    proof: Proof


@dataclass(frozen=True, slots=True)
class Decomposition:
    """Triplets of one matrix with the facts that bound their error.

    Nothing is copied, except that the factors of a product are scaled.
    """

    matrix: Tensor | Product
    """The scaled matrix, (m, n), m >= n, dense or as a product."""

    exponent: int
    """The caller's matrix is `matrix` times 2**exponent, transposed if `transposed`."""

    transposed: bool
    """Whether `matrix` is the transpose of the caller's."""

    triplets: Triplets
    energy: float
    """Sum of all squared singular values, in scaled units."""

    method: Method
    proof: Proof
    rest: float
    """Sum of the squared singular values that are not at hand."""

    beyond: float
    """Largest squared singular value beyond the triplets at hand; 0 when there is none."""

    rejected: tuple[str, ...] = ()
    """Routes that failed before, and why."""

    @property
    def full_rank(self) -> int:
        """The most that the rank can be: min(m, n), or less by the shape of a product."""
        return full_rank(self.matrix)

    @property
    def scale(self) -> float:
        """The factor from scaled units to the caller's."""
        return math.ldexp(1.0, self.exponent)

    @property
    def num_triplets(self) -> int:
        """Number of triplets at hand."""
        return len(self.triplets.squares)

    def measured(self) -> MeasuredValues:
        """Return the values of the triplets, which bounds follow from, without the vectors."""
        triplets = self.triplets
        return MeasuredValues(
            full_rank=self.full_rank,
            scale=self.scale,
            squares=tuple(triplets.squares.tolist()),
            residuals=tuple(triplets.residuals.tolist()),
            couplings=tuple(triplets.couplings.tolist()),
            energy=self.energy,
            rest=self.rest,
            beyond=self.beyond,
            epsilon=torch.finfo(triplets.right.dtype).eps,
            method=self.method,
            proof=self.proof,
            rejected=self.rejected,
        )

    def factors(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the chosen triplets as a product of two thin factors.

        Parameters
        ----------
        indices : sequence of int
            Which triplets.

        Returns
        -------
        tuple of Tensor
            `left` (rows, k) and `right` (k, columns) of the caller's matrix;
            ``left @ right * scale`` is its projection onto the triplets, of
            rank at most k.
        """
        picked = torch.tensor(list(indices), dtype=torch.long, device=self.matrix.device)
        right = self.triplets.right.index_select(1, picked)
        if self.triplets.left is not None:
            left = self.triplets.left.index_select(1, picked)
        else:
            left = multiply(self.matrix, right)
        return (right, left.T) if self.transposed else (left, right.T)


UNCOUNTED = 1 << 62
"""Bytes that a dense route asks for: as many as it takes."""

PRODUCT_BYTES = 32 << 20
"""Size of a block of rows in a matrix product, in float64; on a GPU, of any block, as each
costs some launches of kernels whatever its size."""

_PASS_BYTES = 2 << 20
"""Size of a block that is only read once: it stays in the cache, and the allocator reuses its
place, where it would map a larger one anew, page by page (measured, CPU)."""


def row_blocks(
    shape: Sequence[int],
    device: torch.device,
    *,
    itemsize: int = 8,
    num_bytes: int = _PASS_BYTES,
) -> list[tuple[int, int]]:
    """Return ranges of the rows of a matrix whose blocks take about `num_bytes` each.

    On a GPU they take `PRODUCT_BYTES` instead.
    """
    if device.type != "cpu":
        num_bytes = PRODUCT_BYTES
    rows, columns = shape
    step = max(1, num_bytes // max(1, columns * itemsize))
    return [(start, min(rows, start + step)) for start in range(0, rows, step)]


def multiply(a: Tensor | Product, b: Tensor) -> Tensor:
    """Return ``a @ b`` in the precision of `b`, without a converted copy of `a`."""
    if isinstance(a, Product):
        return multiply(a.left, multiply(a.right, b))
    if a.dtype == b.dtype:
        return a @ b
    out = torch.empty(a.shape[0], b.shape[1], dtype=b.dtype, device=a.device)
    for start, stop in row_blocks(a.shape, a.device, num_bytes=PRODUCT_BYTES):
        torch.matmul(a[start:stop].to(b.dtype), b, out=out[start:stop])
    return out


def multiply_rows(b: Tensor, a: Tensor) -> Tensor:
    """Return ``b @ a`` in the precision of `b`, without a converted copy of `a`."""
    if a.dtype == b.dtype:
        return b @ a
    out = torch.zeros(b.shape[0], a.shape[1], dtype=b.dtype, device=a.device)
    for start, stop in row_blocks(a.shape, a.device, num_bytes=PRODUCT_BYTES):
        out.addmm_(b[:, start:stop], a[start:stop].to(b.dtype))
    return out


def sum_of_squares(a: Tensor) -> float:
    """Return the sum of squares of all entries, accumulated in float64."""
    total = torch.zeros((), dtype=torch.float64, device=a.device)
    for start, stop in row_blocks((a.shape[0], a[0].numel() if len(a) else 1), a.device):
        # A copy, because it is squared in place and may be the caller's own.
        block = a[start:stop].to(torch.float64, copy=True)
        total += block.square_().sum()
    return float(total)


def normalise(a: Tensor) -> tuple[Tensor, int]:
    """Scale by a power of two, in place and exactly, where squares might overflow or vanish.

    Returns
    -------
    tuple of Tensor and int
        The scaled matrix, and the power to multiply it with to have the old one.
    """
    smallest, largest = torch.aminmax(a) if a.numel() else (a.new_zeros(()), a.new_zeros(()))
    size = max(-float(smallest), float(largest))
    exponent = math.frexp(size)[1]
    if abs(exponent) <= _HARMLESS_EXPONENT:
        return a, 0
    # In two steps: a single factor could itself leave the range of the dtype.
    half = exponent // 2
    return a.mul_(2.0**-half).mul_(2.0 ** (half - exponent)), exponent
