"""A page of pictures, and what it shares with single panels.

What is drawn into axes is in `panels` and `layer_panels`; nothing is written.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from svdcut.pictures.captions import (
    energy_texts,
    footnote,
    headline,
    measure_texts,
    ranks_texts,
    spectra_texts,
)
from svdcut.pictures.groups import Frame, Group, frame_of
from svdcut.pictures.kinds import find_kinds, group_kinds, kept_energy, log_curves
from svdcut.pictures.layer_panels import draw_heat_map, draw_rows
from svdcut.pictures.panels import draw_energy, draw_ranks, draw_spectra
from svdcut.pictures.render import DPI, POINTS, rendered
from svdcut.pictures.style import PAGE, Layout, Theme, drawing
from svdcut.pictures.tables import Measure, Table, measures_of, tabulate
from svdcut.spectra.facts import Spectra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

_HEAD, _FOOT = 0.4, 0.5
"""In inches."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What all panels of a picture share."""

    groups: tuple[Group, ...]
    frame: Frame
    tables: tuple[tuple[Measure, Table], ...]


def compose(spectra: Spectra, theme: Theme) -> Scene:
    """Sort the matrices, and compute what the panels show of them."""
    kinds = find_kinds(spectra)
    groups = []
    for number, kind in enumerate(group_kinds(kinds)):
        rest = kind.num_kinds > 1 or number >= len(theme.palette)
        colour = theme.rest if rest else theme.palette[number]
        groups.append(Group(kind, colour, tuple(log_curves(kind)), kept_energy(kind.changed)))
    tables = ((measure, tabulate(kinds, measure)) for measure in measures_of(spectra))
    return Scene(tuple(groups), frame_of(groups), tuple(tables))


def draw_measure(axes: Axes, table: Table, measure: Measure, theme: Theme, layout: Layout) -> None:
    """Draw a measure: by layer where there are several."""
    drawer = draw_heat_map if table.has_layers else draw_rows
    drawer(axes, table, measure, theme, layout)


