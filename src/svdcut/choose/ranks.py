"""Rank rules: what a user may ask for, and the rank that it means for a spectrum.

Pure arithmetic on singular values; it decomposes nothing and imports no torch.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from itertools import accumulate
from typing import TypeVar

from svdcut.errors import UsageError

_Key = TypeVar("_Key")


class RuleKind(str, Enum):
    """The rules by name."""

    FIXED = "fixed"
    FULL = "full"
    ENERGY = "energy"
    RATIO = "ratio"
    NOISE = "noise"
    BUDGET = "budget"


class Keep(str, Enum):
    """Which triplets stay."""

    TOP = "top"
    BOTTOM = "bottom"
    RANDOM = "random"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rank rule."""

    kind: RuleKind
    value: float = 0.0
    """The rank (fixed), or the share (energy, ratio, budget)."""

    def __str__(self) -> str:
        if self.kind is RuleKind.FIXED:
            return str(int(self.value))
        if self.kind in (RuleKind.FULL, RuleKind.NOISE):
            return str(self.kind.value)
        # What is printed is parsed again: no digit may be lost.
        short = f"{self.value:g}"
        number = short if float(short) == self.value else repr(self.value)
        return f"{self.kind.value}={number}"


_SHARES = (RuleKind.ENERGY, RuleKind.RATIO, RuleKind.BUDGET)
_MAX_DIGITS = 16
"""Of a rank; more are a slip of the hand, and no float holds them."""

_HELP = "Rules: 64, full, 0, noise, energy=0.9, ratio=0.05, budget=0.1."


def parse_rule(text: str | int) -> Rule:
    """Parse one rule.

    Parameters
    ----------
    text : str or int
        ``64``, ``0``, ``full``, ``noise``, ``energy=T``, ``ratio=T`` or ``budget=T``.

    Returns
    -------
    Rule
        The rule.

    Raises
    ------
    UsageError
        If it is none of these, or its number is out of range.
    """
    text = str(text).strip()
    name, equals, number = text.partition("=")
    if not equals:
        if text.isascii() and text.isdigit() and len(text) < _MAX_DIGITS:
            return Rule(RuleKind.FIXED, int(text))
        if text in (RuleKind.FULL.value, RuleKind.NOISE.value):
            return Rule(RuleKind(text))
    elif name in {kind.value for kind in _SHARES}:
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if 0 < value <= 1:
            return Rule(RuleKind(name), value)
        raise UsageError(f"rank rule {text!r}: the share must be above 0 and at most 1")
    raise UsageError(f"{text!r} is not a rank rule", hint=_HELP)


def parse_rules(text: str | int) -> tuple[Rule, ...]:
    """Parse a comma-separated list of rules, each at most once."""
    rules = tuple(parse_rule(part) for part in str(text).split(","))
    if len(set(rules)) != len(rules):
        raise UsageError(f"rank rules {text!r}: the same rule twice")
    return rules


@dataclass(frozen=True, slots=True)
class RankOverride:
    """A rule for the tensors whose names match."""

    pattern: str
    rule: Rule

    def __str__(self) -> str:
        return f"{self.pattern}={self.rule}"


def parse_override(text: str) -> RankOverride:
    """Parse ``GLOB=RULE``; the glob ends at the first ``=``.

    Raises
    ------
    UsageError
        If there is no ``=``, no glob, or no rule.
    """
    pattern, equals, rule = text.partition("=")
    if not (equals and pattern):
        raise UsageError(f"--rank-for {text!r}: expected GLOB=RULE, as '*.mlp.*=32'")
    return RankOverride(pattern, parse_rule(rule))


def rule_for(name: str, default: Rule, overrides: Sequence[RankOverride]) -> Rule:
    """Return the rule of a tensor: the last override that matches, or the default."""
    for override in reversed(overrides):
        if fnmatchcase(name, override.pattern):
            return override.rule
    return default


def select_rank(rule: Rule, s: Sequence[float], full_rank: int, *, edge: float = 0.0) -> int:
    """Return the rank that a rule means for one matrix.

    Parameters
    ----------
    rule : Rule
        Any but ``budget``, which looks at all matrices: see `allocate_budget`.
    s : sequence of float
        Singular values, descending; all of them where the rule needs them.
    full_rank : int
        min(m, n).
    edge : float
        Noise edge, for ``noise``.

    Returns
    -------
    int
        0 to `full_rank`; 0 for a matrix of zeros, whatever the rule.
    """
    if not s or s[0] == 0:
        return 0
    if rule.kind is RuleKind.FIXED:
        return min(int(rule.value), full_rank)
    if rule.kind is RuleKind.FULL:
        return full_rank
    if rule.kind is RuleKind.ENERGY:
        return rank_for_energy(s, rule.value)
    if rule.kind is RuleKind.RATIO:
        return sum(1 for value in s if value >= rule.value * s[0])
    if rule.kind is RuleKind.NOISE:
        return sum(1 for value in s if value > edge)
    raise ValueError(f"{rule} is allocated over all matrices")


def rank_for_energy(s: Sequence[float], share: float) -> int:
    """Return the smallest rank with at least that share of the energy.

    Parameters
    ----------
    s : sequence of float
        All singular values, descending.
    share : float
        Above 0, at most 1.
    """
    # Scaled by the first value: squares of 1e-30 would vanish from the share.
    energies = list(accumulate((value / s[0]) ** 2 for value in s))
    return min(bisect_left(energies, share * energies[-1]) + 1, len(s))


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


def first_left_out(indices: Sequence[int]) -> int:
    """Return the index of the largest value that is not chosen; their number where none is.

    Parameters
    ----------
    indices : sequence of int
        Ascending.
    """
    return next((i for i, index in enumerate(indices) if index != i), len(indices))


def choose_indices(keep: Keep, rank: int, full_rank: int, *, seed: int) -> Sequence[int]:
    """Return which triplets stay, ascending.

    Parameters
    ----------
    keep : Keep
        The leading ones, the last ones, or a random set.
    rank : int
        How many.
    full_rank : int
        Of how many.
    seed : int
        Of the random set.
    """
    if keep is Keep.TOP:
        return range(rank)
    if keep is Keep.BOTTOM:
        return range(full_rank - rank, full_rank)
    # A control, not a secret: any reproducible generator will do.
    return sorted(random.Random(seed).sample(range(full_rank), rank))  # noqa: S311
