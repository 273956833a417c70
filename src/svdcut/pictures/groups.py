"""What all panels of a picture agree on: groups of matrices, their colours, the axes, the marks.

Numbers alone; it draws nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from svdcut.pictures.kinds import Curve, Energy, Kind
from svdcut.spectra.matrix import Spectrum

FIXED_RANKS = (16, 64, 256)
"""Those that people ask for."""

_MAX_DECADES = 14
_DECADES_SHOWN = 5
_TAIL = 0.01
"""Share of the points that may lie below the frame."""

_NEAR = 1.5
"""Decades below the values at which a noise edge is still drawn to scale."""


@dataclass(frozen=True, slots=True)
class Group:
    """A kind, and the colour that it has in every panel."""

    kind: Kind
    colour: str
    curves: tuple[Curve, ...]
    energy: Energy | None


@dataclass(frozen=True, slots=True)
class Frame:
    """Ends of the axes that panels of spectra share; logarithms to base 10."""

    right: float
    low: float
    high: float
    cut_off: bool
    """Whether some values lie below."""


def frame_of(groups: Sequence[Group]) -> Frame:
    """Return axes that show what decides on ranks: heads, and edges that are near."""
    curves = [curve for group in groups for curve in group.curves]
    edges = [math.log10(edge) for group in groups for edge in noise_edges(group.kind)]
    if not curves:
        return Frame(1.0, -1.0, 1.0, cut_off=False)
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


def noise_edges(kind: Kind) -> list[float]:
    """Return the edges that are known and have a logarithm."""
    return [matrix.noise_edge for matrix in kind.changed if matrix.noise_edge]


@dataclass(frozen=True, slots=True)
class RuleMark:
    """A rank rule, and how its rank is marked."""

    name: str
    field: str
    marker: str
    offset: float
    """Within a row of height 1."""


RULES = (
    RuleMark("90 % energy", "rank_90", "o", 0.24),
    RuleMark("99 % energy", "rank_99", "D", 0.0),
    RuleMark("noise edge", "above_noise_edge", "^", -0.24),
)


def spread_of_ranks(
    rule: RuleMark, matrices: Iterable[Spectrum]
) -> tuple[float, float, float] | None:
    """Return least, median and largest rank of a rule; infinity where one is beyond the values."""
    unknown = math.nan if rule.field == "above_noise_edge" else math.inf
    ranks = [getattr(matrix, rule.field) for matrix in matrices]
    known = [unknown if rank is None else float(rank) for rank in ranks]
    known = sorted(rank for rank in known if not math.isnan(rank))
    if not known:
        return None
    middle = known[(len(known) - 1) // 2]
    return known[0], middle, known[-1]
