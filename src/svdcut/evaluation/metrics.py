"""Accuracies of groups, the gaps between them, and how sure they are.

It knows which predictions are right, and no model. Accuracies and the worst group are as in
group DRO (Sagawa et al. 2020, https://arxiv.org/abs/1911.08731, section 2) and WILDS (Koh et
al. 2021, https://arxiv.org/abs/2012.07421, appendix on CivilComments).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Le

from svdcut.files.jsonfile import parse_dataclass
from svdcut.shown import brief, points

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Counts = NDArray[np.int64]

_Z = 1.959963984540054
"""Quantile of the standard normal distribution at 0.975."""

_RESAMPLES = 1000
_MAX_DRAWN = 1 << 22
"""Counts in memory at a time."""

_Cell = tuple[tuple[str, ...], bool, bool]
"""What a row is to a gap: its groups, whether it is aligned, whether it is right."""

_Cells = Sequence[tuple[_Cell, int]]
"""Kinds of rows, and how many there are of each."""


@dataclass(frozen=True, slots=True)
class Grouping:
    """Rows, of which only the groups are known."""

    groups: tuple[tuple[str, ...], ...]
    """The groups that each row belongs to; may be none, or several."""

    aligned: tuple[bool, ...] | None
    """Whether a shortcut agrees with the label of each row, where that is known."""

    def __len__(self) -> int:
        return len(self.groups)


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95 % confidence interval; `str` gives it in percent."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{points(self.low)} to {points(self.high)}"


@dataclass(frozen=True, slots=True)
class GroupResult:
    """The accuracy of some rows."""

    accuracy: Annotated[float, Ge(0), Le(1)]
    size: Annotated[int, Ge(0)] = 0
    """How many rows there are; 0 where that is not known."""

    @property
    def interval(self) -> Interval:
        """The interval of the accuracy: see `wilson_interval`. From 0 to 1 without a size."""
        if not self.size:
            return Interval(0.0, 1.0)
        return wilson_interval(round(self.accuracy * self.size), self.size)


@dataclass(frozen=True, slots=True)
class Gap:
    """Differences of accuracies; None where the data does not say."""

    best_worst: float | None
    """Accuracy of the best group minus that of the worst."""

    average_worst: float | None
    """Accuracy of all rows minus that of the worst group."""

    aligned_conflicting: float | None
    """Accuracy where a shortcut agrees with the label, minus that of the other rows."""


@dataclass(frozen=True, slots=True)
class Evaluation(GroupResult):
    """How often a classifier is right, on all rows and on each group of them."""

    __repr__ = brief

    groups: Mapping[str, GroupResult] = field(default_factory=dict)
    """By name, sorted by it."""

    aligned_conflicting: float | None = None
    """As in `Gap`."""

    intervals: Mapping[str, Interval] = field(default_factory=dict)
    """The interval of each gap that there is, by its name in `Gap`: see `gap_intervals`."""

    num_truncated: int | None = None
    """Rows that were too long for the model, and were cut; None where that is not known."""

    chat_template: bool | None = None
    """Whether the prompts of a language model were messages in its chat template; else None."""

    @property
    def worst_group(self) -> str | None:
        """The group of the lowest accuracy; of several, the largest, then the first by name."""
        ranked = ((g.accuracy, -g.size, name) for name, g in self.groups.items())
        return min(ranked)[2] if self.groups else None

    @property
    def worst_group_accuracy(self) -> float | None:
        """The accuracy of the worst group."""
        return min((group.accuracy for group in self.groups.values()), default=None)

    @property
    def gap(self) -> Gap:
        """How far the accuracies are apart."""
        worst = self.worst_group_accuracy
        if worst is None:
            return Gap(None, None, self.aligned_conflicting)
        best = max(group.accuracy for group in self.groups.values())
        return Gap(best - worst, self.accuracy - worst, self.aligned_conflicting)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object; all intervals are together in it, as pairs."""
        return {
            "accuracy": self.accuracy,
            "size": self.size,
            "num_truncated": self.num_truncated,
            "chat_template": self.chat_template,
            "groups": {name: asdict(group) for name, group in self.groups.items()},
            "worst_group": self.worst_group,
            "worst_group_accuracy": self.worst_group_accuracy,
            "gap": asdict(self.gap),
            "intervals": {
                "accuracy": _pair(self.interval),
                "groups": {name: _pair(group.interval) for name, group in self.groups.items()},
                "gap": {name: _pair(interval) for name, interval in self.intervals.items()},
            },
        }

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Evaluation:
        """Return the evaluation that an object describes.

        Parameters
        ----------
        document : mapping
            As `to_json` returns it. Only ``accuracy`` is needed; what follows from other
            values is not read, nor are further keys.

        Raises
        ------
        ValueError
            If a value is missing or makes no sense; the text names it.
        """
        groups = _part(document, "groups")
        gaps = _part(_part(document, "intervals"), "gap")
        own = {key: document[key] for key in _READ if document.get(key) is not None}
        return parse_dataclass(
            Evaluation,
            {
                **own,
                "groups": {str(name): groups[name] for name in sorted(groups, key=str)},
                "aligned_conflicting": _part(document, "gap").get("aligned_conflicting"),
                "intervals": {name: _named(pair) for name, pair in gaps.items()},
            },
        )


