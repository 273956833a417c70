"""Check the ranks that a budget gave, over all tensors together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from svdcut.choose.ranks import Budget
from svdcut.verification.findings import Failure
from svdcut.verification.tolerances import energy_rounding


@dataclass(frozen=True, slots=True)
class Share:
    """What one matrix took of a budget."""

    tensor: str
    owner: str
    """What copies of one tied matrix have in common: they take one share together."""

    shape: tuple[int, int]
    full_rank: int
    rank: int
    values: tuple[float, ...] | None
    """Singular values; None where they were not computed."""

    @property
    def cost(self) -> int:
        """Parameters of one triplet."""
        return sum(self.shape)

    def density(self, index: int, sign: int) -> float:
        """Return the root of a triplet's energy per parameter, at most (1) or at least (-1)."""
        if self.values is None or index >= len(self.values):
            return 0.0
        off = 2 * energy_rounding(math.hypot(*self.values), len(self.values))
        return math.sqrt(max(0.0, self.values[index] ** 2 + sign * off) / self.cost)


def check_budget(rule: Budget, shares: list[Share]) -> Iterator[Failure]:
    """Yield what shows that a budget was not spent where it keeps most energy.

    Parameters
    ----------
    rule : Budget
        The budget.
    shares : list of Share
        Of every matrix under it.
    """
    wrong, shares = _merge_copies(shares)
    yield from wrong
    if not shares:
        return
    budget = rule.share * sum(share.cost * share.full_rank for share in shares)
    spent = sum(share.cost * share.rank for share in shares)
    if spent > budget * (1 + 1e-12):
        worst = max(shares, key=lambda share: share.cost * share.rank)
        yield Failure("rank", f"{spent} parameters in all", f"at most {budget:.0f}", worst.tensor)
        return
    known = [share for share in shares if share.values is not None]
    densest = max(known, key=lambda share: share.density(share.rank, -1), default=None)
    if densest is None or densest.density(densest.rank, -1) == 0:
        return
    density = densest.density(densest.rank, -1)
    kept = [share for share in known if share.rank > 0]
    last = min(kept, key=lambda share: share.density(share.rank - 1, 1), default=None)
    if last is not None and last.density(last.rank - 1, 1) < density:
        better = f"more energy in the next triplet of {densest.tensor}"
        yield Failure("rank", better, last.rank, last.tensor)
    near = [share.cost for share in known if share.density(share.rank, 1) >= density]
    if len(known) == len(shares) and budget - spent >= max(near):
        yield Failure("rank", f"room for {densest.rank + 1}", densest.rank, densest.tensor)


def _merge_copies(shares: list[Share]) -> tuple[list[Failure], list[Share]]:
    """Return what is wrong with copies of tied matrices, and the shares without them.

    Without any share where a spectrum is missing that tells whether two are copies.
    """
    found: list[Failure] = []
    owners: list[Share] = []
    for share in shares:
        same = [other for other in owners if other.owner == share.owner != share.tensor]
        if any(other.values is None or share.values is None for other in same):
            return found, []
        copies = [other for other in same if other.values == share.values]
        if not copies:
            owners.append(share)
        elif share.rank != copies[0].rank:
            found.append(Failure("rank", copies[0].rank, share.rank, share.tensor))
    return found, owners
