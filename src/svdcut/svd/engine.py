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

from svdcut.svd.decomposition import (
    UNCOUNTED,
    Decomposition,
    Leading,
    SolverError,
    Triplets,
    is_solver_failure,
    normalise,
    sum_of_squares,
)
from svdcut.svd.deflation import deflated_triplets, find_dominant, hides_rest, leading_triplets
from svdcut.svd.dense import exact_triplets, gram, gram_triplets
from svdcut.svd.factored import factored_triplets
from svdcut.svd.measured import Method, Proof
from svdcut.svd.product import Product
from svdcut.svd.route import Route, choose_route, gram_bytes

_DOMINANT_SHARE = 8
"""Dominant triplets are looked for among the first of so many parts of the values."""


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One route, not yet run."""

    name: str
    run: Callable[[], Decomposition | str]
    """Returns a decomposition, or why there is none."""

    num_bytes: int = UNCOUNTED
    """Memory to ask for before it runs as a second or later route."""

    is_last: bool = False


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
    Cost and memory are those of the routes: see `leading_triplets`, `gram_triplets`,
    `deflated_triplets`, `exact_triplets`, `factored_triplets`.

    Rounding of a Gram matrix hides values that are small beside the first. Where that shows,
    or the bound is missed, the dominant triplets are deflated.

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
        ladder = _Routes(start, start.matrix, top, tolerance, seed, escalate).ladder(route)
    rejected: list[str] = []
    result = start
    for attempt in ladder:
        if rejected:
            escalate(attempt.num_bytes)
        try:
            found = attempt.run()
        except RuntimeError as error:
            if not is_solver_failure(error):
                raise
            if attempt.is_last:
                raise SolverError(str(error)) from error
            found = "solver failed"
        if isinstance(found, str):
            rejected.append(f"{attempt.name}: {found}")
            continue
        result = replace(found, rejected=tuple(rejected))
        if accept(result):
            break
        rejected.append(f"{attempt.name}: bound missed")
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
        next_square=0.0,
    )


class _Routes:
    """The routes for a matrix, from the fastest to the exact one."""

    def __init__(
        self,
        start: Decomposition,
        matrix: Tensor,
        top: int | None,
        tolerance: float,
        seed: int,
        escalate: Callable[[int], object],
    ) -> None:
        self._start = start
        self._matrix = matrix
        self._top = top
        self._tolerance = tolerance
        self._seed = seed
        self._escalate = escalate
        self._count = None if top is None else top + 1
        self._converges = True
        self._dominant: tuple[Triplets | None] | None = None
        """The dominant triplets, or None of them; empty before they are looked for."""

    def ladder(self, route: Route) -> Iterator[_Attempt]:
        """Yield the routes in turn, the choice depending on how the earlier ones ended."""
        full_rank, top = self._start.full_rank, self._top
        if route is Route.AUTO:
            route = choose_route(full_rank, top)
        if route is Route.KRYLOV and top is not None and top < full_rank:
            dtypes = dict.fromkeys((self._matrix.dtype, torch.float64))
            for dtype in dtypes:
                # What does not converge in float32 does not in float64 either.
                if self._converges:
                    name = f"krylov/{str(dtype).removeprefix('torch.')}"
                    yield _Attempt(name, partial(self._krylov, max(top, 1), dtype))
        if route is not Route.EXACT:
            num_bytes = gram_bytes(full_rank)
            yield _Attempt("gram/float64", self._gram, num_bytes)
            if self._may_have_dominant():
                yield _Attempt("gram/float64/deflated", self._deflated, num_bytes)
        yield _Attempt("exact/float64", self._exact, is_last=True)

    def _krylov(self, top: int, dtype: torch.dtype) -> Decomposition | str:
        found = leading_triplets(
            self._matrix.to(dtype),
            top,
            energy=self._start.energy,
            tolerance=self._tolerance,
            generator=self._generator(),
            escalate=self._escalate,
        )
        if not isinstance(found, Leading):
            self._converges = False
            return "no convergence" if found is None else "noise beside dominant triplets"
        return self._of(found, Method.KRYLOV, Proof.RANDOM_START)

    def _gram(self) -> Decomposition | str:
        product = gram(self._matrix)
        if (
            self._may_have_dominant()
            and hides_rest(product, generator=self._generator())
            and self._find_dominant() is not None
        ):
            return "hidden by dominant triplets"
        return self._of(gram_triplets(product, self._count), Method.GRAM)

    def _deflated(self) -> Decomposition | str:
        dominant = self._find_dominant()
        if dominant is None:
            return "no dominant triplets"
        found = deflated_triplets(self._matrix, dominant, self._count, energy=self._start.energy)
        if found is None:
            return "no gap below the dominant triplets"
        return self._of(found, Method.GRAM)

    def _of(self, found: Leading, method: Method, proof: Proof = Proof.SPECTRUM) -> Decomposition:
        return replace(
            self._start,
            triplets=found.triplets,
            method=method,
            proof=proof,
            rest=found.rest,
            next_square=found.next_square,
        )

    def _exact(self) -> Decomposition:
        return replace(self._start, triplets=exact_triplets(self._matrix), method=Method.EXACT)

    def _may_have_dominant(self) -> bool:
        """Whether looking for dominant triplets pays."""
        full_rank = self._start.full_rank
        return choose_route(full_rank, full_rank // _DOMINANT_SHARE) is Route.KRYLOV

    def _find_dominant(self) -> Triplets | None:
        if self._dominant is None:
            full_rank = self._start.full_rank
            self._escalate(gram_bytes(full_rank) + self._matrix.nbytes)
            found = find_dominant(
                self._matrix,
                full_rank // _DOMINANT_SHARE,
                energy=self._start.energy,
                generator=self._generator(),
            )
            self._dominant = (found,)
        return self._dominant[0]

    def _generator(self) -> Generator:
        return Generator().manual_seed(self._seed)


def _ladder_of_product(start: Decomposition, product: Product) -> Iterator[_Attempt]:
    yield _Attempt(
        "factored/float64",
        lambda: _of_product(start, factored_triplets(product), Method.FACTORED),
    )
    # What the dense product has beyond its rank is rounding.
    yield _Attempt(
        "exact/float64",
        lambda: _of_product(
            start, exact_triplets(product.dense()).first(product.rank), Method.EXACT
        ),
        is_last=True,
    )


def _of_product(start: Decomposition, triplets: Triplets, method: Method) -> Decomposition:
    energy = math.fsum(triplets.squares.tolist())
    if energy == 0:
        return replace(start, energy=energy)  # its terms cancelled
    return replace(start, triplets=triplets, energy=energy, method=method)


def _no_triplets(a: Tensor | Product) -> Triplets:
    none = torch.zeros(0, dtype=torch.float64, device=a.device)
    right, left = (torch.zeros(side, 0, dtype=a.dtype, device=a.device) for side in sorted(a.shape))
    return Triplets(right, left, none, none, none)
