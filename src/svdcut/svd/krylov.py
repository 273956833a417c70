"""Leading triplets by block Lanczos bidiagonalisation.

Small random blocks, full re-orthogonalisation, stopped by Ritz residuals [1]_,
[2]_. The iteration is trusted for nothing: the triplets are measured at the end
with two products of the matrix itself. Whether they are good enough is decided
by the caller.

References
----------
.. [1] G. Golub, F. Luk, M. Overton, "A block Lanczos method for computing the
   singular values and corresponding singular vectors of a matrix", 1981.
.. [2] R. Meyer, C. Musco, C. Musco, "On the unreasonable effectiveness of single
   vector Krylov methods for low-rank approximation", arXiv:2305.02535.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from svdcut.svd.certificate import VALUE_TOLERANCE, bound_cut
from svdcut.svd.decomposition import Triplets, row_blocks

_PROBE_COLUMNS = 8
_PROBE_STEPS = 2
_CANCELLATION = {torch.float32: 1e-2, torch.float64: 1e-10}
"""Below this share of the energy, a difference of energies is mostly rounding."""

_SAFETY = 0.3
"""The estimate that stops the iteration must be this share of the tolerance."""


@dataclass(frozen=True, slots=True)
class KrylovResult:
    """The triplets, and what lies beyond them."""

    triplets: Triplets
    next_square: float
    """The largest squared Ritz value that is not among them."""

    rest: float
    """The energy that is not among them."""


def krylov_triplets(
    a: Tensor, k: int, *, energy: float, tolerance: float, generator: Generator
) -> KrylovResult | None:
    """Return at least the `k` + 1 leading triplets of `a`.

    Parameters
    ----------
    a : Tensor of shape (m, n), m >= n, float32 or float64
    k : int, 1 <= k < n
    energy : float
        Sum of squares of `a`, above 0.
    tolerance : float
        Relative excess error at rank `k` to aim for.
    generator : Generator
        On the CPU; the random blocks are drawn from it on every device alike.

    Returns
    -------
    KrylovResult or None
        None if the basis grew to half of `n` columns without convergence, where
        a dense route is the better choice.

    Notes
    -----
    A step of `b` columns costs 4 m n b operations. Memory beside `a` is the two
    bases, (m + n) p numbers of the dtype of `a`, p about 3 k to 5 k.
    """
    n = a.shape[1]
    width = min(n, 16 if k <= 40 else 32)
    num_wanted = min(n, k + 1 + max(7, k // 8))
    limit = max(n // 2, num_wanted + 3 * width)
    lanczos = _Lanczos(a, energy=energy, generator=generator)
    lanczos.inject(width)
    next_check = num_wanted + 2 * width
    probed: _Ritz | None = None
    while lanczos.num_left <= limit:
        lanczos.step()
        exhausted = lanczos.num_pending == 0
        if lanczos.num_left < next_check and not exhausted:
            continue
        ritz = lanczos.ritz(num_wanted)
        if not (exhausted or ritz.converged(k, energy, tolerance * _SAFETY)):
            probed = None
            next_check = lanczos.num_left + max(width, lanczos.num_left // 8)
        elif probed is not None and not lanczos.has_grown(probed, ritz, k, tolerance):
            return lanczos.measure(ritz)
        else:
            # Directions that the start block cannot see, as further copies of a
            # singular value repeated more often than the block is wide, show up
            # in a probe drawn afresh.
            probed = ritz
            lanczos.inject(max(_PROBE_COLUMNS, num_wanted - lanczos.num_right))
            for _ in range(_PROBE_STEPS - 1):
                lanczos.step()
            next_check = 0
    return None


@dataclass(frozen=True, slots=True)
class _Ritz:
    """Ritz triplets of the current bases."""

    squares: Tensor
    """(p,) float64, descending."""

    coefficients: Tensor
    """(q, num_wanted) float64: right vectors in the right basis."""

    residuals: Tensor
    """(num_wanted,) float64: estimates."""

    def converged(self, k: int, energy: float, tolerance: float) -> bool:
        """Whether the estimated bounds at rank `k` are met."""
        num_wanted = len(self.residuals)
        if len(self.squares) < num_wanted:
            return False
        bounds = bound_cut(
            self.squares[:num_wanted].tolist(),
            self.residuals.tolist(),
            [0.0] * num_wanted,
            k,
            rest=max(energy - float(self.squares[:num_wanted].sum()), 0.0),
            beyond=self.beyond(),
            epsilon=0.0,
        )
        return bounds.excess <= tolerance and bounds.value <= VALUE_TOLERANCE * _SAFETY

    def beyond(self) -> float:
        """Return the largest squared Ritz value that is not wanted."""
        num_wanted = len(self.residuals)
        return float(self.squares[num_wanted]) if len(self.squares) > num_wanted else 0.0


class _Lanczos:
    """Two growing orthonormal bases with ``a.T @ left == right @ projected.T``."""

    def __init__(self, a: Tensor, *, energy: float, generator: Generator) -> None:
        self._a = a
        self._energy = energy
        self._generator = generator
        # A direction whose norm drowns in rounding carries no information.
        self._negligible = 4 * torch.finfo(a.dtype).eps * energy**0.5
        self._left = _Basis(a.shape[0], a)
        self._right = _Basis(a.shape[1], a)
        self._rows: list[Tensor] = []
        self._coupling = 0.0
        self.num_pending = 0

    @property
    def num_left(self) -> int:
        return self._left.size

    @property
    def num_right(self) -> int:
        return self._right.size

    def inject(self, columns: int) -> None:
        """Append random columns to those that the next step multiplies."""
        columns = min(columns, self._a.shape[1] - self._right.size)
        if columns <= 0:
            return
        block = torch.randn(self._a.shape[1], columns, generator=self._generator)
        block = block.to(self._a.device, self._a.dtype)
        self.num_pending += self._right.extend(block, negligible=0.0)[1].shape[0]

    def step(self) -> None:
        """Multiply the pending columns by the matrix, and the result by its transpose."""
        if self.num_pending == 0:
            return
        pending = self._right.columns[:, self._right.size - self.num_pending :]
        start = self._left.size
        self._left.extend(self._a @ pending, negligible=self._negligible)
        self.num_pending = 0
        left = self._left.rows[start:]
        if not len(left):
            return
        # In this order: ``a.T @ left.T`` is a third slower (measured, CPU).
        image = (left @ self._a).T
        inside, outside = self._right.extend(image, negligible=self._negligible)
        self.num_pending = outside.shape[0]
        self._rows.append(torch.cat((inside, outside)).T)
        self._coupling = float(torch.linalg.matrix_norm(outside, 2)) if outside.numel() else 0.0

    def _projected(self) -> Tensor:
        """Return left.T @ a @ right, (p, q)."""
        width = self._right.size
        padded = [torch.nn.functional.pad(row, (0, width - row.shape[1])) for row in self._rows]
        return torch.cat(padded) if padded else self._a.new_zeros(0, width)

    def ritz(self, num_wanted: int) -> _Ritz:
        """Return the Ritz triplets, the first `num_wanted` with vectors."""
        projected = self._projected()
        # All right vectors are needed only where the matrix has fewer triplets
        # than are wanted.
        full = projected.shape[0] < num_wanted
        _, s, vh = torch.linalg.svd(projected.double(), full_matrices=full)
        coefficients = vh[:num_wanted].T
        tails = coefficients[self._right.size - self.num_pending :].norm(dim=0)
        scales = torch.zeros(coefficients.shape[1], dtype=torch.float64, device=s.device)
        scales[: len(s)] = s[: len(scales)]
        return _Ritz(s.square(), coefficients, scales * tails * self._coupling)

    def has_grown(self, old: _Ritz, new: _Ritz, k: int, tolerance: float) -> bool:
        """Whether the leading `k` + 1 Ritz values gained more than may be missed."""
        found, next_square = float(new.squares[:k].sum()), float(new.squares[k : k + 1].sum())
        allowed = 2 * min(tolerance * (self._energy - found), VALUE_TOLERANCE * next_square)
        gained = float(new.squares[: k + 1].sum() - old.squares[: k + 1].sum())
        return bool(gained > max(allowed * _SAFETY, self._negligible**2))

    def measure(self, ritz: _Ritz) -> KrylovResult:
        """Return the Ritz triplets with residuals measured on the matrix."""
        a, dtype = self._a, self._a.dtype
        right = torch.linalg.qr((self._right.columns @ ritz.coefficients.to(dtype)).double())[0]
        left = (a @ right.to(dtype)).double()
        # Not by the Gram matrix of `left`, which squares the condition number.
        _, s, rotation = torch.linalg.svd(torch.linalg.qr(left, mode="r").R)
        squares = s.square()
        right, left = (right @ rotation.T).to(dtype), (left @ rotation.T).to(dtype)
        residuals, couplings = _defects(right.double(), (left.T @ a).T.double(), s)
        rounding = torch.finfo(dtype).eps * s
        residuals += rounding * s[0]
        # That of ``a @ v``, at no particular angle, and those of `v` and `left`.
        couplings += rounding * ((self._energy / len(a)) ** 0.5 + 2 * s)
        return KrylovResult(
            Triplets(right, left, squares, residuals, couplings),
            next_square=ritz.beyond(),
            rest=self._rest(left, right, float(squares.sum())),
        )

    def _rest(self, left: Tensor, right: Tensor, found: float) -> float:
        """Return the energy of ``a - left @ right.T``."""
        rest = self._energy - found
        if rest > _CANCELLATION[self._a.dtype] * self._energy:
            return rest
        # The difference would have no correct digits left: measure it.
        return math.fsum(
            float((block.double() - part.double() @ right.double().T).square_().sum())
            for start, stop in row_blocks(*self._a.shape)
            for block, part in [(self._a[start:stop], left[start:stop])]
        )


def _defects(right: Tensor, image: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Return the norms of ``image - right * s**2``, and of what of it `right` spans.

    A defect along a larger triplet is one of that triplet too, which it moves more:
    here it counts by the ratio of their values.
    """
    outside = image - right * s.square()
    inside = right.T @ outside
    outside -= right @ inside
    inside *= (s / s.clamp_min(1e-300).unsqueeze(1)).clamp_max(1)
    couplings = inside.norm(dim=0)
    residuals = (outside.norm(dim=0).square() + couplings.square()).sqrt()
    # Twice: an error of ``left = a @ right`` is in its norm as well.
    return residuals, 2 * couplings


