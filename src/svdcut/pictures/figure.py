"""Whole pictures: a page as a file, and panels as strings.

What is on them is in `page`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from svdcut.errors import UsageError
from svdcut.files.atomic_write import write_whole
from svdcut.pictures.captions import (
    energy_texts,
    measure_texts,
    ranks_texts,
    spectra_texts,
)
from svdcut.pictures.comparison import draw_comparison
from svdcut.pictures.inline import inline
from svdcut.pictures.page import (
    compose,
    draw_all_spectra,
    draw_measure,
    draw_page,
    grid_height,
)
from svdcut.pictures.panels import draw_energy, draw_ranks
from svdcut.pictures.render import POINTS, rendered
from svdcut.pictures.style import LIGHT, PANEL, Theme, drawing, require_matplotlib
from svdcut.spectra.comparison import Comparison
from svdcut.spectra.facts import Spectra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture of a page of HTML."""

    title: str
    """What is seen; plain text."""

    caption: str
    """How to read it; plain text."""

    svg: str
    """An ``<svg>`` element, with a transparent ground and ids of its own."""


def check_figure(path: Path) -> None:
    """Refuse a picture that could not be drawn or written, before anything is measured.

    Parameters
    ----------
    path : Path
        As for `save_figure`.

    Raises
    ------
    UsageError
        If its suffix is of no known format, or matplotlib is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"{path}: a picture is a .png, .svg or .pdf file, not {path.suffix or 'nameless'!r}",
            hint="As --plot spectrum.png.",
        )
    require_matplotlib()


def save_figure(spectra: Spectra, path: Path) -> None:
    """Draw spectra on one page, and write it.

    Parameters
    ----------
    spectra : Spectra
        Of weights or of an update.
    path : Path
        A ``.png``, ``.svg`` or ``.pdf`` file; what is there is replaced.

    Raises
    ------
    UsageError
        If the suffix is another, or matplotlib is not installed.
    OutputError
        If it cannot be written; then what was there is as before.

    Notes
    -----
    The same spectra give the same bytes with the same matplotlib.
    """
    check_figure(path)
    data = draw_page(spectra, path.suffix.lower().removeprefix("."), LIGHT)
    write_whole(path, lambda place: place.write_bytes(data))


def save_comparison(comparison: Comparison, path: Path) -> None:
    """Draw two updates of one base on one page, and write it.

    Parameters
    ----------
    comparison : Comparison
        What to draw.
    path : Path
        As for `save_figure`, which raises the same errors.
    """
    check_figure(path)
    data = draw_comparison(comparison, path.suffix.lower().removeprefix("."), LIGHT)
    write_whole(path, lambda place: place.write_bytes(data))


def panels_as_svg(spectra: Spectra, theme: Theme) -> tuple[Panel, ...]:
    """Draw each panel by itself, to stand in a page of HTML.

    Parameters
    ----------
    spectra : Spectra
        Of weights or of an update.
    theme : Theme
        `LIGHT`, `DARK` or another.

    Returns
    -------
    tuple of Panel
        Spectra, energies, ranks, and measures by layer; none where there is no matrix.

    Raises
    ------
    UsageError
        If matplotlib is not installed.
    """
    require_matplotlib()
    scene = compose(spectra, theme)
    if not scene.groups:
        return ()
    groups, frame = scene.groups, scene.frame
    panels = [
        _panel(
            *spectra_texts(groups, frame),
            1.2 * grid_height(len(groups), PANEL),
            theme,
            lambda figure: draw_all_spectra(figure, groups, frame, theme, PANEL),
        ),
        _panel(
            *energy_texts(groups),
            2.4 + 0.1 * len(groups),
            theme,
            _alone(lambda axes: draw_energy(axes, groups, theme, PANEL)),
        ),
        _panel(
            *ranks_texts(groups),
            1.2 + 0.3 * max(len(groups), 2),
            theme,
            _alone(lambda axes: draw_ranks(axes, groups, theme, PANEL)),
        ),
    ]
    for measure, table in scene.tables:
        draw = partial(draw_measure, table=table, measure=measure, theme=theme, layout=PANEL)
        height = 0.7 + 0.23 * max(len(table.rows), 3)
        panels.append(_panel(*measure_texts(table, measure), height, theme, _alone(draw)))
    return tuple(panels)


def _alone(draw: Callable[[Axes], None]) -> Callable[[Figure], None]:
    return lambda figure: draw(figure.add_subplot())


def _panel(
    title: str, caption: str, height: float, theme: Theme, draw: Callable[[Figure], None]
) -> Panel:
    from matplotlib.figure import Figure

    with drawing(theme, PANEL.text, text_as_paths=False):
        figure = Figure((PANEL.width, height), POINTS, layout="constrained")
        draw(figure)
        return Panel(title, caption, inline(rendered(figure, "svg", thin=True).decode(), title))
