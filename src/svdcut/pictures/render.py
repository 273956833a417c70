"""Figures of matplotlib as bytes, the same for the same figure, and as elements of HTML.

It knows nothing of what they show.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from io import BytesIO
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import quoteattr

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.text import Text

DPI = 220
POINTS = 72
"""In an inch."""

_DIGITS = 5
"""Digits of a place, as a share of the page."""

_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_PROLOGUE = re.compile(r"\A.*?(?=<svg)", re.DOTALL)
_METADATA = re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL)
_COMMENT = re.compile(r"\s*<!--.*?-->", re.DOTALL)
_STYLE = re.compile(r"\s*<defs>\s*<style[^>]*>[^<]*</style>\s*</defs>")
_OPENING = re.compile(r"<svg[^>]*>")
_VIEW = re.compile(r'viewBox="0 0 ([\d.]+) ([\d.]+)"')
_ID = re.compile(r' id="([^"]*)"')
_USED = re.compile(r'(?:url\(#|href="#)([^)"]*)')
_PATH = re.compile(r' d="([^"]*)"')
_FRACTION = re.compile(r"(\.\d\d)\d+")
_SPACE = re.compile(r"\s*\n\s*")
_TAG = re.compile(r"<[^>]*>")
"""Matches tags. Names of tensors are escaped, so nothing else looks like one."""


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


def inline(svg: str, title: str) -> str:
    """Return an element that an HTML page may hold, however many others it holds.

    Parameters
    ----------
    svg : str
        As matplotlib wrote it, with text as text.
    title : str
        Read out where the picture is not seen.
    """
    svg = _METADATA.sub("", _COMMENT.sub("", _PROLOGUE.sub("", svg)))
    # As a style sheet its rule would hold for the whole page.
    svg = _STYLE.sub("", svg, count=1)
    svg = _TAG.sub(lambda tag: _tidied(tag[0]), svg)
    svg = _unique(svg, title)
    view = _VIEW.search(svg)
    size = f'width="{view[1]}pt" height="{view[2]}pt" {view[0]} ' if view else ""
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}role="img" aria-label={quoteattr(title)} '
        'style="max-width:100%;height:auto;stroke-linejoin:round;stroke-linecap:butt">'
    )
    return _OPENING.sub(lambda _: opening, svg, count=1).strip()


def _tidied(tag: str) -> str:
    """Return a tag with the fonts of the system, and no more digits than are seen."""
    tag = tag.replace("xlink:href", "href").replace("'DejaVu Sans'", _FONTS)
    return _PATH.sub(_shortened, tag)


def _shortened(path: re.Match[str]) -> str:
    steps = _SPACE.sub("", _FRACTION.sub(r"\1", path[1]))
    return f' d="{steps}"'


def _unique(svg: str, title: str) -> str:
    """Give ids that are used a name that no other picture has, and drop the others."""
    prefix = "s" + hashlib.sha256((title + svg).encode()).hexdigest()[:10]
    used = [name for tag in _TAG.findall(svg) for name in _USED.findall(tag)]
    names = {name: f"{prefix}-{i}" for i, name in enumerate(dict.fromkeys(used))}

    def renamed(tag: str) -> str:
        tag = _ID.sub(lambda m: f' id="{names[m[1]]}"' if m[1] in names else "", tag)
        return _USED.sub(lambda m: m[0].removesuffix(m[1]) + names[m[1]], tag)

    return _TAG.sub(lambda tag: renamed(tag[0]), svg)
