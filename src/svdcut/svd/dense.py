"""Triplets of a whole matrix: the exact route and the Gram route.

Neither decides whether its result is good enough.
"""

from __future__ import annotations

import torch
from torch import Tensor

from svdcut.svd.decomposition import PRODUCT_BYTES, Leading, Triplets, row_blocks

_TALL = 2
"""From this aspect ratio on, a QR first makes the SVD that of a square matrix."""

_FEW = 3
"""Computing only the leading eigenvectors is faster up to this part of all (measured, CPU)."""

_SKEW = 1e-12
"""Largest entry of ``V.T V - 1`` of eigenvectors that are accepted."""

_SLACK = 1e-14
"""Rounding of a Cholesky factorisation, relative to the trace."""

_CANCELLATION = 1e-6
"""Below this share of the energy, a difference of energies is too inaccurate."""

_PANEL = 256
"""Columns of a Gram matrix computed at a time: a third faster than all at once (measured,
CPU)."""


def exact_triplets(a: Tensor) -> Triplets:
    """Return all triplets of `a` by a full SVD in float64.

    Parameters
    ----------
    a : Tensor of shape (m, n), m >= n, float32 or float64

    Returns
    -------
    Triplets
        All n, in float64.

    Raises
    ------
    torch.linalg.LinAlgError
        If the SVD does not converge.

    Notes
    -----
    O(m n^2), some twenty times a matrix product. Backward stable: values are
    within a few eps of the first one, absolutely. Memory is about seven
    float64 copies of a square matrix (LAPACK's gesdd), three of a tall one.
    """
    wide = a.double()
    if is_tall(a):
        q, r = torch.linalg.qr(wide)
        u, s, vh = torch.linalg.svd(r, full_matrices=False)
        left = q @ (u * s)
    else:
        u, s, vh = torch.linalg.svd(wide, full_matrices=False)
        left = u * s
    right = vh.T.contiguous()
    squares = s.square()
    residuals = (wide.T @ left - right * squares).norm(dim=0)
    residuals += torch.finfo(torch.float64).eps * s[0] * s
    return Triplets(right, left, squares, residuals, residuals)


def is_tall(a: Tensor) -> bool:
    """Whether a QR of `a` (m, n) pays before its SVD."""
    return a.shape[0] >= _TALL * a.shape[1]


def gram_triplets(product: Tensor, count: int | None = None) -> Leading:
    """Return leading triplets of a matrix from the Gram matrix of its short side.

    Parameters
    ----------
    product : Tensor of shape (n, n), float64
        From `gram`.
    count : int, optional
        How many are wanted; all n by default.

    Returns
    -------
    Leading
        At least `count`, right vectors in float64, `left` on demand. The energy beyond them is
        exact to 1e-8 of itself.

    Raises
    ------
    torch.linalg.LinAlgError
        If eigh does not converge.

    Notes
    -----
    9 n^3 for all; 5/3 n^3 and O(n^2 count) for a few, on a CPU. Squares the condition number:
    values below 1e-8 of the first are lost, which `residuals` shows.
    """
    n, energy = len(product), float(product.trace())
    if count is not None and count * _FEW <= n and product.device.type == "cpu":
        values, vectors = _last_eigenpairs(product, count)
        rest = max(energy - float(values.sum()), 0.0)
        if len(values) == count and rest >= _CANCELLATION * energy:
            found = _of_eigenpairs(product, values, vectors)
            beyond = float(found.squares[-1]) + _SLACK * energy
            if _are_the_largest(product, found, beyond):
                return Leading(found, beyond, rest)
    values, vectors = torch.linalg.eigh(product)
    return Leading(_of_eigenpairs(product, values, vectors), 0.0, 0.0)


def _of_eigenpairs(product: Tensor, values: Tensor, vectors: Tensor) -> Triplets:
    squares, right = values.flip(0).clamp_min(0), vectors.flip(1).contiguous()
    residuals = (product @ right - right * squares).norm(dim=0)
    # Rounding of the Gram matrix itself does not show in the residual.
    residuals += torch.finfo(torch.float64).eps * float(product.trace())
    return Triplets(right, None, squares, residuals, residuals)


def _are_the_largest(product: Tensor, found: Triplets, beyond: float) -> bool:
    """Whether eigenvectors are orthonormal, and every other eigenvalue is at most `beyond`.

    With `R` the deflated matrix, ``beyond * 1 - R`` has a Cholesky factor exactly if no
    eigenvalue of `R` is larger: n^3 / 3.
    """
    right = found.right
    skew = right.T @ right
    skew.diagonal().sub_(1)
    if float(skew.abs().max()) > _SKEW:
        return False
    left = torch.addmm(product, right * found.squares, right.T, alpha=-1).neg_()
    left.diagonal().add_(beyond)
    return int(torch.linalg.cholesky_ex(left).info) == 0


def _last_eigenpairs(product: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the largest eigenvalues, ascending, and their vectors, (n, count); or fewer."""
    import numpy as np
    from scipy.linalg import eigh

    n = len(product)
    subset = (n - count, n - 1)
    try:
        found = eigh(product.numpy(), subset_by_index=subset, driver="evr", check_finite=False)
    except np.linalg.LinAlgError as error:
        raise torch.linalg.LinAlgError(str(error)) from error  # type: ignore[attr-defined]
    values, vectors = map(torch.from_numpy, found)
    return values, vectors


def triangle(a: Tensor) -> Tensor:
    """Return the triangle of a QR of `a` (m, n), m >= n, as (n, n) float64.

    Notes
    -----
    2 m n^2. Two float64 copies of `a`, or of a tall one three of a part of 2 n rows. What
    is below the diagonal is of no meaning.
    """
    n = a.shape[1]
    if not is_tall(a):
        return torch.geqrf(a.double())[0][:n]
    found = a[:0].double()
    for start in range(0, a.shape[0], n):
        rows = torch.cat((found, a[start : start + n].double()))
        found = torch.linalg.qr(rows, mode="r").R
    return found


def gram(a: Tensor, *, without: Tensor | None = None) -> Tensor:
    """Return ``a.T @ a``, (n, n) float64, of which only one triangle is computed.

    Parameters
    ----------
    a : Tensor of shape (m, n), float32 or float64
    without : Tensor of shape (n, k), float64, optional
        Orthonormal: what lies along it is taken out of `a` first.

    Notes
    -----
    O(m n^2).
    """
    n = a.shape[1]
    product = torch.zeros(n, n, dtype=torch.float64, device=a.device)
    panels = [slice(start, start + _PANEL) for start in range(0, n, _PANEL)]
    for start, stop in row_blocks(a.shape, a.device, num_bytes=PRODUCT_BYTES):
        block = a[start:stop].double()
        if without is not None:
            block = block.addmm(block @ without, without.T, alpha=-1)
        for panel in panels:
            product[panel, panel.start :].addmm_(block[:, panel].T, block[:, panel.start :])
    for panel in panels:
        product[panel.stop :, panel] = product[panel, panel.stop :].T
    return product
