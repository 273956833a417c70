"""Share the tensors of a run among its workers, evenly by estimated cost.

A pure function of headers and options, so that every worker finds the same shares.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from pathlib import Path

from svdcut.choose.options import Options
from svdcut.choose.ranks import Rule
from svdcut.pair.pairing import Action, Pair
from svdcut.pair.plan import Plan
from svdcut.streaming.memory import expected_top
from svdcut.svd.route import Route, choose_route
from svdcut.worker import Worker

_BYTE = 50
"""Operations in the time that reading, hashing or writing a byte takes."""

_KRYLOV_COLUMNS = 12
"""Columns of a Krylov basis by those that are wanted, into noise: 4, each at a third of the rate
of a matrix product (measured, CPU)."""

_EIGENVECTORS = 4
"""Operations of eigenvectors, and of their proof, by the short side cubed (measured)."""


def share_tensors(
    plan: Plan, rules: Sequence[Rule], options: Options, count: int
) -> list[frozenset[int]]:
    """Return the numbers of the tensors of a plan that each of `count` workers processes."""
    costs = [estimate_cost(tensor.pair, rules, options) for tensor in plan.tensors]
    return share(costs, count)


def share(costs: Sequence[float], count: int) -> list[frozenset[int]]:
    """Share tasks among workers: the largest first, each to the one with the least work [1]_.

    Parameters
    ----------
    costs : sequence of float
        Cost of each task.
    count : int
        Number of workers.

    Returns
    -------
    list of frozenset of int
        Numbers of the tasks of each worker. The largest share is at most 4/3 of the best.

    References
    ----------
    .. [1] R. Graham, "Bounds on multiprocessing timing anomalies", SIAM Journal on Applied
       Mathematics 17, 1969.
    """
    shares: list[set[int]] = [set() for _ in range(count)]
    loads = [(0.0, worker) for worker in range(count)]
    for task in sorted(range(len(costs)), key=lambda task: -costs[task]):
        load, worker = heapq.heappop(loads)
        shares[worker].add(task)
        heapq.heappush(loads, (load + costs[task], worker))
    return [frozenset(found) for found in shares]


def hashed_by(plan: Plan, worker: Worker) -> list[Path]:
    """Return the input files that a worker hashes."""
    files = (*plan.base.files, *plan.finetuned.files)
    own = share([file.size_bytes for file in files], worker.count)[worker.index]
    return [files[number].path for number in own]


def estimate_cost(pair: Pair, rules: Sequence[Rule], options: Options) -> float:
    """Return the cost of a tensor, in operations of a matrix product."""
    sides = (pair.finetuned, pair.base, pair.finetuned)  # read twice, written once
    cost = _BYTE * float(sum(side.size_bytes for side in sides if side is not None))
    if pair.action is not Action.TRUNCATE:
        return cost
    top = expected_top(pair, rules, options)
    for shape in pair.matrices:
        long, short = max(shape), min(shape)
        route = choose_route(short, top) if options.svd is Route.AUTO else options.svd
        if route is Route.KRYLOV and top is not None:
            cost += 4.0 * long * short * _KRYLOV_COLUMNS * (top + 1)
        else:
            cost += float(long) * short**2 + _EIGENVECTORS * float(short) ** 3
    return cost
