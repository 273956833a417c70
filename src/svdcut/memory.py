"""The memory that tensors take at work, from their shapes and the route to take.

It allocates nothing. The figures are those of the routes in `svdcut.svd`, measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from svdcut.options import Options
from svdcut.pairing import Action, Pair
from svdcut.plan import Plan
from svdcut.ranks import Keep, Rule, RuleKind, rule_for
from svdcut.svd.route import Route, choose_route
from svdcut.tensorfile import Dtype

SPARE_BYTES = 250 << 20
"""For small matrices beside the largest one."""

_COPY_BYTES = 48 << 20
_BLOCKS_BYTES = 16 << 20

_PROMISED_COPIES = 8
"""Of the largest tensor in float32, beside what a process takes by itself."""

_DENSE_COPIES = 6
"""In float32, of a matrix that is not square; a rule of thumb."""

_GRAM_SQUARES = 5
"""Matrices of the short side squared, in float64, that the Gram route takes."""

_EXACT_SQUARES = 7
_TALL_COPIES = 3
"""In float64, of the exact route."""


@dataclass(frozen=True, slots=True)
class MemoryNeeds:
    """What a run takes beside the process itself, in bytes."""

    sizes: tuple[int, ...]
    """Of each tensor of the plan at work, by the route that it starts with."""

    bound: int
    """For all tensors at work together."""

    reserve: int
    """For one of them at a time that needs a more careful route."""

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
    sizes, reserve, largest = [], 0, 0
    for tensor in plan.tensors:
        pair = tensor.pair
        if pair.action is not Action.TRUNCATE:
            sizes.append(_COPY_BYTES)
            continue
        first, more = _sizes(pair, rules, options)
        sizes.append(first)
        reserve = max(reserve, more - first)
        largest = max(largest, *(4 * m * n for m, n in pair.matrices))
    allowed = SPARE_BYTES + _PROMISED_COPIES * largest
    return MemoryNeeds(tuple(sizes), max(allowed - reserve, *sizes), reserve)


def expected_top(pair: Pair, rules: Sequence[Rule], options: Options) -> int | None:
    """Return how many leading triplets of a tensor serve all rules; None for all."""
    chosen = [rule_for(pair.name, rule, options.rank_for) for rule in rules]
    if options.keep is not Keep.TOP or any(rule.kind is not RuleKind.FIXED for rule in chosen):
        return None
    return int(max(rule.value for rule in chosen))


def dense_bytes(pair: Pair) -> int:
    """Return the bytes that a tensor takes while its whole spectrum is computed."""
    if pair.action is not Action.TRUNCATE:
        return _COPY_BYTES
    return _DENSE_COPIES * 4 * max(m * n for m, n in pair.matrices)


def _sizes(pair: Pair, rules: Sequence[Rule], options: Options) -> tuple[int, int]:
    """Return the bytes of the route to start with, and of the one that may follow."""
    m, n = max(pair.matrices, key=lambda shape: shape[0] * shape[1])
    long, short = max(m, n), min(m, n)
    assert pair.base is not None
    item = 8 if Dtype.F64 in (pair.base.dtype, pair.finetuned.dtype) else 4
    top = expected_top(pair, rules, options)
    route = options.svd
    if route is Route.AUTO:
        route = choose_route(short, top)
    matrix = item * m * n + _BLOCKS_BYTES
    gram = matrix + _GRAM_SQUARES * 8 * short**2
    if route is Route.EXACT:
        exact = matrix + 8 * max(_TALL_COPIES * m * n, m * n + _EXACT_SQUARES * short**2)
        return exact, exact
    if route is Route.GRAM or top is None or top >= short:
        return gram, gram
    columns = min(short // 2, 5 * top + 100)
    bases = 2 * (long + short) * columns
    return matrix + item * bases, max(gram, matrix + 8 * (m * n + bases))
