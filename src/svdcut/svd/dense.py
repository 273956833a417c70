"""Triplets of a whole matrix by an SVD, and by eigenvectors of its Gram matrix.

The caller decides whether they are good enough.
"""

from __future__ import annotations

import torch
from torch import Tensor

from svdcut.svd.certificate import Proof
from svdcut.svd.decomposition import PRODUCT_BYTES, Basis, Dominant, Triplets, row_blocks
from svdcut.svd.lapack import leading_eigenpairs

_TALL = 2
"""From this aspect ratio on, a QR comes first, so that the SVD is of a square matrix."""

_NEAR = 1e-5
"""Relative margin of the proof above the last eigenvalue found."""

_ROUNDING = 4 * torch.finfo(torch.float32).eps
"""Bound on the rounding of a float32 Gram matrix and of the proof, relative to the energy. Measured
at most a seventh of it for 100,000 rows, a thirtieth for smaller matrices."""

_HIDDEN = 1e4
"""An energy larger than an eigenvalue by this factor hides it in that rounding."""

_STEEP = 16.0
"""Eigenvalues larger than the first unwanted one by this factor may be dominant."""

_KNOWN = 1e-3
"""Eigenvalues above this share of the first have accurate vectors in float32."""

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
    """Return whether a QR of `a` (m, n) before its SVD saves time."""
    return a.shape[0] >= _TALL * a.shape[1]


def gram_triplets(a: Tensor) -> Triplets:
    """Return all triplets of `a` from its Gram matrix.

    Parameters
    ----------
    a : Tensor of shape (m, n), m >= n, float32 or float64

    Returns
    -------
    Triplets
        All n, right vectors in float64, `left` on demand.

    Raises
    ------
    torch.linalg.LinAlgError
        If eigh does not converge.

    Notes
    -----
    m n^2 and about 9 n^3. Squares the condition number: values below 1e-8 of the first are
    lost, which `residuals` shows.
    """
    product = gram(a)
    values, vectors = torch.linalg.eigh(product)
    squares, right = values.flip(0).clamp_min(0), vectors.flip(1).contiguous()
    residuals = (product @ right - right * squares).norm(dim=0)
    # Rounding of the Gram matrix itself does not show in the residual.
    residuals += torch.finfo(torch.float64).eps * float(product.trace())
    return Triplets(right, None, squares, residuals, residuals)


def gram_basis(a: Tensor, k: int, energy: float) -> Basis | Dominant | None:
    """Return a basis of the `k` + 1 leading right vectors of `a`, from its Gram matrix.

    Parameters
    ----------
    a : Tensor of shape (m, n), m >= n, float32
    k : int, 0 <= k < n
    energy : float
        Sum of squares of `a`.

    Returns
    -------
    Basis, Dominant or None
        The dominant triplets if rounding hides the others; None if the eigenvectors found are
        not proven to be the leading ones.

    Notes
    -----
    Works in float32, because the vectors are measured on `a` afterwards. m n^2 for the Gram
    matrix, 4/3 n^3 for its eigenvectors, n^3 / 3 for the proof.
    """
    product = gram(a, torch.float32)
    count = min(len(product), k + 1 + max(7, k // 8))
    values, vectors = leading_eigenpairs(product, count)
    if len(values) < count:
        return None
    if energy > _HIDDEN * float(values[k]):
        floor = max(_STEEP * float(values[k]), _KNOWN * float(values[0]))
        if num_dominant := int((values[:k] > floor).sum()):
            return Dominant(vectors[:, :num_dominant])
    right = torch.linalg.qr(vectors.double()).Q
    beyond = (1 + _NEAR) * max(float(values[-1]), 0.0) + _ROUNDING * energy
    if not _bounds_complement(product, right.to(product.dtype), values, beyond):
        return None
    return Basis(right, beyond, Proof.SPECTRUM)


def _bounds_complement(product: Tensor, right: Tensor, values: Tensor, beyond: float) -> bool:
    """Return True if `product` has no eigenvalue above `beyond` on the complement of `right`.

    The proof: ``beyond + V S V.T - product`` has a Cholesky factor for some `S`.
    """
    difference = torch.addmm(product, right * values, right.T, beta=-1)
    difference.diagonal().add_(beyond)
    return int(torch.linalg.cholesky_ex(difference).info) == 0


def triangle(a: Tensor) -> Tensor:
    """Return the triangle of a QR of `a` (m, n), m >= n, as (n, n) float64.

    Notes
    -----
    2 m n^2. Two float64 copies of `a`; if `a` is tall, three of 2 n of its rows. Ignore the
    entries below the diagonal.
    """
    n = a.shape[1]
    if not is_tall(a):
        return torch.geqrf(a.double())[0][:n]
    found = a[:0].double()
    for start in range(0, a.shape[0], n):
        rows = torch.cat((found, a[start : start + n].double()))
        found = torch.linalg.qr(rows, mode="r").R
    return found


def gram(a: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return ``a.T @ a``, (n, n), for `a` of shape (m, n); only one triangle costs time, m n^2."""
    n = a.shape[1]
    product = torch.zeros(n, n, dtype=dtype, device=a.device)
    panels = [slice(start, start + _PANEL) for start in range(0, n, _PANEL)]
    for start, stop in row_blocks(a.shape, a.device, num_bytes=PRODUCT_BYTES):
        block = a[start:stop].to(dtype)
        for panel in panels:
            product[panel, panel.start :].addmm_(block[:, panel].T, block[:, panel.start :])
    for panel in panels:
        product[panel.stop :, panel] = product[panel, panel.stop :].T
    return product