def grid_height(num_groups: int, layout: Layout) -> float:
    """Return what a grid of spectra needs, in inches."""
    rows = -(-num_groups // layout.columns)
    return 2.6 if num_groups == 1 else 0.35 + (1.75 if rows == 1 else 1.45 * rows)


Drawer = Callable[["Axes"], None]
"""Draws a small panel."""


def draw_grid(
    figure: Figure | SubFigure, drawers: Sequence[Drawer], ylabel: str, layout: Layout
) -> None:
    """Draw small panels that share their axes.

    Parameters
    ----------
    figure : Figure or SubFigure
        Of its own.
    drawers : sequence of callable
        At least one.
    ylabel : str
        What is drawn against the index.
    layout : Layout
        Says how many stand side by side.
    """
    columns = min(len(drawers), layout.columns)
    rows = -(-len(drawers) // columns)
    grid = figure.subplots(rows, columns, squeeze=False)
    for number, axes in enumerate(grid.flat):
        if number >= len(drawers):
            axes.set_visible(False)
            continue
        drawers[number](axes)
        if number % columns:
            axes.tick_params(labelleft=False)
        # All panels share their axes: those of the last row are enough.
        if number // columns < rows - 1:
            axes.tick_params(labelbottom=False)
        else:
            axes.set_xlabel("index")
    for row in grid[:, 0]:
        row.set_ylabel(ylabel)


def draw_all_spectra(
    figure: Figure | SubFigure,
    groups: Sequence[Group],
    frame: Frame,
    theme: Theme,
    layout: Layout,
) -> None:
    """Draw the spectra of all groups, a small panel each."""

    def drawer(group: Group) -> Drawer:
        return lambda axes: draw_spectra(axes, group, frame, theme, layout)

    draw_grid(figure, [drawer(group) for group in groups], "singular value", layout)


def draw_page(spectra: Spectra, file_format: str, theme: Theme) -> bytes:
    """Return the bytes of a page.

    Parameters
    ----------
    spectra : Spectra
        Of weights or of an update.
    file_format : str
        ``png``, ``svg`` or ``pdf``.
    theme : Theme
        Its background is the page.
    """
    scene = compose(spectra, theme)

    def draw(parts: Sequence[SubFigure]) -> None:
        if scene.groups:
            _draw_sections(parts, scene, theme)
        else:
            parts[0].text(0.02, 0.5, "There is no matrix to show.", color=theme.muted)

    frame = (headline(spectra), footnote(spectra))
    return page_around(draw, _heights(scene), frame, file_format, theme)


def page_around(
    draw: Callable[[Sequence[SubFigure]], None],
    heights: Sequence[float],
    frame: tuple[str, Sequence[str]],
    file_format: str,
    theme: Theme,
) -> bytes:
    """Return the bytes of a page with a head and a foot around what is drawn.

    Parameters
    ----------
    draw : callable
        Takes the sections, from top to bottom.
    heights : sequence of float
        Of these, in inches.
    frame : tuple of str and sequence of str
        The title, and the lines at the foot.
    file_format, theme
        As for `draw_page`.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rows = [_HEAD, *heights, _FOOT]
    with drawing(theme, PAGE.text, text_as_paths=True):
        layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.05, hspace=0.02, wspace=0.02)
        dpi = DPI if file_format == "png" else POINTS
        figure = Figure((PAGE.width, sum(rows)), dpi, facecolor=theme.background, layout=layout)
        parts = figure.subfigures(len(rows), 1, height_ratios=rows, squeeze=False)[:, 0]
        write_head(parts[0], frame[0], theme)
        draw(list(parts[1:-1]))
        write_foot(parts[-1], frame[1], theme)
        return rendered(figure, file_format, thin=True)


def _heights(scene: Scene) -> list[float]:
    """Return those of the sections, in inches."""
    if not scene.groups:
        return [0.6]
    heights = [grid_height(len(scene.groups), PAGE) + 0.3, 3.0]
    if scene.tables:
        heights.append(table_height([table for _, table in scene.tables]))
    return heights


def table_height(tables: Sequence[Table]) -> float:
    """Return what tables side by side need, in inches."""
    return 0.75 + 0.15 * max(4, *(len(table.rows) for table in tables))


def write_head(part: SubFigure, text: str, theme: Theme) -> None:
    """Write the title of a page."""
    part.text(0.012, 0.4, text, fontsize=11, fontweight="bold", color=theme.ink)


def write_foot(part: SubFigure, lines: Sequence[str], theme: Theme) -> None:
    """Write what a page was made from."""
    text = "\n".join(lines)
    part.text(0.012, 0.95, text, va="top", color=theme.muted, fontsize=6.3, linespacing=1.35)


def _draw_sections(parts: Sequence[SubFigure], scene: Scene, theme: Theme) -> None:
    groups, frame = scene.groups, scene.frame
    title, caption = spectra_texts(groups, frame)
    entitle(parts[0], "a", title, caption, theme)
    draw_all_spectra(parts[0], groups, frame, theme, PAGE)
    left, right = parts[1].subfigures(1, 2, squeeze=False, width_ratios=(1, 1.1))[0]
    entitle(left, "b", *energy_texts(groups), theme)
    draw_energy(left.subplots(), groups, theme, PAGE)
    entitle(right, "c", *ranks_texts(groups), theme)
    draw_ranks(right.subplots(), groups, theme, PAGE)
    if scene.tables:
        draw_tables(parts[2], "de", scene.tables, theme)


def draw_tables(
    part: SubFigure, letters: str, tables: Sequence[tuple[Measure, Table]], theme: Theme
) -> None:
    """Draw at most two measures side by side."""
    places = part.subfigures(1, 2, squeeze=False)[0]
    for place, letter, (measure, table) in zip(places, letters, tables, strict=False):
        entitle(place, letter, *measure_texts(table, measure), theme)
        draw_measure(place.subplots(), table, measure, theme, PAGE)


def entitle(part: SubFigure, letter: str, title: str, caption: str, theme: Theme) -> None:
    """Write a letter, a title and a caption above a panel."""
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

    whole = isinstance(part.get_figure(root=False), Figure)
    lines = textwrap.wrap(caption, 140 if whole else 68)
    room = "\n" * len(lines)
    left = 0.012 * PAGE.width * part.dpi / part.bbox.width
    heading = part.suptitle(
        f"{letter}   {title}{room}", x=left, ha="left", fontsize=PAGE.text + 0.5, weight="bold"
    )
    part.add_artist(
        Annotation(
            "\n".join(lines),
            (0, 1),
            (0, -1.45 * PAGE.text),
            xycoords=heading,
            textcoords="offset points",
            va="top",
            color=theme.muted,
            in_layout=False,
        )
    )
