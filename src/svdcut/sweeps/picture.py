"""A sweep as a picture: accuracy and gap against the rank, and one against the other.

matplotlib is imported where it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svdcut.choose.keep import Keep
from svdcut.evaluation.metrics import Evaluation, Interval
from svdcut.files.atomic_write import write_whole
from svdcut.pictures.render import DPI, rendered
from svdcut.pictures.style import LIGHT, drawing
from svdcut.sweeps.result import PICTURE_NAME, Row, Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TEXT = 7.5
_WIDTH, _HEIGHT = 7.2, 4.4
_ALONE = 2.6
"""Height without groups."""

_LABEL_LETTERS = 80
"""More on an axis are turned."""

_NUDGE = 0.12
"""By which controls stand beside the ranks that they belong to."""


@dataclass(frozen=True, slots=True)
class _Look:
    """How one way to keep triplets is drawn."""

    name: str
    colour: str
    marker: str
    nudge: float


_LOOKS = {
    Keep.TOP: _Look("top", LIGHT.palette[0], "o", 0.0),
    Keep.BOTTOM: _Look("bottom (control)", LIGHT.palette[1], "v", _NUDGE),
    Keep.RANDOM: _Look("random (control)", LIGHT.palette[2], "s", -_NUDGE),
}


@dataclass(frozen=True, slots=True)
class _Measure:
    """What a panel shows, in percent or points."""

    title: str
    value: Callable[[Evaluation], float | None]
    interval: Callable[[Evaluation], Interval | None]


_ACCURACY = _Measure(
    "Accuracy (%)",
    lambda found: found.accuracy,
    lambda found: found.interval if found.size else None,
)
_GAP = _Measure(
    "Best over worst group (points)",
    lambda found: found.gap.best_worst,
    lambda found: found.intervals.get("best_worst"),
)


def save_picture(sweep: Sweep, folder: Path) -> None:
    """Write ``sweep.png``; what is there is replaced.

    Raises
    ------
    UsageError
        If matplotlib is not installed.
    OutputError
        If it cannot be written.
    """
    from matplotlib.figure import Figure

    has_groups = sweep.finetuned.gap.best_worst is not None
    with drawing(LIGHT, _TEXT, text_as_paths=False):
        height = _HEIGHT if has_groups else _ALONE
        figure = Figure((_WIDTH, height), DPI, layout="constrained", facecolor=LIGHT.background)
        _draw(figure, sweep, has_groups=has_groups)
        data = rendered(figure, "png")
    write_whole(folder / PICTURE_NAME, lambda path: path.write_bytes(data))


def _draw(figure: Figure, sweep: Sweep, *, has_groups: bool) -> None:
    if not has_groups:
        axes = figure.add_subplot()
        _draw_against_rank(axes, sweep, _ACCURACY)
        _label_ranks(axes, sweep)
    else:
        grid = figure.add_gridspec(2, 2, width_ratios=(1.25, 1))
        above, below = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[1, 0])
        _draw_against_rank(above, sweep, _ACCURACY)
        _draw_against_rank(below, sweep, _GAP)
        above.tick_params(labelbottom=False)
        _label_ranks(below, sweep)
        axes = above
        _draw_pareto(figure.add_subplot(grid[:, 1]), sweep)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)


def _draw_against_rank(axes: Axes, sweep: Sweep, measure: _Measure) -> None:
    places = _places(sweep)
    axes.set_title(measure.title)
    axes.grid(axis="y", color=LIGHT.faint, linewidth=0.5)
    ends = ((sweep.finetuned, "fine-tuned", "--"), (sweep.base, "base", ":"))
    for evaluation, name, style in ends:
        value = measure.value(evaluation)
        if value is not None:
            axes.axhline(100 * value, color=LIGHT.muted, linestyle=style, linewidth=1, label=name)
    for look, rows in _series(sweep):
        _draw_series(axes, rows, look, measure, places)
    if measure is _ACCURACY:
        least = 100 * (sweep.finetuned.accuracy - sweep.tolerance)
        top = 100 * sweep.finetuned.accuracy
        axes.axhspan(
            least, top, color=LIGHT.faint, alpha=0.6, linewidth=0, label="within tolerance"
        )
    for row, colour, name in _marked(sweep):
        value = measure.value(row.evaluation)
        if value is not None:
            axes.plot(places[str(row.variant.rule)], 100 * value, **_ring(colour), label=name)


def _places(sweep: Sweep) -> dict[str, int]:
    """Return where each rule stands: side by side, by what it keeps."""
    tops = [row for row in sweep.rows if row.variant.keep is Keep.TOP]
    tops.sort(key=lambda row: row.rank)
    return {str(row.variant.rule): place for place, row in enumerate(tops)}


def _series(sweep: Sweep) -> Iterator[tuple[_Look, list[Row]]]:
    """Yield the rows of each way to keep triplets, by rank."""
    for keep, look in _LOOKS.items():
        rows = [row for row in sweep.rows if row.variant.keep is keep]
        if rows:
            yield look, sorted(rows, key=lambda row: row.rank)


def _draw_series(
    axes: Axes, rows: Sequence[Row], look: _Look, measure: _Measure, places: dict[str, int]
) -> None:
    points = [
        (places[str(row.variant.rule)] + look.nudge, 100 * value, measure.interval(row.evaluation))
        for row in rows
        if (value := measure.value(row.evaluation)) is not None
    ]
    for x, _, interval in points:
        if interval is not None:
            ends = (100 * interval.low, 100 * interval.high)
            axes.plot((x, x), ends, color=look.colour, linewidth=0.8, alpha=0.5)
    axes.plot(
        [x for x, _, _ in points],
        [y for _, y, _ in points],
        color=look.colour,
        marker=look.marker,
        markersize=3.5,
        linewidth=1.2 if look.nudge == 0 else 0.7,
        label=look.name,
    )


def _marked(sweep: Sweep) -> Iterator[tuple[Row, str, str]]:
    if sweep.chosen is not None:
        yield sweep.chosen, LIGHT.ink, "chosen"
    if sweep.chosen_with_groups not in (None, sweep.chosen):
        assert sweep.chosen_with_groups is not None
        yield sweep.chosen_with_groups, LIGHT.palette[3], "chosen with group labels"


def _ring(colour: str) -> dict[str, Any]:
    return {
        "color": colour,
        "marker": "o",
        "markersize": 8,
        "markerfacecolor": "none",
        "markeredgewidth": 1.2,
        "linestyle": "none",
    }


def _label_ranks(axes: Axes, sweep: Sweep) -> None:
    places = _places(sweep)
    turned = sum(map(len, places)) > _LABEL_LETTERS // 2
    axes.set_xticks(list(places.values()), list(places), rotation=45 if turned else 0)
    axes.set_xlabel("rank rule (-k)")


def _draw_pareto(axes: Axes, sweep: Sweep) -> None:
    """Draw gap against accuracy; the best corner is at the lower right."""
    axes.set_title("Gap against accuracy")
    axes.grid(color=LIGHT.faint, linewidth=0.5)
    axes.set_xlabel("accuracy (%)")
    axes.set_ylabel("best over worst group (points)")
    for look, rows in _series(sweep):
        known = [row for row in rows if row.evaluation.gap.best_worst is not None]
        axes.plot(
            [100 * row.evaluation.accuracy for row in known],
            [100 * (row.evaluation.gap.best_worst or 0) for row in known],
            color=look.colour,
            marker=look.marker,
            markersize=3.5,
            linewidth=0.7 if look.nudge == 0 else 0,
        )
        if look.nudge == 0:
            _name_points(axes, known)
    for evaluation, name in ((sweep.finetuned, "fine-tuned"), (sweep.base, "base")):
        _name_end(axes, evaluation, name)
    for row, colour, _ in _marked(sweep):
        gap = row.evaluation.gap.best_worst
        if gap is not None:
            axes.plot(100 * row.evaluation.accuracy, 100 * gap, **_ring(colour))


def _name_points(axes: Axes, rows: Sequence[Row]) -> None:
    """Write the rules beside their points; those that share a point, together."""
    names: dict[tuple[float, float], list[str]] = {}
    for row in rows:
        point = (100 * row.evaluation.accuracy, 100 * (row.evaluation.gap.best_worst or 0))
        names.setdefault(point, []).append(str(row.variant.rule))
    for point, rules in names.items():
        text = rules[0] if len(rules) == 1 else f"{rules[0]} … {rules[-1]}"
        axes.annotate(
            text, point, (4, 4), textcoords="offset points", color=LIGHT.muted, fontsize=_TEXT * 0.9
        )


def _name_end(axes: Axes, evaluation: Evaluation, name: str) -> None:
    gap = evaluation.gap.best_worst
    if gap is None:
        return
    point = (100 * evaluation.accuracy, 100 * gap)
    axes.plot(*point, color=LIGHT.ink, marker="x", markersize=5)
    axes.annotate(
        name, point, (4, -9), textcoords="offset points", color=LIGHT.ink, fontsize=_TEXT * 0.9
    )
