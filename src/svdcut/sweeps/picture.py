"""A sweep as a picture: accuracy and gap against the rank, and one against the other.

matplotlib is imported where it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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
_HEIGHT_WITHOUT_GROUPS = 2.6

_LABEL_LETTERS = 40
"""Rank labels with more letters than this are turned."""

_NUDGE = 0.12
"""Distance of a control from the rank that it belongs to."""

Value = Callable[[Evaluation], float | None]
"""A number of an evaluation, if it has it: in percent, or percentage points."""


@dataclass(frozen=True, slots=True)
class _Look:
    """Line style of one way to keep triplets."""

    name: str
    colour: str
    marker: str
    nudge: float


_LOOKS = {
    Keep.TOP: _Look("top", LIGHT.palette[0], "o", 0.0),
    Keep.BOTTOM: _Look("bottom (control)", LIGHT.palette[1], "v", _NUDGE),
    Keep.RANDOM: _Look("random (control)", LIGHT.palette[2], "s", -_NUDGE),
}


def save_picture(sweep: Sweep, folder: Path) -> None:
    """Write ``sweep.png``, and replace an earlier one.

    Raises
    ------
    UsageError
        If matplotlib is not installed.
    OutputError
        If it cannot be written.
    """
    from matplotlib.figure import Figure

    has_groups = sweep.finetuned.gap.best_worst is not None
    height = _HEIGHT if has_groups else _HEIGHT_WITHOUT_GROUPS
    with drawing(LIGHT, _TEXT, text_as_paths=False):
        figure = Figure((_WIDTH, height), DPI, layout="constrained", facecolor=LIGHT.background)
        _draw(figure, sweep, has_groups=has_groups)
        data = rendered(figure, "png")
    write_whole(folder / PICTURE_NAME, lambda path: path.write_bytes(data))


def _draw(figure: Figure, sweep: Sweep, *, has_groups: bool) -> None:
    if has_groups:
        grid = figure.add_gridspec(2, 2, width_ratios=(1.25, 1))
        first, last = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[1, 0])
        first.tick_params(labelbottom=False)
        _draw_gap(last, sweep)
        _draw_pareto(figure.add_subplot(grid[:, 1]), sweep)
    else:
        first = last = figure.add_subplot()
    _draw_accuracy(first, sweep)
    _label_ranks(last, sweep)
    handles, labels = first.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)


def _accuracy(found: Evaluation) -> float:
    return 100 * found.accuracy


def _gap(found: Evaluation) -> float | None:
    gap = found.gap.best_worst
    return None if gap is None else 100 * gap


def _draw_accuracy(axes: Axes, sweep: Sweep) -> None:
    axes.set_title("Accuracy (%)")
    _draw_against_rank(axes, sweep, _accuracy, lambda found: found.interval if found.size else None)
    top = _accuracy(sweep.finetuned)
    label = "within tolerance"
    least = top - 100 * sweep.tolerance
    axes.axhspan(least, top, color=LIGHT.faint, alpha=0.6, linewidth=0, label=label)
    _draw_choices(axes, sweep, _rank_place(sweep), _accuracy)


def _draw_gap(axes: Axes, sweep: Sweep) -> None:
    axes.set_title("Best over worst group (points)")
    _draw_against_rank(axes, sweep, _gap, lambda found: found.intervals.get("best_worst"))
    _draw_choices(axes, sweep, _rank_place(sweep), _gap)


def _draw_pareto(axes: Axes, sweep: Sweep) -> None:
    """Draw gap against accuracy; the best corner is at the lower right."""
    axes.set_title("Gap against accuracy")
    axes.grid(color=LIGHT.faint, linewidth=0.5)
    axes.set_xlabel("accuracy (%)")
    axes.set_ylabel("best over worst group (points)")
    for look, rows in _series(sweep):
        points = [
            (_accuracy(r.evaluation), y, r) for r in rows if (y := _gap(r.evaluation)) is not None
        ]
        _draw_line(axes, [(x, y) for x, y, _ in points], look, 0.7 if look.nudge == 0 else 0)
        if look.nudge == 0:
            _name_points(axes, points)
    for evaluation, name in ((sweep.finetuned, "fine-tuned"), (sweep.base, "base")):
        if (gap := _gap(evaluation)) is not None:
            axes.plot(_accuracy(evaluation), gap, color=LIGHT.ink, marker="x", markersize=5)
            _write(axes, name, (_accuracy(evaluation), gap), (4, -9), LIGHT.ink)
    _draw_choices(axes, sweep, lambda row: _accuracy(row.evaluation), _gap)


def _draw_against_rank(
    axes: Axes, sweep: Sweep, value: Value, interval: Callable[[Evaluation], Interval | None]
) -> None:
    """Draw both ends as lines, and the rows of each way to keep triplets, with intervals."""
    axes.grid(axis="y", color=LIGHT.faint, linewidth=0.5)
    for end, name, style in ((sweep.finetuned, "fine-tuned", "--"), (sweep.base, "base", ":")):
        if (level := value(end)) is not None:
            axes.axhline(level, color=LIGHT.muted, linestyle=style, linewidth=1, label=name)
    place = _rank_place(sweep)
    for look, rows in _series(sweep):
        points = []
        for row in rows:
            x, y, ends = place(row) + look.nudge, value(row.evaluation), interval(row.evaluation)
            if y is not None:
                points.append((x, y))
            if y is not None and ends is not None:
                span = (100 * ends.low, 100 * ends.high)
                axes.plot((x, x), span, color=look.colour, linewidth=0.8, alpha=0.5)
        _draw_line(axes, points, look, 1.2 if look.nudge == 0 else 0.7, look.name)


def _draw_line(
    axes: Axes,
    points: list[tuple[float, float]],
    look: _Look,
    width: float,
    label: str | None = None,
) -> None:
    axes.plot(
        [x for x, _ in points],
        [y for _, y in points],
        color=look.colour,
        marker=look.marker,
        markersize=3.5,
        linewidth=width,
        label=label,
    )


def _draw_choices(axes: Axes, sweep: Sweep, place: Callable[[Row], float], value: Value) -> None:
    """Draw a ring around each row that was chosen."""
    chosen, by_gap = sweep.chosen, sweep.chosen_with_groups
    for row, colour, name in (
        (chosen, LIGHT.ink, "chosen"),
        (None if by_gap == chosen else by_gap, LIGHT.palette[3], "chosen with group labels"),
    ):
        if row is not None and (y := value(row.evaluation)) is not None:
            axes.plot(
                place(row),
                y,
                color=colour,
                marker="o",
                markersize=8,
                markerfacecolor="none",
                markeredgewidth=1.2,
                linestyle="none",
                label=name,
            )


def _series(sweep: Sweep) -> Iterator[tuple[_Look, list[Row]]]:
    """Yield the rows of each way to keep triplets, by rank."""
    for keep, look in _LOOKS.items():
        rows = [row for row in sweep.rows if row.variant.keep is keep]
        if rows:
            yield look, sorted(rows, key=lambda row: row.rank)


def _rules(sweep: Sweep) -> list[str]:
    """Return the rules in the order of their ranks."""
    tops = [row for row in sweep.rows if row.variant.keep is Keep.TOP]
    return [str(row.variant.rule) for row in sorted(tops, key=lambda row: row.rank)]


def _rank_place(sweep: Sweep) -> Callable[[Row], float]:
    """Return a function that gives a row's place on the axis of rules."""
    rules = _rules(sweep)
    return lambda row: rules.index(str(row.variant.rule))


def _label_ranks(axes: Axes, sweep: Sweep) -> None:
    rules = _rules(sweep)
    turned = sum(map(len, rules)) > _LABEL_LETTERS
    axes.set_xticks(range(len(rules)), rules, rotation=45 if turned else 0)
    axes.set_xlabel("rank rule (-k)")


def _name_points(axes: Axes, points: list[tuple[float, float, Row]]) -> None:
    """Write the rules beside their points; rules that share a point share a text."""
    names: dict[tuple[float, float], list[str]] = {}
    for x, y, row in points:
        names.setdefault((x, y), []).append(str(row.variant.rule))
    for point, rules in names.items():
        text = rules[0] if len(rules) == 1 else f"{rules[0]} … {rules[-1]}"
        _write(axes, text, point, (4, 4), LIGHT.muted)


def _write(
    axes: Axes, text: str, point: tuple[float, float], offset: tuple[float, float], colour: str
) -> None:
    """Write a text beside a point."""
    axes.annotate(
        text, point, offset, textcoords="offset points", color=colour, fontsize=_TEXT * 0.9
    )
