"""The panel of one number for each matrix, by kind and layer: a heat map, or dots.

matplotlib's settings come from the caller; nothing is written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from svdcut.pictures.kinds import Kind
from svdcut.pictures.page import Panel, on_axes
from svdcut.pictures.style import Layout, Theme, readable
from svdcut.pictures.tables import Measure, Scale, Table, scale_of, tabulate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

T = TypeVar("T")
_Box = tuple[float, float, float, float]
"""x, y, width, height."""

_LEVELS = 48
"""Colours of a map; neighbours are not told apart."""

_TITLE = 54


def layer_panel(kinds: Sequence[Kind[T]], measure: Measure[T], theme: Theme) -> Panel:
    """Return the panel of a measure: by layer where there are several."""
    table = tabulate(kinds, measure)
    scale = scale_of(table, logarithmic=measure.drawing.logarithmic)
    picture = _Picture(table, scale if table.has_layers else None, measure, theme)
    return Panel(
        *picture.texts(),
        page_height=0.75 + 0.15 * max(4, len(table.rows)),
        alone_height=0.7 + 0.23 * max(len(table.rows), 3),
        draw=on_axes(picture.draw_heat_map if table.has_layers else picture.draw_rows),
    )


@dataclass(frozen=True, slots=True)
class _Picture:
    table: Table
    scale: Scale | None
    """None where nothing has a colour."""

    measure: Measure[Any]
    theme: Theme

    def texts(self) -> tuple[str, str]:
        """Return title and caption."""
        table, text = self.table, self.measure.text
        notes = [self.measure.meaning]
        title = self.measure.title
        if table.known.size:
            low, high = text(float(table.known.min())), text(float(table.known.max()))
            span = low if low == high else f"{low} to {high}"
            title = readable(f"{title}: {span} {self.measure.drawing.of}", _TITLE)
        if table.of_several:
            notes.append("Experts of a layer together.")
        if table.has_layers and "" in table.columns:
            notes.append("At the ends: what is in no layer.")
        if table.layers_in_column > 1:
            notes.append(f"Each column: {table.layers_in_column} layers together.")
        if table.left_out:
            notes.append(f"{table.left_out} more kinds are not shown.")
        if np.any(table.values == 0):
            notes.append("Grey: zero.")
        return title, " ".join([*notes, *self._clipped()])

    def _clipped(self) -> list[str]:
        if self.scale is None:
            return []
        ends = ((True, "above", self.scale.high, "▲"), (False, "below", self.scale.low, "▼"))
        found = [
            f"{count} {side} {self.measure.text(end)} ({mark})"
            for above, side, end, mark in ends
            if (count := int(self.table.beyond(self.scale, above=above).sum()))
        ]
        return [f"Cells beyond the colours: {', '.join(found)}."] if found else []

    def draw_heat_map(self, axes: Axes, layout: Layout) -> None:
        """Draw by kind and layer; grey where it is zero, nothing where no matrix is."""
        table, scale = self.table, self.scale
        cells: dict[str, list[_Box]] = {}
        colours = self._colours()
        for row, column in zip(*np.nonzero(np.isfinite(table.values)), strict=True):
            value = float(table.values[row, column])
            colour = self.theme.faint
            if scale is not None and (value > 0 or not self.measure.drawing.logarithmic):
                colour = colours[round(scale.place(value) * (_LEVELS - 1))]
            cells.setdefault(colour, []).append((column - 0.5, row - 0.5, 1.0, 1.0))
        _draw_boxes(axes, cells)
        axes.set_xlim(-0.5, len(table.columns) - 0.5)
        axes.set_ylim(len(table.rows) - 0.5, -0.5)
        axes.set_yticks(range(len(table.rows)), [readable(row, layout.label) for row in table.rows])
        ticks = [place for place, column in enumerate(table.columns) if column]
        axes.set_xticks(ticks, [readable(table.columns[place], 6) for place in ticks])
        axes.set_xlabel("layer")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        if scale is not None:
            # The cells beyond the colours have the lightest or the darkest of them.
            for above, marker, colour in ((True, "^", "black"), (False, "v", "white")):
                rows, columns = np.nonzero(table.beyond(scale, above=above))
                axes.plot(columns, rows, marker, color=colour, markersize=3.5, markeredgewidth=0)
            self._draw_colour_bar(axes, scale, layout)

    def _colours(self) -> list[str]:
        from matplotlib import colormaps
        from matplotlib.colors import to_hex

        colours = colormaps[self.measure.drawing.colours].resampled(_LEVELS)
        return [to_hex(colours(level)) for level in range(_LEVELS)]

    def _draw_colour_bar(self, axes: Axes, scale: Scale, layout: Layout) -> None:
        bar = axes.inset_axes((1.025, 0, 0.1 / layout.columns, 1))
        colours = self._colours()
        places = [0.0, 0.5, 1.0]
        if scale.low == scale.high:
            colours, places = [colours[round(0.5 * (_LEVELS - 1))]], [0.5]
        height = 1 / len(colours)
        _draw_boxes(bar, {colour: [(0, i * height, 1, height)] for i, colour in enumerate(colours)})
        labels = [self.measure.text(scale.at(place)) for place in places]
        if self.table.beyond(scale, above=True).any():
            labels[-1] = f"≥ {labels[-1]}"
        if self.table.beyond(scale, above=False).any():
            labels[0] = f"≤ {labels[0]}"
        bar.set_yticks(places, labels)
        bar.yaxis.tick_right()
        bar.set_xticks([])
        bar.set_xlim(0, 1)
        bar.set_ylim(0, 1)
        bar.tick_params(length=0, pad=2)
        bar.spines[:].set_visible(False)

    def draw_rows(self, axes: Axes, layout: Layout) -> None:
        """Draw what has no layers: a dot for each kind."""
        table, theme = self.table, self.theme
        values = [float(row[np.isfinite(row)][0]) for row in table.values]
        known = [value for value in values if value > 0]
        wide = bool(known) and max(known) > 10 * min(known)
        logarithmic = self.measure.drawing.logarithmic and wide
        left = min(known) / 2 if logarithmic else 0.0
        right = (max(known, default=1.0) or 1.0) * (2 if logarithmic else 1.12)

        def place(value: float) -> float:
            return math.log10(max(value, left)) if logarithmic else value

        for row, value in enumerate(values):
            end = (place(value), row)
            axes.plot([place(left), end[0]], [row, row], color=theme.faint, linewidth=1, zorder=1)
            axes.plot(*end, "o", color=theme.palette[0], markersize=4, clip_on=False)
            text = self.measure.text(value)
            beside: dict[str, Any] = {"va": "center", "color": theme.muted}
            axes.annotate(text, end, (5, 0), textcoords="offset points", **beside)
        axes.set_yticks(range(len(values)), [readable(row, layout.label) for row in table.rows])
        axes.set_ylim(max(len(values), 2) - 0.4, -0.6)
        axes.set_xlim(place(left), place(right) + 0.15 * (place(right) - place(left)))
        axes.set_xticks([])
        axes.spines[:].set_visible(False)


def _draw_boxes(axes: Axes, boxes: dict[str, list[_Box]]) -> None:
    """Draw boxes as one shape a colour: a file of thousands stays small."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY]
    for colour, found in boxes.items():
        corners = [
            corner
            for x, y, w, h in found
            for corner in ((x, y), (x + w, y), (x + w, y + h), (x, y + h), (x, y))
        ]
        path = Path(corners, codes * len(found))
        # A hair of the same colour: else viewers let the page shine through.
        axes.add_patch(PathPatch(path, facecolor=colour, edgecolor=colour, linewidth=0.2))
