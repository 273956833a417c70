"""Truncated SVD of one matrix: the routes to it behind one function.

`decompose` goes from the fastest suitable route to the exact one until the caller accepts
the certificate. A product of thin factors has a route of its own before the exact one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Generator, Tensor

from svdcut.svd.certificate import Method, Proof
from svdcut.svd.decomposition import (
    UNCOUNTED,
    Decomposition,
    SolverError,
    Triplets,
    is_solver_failure,
    normalise,
    sum_of_squares,
)
from svdcut.svd.dense import exact_triplets, gram_basis, gram_triplets
from svdcut.svd.factored import factored_triplets
from svdcut.svd.krylov import krylov_basis
from svdcut.svd.leading import FindBasis, leading_triplets
from svdcut.svd.product import Product
from svdcut.svd.route import Route, choose_route, gram_bytes, is_few

_Attempt = tuple[str, int, Callable[[], Decomposition | str]]
"""One route: its name, the memory to ask for before it runs as a second or later one, in bytes,
and what returns a decomposition, or why there is none."""


def decompose(
    a: Tensor | Product,
    top: int | None,
    *,
    accept: Callable[[Decomposition], bool],
    num_needed: Callable[[], int | None] = lambda: None,
    route: Route = Route.AUTO,
    tolerance: float = 1e-6,
    seed: int = 0,
    escalate: Callable[[int], object] = lambda _: None,
) -> Decomposition:
    """Return the first decomposition that `accept` accepts, from the fastest route on.

    Parameters
    ----------
    a : Tensor of shape (m, n), float32 or float64, or Product
        Finite. A tensor is scaled in place by a power of two, and kept by the result.
    top : int or None
        How many leading triplets are needed; None for all. A product always gets all that
        it can have, min(m, n, r).
    accept : callable
        Judges a result by its bounds. If it returns False, the next route follows.
    num_needed : callable
        Called if `top` is None and `accept` rejected the whole spectrum: how many leading
        triplets are enough, as that spectrum shows; None for all.
    route : Route
        Where to start; slower routes may follow. Ignored for a product.
    tolerance : float
        Relative excess error that an iteration aims for.
    seed : int
        Of the random blocks of the Krylov route.
    escalate : callable
        Called with a number of bytes before a route takes more memory than the first one;
        the number replaces earlier ones.

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
    Cost and memory are those of the routes: see `krylov_basis`, `gram_basis`, `measure`,
    `gram_triplets`, `exact_triplets`, `factored_triplets`.

    A product is formed only if its own route misses the bound. The result is then that of the
    product as rounded to float64.
    """
    escalate = _only_for_more(escalate)
    start = _start(a)
    if start.energy == 0:
        return start
    if isinstance(start.matrix, Product):
        ladder = _ladder_of_product(start, start.matrix)
    else:
        routes = _Routes(start, start.matrix, top, num_needed, tolerance, seed, escalate)
        ladder = routes.ladder(route)
    rejected: list[str] = []
    result: Decomposition | str = start
    failure: RuntimeError | None = None
    for name, num_bytes, run in ladder:
        if rejected:
            escalate(num_bytes)
        try:
            result = run()
        except RuntimeError as error:
            if not is_solver_failure(error):
                raise
            result, failure = "solver failed", error
        if isinstance(result, str):
            rejected.append(f"{name}: {result}")
            continue
        result = replace(result, rejected=tuple(rejected))
        if accept(result):
            break
        rejected.append(f"{name}: bound missed")
    if isinstance(result, str):
        raise SolverError(str(failure)) from failure
    return result


def _only_for_more(escalate: Callable[[int], object]) -> Callable[[int], None]:
    """Return a function that calls `escalate` only with more bytes than ever before."""
    most = 0

    def ask(num_bytes: int) -> None:
        nonlocal most
        if num_bytes > most:
            most = num_bytes
            escalate(num_bytes)

    return ask


def _start(a: Tensor | Product) -> Decomposition:
    """Return the scaled matrix and its energy, as a decomposition without triplets."""
    transposed = a.shape[0] < a.shape[1]
    tall = a.T if transposed else a
    matrix: Tensor | Product
    if isinstance(tall, Product):
        matrix, exponent = tall.normalised()
        # An upper bound until it is decomposed; 0 only if all terms are.
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
        beyond=0.0,
    )


@dataclass(frozen=True, slots=True)
class _Routes:
    """The routes for a matrix, from the fastest to the exact one."""

    start: Decomposition
    matrix: Tensor
    top: int | None
    num_needed: Callable[[], int | None]
    tolerance: float
    seed: int
    escalate: Callable[[int], object]

    def ladder(self, route: Route) -> Iterator[_Attempt]:
        """Yield the routes in turn."""
        full_rank, top = self.start.full_rank, self.top
        if route is Route.AUTO:
            route = choose_route(full_rank, top)
        if top is not None and top < full_rank and route is Route.KRYLOV:
            yield "krylov", UNCOUNTED, partial(self._krylov, max(top, 1))
        if route is not Route.EXACT:
            num_bytes = gram_bytes(full_rank)
            if is_few(top, full_rank):
                yield "gram/leading", num_bytes, partial(self._leading, top)
            yield "gram", num_bytes, self._gram
            # Rounding of the Gram matrix may hide small values that the cut depends on.
            if top is None and is_few(few := self.num_needed(), full_rank):
                yield "gram/leading", UNCOUNTED, partial(self._leading, few)
        yield "exact", UNCOUNTED, self._exact

    def _krylov(self, top: int) -> Decomposition | str:
        generator = Generator().manual_seed(self.seed)
        find = partial(krylov_basis, tolerance=self.tolerance, generator=generator)
        return self._found(top, find, Method.KRYLOV) or "no convergence"

    def _leading(self, top: int) -> Decomposition | str:
        find: FindBasis = lambda a, k, energy, _: gram_basis(a, k, energy)  # noqa: E731
        found = self._found(max(top, 1), find, Method.GRAM)
        return found or "not proven to be the leading ones"

    def _found(self, top: int, find: FindBasis, method: Method) -> Decomposition | None:
        energy, escalate = self.start.energy, self.escalate
        found = leading_triplets(self.matrix, top, find, energy=energy, escalate=escalate)
        if found is None:
            return None
        return replace(
            self.start,
            triplets=found.triplets,
            method=method,
            proof=found.proof,
            rest=found.rest,
            beyond=found.beyond,
        )

    def _gram(self) -> Decomposition:
        return replace(self.start, triplets=gram_triplets(self.matrix), method=Method.GRAM)

    def _exact(self) -> Decomposition:
        return replace(self.start, triplets=exact_triplets(self.matrix), method=Method.EXACT)


def _ladder_of_product(start: Decomposition, product: Product) -> Iterator[_Attempt]:
    def factored() -> Decomposition:
        return _of_product(start, factored_triplets(product), Method.FACTORED)

    def exact() -> Decomposition:
        # What the dense product has beyond its rank is rounding.
        triplets = exact_triplets(product.dense()).first(product.rank)
        return _of_product(start, triplets, Method.EXACT)

    yield "factored", UNCOUNTED, factored
    yield "exact", UNCOUNTED, exact


def _of_product(start: Decomposition, triplets: Triplets, method: Method) -> Decomposition:
    energy = math.fsum(triplets.squares.tolist())
    if energy == 0:
        return replace(start, energy=energy)  # its terms cancelled
    return replace(start, triplets=triplets, energy=energy, method=method)


def _no_triplets(a: Tensor | Product) -> Triplets:
    none = torch.zeros(0, dtype=torch.float64, device=a.device)
    right, left = (torch.zeros(side, 0, dtype=a.dtype, device=a.device) for side in sorted(a.shape))
    return Triplets(right, left, none, none, none)
