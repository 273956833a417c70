"""Leading triplets: find a basis, deflate dominant triplets, measure all on the matrix.

The bases come from `krylov` or from `dense`. Rounding is proportional to the first singular
value. If a few dominant triplets are much larger than the rest, as in a LoRA update merged into
the weights, rounding hides the rest. Then the dominant triplets are projected out, and the search
continues in the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from svdcut.svd.decomposition import (
    Basis,
    Dominant,
    Leading,
    Triplets,
    multiply,
    multiply_rows,
    normalise,
    row_blocks,
    sum_of_squares,
)

_CANCELLATION = {torch.float32: 1e-2, torch.float64: 1e-10}
"""Below this share of the energy, a difference of energies is mostly rounding."""

_SINGLE = torch.finfo(torch.float32).eps

FindBasis = Callable[[Tensor, int, float, Sequence[float]], "Basis | Dominant | None"]
"""Finds a basis of the `k` + 1 leading right vectors, given a float32 matrix, `k`, its energy, and
the squares of the triplets that were taken out of it."""


def leading_triplets(
    a: Tensor,
    k: int,
    find: FindBasis,
    *,
    energy: float,
    escalate: Callable[[int], object] = lambda _: None,
) -> Leading | None:
    """Return at least the `k` + 1 leading triplets of `a`.

    Parameters
    ----------
    a : Tensor of shape (m, n), m >= n, float32 or float64
    k : int, 0 <= k < n
    find : callable
        `krylov_basis` or `gram_basis`; it works in float32.
    energy : float
        Sum of squares of `a`, above 0.
    escalate : callable
        As for `svdcut.svd.engine.decompose`.

    Returns
    -------
    Leading or None
        In float32 if `a` is float32 and nothing was deflated, otherwise in float64. None if no
        basis was found.

    Notes
    -----
    With `V` the dominant right vectors, searches ``a - a V V.T``. All vectors together are then
    rotated and measured on `a`, so an incomplete separation shows in their residuals. The bound
    on the values beyond the basis of the rest also bounds those of `a` beyond all vectors, after
    the rounding of the rest to float32 is added.
    """
    rest, exponent, rounded = a, 0, 0.0
    squares: list[float] = []
    dominant = a.new_zeros(a.shape[1], 0, dtype=torch.float64)
    if a.dtype != torch.float32:
        escalate(a.nbytes // 2)
        rest, rounded = a.float(), _SINGLE * math.sqrt(energy)
    found = find(rest, k, energy, squares)
    while isinstance(found, Dominant):
        dominant = _sharpened(a, torch.cat((dominant, found.right.double()), dim=1))
        if rest is a:
            escalate(a.nbytes)
            rest = torch.empty_like(a)
        squares, exponent = _deflate(a, dominant, rest)
        left = sum_of_squares(rest)
        rounded = _SINGLE * math.sqrt(left)
        found = find(rest, k - dominant.shape[1], left, squares)
    if found is None:
        return None
    if rest is a:
        return measure(a, found, dtype=torch.float32, energy=energy)
    right = torch.cat((dominant, found.right.double()), dim=1)
    beyond = (math.sqrt(found.beyond) + rounded) ** 2 * 4.0**exponent
    every = Basis(right, beyond, found.proof)
    return measure(a, every, dtype=torch.float64, energy=energy)


def _sharpened(a: Tensor, right: Tensor) -> Tensor:
    """Return vectors, (n, h), after one more step of the power method, in float64."""
    sharper: Tensor = torch.linalg.qr(multiply_rows(multiply(a, right).T, a).T).Q
    return sharper


def _deflate(a: Tensor, right: Tensor, rest: Tensor) -> tuple[list[float], int]:
    """Write ``a - a V V.T``, scaled by a power of two, to `rest`.

    Returns
    -------
    tuple of list of float and int
        Squared singular values of ``a V``, descending, in the scale of `rest`, and the exponent.
    """
    left = multiply(a, right)
    for start, stop in row_blocks(a.shape, a.device):
        block = a[start:stop].to(torch.float64, copy=True)
        rest[start:stop] = block.addmm_(left[start:stop], right.T, alpha=-1)
    exponent = normalise(rest)[1]
    squares = torch.linalg.svdvals(torch.linalg.qr(left).R * 2.0**-exponent).square()
    return squares.tolist(), exponent


def measure(a: Tensor, basis: Basis, *, dtype: torch.dtype, energy: float) -> Leading:
    """Return the triplets of `a` in the span of a basis, with residuals measured on `a`.

    Parameters
    ----------
    a : Tensor of shape (m, n), float32 or float64
    basis : Basis
        j vectors, which need not be orthonormal.
    dtype : torch.dtype
        Dtype of the vectors returned, and of the products with `a`.
    energy : float
        Sum of squares of `a`.

    Notes
    -----
    Two products with `a`, or one if the images of the basis are known, 2 m n j each. Plus
    O((m + n) j^2) in float64.
    """
    right, triangle = torch.linalg.qr(basis.right.double())
    if basis.images is None:
        left = multiply(a, right.to(dtype)).double()
    else:
        images = basis.images.double()
        left = torch.linalg.solve_triangular(triangle, images, upper=True, left=False)
    left, core = torch.linalg.qr(left)
    # On the CPU: a GPU takes longer for so small a matrix.
    u, s, vh = (part.to(a.device) for part in torch.linalg.svd(core.cpu()))
    right, left = (right @ vh.T).to(dtype), (left @ (u * s)).to(dtype)
    returned = multiply_rows(left.T.contiguous(), a)
    residuals, couplings = _defects(right.T.double(), returned.double(), s)
    rounding = torch.finfo(dtype).eps * s
    residuals += rounding * s[0]
    # Rounding of ``a @ v``, in no particular direction, and of `v` and `left`.
    couplings += rounding * ((energy / len(a)) ** 0.5 + 2 * s)
    squares = s.square()
    rest = _rest(a, left, right.T, energy - float(squares.sum()), energy)
    triplets = Triplets(right, left, squares, residuals, couplings)
    return Leading(triplets, min(basis.beyond, rest), rest, basis.proof)


def _rest(a: Tensor, left: Tensor, right: Tensor, rest: float, energy: float) -> float:
    """Return the energy of ``a - left @ right``: `rest`, unless cancellation spoils that."""
    if rest > _CANCELLATION[left.dtype] * energy:
        return rest
    return math.fsum(
        float((block.double() - part.double() @ right.double()).square_().sum())
        for start, stop in row_blocks(a.shape, a.device)
        for block, part in [(a[start:stop], left[start:stop])]
    )


def _defects(right: Tensor, returned: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Return the norms of ``returned - s**2 * right``, and of its part in the span of `right`.

    The part along a larger triplet counts by the ratio of the values: it is also a residual
    of that triplet, and moves it more.
    """
    outside = returned - right * s.square().unsqueeze(1)
    inside = outside @ right.T
    outside -= inside @ right
    inside *= (s / s.clamp_min(1e-300).unsqueeze(1)).clamp_max(1).T
    couplings = inside.norm(dim=1)
    residuals = (outside.norm(dim=1).square() + couplings.square()).sqrt()
    # Twice: an error of ``left = a @ right`` changes its norm too.
    return residuals, 2 * couplings
