"""Truncated SVD of one matrix: the routes to it behind one function.

`decompose` climbs from the fastest route that may serve to the exact one until
the caller accepts the certificate. A product of thin factors has one route of its own
below the exact one. It knows nothing of tensors' names or files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from svdcut.svd.decomposition import (
    UNCOUNTED,
    Decomposition,
    SolverError,
    Triplets,
    is_solver_failure,
    normalise,
    sum_of_squares,
)
from svdcut.svd.deflation import deflated_triplets, find_head, hides_rest, leading_triplets
from svdcut.svd.dense import exact_triplets, gram, gram_triplets
from svdcut.svd.factored import factored_triplets
from svdcut.svd.measured import Method, Proof
from svdcut.svd.product import Product
from svdcut.svd.route import Route, choose_route, gram_bytes

_HEAD_SHARE = 8
"""A head is looked for among this part of the values."""


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One rung of the ladder."""

    method: Method
    dtype: torch.dtype
    deflated: bool = False
    """Whether a head is taken out of the Gram matrix."""

    def __str__(self) -> str:
        name = f"{self.method.value}/{str(self.dtype).removeprefix('torch.')}"
        return f"{name}/deflated" if self.deflated else name

    @property
    def failure(self) -> str:
        """Why nothing came of it, if nothing did."""
        if self.method is Method.KRYLOV:
            return "no convergence"
        return "no head" if self.deflated else "hidden by a head"


def decompose(
    a: Tensor | Product,
    top: int | None,
    *,
    accept: Callable[[Decomposition], bool],
    route: Route = Route.AUTO,
    tolerance: float = 1e-6,
    seed: int = 0,
    escalate: Callable[[int], object] = lambda _: None,
) -> Decomposition:
    """Decompose a matrix so well that `accept` is content.

    Parameters
    ----------
    a : Tensor of shape (m, n), float32 or float64, or Product
        Finite. A tensor is scaled in place by a power of two, and kept by the result.
    top : int or None
        How many leading triplets are needed; None for all. A product always gets all that
        it can have, min(m, n, r).
    accept : callable
        Judges a result by its bounds. Where it says no, the next route is taken.
    route : Route
        Where to start; the routes above it remain as a way out. For a product there is one.
    tolerance : float
        Relative excess error that an iteration aims for.
    seed : int
        Of the random blocks of the Krylov route.
    escalate : callable
        Called before more memory is taken than the first route needs, with the bytes of
        that, which are in place of any that were asked for before.

    Returns
    -------
    Decomposition
        The first that was accepted, or the exact one.

    Raises
    ------
    SolverError
        If no route serves.

    Notes
    -----
    Cost and memory are those of the routes: see `leading_triplets`, `gram_triplets`,
    `deflated_triplets`, `exact_triplets`, `factored_triplets`.

    A Gram matrix loses what is small beside its first values. Where that is seen to hide the
    rest, or the bound is missed, their head is taken out.

    A product is formed only if its own route misses what `accept` asks. What is decomposed
    then is the product as float64 rounds it, by as much as that route's bound allows for.
    """
    escalate = _only_for_more(escalate)
    start = _start(a)
    head = cache(lambda: _find_head(start, seed, escalate))
    if start.energy == 0:
        return start
    rejected: list[str] = []
    result = start
    ladder = list(_ladder(start, top, route))
    for attempt in ladder:
        if attempt.method is Method.KRYLOV and any("no convergence" in r for r in rejected):
            continue
        if rejected:
            is_gram = attempt.method is Method.GRAM
            escalate(gram_bytes(start.full_rank) if is_gram else UNCOUNTED)
        try:
            found = _attempt(start, attempt, top, tolerance, seed, escalate, head)
        except RuntimeError as error:
            if not is_solver_failure(error):
                raise
            if attempt is ladder[-1]:
                raise SolverError(str(error)) from error
            rejected.append(f"{attempt}: solver failed")
            continue
        if found is None:
            rejected.append(f"{attempt}: {attempt.failure}")
            continue
        result = replace(found, rejected=tuple(rejected))
        if accept(result):
            break
        rejected.append(f"{attempt}: bound missed")
    return result


def _only_for_more(escalate: Callable[[int], object]) -> Callable[[int], None]:
    """Return what calls `escalate` where more is asked for than ever before.

    A route may ask for its parts after the ladder asked for all that it takes.
    """
    most = 0

    def ask(num_bytes: int) -> None:
        nonlocal most
        if num_bytes > most:
            most = num_bytes
            escalate(num_bytes)

    return ask


