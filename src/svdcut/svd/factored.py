"""Triplets of a product of two thin factors, which is never formed.

With the QR decompositions ``left = P S`` and ``right.T = Q T`` the product is
``P (S T.T) Q.T``: the singular values are those of the small core between the orthonormal
factors, and the vectors are its vectors carried over [1]_.

References
----------
.. [1] G. Golub, C. Van Loan, "Matrix Computations", 4th ed. 2013, on the SVD of products;
   the same step ends every randomised SVD.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from svdcut.svd.decomposition import Triplets
from svdcut.svd.dense import exact_triplets
from svdcut.svd.product import Product

_ROUNDING = 4.0
"""Backward error of the reduction in units of epsilon, relative to the norms of the factors. Less
than half was measured; `tests/svd/test_product.py` checks it in extended precision."""


@dataclass(frozen=True, slots=True)
class Reduced:
    """A product as a small core between orthonormal factors: ``left @ core @ right.T``."""

    left: Tensor
    """(m, p), p = min(m, r); empty if no vectors were asked for."""

    core: Tensor
    """(p, q), q = min(n, r)."""

    right: Tensor
    """(n, q), likewise."""

    rounding: float
    """Bound on the error norm of the product, if the outer factors were exactly orthonormal."""


def reduce_product(product: Product, *, vectors: bool = True) -> Reduced:
    """Bring a product to its core.

    Parameters
    ----------
    product : Product
        Of shape (m, n) and r terms, normalised.
    vectors : bool
        Whether the orthonormal factors are needed.

    Notes
    -----
    O((m + n) r^2), and r^3 for two norms. A QR is backward stable: its error is relative to
    the norm of its input. So the product of ``left + E`` and ``right + F`` is off by
    ``|E| |right| + |left| |F|``: Frobenius norms of the errors, spectral norms of the factors.
    If terms cancel, that can exceed the product's first value. Then no float64 arithmetic on
    the factors does better, and forming the product rounds as much.
    """
    mode = "reduced" if vectors else "r"
    left, upper = torch.linalg.qr(product.left, mode=mode)
    right, lower = torch.linalg.qr(product.right.T, mode=mode)
    sizes = [(float(t.norm()), float(torch.linalg.matrix_norm(t, 2))) for t in (upper, lower)]
    (left_size, left_norm), (right_size, right_norm) = sizes
    size = max(left_size * right_norm, left_norm * right_size)
    rounding = _ROUNDING * torch.finfo(torch.float64).eps * size
    return Reduced(left, upper @ lower.T, right, rounding)


def factored_triplets(product: Product) -> Triplets:
    """Return all triplets of a product, from its factors.

    Parameters
    ----------
    product : Product
        Of shape (m, n), m >= n, and r terms, normalised.

    Returns
    -------
    Triplets
        min(n, r) of them, in float64.

    Raises
    ------
    torch.linalg.LinAlgError
        If the SVD of the core does not converge.

    Notes
    -----
    O((m + n) r^2 + r^3). Memory is a few copies of the factors.

    The residuals are the measured ones of the core, plus two terms that these cannot show:
    the rounding of the reduction times the value; and the measured departure of the outer
    factors from orthonormality, 5 to 17 epsilon, times the first value and the value.
    """
    reduced = reduce_product(product)
    inner = exact_triplets(reduced.core)
    assert inner.left is not None
    s = inner.squares.sqrt()
    lost = _skewness(reduced.left) + _skewness(reduced.right)
    residuals = inner.residuals + (reduced.rounding + lost * s[0]) * s
    left, right = reduced.left @ inner.left, reduced.right @ inner.right
    return Triplets(right, left, inner.squares, residuals, residuals)


def _skewness(columns: Tensor) -> float:
    """Return how far columns are from orthonormal, by the norm of their Gram matrix."""
    product = columns.T @ columns
    product.diagonal().sub_(1)
    return float(torch.linalg.matrix_norm(product, 2))
