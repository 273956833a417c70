"""Figures of matplotlib as bytes, the same for the same figure.

It knows nothing of what they show.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.text import Text

DPI = 220
POINTS = 72
"""In an inch."""

_DIGITS = 5
"""Of a place, as a share of the page."""


def rendered(figure: Figure, file_format: str, *, thin: bool = False) -> bytes:
    """Return the bytes of a figure, without a date or a name of software.

    Where numbers below its axes follow from their neighbours, it may be made ``thin``: of those
    that touch every other one is hidden.
    """
    fields = {
        "png": ("Software",),
        "svg": ("Date", "Creator", "Format", "Type"),
        "pdf": ("Creator", "Producer", "CreationDate"),
    }[file_format]
    options: dict[str, Any] = {"metadata": dict.fromkeys(fields)}
    _lay_out(figure)
    for axes in figure.get_axes() if thin else ():
        _thin(axes)
    stream = BytesIO()
    figure.savefig(stream, format=file_format, **options)
    return stream.getvalue()


def _lay_out(figure: Figure) -> None:
    """Place everything once, instead of each time it is drawn."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
    figure.set_layout_engine(None)
    _settle(figure)


def _thin(axes: Axes) -> None:
    """Hide every other number at the bottom, until no two touch."""
    labels = [label for label in axes.get_xticklabels() if label.get_visible()]
    while len(labels) > 1 and _touch(labels):
        for label in labels[1::2]:
            label.set_visible(False)
        labels = labels[::2]


def _touch(labels: Sequence[Text]) -> bool:
    boxes = [label.get_window_extent() for label in labels]
    gap = boxes[0].height / 3
    return any(left.x1 + gap > right.x0 for left, right in pairwise(boxes))


def _settle(part: Figure | SubFigure) -> None:
    """Round all places: the last bits of the solver's differ from run to run."""
    for axes in part.get_axes():
        x, y, width, height = (round(value, _DIGITS) for value in axes.get_position().bounds)
        axes.set_position((x, y, width, height))
    for text in part.texts:
        text.set_y(round(text.get_position()[1], _DIGITS))
    for inner in part.subfigs:
        inner.bbox_relative.p0 = np.round(inner.bbox_relative.p0, _DIGITS)
        inner.bbox_relative.p1 = np.round(inner.bbox_relative.p1, _DIGITS)
        _settle(inner)