def _start(a: Tensor | Product) -> Decomposition:
    """Return what is known before any triplet is."""
    transposed = a.shape[0] < a.shape[1]
    tall = a.T if transposed else a
    matrix: Tensor | Product
    if isinstance(tall, Product):
        matrix, exponent = tall.normalised()
        # At most, until it is decomposed; 0 only without any term.
        energy = sum_of_squares(matrix.left) * sum_of_squares(matrix.right)
    else:
        matrix, exponent = normalise(tall)
        energy = sum_of_squares(matrix)
    return Decomposition(
        matrix=matrix,
        exponent=exponent,
        transposed=transposed,
        triplets=_no_triplets(matrix),
        energy=energy,
        method=Method.NONE,
        proof=Proof.SPECTRUM,
        rest=0.0,
        next_square=0.0,
    )


def _ladder(start: Decomposition, top: int | None, route: Route) -> Iterator[_Attempt]:
    """Yield the routes to take in turn."""
    if isinstance(start.matrix, Product):
        yield _Attempt(Method.FACTORED, torch.float64)
        yield _Attempt(Method.EXACT, torch.float64)
        return
    if route is Route.AUTO:
        route = choose_route(start.full_rank, top)
    if route is Route.KRYLOV and top is not None and top < start.full_rank:
        yield _Attempt(Method.KRYLOV, start.matrix.dtype)
        if start.matrix.dtype != torch.float64:
            yield _Attempt(Method.KRYLOV, torch.float64)
    if route is not Route.EXACT:
        yield _Attempt(Method.GRAM, torch.float64)
        if _may_have_head(start):
            yield _Attempt(Method.GRAM, torch.float64, deflated=True)
    yield _Attempt(Method.EXACT, torch.float64)


def _attempt(
    start: Decomposition,
    attempt: _Attempt,
    top: int | None,
    tolerance: float,
    seed: int,
    escalate: Callable[[int], object],
    head: Callable[[], Triplets | None],
) -> Decomposition | None:
    if isinstance(start.matrix, Product):
        return _of_product(start, start.matrix, attempt.method)
    if attempt.method is Method.GRAM:
        triplets = _by_gram(start, attempt, seed, head)
        return replace(start, triplets=triplets, method=Method.GRAM) if triplets else None
    rest, next_square, proof = 0.0, 0.0, Proof.SPECTRUM
    if attempt.method is Method.EXACT:
        triplets = exact_triplets(start.matrix)
    else:
        assert top is not None
        result = leading_triplets(
            start.matrix.to(attempt.dtype),
            max(top, 1),
            energy=start.energy,
            tolerance=tolerance,
            generator=torch.Generator().manual_seed(seed),
            escalate=escalate,
        )
        if result is None:
            return None
        triplets, rest, next_square = result.triplets, result.rest, result.next_square
        proof = Proof.RANDOM_START
    return replace(
        start,
        triplets=triplets,
        method=attempt.method,
        proof=proof,
        rest=rest,
        next_square=next_square,
    )


def _by_gram(
    start: Decomposition, attempt: _Attempt, seed: int, head: Callable[[], Triplets | None]
) -> Triplets | None:
    a = start.matrix
    assert isinstance(a, Tensor)
    if attempt.deflated:
        found = head()
        return deflated_triplets(a, found, energy=start.energy) if found else None
    product = gram(a)
    generator = torch.Generator().manual_seed(seed)
    if _may_have_head(start) and hides_rest(product, generator=generator) and head():
        return None
    return gram_triplets(product)


def _may_have_head(start: Decomposition) -> bool:
    """Whether looking for a head pays."""
    return choose_route(start.full_rank, start.full_rank // _HEAD_SHARE) is Route.KRYLOV


def _find_head(
    start: Decomposition, seed: int, escalate: Callable[[int], object]
) -> Triplets | None:
    a = start.matrix
    assert isinstance(a, Tensor)
    escalate(gram_bytes(start.full_rank) + a.nbytes)
    generator = torch.Generator().manual_seed(seed)
    count = start.full_rank // _HEAD_SHARE
    return find_head(a, count, energy=start.energy, generator=generator)


def _of_product(start: Decomposition, product: Product, method: Method) -> Decomposition:
    if method is Method.FACTORED:
        triplets = factored_triplets(product)
    else:
        # What the dense product has beyond its rank is rounding.
        triplets = exact_triplets(product.dense()).first(product.rank)
    energy = math.fsum(triplets.squares.tolist())
    if energy == 0:
        return replace(start, energy=energy)  # its terms cancelled
    return replace(start, triplets=triplets, energy=energy, method=method)


def _no_triplets(a: Tensor | Product) -> Triplets:
    none = torch.zeros(0, dtype=torch.float64, device=a.device)
    right, left = (torch.zeros(side, 0, dtype=a.dtype, device=a.device) for side in sorted(a.shape))
    return Triplets(right, left, none, none, none)
