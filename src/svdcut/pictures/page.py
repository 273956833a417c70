"""Panels, and how they stand: side by side on a page for a paper, or alone on one of HTML.

What is drawn in them is in the modules of panels; nothing is written.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from svdcut.pictures.render import DPI, POINTS, inline, rendered
from svdcut.pictures.style import PAGE, PANEL, Layout, Theme, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

_HEAD, _FOOT = 0.4, 0.5
"""In inches."""


@dataclass(frozen=True, slots=True)
class Panel:
    """A picture with its words, on a page or alone."""

    title: str
    """Title of the picture; plain text."""

    caption: str
    """Caption that says how to read it; plain text."""

    page_height: float
    alone_height: float
    """In inches."""

    draw: Callable[[Figure | SubFigure, Layout], None]
    """Draws into a figure of its own."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A panel drawn by itself."""

    title: str
    caption: str
    svg: str
    """An ``<svg>`` element, with a transparent ground and ids of its own."""


def on_axes(
    draw: Callable[[Axes, Layout], None],
) -> Callable[[Figure | SubFigure, Layout], None]:
    """Return how to draw into a figure what takes one pair of axes."""
    return lambda figure, layout: draw(figure.add_subplot(), layout)


def draw_alone(panel: Panel, theme: Theme) -> Picture:
    """Draw a panel to stand in a page of HTML."""
    from matplotlib.figure import Figure

    with drawing(theme, PANEL.text, text_as_paths=False):
        figure = Figure((PANEL.width, panel.alone_height), POINTS, layout="constrained")
        panel.draw(figure, PANEL)
        svg = inline(rendered(figure, "svg", thin=True).decode(), panel.title)
    return Picture(panel.title, panel.caption, svg)


def draw_page(
    rows: Sequence[Sequence[Panel]],
    title: str,
    foot: Sequence[str],
    file_format: str,
    theme: Theme,
) -> bytes:
    """Return the bytes of a page with panels in rows between a title and lines at the foot.

    Parameters
    ----------
    rows : sequence of sequence of Panel
        One or two panels each; without any the page says that there is nothing.
    title : str
        Stands at the top.
    foot : sequence of str
        Lines at the end.
    file_format : str
        ``png``, ``svg`` or ``pdf``.
    theme : Theme
        Its background is the page.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    heights = [max(panel.page_height for panel in row) for row in rows] or [0.6]
    ratios = [_HEAD, *heights, _FOOT]
    with drawing(theme, PAGE.text, text_as_paths=True):
        layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.05, hspace=0.02, wspace=0.02)
        dpi = DPI if file_format == "png" else POINTS
        figure = Figure((PAGE.width, sum(ratios)), dpi, facecolor=theme.background, layout=layout)
        head, *parts, end = figure.subfigures(len(ratios), 1, height_ratios=ratios, squeeze=False)[
            :, 0
        ]
        head.text(0.012, 0.4, title, fontsize=11, fontweight="bold", color=theme.ink)
        if not rows:
            parts[0].text(0.02, 0.5, "There is no matrix to show.", color=theme.muted)
        letters = iter("abcdefgh")
        for part, row in zip(parts, rows, strict=False):
            places = part.subfigures(1, 2, squeeze=False)[0] if len(row) > 1 else [part]
            for place, panel in zip(places, row, strict=True):
                _entitle(place, next(letters), panel, theme)
                panel.draw(place, PAGE)
        small = {"color": theme.muted, "fontsize": 6.3, "linespacing": 1.35}
        end.text(0.012, 0.95, "\n".join(foot), va="top", **small)
        return rendered(figure, file_format, thin=True)


def _entitle(part: SubFigure, letter: str, panel: Panel, theme: Theme) -> None:
    """Write a letter, a title and a caption above a panel."""
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

    whole = isinstance(part.get_figure(root=False), Figure)
    lines = textwrap.wrap(panel.caption, 140 if whole else 68)
    room = "\n" * len(lines)
    left = 0.012 * PAGE.width * part.dpi / part.bbox.width
    title = f"{letter}   {panel.title}{room}"
    heading = part.suptitle(title, x=left, ha="left", fontsize=PAGE.text + 0.5, weight="bold")
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
