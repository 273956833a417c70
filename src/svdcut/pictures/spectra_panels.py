"""The panel of singular values: small panels by kind, of one update or of two.

matplotlib's settings come from the caller; nothing is written.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from svdcut.pictures.kinds import ENERGY_90, ENERGY_99, Curve, Group, Numbers, spread_of_ranks
from svdcut.pictures.page import Panel
from svdcut.pictures.style import (
    PAGE,
    PANEL,
    Layout,
    Theme,
    decade_ticks,
    draw_fixed_ranks,
    draw_rank_axis,
    marker,
    mixed,
    readable,
    say,
    short_number,
)
from svdcut.shown import percent
from svdcut.spectra.comparison import Overlap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

_MAX_LINES = 48
_MAX_DECADES = 14
_DECADES_SHOWN = 5
_TAIL = 0.01
"""Share of the points that may lie below the frame."""

_NEAR = 1.5
"""Decades below the values at which a noise edge is still drawn to scale."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Ends of the axes that small panels share; logarithms to base 10."""

    right: float
    low: float
    high: float
    cut_off: bool = False
    """Whether some values lie below."""

    def draw(self, axes: Axes, title: str, theme: Theme, layout: Layout) -> None:
        """Draw ticks, grid, and title."""
        draw_rank_axis(axes, 10**self.right, math.log10)
        draw_fixed_ranks(axes, 10**self.right, math.log10, theme)
        axes.set_yticks(*decade_ticks(self.low, self.high))
        axes.grid(axis="y", color=theme.faint, linewidth=0.4)
        axes.set_xlim(-0.03 * self.right - 0.02, self.right * 1.03 + 0.02)
        axes.set_ylim(self.low, self.high)
        axes.set_title(readable(title, layout.title), pad=3)


def frame_of(groups: Sequence[Group]) -> Frame:
    """Return axes that show what decides on ranks: leading values, and edges that are near."""
    curves = [curve for group in groups for curve in group.curves]
    edges = [math.log10(edge) for group in groups for edge in group.noise_edges]
    if not curves:
        return Frame(1.0, -1.0, 1.0)
    values = np.concatenate([curve.value for curve in curves])
    first = min(float(curve.value[0]) for curve in curves)
    # The last few values of a matrix fall without end, and say nothing.
    last = float(np.quantile(values, _TAIL)) - 0.5
    low = max(last, float(values.min()), first - _DECADES_SHOWN)
    high = float(values.max())
    near = [edge for edge in edges if edge > low - _NEAR]
    low, high = min([low, *near]), max([high, *near])
    low = max(low, high - _MAX_DECADES)
    pad = max(0.06 * (high - low), 0.12)
    right = max(*(float(curve.index[-1]) for curve in curves), 0.6)
    return Frame(right, low - pad, high + pad, cut_off=float(values.min()) < low)


def spectra_panel(groups: Sequence[Group], theme: Theme) -> Panel:
    """Return the panel of one checkpoint: a line for each layer, later ones darker."""
    frame = frame_of(groups)

    def draw(axes: Axes, number: int, layout: Layout) -> None:
        group = groups[number]
        frame.draw(axes, group.kind.label, theme, layout)
        lines = _some(group.curves)
        width = 1.1 if len(lines) == 1 else 0.75 if len(lines) < 16 else 0.55
        for curve, shade in zip(lines, _shades(lines, group, theme), strict=True):
            dot: dict[str, Any] = {"marker": ".", "markersize": 4} if len(curve.index) == 1 else {}
            axes.plot(curve.index, curve.value, color=shade, linewidth=width, **dot)
        _draw_edge(axes, group, frame, theme)
        _mark_energies(axes, group, theme)
        if not lines:
            say(axes, "all zero", theme)

    caption = _caption(groups, frame)
    return _grid("Singular values by module", caption, len(groups), "singular value", draw)


def comparison_panel(
    pairs: Sequence[tuple[Group, Group]], overlaps: Sequence[Overlap], theme: Theme
) -> Panel:
    """Return the panel of two updates: lines for the first, dashes for the second's median."""
    curves = [curve for pair in pairs for group in pair for curve in group.curves]
    right = max((float(curve.index[-1]) for curve in curves), default=0.6)
    lows = [float(curve.value[-1] - curve.value[0]) for curve in curves]
    frame = Frame(right, max(min(lows, default=-1.0), -_DECADES_SHOWN) - 0.1, 0.12)

    def draw(axes: Axes, number: int, layout: Layout) -> None:
        first, second = pairs[number]
        frame.draw(axes, first.kind.label, theme, layout)
        shade = mixed(first.colour, theme.background, 0.6)
        for curve in first.curves:
            axes.plot(curve.index, curve.value - curve.value[0], color=shade, linewidth=0.7)
        if second.curves:
            middle = _median_curve(second.curves)
            axes.plot(*middle, color=second.colour, linewidth=0.9, dashes=(3, 1.5))

    found = [o.energy_distance for o in overlaps if o.energy_distance is not None]
    title = "Singular values by module"
    if found:
        title = f"Energy curves differ by {percent(statistics.median(found))} (median)"
    caption = (
        "One line for each layer of the first update, dashes for the median of the second; each "
        "spectrum divided by its first value."
    )
    return _grid(title, caption, len(pairs), "s / first s", draw)


def _median_curve(curves: Sequence[Curve]) -> tuple[Numbers, Numbers]:
    """Return the median of spectra of one length, each divided by its first value."""
    index = max((curve.index for curve in curves), key=len)
    values = [np.interp(index, c.index, c.value - c.value[0]) for c in curves]
    return index, np.median(np.stack(values), axis=0)