class _Basis:
    """Orthonormal columns in storage that grows by doubling."""

    def __init__(self, rows: int, like: Tensor) -> None:
        self._storage = like.new_empty(0, rows)
        self.size = 0

    @property
    def rows(self) -> Tensor:
        """(size, rows): the transpose, as it is stored."""
        return self._storage[: self.size]

    @property
    def columns(self) -> Tensor:
        """(rows, size)."""
        return self.rows.T

    def extend(self, block: Tensor, *, negligible: float) -> tuple[Tensor, Tensor]:
        """Append the directions of `block` that the basis lacks.

        Returns
        -------
        tuple of Tensor
            `inside` (old size, b) and `outside` (added, b) with
            ``block == old @ inside + new @ outside``.

        Notes
        -----
        Block Gram-Schmidt, twice is enough [1]_; the block itself by the
        eigenvectors of its float64 Gram matrix, which drops what is negligible.

        References
        ----------
        .. [1] A. Stathopoulos, K. Wu, "A block orthogonalization procedure with
           constant synchronization requirements", 2002.
        """
        columns = self.columns
        inside = columns.T @ block
        block = block - columns @ inside
        block, outside = _orthonormal(block, negligible)
        again = columns.T @ block
        block, correction = _orthonormal(block - columns @ again, 0.5)
        inside += again @ outside
        self._append(block)
        return inside, correction @ outside

    def _append(self, block: Tensor) -> None:
        needed = self.size + block.shape[1]
        if needed > len(self._storage):
            grown = self._storage.new_empty(max(needed, 2 * len(self._storage)), block.shape[0])
            grown[: self.size] = self._storage[: self.size]
            self._storage = grown
        self._storage[self.size : needed] = block.T
        self.size = needed


def _orthonormal(block: Tensor, negligible: float) -> tuple[Tensor, Tensor]:
    """Return `q` and `r` with ``block == q @ r``, less directions of norm <= `negligible`."""
    wide = block.double()
    values, vectors = torch.linalg.eigh(wide.T @ wide)
    norms = values.clamp_min(0).sqrt()
    # The Gram matrix in float64 sees nothing below sqrt(eps) of its largest value.
    largest = float(norms[-1]) if len(norms) else 0.0
    keep = norms > max(negligible, 1e-7 * largest, 1e-300)
    norms, vectors = norms[keep], vectors[:, keep]
    q = (wide @ (vectors / norms)).to(block.dtype)
    return q, (vectors * norms).T.to(block.dtype)
