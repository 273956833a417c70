"""Estimate the memory of a run from the shapes of its tensors and the routes they take.

The one place for memory: `memory_needs` of a truncation, `spectrum_needs` of a measurement.
It allocates nothing. The factors below were measured on the routes in `svdcut.svd`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from svdcut.choose.keep import Keep
from svdcut.choose.options import Options
from svdcut.choose.ranks import Rule, rule_for
from svdcut.files.tensorfile import Dtype
from svdcut.pair.pairing import Action, Pair
from svdcut.pair.plan import Plan
from svdcut.svd.route import Route, choose_route, gram_bytes

SPARE_BYTES = 250 << 20
"""Room for small matrices beside the largest one."""

_COPY_BYTES = 48 << 20
_BLOCKS_BYTES = 16 << 20
_PRODUCT_BYTES = 32 << 20

_PROMISED_COPIES = 8
"""The promise: memory for this many float32 copies of the largest tensor, beside the process."""

_RESERVED = 3
"""A third of the promise is reserved for tensors that fall back to a more careful route. With
small matrices that lets about one tensor per core fall back at a time."""

_EXACT_SQUARES = 7
_TALL_COPIES = 3
"""float64 copies that the exact route takes: of the short side squared, of a tall matrix."""

_VALUES_SQUARES = 2
"""Copies for singular values alone: the matrix to reduce, and LAPACK's copy."""

_VECTORS_SQUARES = 4.2
"""Copies for all eigenvectors of a Gram matrix, after the matrix itself was freed."""

_FACTOR_COPIES = 6
"""float64 copies of an adapter's factors: as read, their QR decompositions, the triplets."""

_MERGE_COPIES = 2
"""float64 copies of an adapter's factors while it is merged: as read, and scaled."""

_DORA_COPIES = 4
"""float64 copies of a matrix that DoRA changes."""

NUM_LEADING = 10
"""How many leading left singular vectors are searched for intruder dimensions."""

_SPACE_COPIES = 4
"""float64 copies of the factors of leading spaces: two matrices, and temporaries."""


@dataclass(frozen=True, slots=True)
class MemoryNeeds:
    """Memory that a run takes beside the process itself, in bytes."""

    sizes: tuple[int, ...]
    """For each tensor of the plan, by the route that it starts with."""

    bound: int
    """For all tensors at work together."""

    reserve: int
    """For tensors that fall back to a more careful route."""

    @property
    def total(self) -> int:
        """The most that is taken."""
        return self.bound + self.reserve


def memory_needs(plan: Plan, rules: Sequence[Rule], options: Options) -> MemoryNeeds:
    """Find the memory that the tensors of a plan take.

    Parameters
    ----------
    plan : Plan
        Of the run.
    rules : sequence of Rule
        One for each output.
    options : Options
        Of the run.
    """
    needs = []
    for tensor in plan.tensors:
        pair = tensor.pair
        if pair.action is Action.TRUNCATE:
            top = expected_top(pair, rules, options)
            needs.append(_route_bytes(pair, top, options.svd))
        else:
            copied = _COPY_BYTES + _merge_bytes(pair)
            needs.append((copied, copied))
    cut = [tensor.pair for tensor in plan.tensors if tensor.pair.action is Action.TRUNCATE]
    return _keep_promise(needs, cut)


def spectrum_needs(
    tasks: Sequence[Sequence[Pair]], top: int | None, rank: int = 0, *, intruders: bool = False
) -> MemoryNeeds:
    """Find the memory that tensors take while their spectra are measured.

    Parameters
    ----------
    tasks : sequence of sequence of Pair
        The tensors of each update that are measured together, one after the other.
    top : int or None
        How many leading values are wanted; None for all.
    rank : int
        Of the spaces that are compared where there are two.
    intruders : bool
        Whether intruder dimensions are wanted.
    """
    needs = []
    for task in tasks:
        parts = [_spectrum_bytes(pair, top, intruders=intruders) for pair in task]
        if len(task) > 1:
            parts += [_space_bytes(pair, rank) for pair in task]
        needs.append(_worst(parts))
    return _keep_promise(needs, [pair for task in tasks for pair in task])


