"""A spectrum in the height of a line of text.

It chooses few of the values and one scale for all; it draws no axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

from svdcut.spectra.matrix import Spectrum

NUM_POINTS = 32
WIDTH, HEIGHT = 168, 48
_MARGIN = 3
_BEND = 1.5
"""A spectrum bends most at its head: so half of the points lie in its first third."""

_MIN_DECADES, _MAX_DECADES = 1, 8
_USUAL = 0.97
"""Share of all points that the scale shows; a last value or two may lie far below."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of a spectrum; none for a matrix of zeros."""

    places: tuple[int, ...] = ()
    """From the left, up to `WIDTH`."""

    depths: tuple[float, ...] = ()
    """Return the decades of each value below the first; infinite for zero."""

    edge: float = math.inf
    """The noise edge, in decades below the first value; infinite where it is not known."""


def curve(matrices: Sequence[Spectrum]) -> Curve:
    """Return the curve of a matrix, or the middle of those of several of one shape."""
    if len(matrices) == 1:
        return _curve(matrices[0])
    drawn = [each for each in map(_curve, matrices) if each.depths]
    if not drawn:
        return Curve()
    middle = len(drawn) // 2
    columns = zip(*(each.depths for each in drawn), strict=False)
    return Curve(drawn[0].places, tuple(sorted(column)[middle] for column in columns))


def _curve(matrix: Spectrum) -> Curve:
    """Return a few points of a spectrum, denser towards its head."""
    s = matrix.singular_values
    first = s[0] if len(s) else 0.0
    if not 0 < first < math.inf:
        return Curve()
    last = len(s) - 1
    indices: Sequence[int] = range(len(s))
    if len(s) > NUM_POINTS:
        steps = (i / (NUM_POINTS - 1) for i in range(NUM_POINTS))
        indices = [round(last * step**_BEND) for step in steps]
    return Curve(
        tuple(round(WIDTH * index / max(last, 1)) for index in indices),
        tuple(_depth(s[index], first) for index in indices),
        _depth(matrix.noise_edge or 0.0, first),
    )


def scale(curves: Sequence[Curve]) -> int:
    """Return how many decades below the first value all sparklines show."""
    depths = sorted(filter(math.isfinite, chain.from_iterable(each.depths for each in curves)))
    usual = depths[int(_USUAL * (len(depths) - 1))] if depths else 0
    return min(max(math.ceil(usual), _MIN_DECADES), _MAX_DECADES)


def svg(drawn: Curve, decades: int) -> str:
    """Return the SVG element of a curve, or nothing for a matrix of zeros."""
    if not drawn.depths:
        return ""
    points = [
        (place, _height(depth, decades))
        for place, depth in zip(drawn.places, drawn.depths, strict=False)
    ]
    steps = "".join(f"l{x - u} {y - v}" for (u, v), (x, y) in pairwise(points))
    line = f'<path d="M0 {points[0][1]}{steps or f"h{WIDTH}"}"/>'
    edge = ""
    if 0 <= drawn.edge < decades:
        edge = f'<path class=e d="M0 {_height(drawn.edge, decades)}h{WIDTH}"/>'
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}">{edge}{line}</svg>'


def _depth(value: float, first: float) -> float:
    if not 0 < value < math.inf:
        return math.inf
    return math.log10(first) - math.log10(value)


def _height(depth: float, decades: int) -> int:
    inner = HEIGHT - 2 * _MARGIN
    return _MARGIN + round(inner * min(max(depth / decades, 0), 1))
