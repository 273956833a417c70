"""All singular values of a matrix, without its vectors.

This takes half the work and memory of a decomposition. It chooses no rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from svdcut.svd.certificate import VALUE_FLOOR, VALUE_TOLERANCE, Method
from svdcut.svd.decomposition import (
    UNCOUNTED,
    SolverError,
    normalise,
    solver_errors,
)
from svdcut.svd.dense import gram, is_tall, triangle
from svdcut.svd.factored import reduce_product
from svdcut.svd.product import Product

_ROUNDING = 4.0
"""Backward error of a route in units of epsilon, relative to the Frobenius norm of its input.

Householder reductions are backward stable in that norm. The factor grows slowly in theory and
stays below one in practice; `tests/svd/test_values.py` checks it.
"""


@dataclass(frozen=True, slots=True)
class Values:
    """All singular values of a matrix."""

    singular_values: list[float]
    """min(m, n) of them, or the rank of a product, descending, in the caller's units."""

    method: Method
    bound: float
    """Bound on the relative error of each value, from rounding analysis, not measured.

    Errors of values below `VALUE_FLOOR` of the first are relative to that share of the first.
    """


def singular_values(
    a: Tensor | Product,
    *,
    tolerance: float = VALUE_TOLERANCE,
    escalate: Callable[[int], object] = lambda _: None,
) -> Values:
    """Return all singular values of a matrix.

    Parameters
    ----------
    a : Tensor of shape (m, n), float32 or float64, or Product
        Finite. A tensor is scaled in place by a power of two.
    tolerance : float
        Relative error that is allowed; if infinite, the first route is the last.
    escalate : callable
        As for `svdcut.svd.engine.decompose`.

    Returns
    -------
    Values
        Within `tolerance`.

    Raises
    ------
    SolverError
        If no route converges.

    Notes
    -----
    With ``m >= n``, the eigenvalues of the float64 Gram matrix `G`: O(m n^2) for it and
    4/3 n^3 for its reduction, in two float64 matrices of n x n. An eigenvalue is off by
    eps times the norm of `G`. So a value `s` is off by eps times the square of the first
    over `s`, and by 1e-8 of the first at most. If that is not enough, the exact route
    follows, a float64 SVD without vectors: 8/3 n^3, slower than this count suggests, in the
    memory of `exact_triplets`.

    The values of a product are those of its core, O((m + n) r^2), with the rounding of
    `reduce_product`. If its terms cancel so far that this is not enough, the exact route
    takes the product as float64 rounds it, and the bound is for the rounded product.
    """
    found: Values | None
    tall = a if a.shape[0] >= a.shape[1] else a.T
    if isinstance(tall, Product):
        tall, exponent = tall.normalised()
        found = _by_factors(tall)
    else:
        tall, exponent = normalise(tall)
        found = _by_gram(tall)
    if found is None or found.bound > tolerance:
        escalate(UNCOUNTED)
        found = _by_exact(tall)
    scale = math.ldexp(1.0, exponent)
    return Values([value * scale for value in found.singular_values], found.method, found.bound)


def _by_gram(a: Tensor) -> Values | None:
    try:
        with solver_errors():
            squares = torch.linalg.eigvalsh(gram(a)).flip(0)
    except SolverError:
        return None
    moved = _ROUNDING * torch.finfo(torch.float64).eps * float(squares.norm())
    s, below = squares.clamp_min(0).sqrt(), (squares - moved).clamp_min(0).sqrt()
    first = float(s[0])
    if first == 0:
        return _zeros(len(s))
    # From below: the value itself may be rounding.
    errors = moved / (s + below).clamp_min(math.sqrt(moved))
    bound = float((errors / s.clamp_min(VALUE_FLOOR * first)).max())
    return Values(s.tolist(), Method.GRAM, bound)


def _by_factors(product: Product) -> Values | None:
    try:
        with solver_errors():
            reduced = reduce_product(product, vectors=False)
            return _by_svd(reduced.core, Method.FACTORED, rounding=reduced.rounding)
    except SolverError:
        return None


def _by_exact(a: Tensor | Product) -> Values:
    if isinstance(a, Product):
        # What the dense product has beyond its rank is rounding.
        return _by_svd(a.dense(), Method.EXACT, rank=a.rank)
    return _by_svd(a, Method.EXACT)


def _by_svd(a: Tensor, method: Method, *, rank: int | None = None, rounding: float = 0.0) -> Values:
    """Return the first `rank` values of `a` (m, n), m >= n, which is off by `rounding`."""
    with solver_errors():
        s = torch.linalg.svdvals(triangle(a) if is_tall(a) else a.double())
    values: list[float] = s[:rank].tolist()
    first = values[0] if values else 0.0
    if first == 0:
        return _zeros(len(values))
    moved = _ROUNDING * torch.finfo(torch.float64).eps * float(s.norm()) + rounding
    return Values(values, method, moved / max(values[-1], VALUE_FLOOR * first))


def _zeros(count: int) -> Values:
    return Values([0.0] * count, Method.NONE, 0.0)
