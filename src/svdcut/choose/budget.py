"""Spend a share of the parameters where it keeps most energy.

Pure arithmetic on singular values; it imports no torch.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import TypeVar

_Key = TypeVar("_Key")


def allocate_budget(
    spectra: Mapping[_Key, Sequence[float]],
    shapes: Mapping[_Key, tuple[int, int]],
    share: float,
) -> dict[_Key, int]:
    """Spend a share of the parameters where it keeps most energy.

    A rank-k matrix has k (m + n) parameters, at full rank as many k as it has values.
    Triplets are taken in order of energy per parameter, s^2 / (m + n), until the
    next one no longer fits: no other choice of as many parameters keeps more.

    Parameters
    ----------
    spectra : mapping of matrix to sequence of float
        All singular values of each matrix, descending.
    shapes : mapping of matrix to (int, int)
        Their shapes.
    share : float
        Of the parameters of all matrices at full rank.

    Returns
    -------
    dict of matrix to int
        Rank of each matrix.

    Notes
    -----
    Bisects on the density at which the budget runs out: O(matrices log values) a
    step, and no list of all triplets.
    """
    cost = {name: sum(shapes[name]) for name in spectra}
    budget = share * sum(cost[name] * len(s) for name, s in spectra.items())
    # Negated square roots of the densities, ascending, as bisect wants them.
    density = {name: [-value / math.sqrt(cost[name]) for value in s] for name, s in spectra.items()}

    def ranks_above(threshold: float) -> dict[_Key, int]:
        return {name: bisect_left(values, -threshold) for name, values in density.items()}

    def spent(ranks: Mapping[_Key, int]) -> int:
        return sum(rank * cost[name] for name, rank in ranks.items())

    high = max((-values[0] for values in density.values() if values), default=0.0)
    low = 0.0
    if spent(ranks_above(low)) <= budget:
        return ranks_above(low)
    while math.nextafter(low, high) < high:
        middle = (low + high) / 2
        if spent(ranks_above(middle)) <= budget:
            high = middle
        else:
            low = middle
    ranks = ranks_above(high)
    # What is left fits some of the triplets of the next density, in tensor order.
    left = budget - spent(ranks)
    for name, limit in ranks_above(low).items():
        while ranks[name] < limit and cost[name] <= left:
            ranks[name] += 1
            left -= cost[name]
    return ranks
