"""Rank rules: what a user may ask for, and the rank that it means for a spectrum.

A rule is one class here: how it is written, the rank it gives, and the ranks that another
computation of the same spectrum may find. Pure arithmetic on singular values; it
decomposes nothing and imports no torch.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import accumulate
from typing import ClassVar, TypeVar

from svdcut.choose.budget import allocate_budget
from svdcut.errors import UsageError
from svdcut.svd.certificate import VALUE_TOLERANCE

_Key = TypeVar("_Key")

BACKWARD = 8 * sys.float_info.epsilon
"""Backward error of a symmetric eigensolver, for each row, as a share of the norm."""

_MAX_DIGITS = 16
"""Longest rank in digits: a float holds no more, and more are a typing error."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rank rule; `str` gives the text that it was parsed from."""

    name: ClassVar[str]
    examples: ClassVar[tuple[str, ...]]
    needs_edge: ClassVar[bool] = False
    """Whether the rank depends on the noise edge."""

    is_joint: ClassVar[bool] = False
    """Whether the rank depends on all matrices together: see `allocate`."""

    @classmethod
    def parse(cls, text: str) -> Rule | None:
        """Return the rule that a text means; None if it is another kind of rule."""
        return cls() if text == cls.name else None

    def __str__(self) -> str:
        return self.name

    def known_rank(self, full_rank: int) -> int | None:  # noqa: ARG002
        """Return the rank of a matrix that is not zero; None if it depends on the spectrum."""
        return None

    def rank(self, s: Sequence[float], full_rank: int, *, edge: float = 0.0) -> int:
        """Return the rank that the rule means for one matrix.

        Parameters
        ----------
        s : sequence of float
            Singular values, descending; all of them unless the rank is known without.
        full_rank : int
            min(m, n).
        edge : float
            Noise edge, for a rule that needs it.

        Returns
        -------
        int
            0 to `full_rank`; 0 for a matrix of zeros, whatever the rule.
        """
        if not s or s[0] == 0:
            return 0
        known = self.known_rank(full_rank)
        return self._choose(s, edge) if known is None else known

    def rank_range(
        self, s: Sequence[float], full_rank: int, *, edge: float = 0.0
    ) -> tuple[int, int]:
        """Return the least and the largest rank that another computation may find.

        They differ only where a value, or a sum of values, is so near to the limit that
        rounding decides on which side it is. Parameters are those of `rank`.
        """
        if not s or s[0] == 0:
            return 0, 0
        known = self.known_rank(full_rank)
        return self._choose_range(s, edge) if known is None else (known, known)

    def _choose(self, s: Sequence[float], edge: float) -> int:
        """Return the rank for a spectrum that is not zero."""
        raise NotImplementedError

    def _choose_range(self, s: Sequence[float], edge: float) -> tuple[int, int]:
        """Return the range of ranks for a spectrum that is not zero."""
        raise NotImplementedError

    def allocate(
        self, spectra: Mapping[_Key, Sequence[float]], shapes: Mapping[_Key, tuple[int, int]]
    ) -> dict[_Key, int]:
        """Return the rank of each matrix, from all their singular values and shapes."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Fixed(Rule):
    """A fixed rank for each matrix."""

    value: int

    name: ClassVar = "fixed"
    examples: ClassVar = ("64", "0")

    @classmethod
    def parse(cls, text: str) -> Rule | None:
        """Parse a whole number."""
        is_rank = text.isascii() and text.isdigit() and len(text) < _MAX_DIGITS
        return cls(int(text)) if is_rank else None

    def __str__(self) -> str:
        return str(self.value)

    def known_rank(self, full_rank: int) -> int | None:
        """Return the rank, or all that there is."""
        return min(self.value, full_rank)


@dataclass(frozen=True, slots=True)
class Full(Rule):
    """All triplets."""

    name: ClassVar = "full"
    examples: ClassVar = ("full",)

    def known_rank(self, full_rank: int) -> int | None:
        """Return the full rank."""
        return full_rank


@dataclass(frozen=True, slots=True)
class Noise(Rule):
    """The singular values above the edge that the rounding of storage explains."""

    name: ClassVar = "noise"
    examples: ClassVar = ("noise",)
    needs_edge: ClassVar = True

    def _choose(self, s: Sequence[float], edge: float) -> int:
        return sum(value > edge for value in s)

    def _choose_range(self, s: Sequence[float], edge: float) -> tuple[int, int]:
        return _range_above(s, edge / s[0])


@dataclass(frozen=True, slots=True)
class ShareRule(Rule):
    """A rule that is given a share, as ``name=0.9``."""

    share: float

    @classmethod
    def parse(cls, text: str) -> Rule | None:
        """Parse ``name=share``."""
        name, equals, number = text.partition("=")
        if name != cls.name or not equals:
            return None
        try:
            share = float(number)
        except ValueError:
            share = math.nan
        if not 0 < share <= 1:
            raise UsageError(f"rank rule {text!r}: the share must be above 0 and at most 1")
        return cls(share)

    def __str__(self) -> str:
        # What is printed is parsed again: no digit may be lost.
        short = f"{self.share:g}"
        return f"{self.name}={short if float(short) == self.share else repr(self.share)}"


@dataclass(frozen=True, slots=True)
class Energy(ShareRule):
    """The smallest rank with at least that share of the energy."""

    name: ClassVar = "energy"
    examples: ClassVar = ("energy=0.9",)

    def _choose(self, s: Sequence[float], edge: float) -> int:  # noqa: ARG002
        return rank_for_energy(s, self.share)

    def _choose_range(self, s: Sequence[float], edge: float) -> tuple[int, int]:  # noqa: ARG002
        slack = 2 * len(s) * BACKWARD
        least = rank_for_energy(s, self.share - slack)
        if self.share + slack >= 1:
            return least, len(s)
        return least, rank_for_energy(s, self.share + slack)


@dataclass(frozen=True, slots=True)
class Ratio(ShareRule):
    """The singular values of at least that share of the first."""

    name: ClassVar = "ratio"
    examples: ClassVar = ("ratio=0.05",)

    def _choose(self, s: Sequence[float], edge: float) -> int:  # noqa: ARG002
        return sum(value >= self.share * s[0] for value in s)

    def _choose_range(self, s: Sequence[float], edge: float) -> tuple[int, int]:  # noqa: ARG002
        return _range_above(s, self.share)


@dataclass(frozen=True, slots=True)
class Budget(ShareRule):
    """That share of the parameters at full rank, spent where it keeps most energy."""

    name: ClassVar = "budget"
    examples: ClassVar = ("budget=0.1",)
    is_joint: ClassVar = True

    def _choose_range(self, s: Sequence[float], edge: float) -> tuple[int, int]:  # noqa: ARG002
        return 0, len(s)  # checked over all tensors

    def allocate(
        self, spectra: Mapping[_Key, Sequence[float]], shapes: Mapping[_Key, tuple[int, int]]
    ) -> dict[_Key, int]:
        """Spend the budget: see `svdcut.choose.budget.allocate_budget`."""
        return allocate_budget(spectra, shapes, self.share)


KINDS: tuple[type[Rule], ...] = (Fixed, Energy, Ratio, Noise, Budget, Full)

EXAMPLES = tuple(example for kind in KINDS for example in kind.examples)
NOTHING, FULL = Fixed(0), Full()


def rank_for_energy(s: Sequence[float], share: float) -> int:
    """Return the smallest rank with at least that share, of all values in descending order."""
    # Scaled by the first value: squares of 1e-30 would vanish from the share.
    energies = list(accumulate((value / s[0]) ** 2 for value in s))
    return min(bisect_left(energies, share * energies[-1]) + 1, len(s))


def _range_above(s: Sequence[float], limit: float) -> tuple[int, int]:
    """Return how many values are above a share of the first: at least, and at most."""
    squares = [(value / s[0]) ** 2 for value in s]
    square = limit * limit
    off = 2 * len(s) * BACKWARD * math.fsum(squares) + 2 * VALUE_TOLERANCE * square
    return sum(x > square + off for x in squares), sum(x >= square - off for x in squares)


def parse_rule(text: str | int) -> Rule:
    """Parse a rule; raise `UsageError` if it is none, or its number is out of range."""
    text = str(text).strip()
    for kind in KINDS:
        rule = kind.parse(text)
        if rule is not None:
            return rule
    raise UsageError(f"{text!r} is not a rank rule", hint=f"Rules: {', '.join(EXAMPLES)}.")


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
    """Parse ``GLOB=RULE``; the glob ends at the first ``=``."""
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
