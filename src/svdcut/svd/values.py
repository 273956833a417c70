"""All singular values of a matrix, without its vectors.

Half the work and memory of a decomposition. It decides on no rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Generator, Tensor

from svdcut.svd.certificate import VALUE_FLOOR, VALUE_TOLERANCE
from svdcut.svd.decomposition import (
    UNCOUNTED,
    SolverError,
    Triplets,
    is_solver_failure,
    normalise,
    solver_errors,
    sum_of_squares,
)
from svdcut.svd.deflation import find_head
from svdcut.svd.dense import gram, is_tall, triangle
from svdcut.svd.factored import reduce_product
from svdcut.svd.krylov import KrylovResult, krylov_triplets
from svdcut.svd.measured import Method
from svdcut.svd.product import Product
from svdcut.svd.route import Route, choose_route
from svdcut.svd.smallest import smallest_values

_ROUNDING = 4.0
"""Backward error of a route in units of epsilon, by the Frobenius norm of what it reduces.

Householder reductions are backward stable by that norm, with a factor that grows slowly
in theory and stays below one in practice; `tests/test_values.py` looks at it.
"""


_HEAD, _HEAD_SHARE = 96, 16
"""Leading triplets that are taken out of a steep spectrum, to see what is left more sharply:
so many, or this part of the short side."""

_HEAD_EXCESS = 1e-14
"""What their iteration aims for: their own rounding."""

_TAIL_SHARE = 32
"""Up to this part of the values may be found anew, the smallest ones."""

_SQUARE = 1.5
"""Up to this aspect ratio the smallest values of noise are as small as they can be, so that the
head is looked for at once; beyond, only where the Gram matrix does not tell them."""


@dataclass(frozen=True, slots=True)
class Values:
    """All singular values of a matrix."""

    singular_values: list[float]
    """min(m, n) of them, or the rank of a product, descending, in the caller's units."""

    method: Method
    bound: float
    """Relative error of any of them, at most; by rounding analysis, not by measurement.

    Values below `VALUE_FLOOR` of the first are held to the accuracy that it has.
    """


def singular_values(
    a: Tensor | Product,
    *,
    steep: bool = False,
    seed: int = 0,
    tolerance: float = VALUE_TOLERANCE,
    escalate: Callable[[int], object] = lambda _: None,
) -> Values:
    """Return all singular values of a matrix.

    Parameters
    ----------
    a : Tensor of shape (m, n), float32 or float64, or Product
        Finite. A tensor is scaled in place by a power of two.
    steep : bool
        Whether a few values are likely to be far above the others, as those of an update are.
        It does not matter for a product.
    seed : int
        Of the random start of the iteration that a steep spectrum begins with.
    tolerance : float
        Relative error that is allowed; without a bound the first route is the last.
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
    eps times the norm of `G`, so that small values lose digits: those of a square
    update, whose noise reaches down to 1e-6 of its first value, too many.

    So the head of a steep spectrum is taken out first. With `V` orthonormal of k columns,
    the eigenvalues of `G` are near those of ``V.T G V`` and of ``(1 - V V.T) G (1 - V V.T)``,
    whose norm is smaller, often by a hundred: the smallest value can be a tenth as large. With
    the residual norm `r` of `V`, an eigenvalue is moved by at most `r`, and by
    ``r^2 / gap`` with the gap to the other part's [1]_. Both are nothing once the iteration
    is at its rounding. The head is what dwarfs the rest, where something does, as the update
    of a LoRA adapter that was merged; else some dozens of triplets. Of a tall matrix it is
    looked for only where the Gram matrix alone is not enough.

    Where no more than a 32nd of the values are not known well enough, the smallest, they come
    from inverse iteration on a QR: see `smallest_values`. Where that is not enough the exact
    route follows, a float64 SVD without vectors: 8/3 n^3, slower than its operations, in the
    memory of `exact_triplets`.

    Those of a product are those of its core, O((m + n) r^2), with the rounding of
    `reduce_product`. Where its terms cancel so far that this is not enough, the exact route
    takes the product as float64 rounds it, and its bound is on that.

    References
    ----------
    .. [1] C.-K. Li, R.-C. Li, "A note on eigenvalues of perturbed Hermitian matrices",
       Linear Algebra Appl. 395, 2005.
    """
    escalate = cache(escalate)
    tall = a if a.shape[0] >= a.shape[1] else a.T
    found: Values | None
    if isinstance(tall, Product):
        tall, exponent = tall.normalised()
        found = _by_factors(tall)
    else:
        tall, exponent = normalise(tall)
        head = _leading(tall, seed) if steep and tall.shape[0] <= _SQUARE * tall.shape[1] else None
        found = _by_gram(tall, head, tolerance, seed, escalate)
        if steep and head is None and (found is None or found.bound > tolerance):
            escalate(UNCOUNTED)
            head = _leading(tall, seed)
            found = found if head is None else _by_gram(tall, head, tolerance, seed, escalate)
    if found is None or found.bound > tolerance:
        escalate(UNCOUNTED)
        found = _by_exact(tall)
    scale = math.ldexp(1.0, exponent)
    return Values([value * scale for value in found.singular_values], found.method, found.bound)


