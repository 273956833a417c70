"""Accuracies of groups, the gaps between them, and their confidence intervals.

It takes predictions as right or wrong, and knows no model. Accuracies and the worst group are as in
group DRO (Sagawa et al. 2020, https://arxiv.org/abs/1911.08731, section 2) and WILDS (Koh et
al. 2021, https://arxiv.org/abs/2012.07421, appendix on CivilComments).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
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
    _Places = Counts | slice

_Z = 1.959963984540054
"""Quantile of the standard normal distribution at 0.975."""

_RESAMPLES = 1000
_MAX_DRAWN = 1 << 22
"""Counts of resamples in memory at a time."""

_ALL = slice(None)


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
    """Number of rows; 0 if not known."""

    @property
    def interval(self) -> Interval:
        """The Wilson interval of the accuracy; from 0 to 1 if the size is not known."""
        if not self.size:
            return Interval(0.0, 1.0)
        return wilson_interval(round(self.accuracy * self.size), self.size)


@dataclass(frozen=True, slots=True)
class Gap:
    """Differences of accuracies; None if the data does not define them."""

    best_worst: float | None
    """Accuracy of the best group minus that of the worst."""

    average_worst: float | None
    """Accuracy of all rows minus that of the worst group."""

    aligned_conflicting: float | None
    """Accuracy of rows where a shortcut agrees with the label, minus that of the others."""


@dataclass(frozen=True, slots=True)
class Evaluation(GroupResult):
    """Accuracy of a model on all rows and on each group."""

    __repr__ = brief

    groups: Mapping[str, GroupResult] = field(default_factory=dict)
    """By name, sorted."""

    aligned_conflicting: float | None = None
    """As in `Gap`."""

    intervals: Mapping[str, Interval] = field(default_factory=dict)
    """The 95 % bootstrap interval of each gap, by its name in `Gap`."""

    num_truncated: int | None = None
    """Rows that were too long for the model and were cut; None if not known."""

    chat_template: bool | None = None
    """Whether prompts were messages in a chat template; None for a classifier, or if not known."""

    @property
    def worst_group(self) -> str | None:
        """The group with the lowest accuracy; of equals the largest, then the first by name."""
        ranked = ((g.accuracy, -g.size, name) for name, g in self.groups.items())
        return min(ranked)[2] if self.groups else None

    @property
    def worst_group_accuracy(self) -> float | None:
        """The accuracy of the worst group."""
        return min((group.accuracy for group in self.groups.values()), default=None)

    @property
    def gap(self) -> Gap:
        """The gaps between the accuracies."""
        worst = self.worst_group_accuracy
        if worst is None:
            return Gap(None, None, self.aligned_conflicting)
        best = max(group.accuracy for group in self.groups.values())
        return Gap(best - worst, self.accuracy - worst, self.aligned_conflicting)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object, with all intervals in one place, as pairs."""
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
        """Read an evaluation.

        Parameters
        ----------
        document : mapping
            As `to_json` returns it. Only ``accuracy`` is required. Derived values and unknown
            keys are ignored.

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
    """Return a pair as the fields of an interval; anything else unchanged."""
    if not isinstance(pair, Sequence) or len(pair) != 2:
        return pair
    low, high = pair
    return {"low": low, "high": high}


def evaluate_predictions(
    correct: Sequence[bool],
    groups: Sequence[tuple[str, ...]],
    aligned: Sequence[bool] | None = None,
    *,
    seed: int = 0,
) -> Evaluation:
    """Return the accuracies of all rows and of each group, and their gaps.

    Parameters
    ----------
    correct : sequence of bool
        Whether the prediction for each row is right. The order of rows does not matter.
    groups : sequence of tuple of str
        The groups of each row; none, one or several.
    aligned : sequence of bool, optional
        Whether a shortcut agrees with the label of each row.
    seed : int
        Seed of the resampling behind the intervals of gaps.

    Raises
    ------
    ValueError
        If there are no rows, or not as many as predictions.
    """
    if not 0 < len(groups) == len(correct):
        raise ValueError(f"{len(correct)} predictions for {len(groups)} rows")
    sides = (False,) * len(groups) if aligned is None else aligned
    right = map(bool, correct)
    cells = _Cells(sorted(Counter(zip(groups, sides, right, strict=True)).items()))
    everything = cells.result()
    found = Evaluation(
        accuracy=everything.accuracy,
        size=everything.size,
        groups={name: cells.result(places) for name, places in cells.groups.items()},
        aligned_conflicting=None if aligned is None else cells.aligned_gap(),
    )
    return replace(found, intervals=_gap_intervals(cells, found.gap, seed=seed))


def wilson_interval(num_right: int, size: int) -> Interval:
    """Return the Wilson score interval of a share.

    It stays within 0 and 1, and holds for small groups and accuracies near 1. Wilson 1927,
    https://doi.org/10.1080/01621459.1927.10502953; compared with others in Brown, Cai and
    DasGupta 2001, https://doi.org/10.1214/ss/1009213286
    """
    share = num_right / size
    weight = _Z**2 / size
    centre = share + weight / 2
    half = _Z * math.sqrt(share * (1 - share) / size + weight / (4 * size))
    low = 0.0 if num_right == 0 else (centre - half) / (1 + weight)
    high = 1.0 if num_right == size else (centre + half) / (1 + weight)
    return Interval(low, high)


class _Cells:
    """Kinds of rows that say the same: groups, whether aligned, whether right; and their counts."""

    def __init__(self, counted: Sequence[tuple[tuple[tuple[str, ...], bool, bool], int]]) -> None:
        import numpy as np

        kinds, counts = zip(*counted, strict=True)
        names, aligned, right = zip(*kinds, strict=True)
        self.counts: Counts = np.array(counts, dtype=np.int64)
        self.right = np.array(right)
        self.sides = (np.flatnonzero(aligned), np.flatnonzero(~np.array(aligned)))
        """The cells where a shortcut agrees with the label, and where it does not."""
        members: dict[str, list[int]] = {}
        for place, own in enumerate(names):
            for name in own:
                members.setdefault(name, []).append(place)
        self.groups = {name: np.array(members[name]) for name in sorted(members)}
        """The cells of each group."""

    def result(self, places: _Places = _ALL) -> GroupResult:
        """Return the accuracy of some cells."""
        size = int(self.counts[places].sum())
        return GroupResult(float(self.accuracies(self.counts, places)), size)

    def aligned_gap(self) -> float | None:
        """Return the accuracy of the aligned rows minus that of the others, if there are both."""
        if not all(map(len, self.sides)):
            return None
        aligned, conflicting = (self.result(side).accuracy for side in self.sides)
        return aligned - conflicting

    def accuracies(self, drawn: Counts, places: _Places = _ALL) -> Floats:
        """Return the accuracy of some cells (...) for counts of all (..., cells), or NaN."""
        import numpy as np

        own = drawn[..., places]
        size = own.sum(axis=-1)
        num_right = own[..., self.right[places]].sum(axis=-1)
        shares: Floats = np.full(size.shape, np.nan)
        np.divide(num_right, size, out=shares, where=size > 0)
        return shares

    def gaps(self, drawn: Counts) -> dict[str, Floats]:
        """Return each gap for each resample (resamples, cells); NaN or infinity without rows."""
        import numpy as np

        worst = np.full(len(drawn), np.inf)
        best = np.full(len(drawn), -np.inf)
        for places in self.groups.values():
            accuracy = self.accuracies(drawn, places)
            worst, best = np.fmin(worst, accuracy), np.fmax(best, accuracy)
        aligned, conflicting = (self.accuracies(drawn, side) for side in self.sides)
        return {
            "best_worst": best - worst,
            "average_worst": self.accuracies(drawn) - worst,
            "aligned_conflicting": aligned - conflicting,
        }


def _gap_intervals(cells: _Cells, gap: Gap, *, seed: int) -> dict[str, Interval]:
    """Return the bootstrap interval of each gap that is not None.

    Each resample draws whole rows, and finds its own worst group. The count of each kind of row
    is multinomial, so that no row is drawn one by one. A resample that lacks every group, or one
    side, is left out. Percentiles of 1000 resamples: Efron and Tibshirani 1993, An Introduction
    to the Bootstrap, chapter 13.

    The difference of a largest and a smallest accuracy is biased upwards by chance, in the
    resamples more than in the data: for small groups the interval lies high.
    """
    import numpy as np

    present = [item.name for item in fields(gap) if getattr(gap, item.name) is not None]
    if not present:
        return {}
    size = int(cells.counts.sum())
    generator = np.random.default_rng(seed)
    step = max(1, _MAX_DRAWN // len(cells.counts))
    samples: list[dict[str, Floats]] = []
    for start in range(0, _RESAMPLES, step):
        num = min(step, _RESAMPLES - start)
        samples.append(cells.gaps(generator.multinomial(size, cells.counts / size, size=num)))
    joined = {name: np.concatenate([sample[name] for sample in samples]) for name in present}
    finite = {name: values[np.isfinite(values)] for name, values in joined.items()}
    return {name: _percentiles(values) for name, values in finite.items() if values.size}


def _percentiles(values: Floats) -> Interval:
    import numpy as np

    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(float(low), float(high))
