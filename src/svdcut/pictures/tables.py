"""One number for each matrix, laid out as a model is: modules by layers.

It computes medians alone, and draws nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from svdcut.pictures.kinds import Kind, Numbers, Unit, median_or_none
from svdcut.shown import percent
from svdcut.spectra.facts import Spectra, Subject
from svdcut.spectra.matrix import Spectrum

MAX_ROWS = 18
MAX_COLUMNS = 128

_SPREAD = 1.2
"""At least so much larger is the end of a scale than its begin."""

_FENCE = 3.0
"""Values so many interquartile ranges from the quartiles are outliers, says Tukey."""

_COMMON = 0.8
"""Share of the values that a scale shows at least: more are no outliers."""


@dataclass(frozen=True, slots=True)
class Measure:
    """What one number says of a matrix."""

    name: str
    of: str
    """In what it is measured."""

    value: Callable[[Spectrum], float | None]
    text: Callable[[float], str]
    logarithmic: bool
    colours: str
    """matplotlib's name of a colour map."""

    explanation: str


def _effective_share(matrix: Spectrum) -> float | None:
    return None if matrix.effective_rank is None else matrix.effective_rank / matrix.full_rank


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


EFFECTIVE_RANK = Measure(
    "Effective rank",
    "of full rank",
    _effective_share,
    percent,
    logarithmic=False,
    colours="viridis",
    explanation="exp(entropy of the singular values): how many carry the matrix.",
)
STABLE_RANK = Measure(
    "Stable rank",
    "",
    lambda matrix: matrix.stable_rank,
    _number,
    logarithmic=True,
    colours="viridis",
    explanation="Squared norm over the squared largest singular value.",
)
RELATIVE_NORM = Measure(
    "Size of the update",
    "of base's norm",
    lambda matrix: matrix.relative_norm,
    percent,
    logarithmic=True,
    colours="cividis",
    explanation="Frobenius norm of the update over that of base's matrix.",
)


def measures_of(spectra: Spectra) -> tuple[Measure, ...]:
    """Return what is known of these matrices: how flat their spectra are, and how large."""
    matrices = [matrix for _, matrix in spectra.matrices]
    whole = any(matrix.effective_rank is not None for matrix in matrices)
    partial = any(matrix.stable_rank is not None for matrix in matrices)
    related = any(matrix.relative_norm is not None for matrix in matrices)
    candidates = (
        (EFFECTIVE_RANK, whole),
        (STABLE_RANK, partial and (spectra.subject is Subject.WEIGHTS or not whole)),
        (RELATIVE_NORM, related),
    )
    return tuple(measure for measure, known in candidates if known)


@dataclass(frozen=True, slots=True)
class Table:
    """Medians of a measure, of each kind in each layer."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    """Layers by number; what comes before them and after them has no number."""

    values: Numbers
    """(rows, columns); NaN where there is no matrix, or none of a known value."""

    left_out: int
    """Kinds beyond the rows that there is place for."""

    layers_in_column: int
    of_several: bool
    """Whether some value is a median of several matrices."""

    @property
    def known(self) -> Numbers:
        """All values that a colour can stand for."""
        known: Numbers = self.values[np.isfinite(self.values)]
        return known

    def above(self, scale: Scale) -> NDArray[np.bool_]:
        """Return which cells lie above a scale."""
        return self.values > scale.high

    def below(self, scale: Scale) -> NDArray[np.bool_]:
        """Return which cells lie below a scale; on a logarithmic one zeros have no place."""
        return (self.values < scale.low) & (self.values > (0 if scale.logarithmic else -np.inf))

    @property
    def has_layers(self) -> bool:
        """Whether there are several layers to see."""
        return sum(map(bool, self.columns)) > 1


def tabulate(kinds: Sequence[Kind], measure: Measure) -> Table:
    """Lay a measure out by kind and layer."""
    told = [
        kind for kind in kinds if any(measure.value(matrix) is not None for matrix in kind.matrices)
    ]
    shown = _most_units(told)
    layers = sorted({u.layer for kind in shown for u in kind.units if u.layer is not None})
    width = -(-len(layers) // MAX_COLUMNS) or 1
    column_of: dict[tuple[int, int | None], int] = {}
    columns = []
    before = len(layers) > 0 and any(_is_at(kind, 0) for kind in shown)
    if before or not layers:
        columns.append("")
    for number, layer in enumerate(layers):
        if number % width == 0:
            columns.append(str(layer))
        column_of[1, layer] = len(columns) - 1
    if layers and any(_is_at(kind, 2) for kind in shown):
        columns.append("")
    last = len(columns) - 1
    column_of |= {(0, None): 0, (1, None): last, (2, None): last}
    values = np.full((len(shown), len(columns)), np.nan)
    for row, kind in enumerate(shown):
        cells: dict[int, list[Unit]] = {}
        for unit in kind.units:
            place = kind.place if unit.layer is None else 1
            cells.setdefault(column_of[place, unit.layer], []).append(unit)
        for column, units in cells.items():
            found = median_or_none([measure.value(m) for unit in units for m in unit.matrices])
            values[row, column] = np.nan if found is None else found
    labels = tuple(kind.label for kind in shown)
    several = any(len(unit.matrices) > 1 for kind in shown for unit in kind.units)
    left_out = len(told) - len(shown)
    return Table(labels, tuple(columns), values, left_out, width, several)


@dataclass(frozen=True, slots=True)
class Scale:
    """From values to colours."""

    low: float
    high: float
    logarithmic: bool

    def place(self, value: float) -> float:
        """Return where a value lies, 0 to 1."""
        ends = self._map(self.low), self._map(self.high)
        if ends[0] >= ends[1]:
            return 0.5
        return min(max((self._map(value) - ends[0]) / (ends[1] - ends[0]), 0.0), 1.0)

    def at(self, place: float) -> float:
        """Return the value that lies there."""
        low, high = self._map(self.low), self._map(self.high)
        value = low + place * (high - low)
        return 10.0**value if self.logarithmic else value

    def _map(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value


def scale_of(table: Table, measure: Measure) -> Scale | None:
    """Return the scale of a table, or None if nothing in it has a colour.

    Outliers lie beyond it: else one of them would take all colours from the others.
    """
    known = table.known
    known = known[known > 0] if measure.logarithmic else known
    if not known.size:
        return None
    common = _without_outliers(known, logarithmic=measure.logarithmic)
    low, high = float(common.min()), float(common.max())
    if high < _SPREAD * low:
        # What hardly differs looks alike.
        middle = math.sqrt(low) * math.sqrt(high)
        low, high = middle / math.sqrt(_SPREAD), middle * math.sqrt(_SPREAD)
    return Scale(low, high, measure.logarithmic and high > 3 * low)


def _without_outliers(values: Numbers, *, logarithmic: bool) -> Numbers:
    places = np.log10(values) if logarithmic else values
    first, third = np.quantile(places, (0.25, 0.75))
    reach = _FENCE * (third - first)
    common = values[(places >= first - reach) & (places <= third + reach)]
    return common if common.size >= _COMMON * values.size else values


def _is_at(kind: Kind, place: int) -> bool:
    return kind.place == place and any(unit.layer is None for unit in kind.units)


def _most_units(kinds: list[Kind]) -> list[Kind]:
    ranked = sorted(kinds, key=lambda kind: -len(kind.units))[:MAX_ROWS]
    chosen = {id(kind) for kind in ranked}
    return [kind for kind in kinds if id(kind) in chosen]