_READ = ("accuracy", "size", "num_truncated", "chat_template")


def _part(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = document.get(name)
    if not isinstance(found, Mapping | None):
        raise ValueError(f"{name}: {found!r}, where an object is expected")  # noqa: TRY004
    return found or {}


def _pair(interval: Interval) -> list[float]:
    return [interval.low, interval.high]


def _named(pair: object) -> object:
    """Return a pair of numbers as an interval has them; what is no pair, as it is."""
    if not isinstance(pair, Sequence) or len(pair) != 2:
        return pair
    low, high = pair
    return {"low": low, "high": high}


def evaluate_predictions(correct: Sequence[bool], data: Grouping, *, seed: int = 0) -> Evaluation:
    """Return the accuracies of all rows and of each group, and their gaps.

    Parameters
    ----------
    correct : sequence of bool
        Whether the prediction for a row is right.
    data : Grouping
        The rows, in the same order; which order does not matter. A `Dataset` is one.
    seed : int
        Of the resampling behind the intervals of gaps.

    Raises
    ------
    ValueError
        If there are no rows, or not as many as predictions.
    """
    if not 0 < len(data) == len(correct):
        raise ValueError(f"{len(correct)} predictions for {len(data)} rows")
    aligned = data.aligned or (False,) * len(data)
    right = map(bool, correct)
    cells = sorted(Counter(zip(data.groups, aligned, right, strict=True)).items())
    overall = _count(cells)
    found = Evaluation(
        accuracy=overall.accuracy,
        size=overall.size,
        groups=_count_groups(cells),
        aligned_conflicting=None if data.aligned is None else _aligned_gap(cells),
    )
    return replace(found, intervals=gap_intervals(cells, found.gap, seed=seed))


def _count(cells: Iterable[tuple[_Cell, int]]) -> GroupResult:
    size = num_right = 0
    for (_, _, is_right), count in cells:
        size += count
        num_right += count * is_right
    return GroupResult(num_right / size, size)


def _count_groups(cells: _Cells) -> dict[str, GroupResult]:
    members: dict[str, list[tuple[_Cell, int]]] = {}
    for cell, count in cells:
        for name in cell[0]:
            members.setdefault(name, []).append((cell, count))
    return {name: _count(members[name]) for name in sorted(members)}


def _aligned_gap(cells: _Cells) -> float | None:
    sides = [[item for item in cells if item[0][1] is aligned] for aligned in (True, False)]
    if not all(sides):
        return None
    aligned, conflicting = map(_count, sides)
    return aligned.accuracy - conflicting.accuracy


def wilson_interval(num_right: int, size: int) -> Interval:
    """Return the score interval of a share.

    Unlike the normal approximation it stays within 0 and 1, and covers small groups and
    accuracies near 1. Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953; compared
    with others in Brown, Cai and DasGupta 2001, https://doi.org/10.1214/ss/1009213286
    """
    share = num_right / size
    weight = _Z**2 / size
    centre = share + weight / 2
    half = _Z * math.sqrt(share * (1 - share) / size + weight / (4 * size))
    low = 0.0 if num_right == 0 else (centre - half) / (1 + weight)
    high = 1.0 if num_right == size else (centre + half) / (1 + weight)
    return Interval(low, high)


def gap_intervals(cells: _Cells, gap: Gap, *, seed: int) -> dict[str, Interval]:
    """Return the bootstrap interval of each gap that there is.

    Rows are drawn anew with all they say, so that accuracies of one resample belong together;
    which group is the worst is decided in each. How often each kind of row is drawn is
    multinomial, so that no row is drawn one by one. A resample without a row of any group,
    or of one side, says nothing. Percentiles of 1000 resamples: Efron and Tibshirani 1993,
    An Introduction to the Bootstrap, chapter 13.

    The difference of a largest and a smallest accuracy is biased upwards by chance, in the
    resamples more than in the data: with small groups the interval lies high.

    Parameters
    ----------
    cells : sequence
        Kinds of rows, and how many there are of each.
    gap : Gap
        Of the data itself.
    seed : int
        Of the resampling.
    """
    import numpy as np

    present = [item.name for item in fields(gap) if getattr(gap, item.name) is not None]
    if not present:
        return {}
    statistics = _Resampled(cells)
    samples: list[dict[str, Floats]] = []
    counts = np.array([count for _, count in cells], dtype=np.int64)
    size = int(counts.sum())
    generator = np.random.default_rng(seed)
    step = max(1, _MAX_DRAWN // len(cells))
    for start in range(0, _RESAMPLES, step):
        num = min(step, _RESAMPLES - start)
        drawn = generator.multinomial(size, counts / size, size=num)
        samples.append(statistics.gaps(drawn))
    joined = {name: np.concatenate([sample[name] for sample in samples]) for name in present}
    finite = {name: values[np.isfinite(values)] for name, values in joined.items()}
    return {name: _percentiles(values) for name, values in finite.items() if values.size}


class _Resampled:
    """Gaps of resamples: how often each cell was drawn, one resample a row."""

    def __init__(self, cells: _Cells) -> None:
        import numpy as np

        self._right = np.array([right for (_, _, right), _ in cells])
        self._aligned = np.array([aligned for (_, aligned, _), _ in cells])
        members: dict[str, list[int]] = {}
        for place, ((names, _, _), _) in enumerate(cells):
            for name in names:
                members.setdefault(name, []).append(place)
        self._members = [np.array(places) for places in members.values()]

    def gaps(self, drawn: Counts) -> dict[str, Floats]:
        """Return each gap of each resample; NaN or infinity where it has none."""
        import numpy as np

        worst = np.full(len(drawn), np.inf)
        best = np.full(len(drawn), -np.inf)
        for places in self._members:
            accuracy = self._accuracy(drawn[:, places], self._right[places])
            worst, best = np.fmin(worst, accuracy), np.fmax(best, accuracy)
        aligned, conflicting = (
            self._accuracy(drawn[:, side], self._right[side])
            for side in (self._aligned, ~self._aligned)
        )
        return {
            "best_worst": best - worst,
            "average_worst": self._accuracy(drawn, self._right) - worst,
            "aligned_conflicting": aligned - conflicting,
        }

    @staticmethod
    def _accuracy(drawn: Counts, right: NDArray[np.bool_]) -> Floats:
        import numpy as np

        size = drawn.sum(axis=1)
        shares = np.full(len(drawn), np.nan)
        np.divide(drawn[:, right].sum(axis=1), size, out=shares, where=size > 0)
        return shares


def _percentiles(values: Floats) -> Interval:
    import numpy as np

    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(float(low), float(high))
