"""The smallest singular values of a matrix, where its Gram matrix has lost their digits.

It knows the other values from its caller.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from svdcut.svd.dense import triangle

_SPARE = 24
"""Columns beside those that are asked for: each step gains by the ratio of the squares of the
last value that is asked for and the last one that is iterated."""

_STEPS = 24
_DETOURS = 8
"""How many more values may be taken, to find a gap."""


def smallest_values(
    a: Tensor, count: int, below: Sequence[float], *, tolerance: float, seed: int
) -> tuple[list[float], float] | None:
    """Return the smallest singular values of a matrix, by inverse iteration on its triangle.

    Parameters
    ----------
    a : Tensor of shape (m, n), m >= n, float32 or float64
    count : int
        How many are wanted, at least.
    below : sequence of float
        What each singular value is known not to be below, descending as they are.
    tolerance : float
        Relative error to aim for.
    seed : int
        Of the first vectors.

    Returns
    -------
    tuple of list of float and float, or None
        `count` values or a few more, descending, and the relative error of each, at most,
        beside the rounding of a QR of `a`, which is twice that of a backward stable SVD.
        None where they are not found, or not known to be the smallest.

    Raises
    ------
    torch.linalg.LinAlgError
        If LAPACK fails.

    Notes
    -----
    With `R` the triangle and `X` orthonormal, the eigenvalues of ``X.T M X``,
    ``M = (R.T R)^-1``, are near as many of `M`, in pairs, within the norm of the residual
    ``M X - X (X.T M X)`` [1]_. Where they exceed all eigenvalues but the first `count`, they are
    near those. Costs a `triangle`, and 4 n^2 operations for each column and step.

    References
    ----------
    .. [1] W. Kahan, "Inclusion theorems for clusters of eigenvalues of Hermitian
       matrices", University of Toronto, 1967.
    """
    n = a.shape[1]
    reduced = triangle(a)
    generator = Generator().manual_seed(seed)
    width = min(n, count + _SPARE)
    block = torch.randn(n, width, generator=generator, dtype=torch.float64).to(a.device)
    most = min(count + _DETOURS, width)
    for _ in range(_STEPS):
        block = torch.linalg.qr(block).Q
        half = torch.linalg.solve_triangular(reduced.T, block, upper=False)
        images = torch.linalg.solve_triangular(reduced, half, upper=True)
        product = half.T @ half
        if not bool(torch.isfinite(product).all()):
            return None  # singular to the last bit
        inverses, rotation = torch.linalg.eigh(product)
        inverses, rotation = inverses.flip(0)[:most], rotation.flip(1)[:, :most]
        defects = (images @ rotation - (block @ rotation) * inverses).norm(dim=0)
        errors = defects.square().cumsum(0).sqrt().tolist()
        found = _first_gap(inverses.tolist(), errors, count, below)
        if found is not None and errors[found - 1] <= tolerance * float(inverses[found - 1]):
            values: list[float] = inverses[:found].rsqrt().flip(0).tolist()
            return values, errors[found - 1] / float(inverses[found - 1])
        block = images
    return None


def _first_gap(
    inverses: Sequence[float], errors: Sequence[float], count: int, below: Sequence[float]
) -> int | None:
    """Return the first number from `count` of values that are known to be the smallest."""
    for number in range(count, len(inverses) + 1):
        if number == len(below):
            return number
        others = below[-number - 1]
        if others > 0 and inverses[number - 1] - errors[number - 1] > 1 / (others * others):
            return number
    return None