def _worst(parts: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the largest bytes of steps that follow each other."""
    return max(first for first, _ in parts), max(more for _, more in parts)


def _keep_promise(needs: Sequence[tuple[int, int]], pairs: Sequence[Pair]) -> MemoryNeeds:
    """Bound the memory of all tensors together by the promise.

    Parameters
    ----------
    needs : sequence of tuple of int
        Bytes that each tensor takes by the route to start with, and by the one that may follow.
    pairs : sequence of Pair
        Those that are decomposed.
    """
    sizes = tuple(first for first, _ in needs)
    reserve = max((more - first for first, more in needs), default=0)
    largest = max((4 * m * n for pair in pairs for m, n in pair.matrices), default=0)
    allowed = SPARE_BYTES + _PROMISED_COPIES * largest
    reserve = max(reserve, allowed // _RESERVED)
    return MemoryNeeds(sizes, max(allowed - reserve, *sizes, 0), reserve)


def expected_top(pair: Pair, rules: Sequence[Rule], options: Options) -> int | None:
    """Return how many leading triplets of a tensor serve all rules; None for all."""
    most = min(pair.full_ranks)
    ranks = [rule_for(pair.name, rule, options.rank_for).known_rank(most) for rule in rules]
    known = [rank for rank in ranks if rank is not None]
    return max(known) if options.keep is Keep.TOP and len(known) == len(ranks) else None


def _merge_bytes(pair: Pair) -> int:
    """Return the bytes that what an adapter adds to a tensor takes, where it is not decomposed."""
    update = pair.update
    if update is None or pair.action is not Action.COPY_FINETUNED:
        return 0
    m, n = pair.matrices[0]
    m += pair.new_rows
    copies = 0 if update.magnitude is None else _DORA_COPIES
    return 8 * (_MERGE_COPIES * update.rank * (update.experts * m + n) + copies * m * n)


def _route_bytes(
    pair: Pair, top: int | None, route: Route, *, dense: bool = False
) -> tuple[int, int]:
    """Return the bytes of the route to start with, and of the one that may follow."""
    if not dense and (factors := _factor_bytes(pair)) is not None:
        return factors, factors
    long, short, item = _largest_matrix(pair)
    if route is Route.AUTO:
        route = choose_route(short, top)
    matrix = item * long * short + _BLOCKS_BYTES
    gram = matrix + gram_bytes(short)
    if route is Route.EXACT:
        squares = max(_TALL_COPIES * long * short, long * short + _EXACT_SQUARES * short**2)
        return matrix + 8 * squares, matrix + 8 * squares
    rest = item * long * short  # what a head that is taken out leaves, or is found in
    if route is Route.GRAM or top is None or top >= short:
        return gram, gram + rest
    columns = min(short // 2, 5 * top + 100)
    bases = 2 * (long + short) * columns
    return matrix + item * bases, max(gram + rest, matrix + 8 * (long * short + bases))


def _factor_bytes(pair: Pair) -> int | None:
    """Return the bytes of the route that an adapter's factors take; None where they do not."""
    update = pair.factors
    if update is None:
        return None
    m, n = pair.matrices[0]
    # What is read is of all experts of a stack.
    stored = update.rank * update.experts * (m + n)
    return _FACTOR_COPIES * 8 * update.rank * (m + n) + 8 * stored + _BLOCKS_BYTES


def _spectrum_bytes(pair: Pair, top: int | None, *, intruders: bool) -> tuple[int, int]:
    long, short, item = _largest_matrix(pair)
    krylov = choose_route(short, top) is Route.KRYLOV
    parts = [_route_bytes(pair, top, Route.KRYLOV) if krylov else _values_bytes(pair)]
    if intruders:
        matrix = item * long * short + _BLOCKS_BYTES
        vectors = max(matrix + 8 * short**2, int(_VECTORS_SQUARES * 8 * short**2))
        # Of weights: those under an adapter are dense.
        parts += [(vectors, vectors), _space_bytes(pair, NUM_LEADING, dense=True)]
    return _worst(parts)


def _space_bytes(pair: Pair, rank: int, *, dense: bool = False) -> tuple[int, int]:
    """Return the bytes of leading spaces, beside those of another matrix."""
    long, short, _ = _largest_matrix(pair)
    first, more = _route_bytes(pair, rank, Route.AUTO, dense=dense)
    held = _SPACE_COPIES * 8 * min(rank, short) * (long + short)
    return first + held, more + held


def _values_bytes(pair: Pair) -> tuple[int, int]:
    """Return the bytes of the two routes to singular values without vectors."""
    if (factors := _factor_bytes(pair)) is not None:
        return factors, factors
    long, short, item = _largest_matrix(pair)
    matrix = item * long * short + _BLOCKS_BYTES + _PRODUCT_BYTES
    gram = matrix + _VALUES_SQUARES * 8 * short**2
    tall = _TALL_COPIES * 2 * short**2  # a square and a triangle at a time
    exact = tall if long >= 2 * short else _VALUES_SQUARES * long * short
    return gram, max(gram, matrix + 8 * exact)


def _largest_matrix(pair: Pair) -> tuple[int, int, int]:
    """Return the sides of the largest matrix, the longer first, and the bytes of an entry."""
    m, n = max(pair.matrices, key=lambda shape: shape[0] * shape[1])
    dtypes = {side.dtype for side in (pair.base, pair.finetuned) if side}
    # That of DoRA is formed in float64, as a whole.
    wide = Dtype.F64 in dtypes or pair.update is not None
    return max(m, n), min(m, n), 8 if wide else 4