def _leading(a: Tensor, seed: int) -> Triplets | None:
    """Return leading triplets in float64, or None where they do not pay or are not found."""
    n = a.shape[1]
    count = min(_HEAD, n // _HEAD_SHARE)
    if choose_route(n, count) is not Route.KRYLOV:
        return None
    energy = sum_of_squares(a)
    if energy == 0:
        return None
    try:
        with solver_errors():
            return _iterate(a, count, energy, torch.Generator().manual_seed(seed))
    except SolverError:
        return None


def _iterate(a: Tensor, count: int, energy: float, generator: Generator) -> Triplets | None:
    head = find_head(a, count, energy=energy, generator=generator)
    if head is not None:
        return head
    found = krylov_triplets(
        a.double(), count, energy=energy, tolerance=_HEAD_EXCESS, generator=generator
    )
    return found.triplets if isinstance(found, KrylovResult) else None


@dataclass(frozen=True, slots=True)
class _Rough:
    """Singular values from a Gram matrix, not all of them known well."""

    s: Tensor
    """(n,) float64, descending."""

    errors: Tensor
    """(n,): of each, at most, relative to itself or to the floor."""

    def values(self) -> Values:
        """Return them as they are."""
        method = Method.GRAM if float(self.s[0]) else Method.NONE
        return Values(self.s.tolist(), method, float(self.errors.max()))


def _by_gram(
    a: Tensor,
    head: Triplets | None,
    tolerance: float,
    seed: int,
    escalate: Callable[[int], object],
) -> Values | None:
    rough = _rough_values(a, head)
    if rough is None:
        return None
    if float(rough.errors.max()) <= tolerance:
        return rough.values()
    if a.shape[0] > a.shape[1]:  # else the triangle takes no more than the Gram matrix
        escalate(UNCOUNTED)
    return _refine(a, rough, tolerance, seed)


def _rough_values(a: Tensor, head: Triplets | None = None) -> _Rough | None:
    k = 0 if head is None else _sharpest(head, a.shape[1])
    without = None if head is None else head.right[:, :k]
    try:
        squares = torch.linalg.eigvalsh(gram(a, without=without)).flip(0)
    except RuntimeError as failure:
        if not is_solver_failure(failure):
            raise
        return None
    epsilon = torch.finfo(torch.float64).eps
    moved = torch.full_like(squares, _ROUNDING * epsilon * float(squares.norm()))
    if head is not None:
        # What was taken out has left k zeros.
        squares, moved = squares[: len(squares) - k], moved[: len(moved) - k]
        coupling = float(head.residuals[:k].norm())
        gaps = (head.squares[k - 1] - squares).clamp_min(coupling)
        moved += coupling * coupling / gaps
        squares = torch.cat((head.squares[:k], squares))
        moved = torch.cat((torch.full_like(head.squares[:k], coupling), moved))
        squares, order = squares.sort(descending=True)
        moved = moved[order]
    s, below = squares.clamp_min(0).sqrt(), (squares - moved).clamp_min(0).sqrt()
    first = float(s[0])
    if first == 0:
        return _Rough(s, torch.zeros_like(s))
    # From below: the value itself may be rounding.
    errors = moved / (s + below).clamp_min(VALUE_FLOOR * first)
    # Of the entries, where the head was taken out.
    errors += _ROUNDING * epsilon * float(s.norm()) * (head is not None)
    return _Rough(s, errors / s.clamp_min(VALUE_FLOOR * first))


def _refine(a: Tensor, rough: _Rough, tolerance: float, seed: int) -> Values | None:
    """Return the values with better ones in place of the last, if these alone are not good."""
    n = len(rough.s)
    count = n - int((rough.errors > tolerance).nonzero()[0])
    if count > n // _TAIL_SHARE:
        return None
    first = float(rough.s[0])
    known = rough.s - rough.errors * rough.s.clamp_min(VALUE_FLOOR * first)
    below = known.clamp_min(0).tolist()
    try:
        with solver_errors():
            found = smallest_values(a, count, below, tolerance=tolerance / 10, seed=seed)
    except SolverError:
        return None
    if found is None:
        return None
    last, error = found
    rounding = 2 * _ROUNDING * torch.finfo(torch.float64).eps * float(rough.s.norm())
    error += rounding / max(last[-1], VALUE_FLOOR * first)
    others = n - len(last)
    bound = max(error, float(rough.errors[:others].max()) if others else 0.0)
    values = sorted([*rough.s[:others].tolist(), *last], reverse=True)
    return Values(values, Method.GRAM, bound)


def _sharpest(head: Triplets, n: int) -> int:
    """Return how many of the triplets to take out so that least is known wrongly of the rest."""
    # As if all that is left were as large as the last one.
    rounding = _ROUNDING * torch.finfo(torch.float64).eps * math.sqrt(n) * head.squares
    coupling = head.residuals.square().cumsum(0) / head.squares
    return int((rounding + coupling).argmin()) + 1


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
