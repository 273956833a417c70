"""Panels of one number for each matrix, by kind and layer.

Axes come from the caller, as do the settings of matplotlib; nothing is written.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from svdcut.pictures.style import Layout, Theme, readable
from svdcut.pictures.tables import Measure, Scale, Table, scale_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEVELS = 48
"""Of a colour map; neighbours are not told apart."""


def draw_heat_map(axes: Axes, table: Table, measure: Measure, theme: Theme, layout: Layout) -> None:
    """Draw a measure by kind and layer; grey where it is zero, nothing where no matrix is."""
    scale = scale_of(table, measure)
    cells: dict[str, list[tuple[float, float, float, float]]] = {}
    colours = _colours(measure)
    for row, column in zip(*np.nonzero(np.isfinite(table.values)), strict=True):
        value = float(table.values[row, column])
        colour = theme.faint
        if scale is not None and (value > 0 or not measure.logarithmic):
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
        _mark_clipped(axes, table, scale)
        _draw_colour_bar(axes, table, scale, measure, layout)


def _mark_clipped(axes: Axes, table: Table, scale: Scale) -> None:
    """Mark the cells beyond the colours, whose own are the lightest and the darkest."""
    for cells, marker, colour in (
        (table.above(scale), "^", "black"),
        (table.below(scale), "v", "white"),
    ):
        rows, columns = np.nonzero(cells)
        axes.plot(columns, rows, marker, color=colour, markersize=3.5, markeredgewidth=0)


def _colours(measure: Measure) -> list[str]:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    colours = colormaps[measure.colours].resampled(_LEVELS)
    return [to_hex(colours(level)) for level in range(_LEVELS)]


def _draw_boxes(axes: Axes, boxes: dict[str, list[tuple[float, float, float, float]]]) -> None:
    """Draw boxes (x, y, width, height) as one shape a colour: a file of thousands stays small."""
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


def _draw_colour_bar(
    axes: Axes, table: Table, scale: Scale, measure: Measure, layout: Layout
) -> None:
    bar = axes.inset_axes((1.025, 0, 0.1 / layout.columns, 1))
    colours = _colours(measure)
    if scale.low == scale.high:
        colours = [colours[round(0.5 * (_LEVELS - 1))]]
    height = 1 / len(colours)
    _draw_boxes(bar, {colour: [(0, i * height, 1, height)] for i, colour in enumerate(colours)})
    places = [0.5] if scale.low == scale.high else [0.0, 0.5, 1.0]
    labels = [measure.text(scale.at(place)) for place in places]
    if table.above(scale).any():
        labels[-1] = f"≥ {labels[-1]}"
    if table.below(scale).any():
        labels[0] = f"≤ {labels[0]}"
    bar.set_yticks(places, labels)
    bar.yaxis.tick_right()
    bar.set_xticks([])
    bar.set_xlim(0, 1)
    bar.set_ylim(0, 1)
    bar.tick_params(length=0, pad=2)
    bar.spines[:].set_visible(False)


def draw_rows(axes: Axes, table: Table, measure: Measure, theme: Theme, layout: Layout) -> None:
    """Draw a measure of what has no layers: a dot for each kind."""
    values = [float(row[np.isfinite(row)][0]) for row in table.values]
    known = [value for value in values if value > 0]
    logarithmic = measure.logarithmic and bool(known) and max(known) > 10 * min(known)
    left = min(known) / 2 if logarithmic else 0.0
    right = (max(known, default=1.0) or 1.0) * (2 if logarithmic else 1.12)

    def place(value: float) -> float:
        return math.log10(max(value, left)) if logarithmic else value

    for row, value in enumerate(values):
        y = [row, row]
        axes.plot([place(left), place(value)], y, color=theme.faint, linewidth=1, zorder=1)
        axes.plot(place(value), row, "o", color=theme.palette[0], markersize=4, clip_on=False)
        axes.annotate(
            measure.text(value),
            (place(value), row),
            (5, 0),
            textcoords="offset points",
            va="center",
            color=theme.muted,
        )
    axes.set_yticks(range(len(values)), [readable(row, layout.label) for row in table.rows])
    axes.set_ylim(max(len(values), 2) - 0.4, -0.6)
    axes.set_xlim(place(left), place(right) + 0.15 * (place(right) - place(left)))
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