def _grid(
    title: str,
    caption: str,
    count: int,
    ylabel: str,
    draw: Callable[[Axes, int, Layout], None],
) -> Panel:
    """Return a panel of so many small ones that share their axes."""

    def draw_all(figure: Figure | SubFigure, layout: Layout) -> None:
        columns = min(count, layout.columns)
        rows = -(-count // columns)
        grid = figure.subplots(rows, columns, squeeze=False)
        for number, axes in enumerate(grid.flat):
            if number >= count:
                axes.set_visible(False)
                continue
            draw(axes, number, layout)
            # All share their axes: the numbers of the first column and the last row are enough.
            is_last = number // columns == rows - 1
            axes.tick_params(labelleft=number % columns == 0, labelbottom=is_last)
            if is_last:
                axes.set_xlabel("index")
        for axes in grid[:, 0]:
            axes.set_ylabel(ylabel)

    def height(columns: int) -> float:
        rows = -(-count // columns)
        return 2.6 if count == 1 else 0.35 + (1.75 if rows == 1 else 1.45 * rows)

    return Panel(title, caption, height(PAGE.columns) + 0.3, 1.2 * height(PANEL.columns), draw_all)


def _caption(groups: Sequence[Group], frame: Frame) -> str:
    curves = [curve for group in groups for curve in group.curves]
    experts = max((curve.num_matrices for curve in curves), default=1)
    notes = [_what_lines_are(curves)]
    if experts > 1:
        notes.append(f"median over up to {experts} matrices of a layer")
    if marks := _marks(groups, frame):
        notes.append(", ".join(marks) + (" (medians)" if len(curves) > 1 else ""))
    crowded = max((len(group.curves) for group in groups), default=0)
    if crowded > _MAX_LINES:
        notes.append(f"{_MAX_LINES} of up to {crowded} lines, evenly by their first values")
    if frame.cut_off:
        notes.append("smaller values lie below the frame")
    zeros = sum(len(group.kind.matrices) - len(group.changed) for group in groups)
    if zeros:
        notes.append(f"{zeros} {'matrix' if zeros == 1 else 'matrices'} of zeros left out")
    return "; ".join(notes) + "."


def _what_lines_are(curves: Sequence[Curve]) -> str:
    if not curves:
        return "Nothing but zeros"
    if len({curve.layer for curve in curves} - {None}) > 1:
        return "One line for each layer, later layers stronger"
    return "One line for each matrix" if len(curves) > 1 else "One matrix"


def _marks(groups: Sequence[Group], frame: Frame) -> list[str]:
    spreads = [spread_of_ranks(ENERGY_90, g.changed) for g in groups if g.kind.num_kinds == 1]
    edges = [math.log10(edge) for group in groups for edge in group.noise_edges]
    marks = []
    if any(spread is not None and spread.middle < math.inf for spread in spreads):
        marks.append("○ 90%, ◇ 99% of the energy")
    if edges and max(edges) > frame.low:
        marks.append("dashed: noise edge")
    if edges and min(edges) <= frame.low:
        marks.append("↓: noise edge below the frame")
    return marks


def _some(curves: Sequence[Curve]) -> Sequence[Curve]:
    """Return at most `_MAX_LINES`, evenly by their first values, in the order they had."""
    if len(curves) <= _MAX_LINES:
        return curves
    ranked = sorted(range(len(curves)), key=lambda i: float(curves[i].value[0]))
    places = np.linspace(0, len(ranked) - 1, _MAX_LINES).round().astype(int)
    return [curves[i] for i in sorted({ranked[place] for place in places})]


def _shades(lines: Sequence[Curve], group: Group, theme: Theme) -> list[str]:
    layers = sorted({line.layer for line in lines if line.layer is not None})
    if group.kind.num_kinds > 1 or len(layers) < 2:
        return [group.colour] * len(lines)
    share: dict[int | None, float] = {
        layer: 0.35 + 0.65 * i / (len(layers) - 1) for i, layer in enumerate(layers)
    }
    return [mixed(group.colour, theme.background, share.get(line.layer, 1.0)) for line in lines]


def _draw_edge(axes: Axes, group: Group, frame: Frame, theme: Theme) -> None:
    edges = [math.log10(edge) for edge in group.noise_edges]
    if not edges:
        return
    middle = float(np.median(edges))
    if middle > frame.low:
        axes.axhspan(min(edges), max(edges), color=theme.ink, alpha=0.08, linewidth=0)
        axes.axhline(middle, color=theme.ink, linewidth=0.7, dashes=(4, 2.5))
    else:
        text = f"↓ {short_number(middle)}"
        axes.text(0.02, 0.03, text, transform=axes.transAxes, color=theme.muted)


def _mark_energies(axes: Axes, group: Group, theme: Theme) -> None:
    """Mark the median ranks of two shares on the median spectrum."""
    lines = [curve for curve in group.curves if len(curve.index) > 1]
    if not lines or group.kind.num_kinds > 1:
        return
    for rule in (ENERGY_90, ENERGY_99):
        found = spread_of_ranks(rule, group.changed)
        if found is None or not 1 <= found.middle < math.inf:
            continue
        x = math.log10(found.middle)
        reaching = [line for line in lines if line.index[-1] >= x]
        if reaching:
            y = float(np.median([np.interp(x, line.index, line.value) for line in reaching]))
            axes.plot(x, y, rule.marker, **marker(theme.background, theme.ink, 3.4), zorder=5)
