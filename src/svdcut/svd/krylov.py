"""Leading triplets by block Lanczos iteration on ``a.T @ a``.

A random start block, full re-orthogonalisation, stopped by Ritz residuals [1]_, [2]_, in
float32. `svdcut.svd.leading` measures the result; the caller decides whether it is good enough.

References
----------
.. [1] G. Golub, R. Underwood, "The block Lanczos method for computing
   eigenvalues", 1977.
.. [2] R. Meyer, C. Musco, C. Musco, "On the unreasonable effectiveness of single
   vector Krylov methods for low-rank approximation", arXiv:2305.02535.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Generator, Tensor

from svdcut.svd.certificate import RESOLUTION, Proof, RitzValues, allowed_value_error
from svdcut.svd.decomposition import Basis, Dominant, row_blocks

_WIDTH = 16
"""Vectors of the start block. Fewer make products slower, more need more products
(measured, CPU)."""

_GPU_WIDTH = 48
"""Width on a GPU: half as many calls, each of which costs more than its work (counted)."""

_PANEL_BYTES = 1 << 20
"""Rows multiplied both ways while in the cache. The second product is half as fast again as
with panels of 4 MB (measured, CPU with AVX-512)."""

_SAFETY = 0.7
"""The iteration stops when its estimate is below this share of the tolerance."""

_AHEAD = 0.75
"""Share of the columns expected until it has converged after which to look again."""

_DROWNED = 5e-5
"""If rounding of the first value is a larger share of a value, the iteration does not find
that value: it stalls at a thousandth of it (measured)."""

_EPSILON = torch.finfo(torch.float32).eps

_STEEP = 4.0
"""Values larger than the first unwanted one by this factor may be dominant."""

_KNOWN = 1e-2
"""Largest residual of a dominant value, relative to its square."""

_ALIKE = 5e-3
"""Squares within this share of each other may be copies of one value, perturbed a little.
Values of noise lie further apart."""


def krylov_basis(
    a: Tensor,
    k: int,
    energy: float,
    known: Sequence[float] = (),
    *,
    tolerance: float,
    generator: Generator,
) -> Basis | Dominant | None:
    """Return a basis of the `k` + 1 leading right vectors of `a`.

    Parameters
    ----------
    a : Tensor of shape (m, n), m >= n, float32
    k : int, 0 <= k < n
    energy : float
        Sum of squares of `a`, above 0.
    known : sequence of float
        Squares of larger triplets that were taken out of `a`, descending. Errors count as those
        of `a` with them: what is below the resolution of the first value is not looked for.
    tolerance : float
        Relative excess error at rank `k` to aim for.
    generator : Generator
        On the CPU; every device draws the same random blocks from it.

    Returns
    -------
    Basis, Dominant or None
        The dominant triplets if rounding hides the others; None if the iteration did not
        converge with a basis of half of `n` columns: eigenvectors of the Gram matrix are
        faster then.

    Notes
    -----
    A step of `b` vectors costs 4 m n b operations, and reads `a` once. Memory beside `a` is the
    basis and its images, (m + n) p numbers, p about 3 k.
    """
    n = a.shape[1]
    width = min(n, _WIDTH if a.device.type == "cpu" else _GPU_WIDTH)
    num_wanted = min(n, k + 1 + max(7, k // 8))
    limit = max(n // 2, num_wanted + 3 * width)
    lanczos = _Lanczos(a, energy=energy, generator=generator)
    lanczos.inject(width)
    next_check = num_wanted + 3 * width
    checks = _Checks(n, width)
    while lanczos.num_pending and lanczos.size <= limit:
        lanczos.step()
        if lanczos.num_pending and lanczos.size < next_check:
            continue
        if lanczos.size < num_wanted:
            lanczos.inject(num_wanted - lanczos.size)
            continue
        ritz = lanczos.ritz(num_wanted)
        if count := ritz.num_dominant(k, known):
            return Dominant(lanczos.basis(ritz).right[:, :count])
        shortfall = ritz.shortfall(k, energy, known, tolerance)
        if shortfall <= _SAFETY:
            return None if ritz.may_hide_copies(width) else lanczos.basis(ritz)
        next_check = lanczos.size + checks.distance(lanczos.size, shortfall)
        if not lanczos.num_pending:
            lanczos.inject(width)
    return None


class _Checks:
    """When to look whether the iteration has converged."""

    def __init__(self, n: int, width: int) -> None:
        self._n, self._width = n, width
        self._last: tuple[int, float] | None = None

    def distance(self, size: int, shortfall: float) -> int:
        """Return how many columns to add to `size` before the next check."""
        # A check costs O(p^3), a needless step O(n^2).
        most = max(self._width, size // 8, size**2 // (2 * self._n))
        last, self._last = self._last, (size, shortfall)
        if last is None or not 0 < shortfall < last[1] < math.inf:
            return most
        # The logarithm falls ever faster: as fast as before, it takes at most so many columns.
        columns = math.log(shortfall / _SAFETY) / math.log(last[1] / shortfall) * (size - last[0])
        return max(self._width, min(most, int(_AHEAD * columns)))


@dataclass(frozen=True, slots=True)
class _Ritz:
    """Ritz pairs of ``a.T @ a`` in the current basis."""

    squares: Tensor
    """(p,) float64, descending."""

    vectors: Tensor
    """(num_wanted, p) float64, in coordinates of the basis."""

    residuals: list[float]
    """Estimates for the wanted ones and the next one."""

    num_wanted: int

    def shortfall(self, k: int, energy: float, known: Sequence[float], tolerance: float) -> float:
        """Return by what factor the estimated bounds at rank `k` miss what is allowed."""
        squares = self.squares[: self.num_wanted].tolist()
        rest = max(energy - math.fsum(squares), 0.0)
        exact = [0.0] * len(known)
        values = RitzValues(
            squares=[*known, *squares],
            residuals=[*exact, *self.residuals[: self.num_wanted]],
            couplings=[*exact, *[0.0] * self.num_wanted],
            beyond=min(rest, self.beyond),
            rest=rest,
        )
        bounds = values.bounds(k + len(known))
        return max(bounds.excess / tolerance, bounds.value / allowed_value_error(tolerance))

    def num_dominant(self, k: int, known: Sequence[float]) -> int:
        """Return how many values to deflate, at most `k`, so that rounding hides no other."""
        s: list[float] = self.squares[: self.num_wanted].sqrt().tolist()
        first = math.sqrt(known[0]) if known else s[0]
        following = max(s[min(k, len(s) - 1)], RESOLUTION * first)

        def drowns(first: float) -> bool:
            return _EPSILON * first > _DROWNED * following

        if not drowns(s[0]):
            return 0
        # Values within rounding of the first are too inaccurate to deflate.
        floor = max(following, _EPSILON * s[0])
        steep = zip(s, self.residuals, strict=False)
        accurate = (x > _STEEP * floor and e <= _KNOWN * x * x for x, e in steep)
        count = sum(1 for _ in takewhile(bool, accurate))
        return 0 if drowns(s[count]) else count

    @property
    def beyond(self) -> float:
        """An upper estimate of the largest square beyond the wanted ones; infinite without."""
        if len(self.squares) == self.num_wanted:
            return math.inf
        return float(self.squares[self.num_wanted]) + self.residuals[self.num_wanted]

    def may_hide_copies(self, width: int) -> bool:
        """Whether a multiple value may have more copies than the iteration found.

        A Krylov space has at most `width` vectors for each eigenvalue. So copies can be missing
        only where it found `width` of them, of which the last may lie beyond the wanted ones.
        Vectors injected later do not count: they have gone through fewer steps. Copies converge
        alike, so that those beyond the wanted ones need no allowance for their residuals.
        """
        squares = self.squares.tolist()
        firsts = squares[: self.num_wanted + 1]
        residuals = self.residuals[width - 1 :] + [0.0] * width
        return any(
            last > 0 and first - last <= _ALIKE * last + residual
            for first, last, residual in zip(firsts, squares[width - 1 :], residuals, strict=False)
        )


class _Lanczos:
    """A growing orthonormal basis and its images under the matrix, stored as rows."""

    def __init__(self, a: Tensor, *, energy: float, generator: Generator) -> None:
        self._a = a
        self._energy = energy
        self._generator = generator
        # A direction of smaller norm is rounding.
        self._rounding = 4 * _EPSILON * energy**0.5
        self._basis = _Rows(a.shape[1], a)
        self._images = _Rows(a.shape[0], a)
        self._gram = a.new_zeros(0, 0, dtype=torch.float64)
        self._outside = a.new_zeros(0, 0)

    @property
    def size(self) -> int:
        """Number of basis vectors that have an image."""
        return len(self._images.rows)

    @property
    def num_pending(self) -> int:
        """Number of basis vectors that have none yet."""
        return len(self._basis.rows) - self.size

    def inject(self, count: int) -> None:
        """Append random vectors to the basis."""
        count = min(count, self._a.shape[1] - len(self._basis.rows))
        if count <= 0:
            return
        block = torch.randn(count, self._a.shape[1], generator=self._generator, dtype=torch.float32)
        block = block.to(self._a.device, self._a.dtype)
        self._extend(block, negligible=0.0)

    def step(self) -> None:
        """Multiply the pending vectors by the matrix, and the images by its transpose."""
        pending = self._basis.rows[self.size :]
        columns = pending.T.contiguous()
        images = self._a.new_empty(self._a.shape[0], len(pending))
        returned = torch.zeros_like(pending)
        a = self._a
        for start, stop in row_blocks(
            a.shape, a.device, itemsize=a.itemsize, num_bytes=_PANEL_BYTES
        ):
            panel, part = a[start:stop], images[start:stop]
            torch.matmul(panel, columns, out=part)
            returned.addmm_(part.T, panel)
        self._images.append(images.T)
        negligible = self._rounding * float(images.norm(dim=0).max())
        self._outside = self._extend(returned, negligible=negligible)

    def _extend(self, block: Tensor, *, negligible: float) -> Tensor:
        """Append the part of `block` that is orthogonal to the basis.

        Returns
        -------
        Tensor
            (added, b): coefficients of `block` in the appended vectors.

        Notes
        -----
        Block Gram-Schmidt, twice [1]_; within the block, by the eigenvectors of its float64
        Gram matrix, without the negligible ones.

        References
        ----------
        .. [1] A. Stathopoulos, K. Wu, "A block orthogonalization procedure with
           constant synchronization requirements", 2002.
        """
        basis = self._basis.rows
        block, outside = _orthonormal(block - (block @ basis.T) @ basis, negligible)
        block, correction = _orthonormal(block - (block @ basis.T) @ basis, 0.5)
        self._basis.append(block)
        return correction @ outside

    def ritz(self, num_wanted: int) -> _Ritz:
        """Return the Ritz pairs, the first `num_wanted` with vectors."""
        squares, vectors = torch.linalg.eigh(self._images_gram())
        rotation = vectors.T.flip(0)
        last = rotation[: num_wanted + 1, self.size - self._outside.shape[1] :]
        return _Ritz(
            squares.flip(0).clamp_min(0),
            rotation[:num_wanted],
            (last @ self._outside.double().T).norm(dim=1).tolist(),
            num_wanted,
        )

    def _images_gram(self) -> Tensor:
        """Return the float64 Gram matrix of all images, computed for the new ones only."""
        old, images = len(self._gram), self._images.rows
        if old == len(images):
            return self._gram
        gram = self._gram.new_zeros(len(images), len(images))
        gram[:old, :old] = self._gram
        for start, stop in row_blocks((self._a.shape[0], len(images)), images.device):
            part = images[:, start:stop].double()
            gram[old:].addmm_(part[old:], part.T)
        gram[:old, old:] = gram[old:, :old].T
        self._gram = gram
        return gram

    def basis(self, ritz: _Ritz) -> Basis:
        """Return the wanted Ritz vectors and their images."""
        rotation = ritz.vectors.to(self._a.dtype)
        right = ritz.vectors @ self._basis.rows[: self.size].double()
        images = rotation @ self._images.rows
        return Basis(right.T, ritz.beyond, Proof.RANDOM_START, images.T)


class _Rows:
    """Rows in storage that grows by doubling."""

    def __init__(self, columns: int, like: Tensor) -> None:
        self._storage = like.new_empty(0, columns)
        self._size = 0

    @property
    def rows(self) -> Tensor:
        """(size, columns)."""
        return self._storage[: self._size]

    def append(self, block: Tensor) -> None:
        """Append rows."""
        needed = self._size + len(block)
        if needed > len(self._storage):
            grown = block.new_empty(max(needed, 2 * len(self._storage)), block.shape[1])
            grown[: self._size] = self.rows
            self._storage = grown
        self._storage[self._size : needed] = block
        self._size = needed


def _orthonormal(block: Tensor, negligible: float) -> tuple[Tensor, Tensor]:
    """Return `q` and `r`, ``block == r.T @ q`` but for directions of norm <= `negligible`."""
    wide = block.double()
    # On the CPU: for so few rows, launches would dominate on a GPU.
    values, vectors = torch.linalg.eigh((wide @ wide.T).cpu())
    norms = values.clamp_min(0).sqrt()
    # The Gram matrix in float64 sees nothing below sqrt(eps) of its largest value.
    largest = float(norms[-1]) if len(norms) else 0.0
    keep = norms > max(negligible, 1e-7 * largest, 1e-300)
    norms, vectors = norms[keep].to(wide.device), vectors[:, keep].to(wide.device)
    q = ((vectors / norms).T @ wide).to(block.dtype)
    return q, (vectors * norms).T.to(block.dtype)
