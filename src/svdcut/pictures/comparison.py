"""The page of two updates side by side: their spectra, and what their leading spaces share.

It measures nothing, and writes nothing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from svdcut.pictures.captions import counted
from svdcut.pictures.groups import FIXED_RANKS, Group
from svdcut.pictures.kinds import Curve, Numbers, find_kinds, group_kinds, log_curves
from svdcut.pictures.page import (
    Drawer,
    draw_grid,
    draw_tables,
    entitle,
    grid_height,
    page_around,
    table_height,
)
from svdcut.pictures.panels import draw_rank_grid
from svdcut.pictures.style import PAGE, Theme, decade_ticks, mixed, readable
from svdcut.pictures.tables import Measure, tabulate
from svdcut.shown import percent
from svdcut.spectra.comparison import Comparison, Overlap
from svdcut.spectra.facts import Spectra
from svdcut.spectra.matrix import Spectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

_DECADES = 5
_FOOT_CHARACTERS = 110


def draw_comparison(comparison: Comparison, file_format: str, theme: Theme) -> bytes:
    """Return the bytes of a page.

    Parameters
    ----------
    comparison : Comparison
        Of two updates of one base.
    file_format : str
        ``png``, ``svg`` or ``pdf``.
    theme : Theme
        Its background is the page.
    """
    groups = _groups(comparison, theme)
    kinds = find_kinds(comparison.first)
    tables = [(measure, tabulate(kinds, measure)) for measure in _measures(comparison)]
    tables = [(measure, table) for measure, table in tables if table.rows]
    heights = [grid_height(len(groups), PAGE) + 0.3] if groups else [0.6]
    heights += [table_height([table for _, table in tables])] if tables else []

    def draw(parts: Sequence[SubFigure]) -> None:
        if not groups:
            parts[0].text(0.02, 0.5, "They have no matrix in common.", color=theme.muted)
            return
        entitle(parts[0], "a", *_spectra_texts(comparison), theme)
        draw_grid(parts[0], _drawers(groups, theme), "s / first s", PAGE)
        if tables:
            draw_tables(parts[1], "bc", tables, theme)

    title = "Two fine-tuning updates of one base"
    return page_around(draw, heights, (title, _foot(comparison)), file_format, theme)


def _foot(comparison: Comparison) -> list[str]:
    first, second = comparison.first, comparison.second
    said = {"base": first.base or "", "line": first.checkpoint, "dashes": second.checkpoint}
    count = sum(map(len, comparison.overlaps.values()))
    made = f"{counted(count, 'matrix', 'matrices')} in common · svdcut {first.svdcut_version}"
    return [*(readable(f"{k}: {v}", _FOOT_CHARACTERS) for k, v in said.items()), made]


def _shared(spectra: Spectra, names: Sequence[str]) -> Spectra:
    """Return the spectra of some tensors."""
    return replace(spectra, tensors={name: spectra.tensors[name] for name in names})


def _groups(comparison: Comparison, theme: Theme) -> list[tuple[Group, Group]]:
    """Return the kinds of the first update, each beside the same matrices of the second."""
    sides = (
        _shared(comparison.first, list(comparison.overlaps)),
        _shared(comparison.second, [comparison.partners[name] for name in comparison.overlaps]),
    )
    pairs = []
    kinds = (group_kinds(find_kinds(side)) for side in sides)
    for number, found in enumerate(zip(*kinds, strict=False)):
        colour = theme.palette[number] if number < len(theme.palette) else theme.rest
        first, second = (
            Group(kind, shade, tuple(log_curves(kind)), None)
            for kind, shade in zip(found, (colour, theme.ink), strict=True)
        )
        pairs.append((first, second))
    return pairs


def _spectra_texts(comparison: Comparison) -> tuple[str, str]:
    found = [o.energy_distance for o in _overlaps(comparison) if o.energy_distance is not None]
    title = "Singular values by module"
    if found:
        title = f"Energy curves differ by {percent(statistics.median(found))} (median)"
    caption = (
        "One line for each layer of the first update, dashes for the median of the second; each "
        "spectrum divided by its first value."
    )
    return title, caption


def _overlaps(comparison: Comparison) -> list[Overlap]:
    return [overlap for found in comparison.overlaps.values() for overlap in found]


def _measures(comparison: Comparison) -> list[Measure]:
    """Return the overlaps of both sides, as numbers of the first update's matrices."""
    by_matrix: dict[int, Overlap] = {}
    for name, found in comparison.overlaps.items():
        matrices = comparison.first.tensors[name].matrices
        by_matrix.update({id(m): o for m, o in zip(matrices, found, strict=True)})

    def measure(side: str) -> Measure:
        def value(matrix: Spectrum) -> float | None:
            overlap = by_matrix.get(id(matrix))
            found: float | None = getattr(overlap, f"{side}_overlap", None)
            return found

        chances = [getattr(o, f"{side}_chance") for o in by_matrix.values() if o.rank]
        chance = percent(statistics.median(chances)) if chances else "-"
        return Measure(
            f"Overlap of {side} spaces",
            "",
            value,
            percent,
            logarithmic=False,
            colours="viridis",
            explanation=(
                f"Mean squared cosine of the principal angles at rank {comparison.rank}; random "
                f"spaces have {chance}."
            ),
        )

    return [measure("left"), measure("right")]


def _drawers(groups: Sequence[tuple[Group, Group]], theme: Theme) -> list[Drawer]:
    curves = [curve for pair in groups for group in pair for curve in group.curves]
    right = max((float(curve.index[-1]) for curve in curves), default=0.6)
    lows = [float(curve.value[-1] - curve.value[0]) for curve in curves]
    low = max(min(lows, default=-1.0), -_DECADES) - 0.1

    def drawer(pair: tuple[Group, Group]) -> Drawer:
        return lambda axes: _draw_pair(axes, pair, (right, low), theme)

    return [drawer(pair) for pair in groups]


def _draw_pair(
    axes: Axes, pair: tuple[Group, Group], ends: tuple[float, float], theme: Theme
) -> None:
    right, low = ends
    draw_rank_grid(axes, 10**right, math.log10)
    axes.set_yticks(*decade_ticks(low, 0.1))
    axes.grid(axis="y", color=theme.faint, linewidth=0.4)
    for rank in FIXED_RANKS:
        if math.log10(rank) <= right:
            axes.axvline(math.log10(rank), color=theme.faint, linewidth=0.8, zorder=0.5)
    first, second = pair
    for curve in first.curves:
        shade = mixed(first.colour, theme.background, 0.6)
        axes.plot(curve.index, curve.value - curve.value[0], color=shade, linewidth=0.7)
    middle = _median_curve(second.curves)
    if middle is not None:
        axes.plot(*middle, color=second.colour, linewidth=0.9, dashes=(3, 1.5))
    axes.set_xlim(-0.03 * right - 0.02, right * 1.03 + 0.02)
    axes.set_ylim(low, 0.12)
    axes.set_title(readable(first.kind.label, PAGE.title), pad=3)


def _median_curve(curves: Sequence[Curve]) -> tuple[Numbers, Numbers] | None:
    """Return the median of spectra of one length, each divided by its first value."""
    if not curves:
        return None
    index = max((curve.index for curve in curves), key=len)
    values = [np.interp(index, c.index, c.value - c.value[0]) for c in curves]
    return index, np.median(np.stack(values), axis=0)
