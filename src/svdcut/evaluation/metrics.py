"""Accuracies of groups, the gaps between them, and how sure they are.

It knows which predictions are right, and no model. Accuracies and the worst group are as in
group DRO (Sagawa et al. 2020, https://arxiv.org/abs/1911.08731, section 2) and WILDS (Koh et
al. 2021, https://arxiv.org/abs/2012.07421, appendix on CivilComments).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol

from svdcut.shown import brief

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Counts = NDArray[np.int64]

_Z = 1.959963984540054
"""Quantile of the standard normal distribution at 0.975."""

_OPTIONAL = ("num_truncated", "chat_template")
"""Fields that a document may lack."""

_RESAMPLES = 1000
_MAX_DRAWN = 1 << 22
"""Counts in memory at a time."""

_Cell = tuple[tuple[str, ...], bool, bool]
"""Groups of a row, whether it is aligned, whether it is right: a row's all for a gap."""


class Grouped(Protocol):
    """Rows, of which only the groups are known; a `Dataset` is one, and so is a `Grouping`."""

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Those that each row belongs to; may be none, or several."""

    @property
    def aligned(self) -> tuple[bool, ...] | None:
        """Whether a shortcut agrees with the label of each row, where that is known."""

    def __len__(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95 % confidence interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class GroupResult:
    """The accuracy of one group."""

    accuracy: float
    size: int
    interval: Interval
    """Of the accuracy: see `wilson_interval`."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Differences of accuracies; None where the data does not say."""

    best_worst: float | None
    """Of the best group, minus that of the worst."""

    average_worst: float | None
    """Of all rows, minus that of the worst group."""

    aligned_conflicting: float | None
    """Of the rows where a shortcut agrees with the label, minus that of the others."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How often a classifier is right, on all rows and on each group of them."""

    __repr__ = brief

    accuracy: float
    """Share of all rows that are right, whatever their groups."""

    size: int
    interval: Interval
    """Of the accuracy: see `wilson_interval`."""

    groups: Mapping[str, GroupResult]
    """By name, sorted by it."""

    worst_group: str | None
    """The one of the lowest accuracy; of several, the largest, then the first by name."""

    worst_group_accuracy: float | None
    gap: Gap
    intervals: Mapping[str, Interval]
    """Of each gap that there is, by the name of its field: see `gap_intervals`."""

    num_truncated: int | None = None
    """Rows that were too long for the model, and were cut; None where that is not known."""

    chat_template: bool | None = None
    """Whether the prompts of a language model were messages in its chat template; else None."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object; all intervals are together in it, as pairs."""
        return {
            "accuracy": self.accuracy,
            "size": self.size,
            "num_truncated": self.num_truncated,
            "chat_template": self.chat_template,
            "groups": {
                name: {"accuracy": group.accuracy, "size": group.size}
                for name, group in self.groups.items()
            },
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
        """Return the evaluation that `to_json` made this of; further keys are ignored.

        Raises
        ------
        ValueError
            If it is none.
        """
        # Imported here: it is slow to import, and most commands read no evaluation.
        from pydantic import TypeAdapter

        parsed: Evaluation = TypeAdapter(Evaluation).validate_python(_nested(document))
        return parsed


def evaluate_predictions(correct: Sequence[bool], dataset: Grouped, *, seed: int = 0) -> Evaluation:
    """Return the accuracies of all rows and of each group, and their gaps.

    Parameters
    ----------
    correct : sequence of bool
        Whether the prediction for a row is right.
    dataset : Grouped
        The rows, in the same order; which order does not matter.
    seed : int
        Of the resampling behind the intervals of gaps.

    Raises
    ------
    ValueError
        If there are no rows, or not as many as predictions.
    """
    if not 0 < len(dataset) == len(correct):
        raise ValueError(f"{len(correct)} predictions for {len(dataset)} rows")
    aligned = dataset.aligned or (False,) * len(dataset)
    right = map(bool, correct)
    cells = sorted(Counter(zip(dataset.groups, aligned, right, strict=True)).items())
    groups = _group_results(cells)
    overall = _result(cells)
    worst = min(groups, key=lambda name: _rank(name, groups[name]), default=None)
    worst_accuracy = None if worst is None else groups[worst].accuracy
    gap = Gap(
        best_worst=_minus(max((g.accuracy for g in groups.values()), default=None), worst_accuracy),
        average_worst=_minus(overall.accuracy, worst_accuracy),
        aligned_conflicting=None if dataset.aligned is None else _aligned_gap(cells),
    )
    return Evaluation(
        accuracy=overall.accuracy,
        size=overall.size,
        interval=overall.interval,
        groups=groups,
        worst_group=worst,
        worst_group_accuracy=worst_accuracy,
        gap=gap,
        intervals=gap_intervals(cells, gap, seed=seed),
    )


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


def gap_intervals(
    cells: Sequence[tuple[_Cell, int]], gap: Gap, *, seed: int
) -> dict[str, Interval]:
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

    def __init__(self, cells: Sequence[tuple[_Cell, int]]) -> None:
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


def _group_results(cells: Sequence[tuple[_Cell, int]]) -> dict[str, GroupResult]:
    members: dict[str, list[tuple[_Cell, int]]] = {}
    for cell, count in cells:
        for name in cell[0]:
            members.setdefault(name, []).append((cell, count))
    return {name: _result(members[name]) for name in sorted(members)}


def _result(cells: Sequence[tuple[_Cell, int]]) -> GroupResult:
    size = sum(count for _, count in cells)
    num_right = sum(count for (_, _, right), count in cells if right)
    return GroupResult(num_right / size, size, wilson_interval(num_right, size))


def _rank(name: str, group: GroupResult) -> tuple[float, int, str]:
    return group.accuracy, -group.size, name


def _aligned_gap(cells: Sequence[tuple[_Cell, int]]) -> float | None:
    sides = [[item for item in cells if item[0][1] is aligned] for aligned in (True, False)]
    if not all(sides):
        return None
    aligned, conflicting = map(_result, sides)
    return aligned.accuracy - conflicting.accuracy


def _minus(some: float | None, other: float | None) -> float | None:
    return None if some is None or other is None else some - other


def _pair(interval: Interval) -> list[float]:
    return [interval.low, interval.high]


def _nested(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an evaluation, each interval where it belongs."""
    try:
        intervals = document["intervals"]
        own = {
            item.name: document[item.name]
            for item in fields(Evaluation)
            if item.name not in ("interval", "intervals", *_OPTIONAL)
        }
        groups = {
            name: {**group, "interval": _interval(intervals["groups"][name])}
            for name, group in document["groups"].items()
        }
        gaps = {name: _interval(pair) for name, pair in intervals["gap"].items()}
        return own | {
            "interval": _interval(intervals["accuracy"]),
            "groups": groups,
            "intervals": gaps,
            **{name: document.get(name) for name in _OPTIONAL},
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not an evaluation: {error!r}") from error


def _interval(pair: Sequence[float]) -> dict[str, float]:
    low, high = pair
    return {"low": low, "high": high}
