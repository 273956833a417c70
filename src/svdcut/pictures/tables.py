"""One number for each matrix, laid out as a model is: modules by layers.

It joins matrices by the rule of their column, and draws nothing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from svdcut.pictures.kinds import Kind, Numbers
from svdcut.shown import percent
from svdcut.spectra.column import Column, Drawing, known_columns
from svdcut.spectra.columns import JOINED
from svdcut.spectra.facts import Spectra
from svdcut.spectra.matrix import Spectrum

T = TypeVar("T")

MAX_ROWS = 18
MAX_COLUMNS = 128
_MAX_MEASURES = 2

_SPREAD = 1.2
"""At least so much larger is the end of a scale than its begin."""

_FENCE = 3.0
"""Values so many interquartile ranges from the quartiles are outliers, says Tukey."""

_COMMON = 0.8
"""Share of the values that a scale shows at least: more are no outliers."""


@dataclass(frozen=True, slots=True)
class Measure(Generic[T]):
    """A number of several matrices, and how it is drawn."""

    title: str
    meaning: str
    value: Callable[[Sequence[T]], float | None]
    text: Callable[[float], str]
    drawing: Drawing


def measures_of(spectra: Spectra) -> list[Measure[Spectrum]]:
    """Return as many columns as a figure has room for: the first that are known."""
    matrices = [matrix for _, matrix in spectra.matrices]
    drawn = [
        (column.drawing.order, measure_of(column, column.drawing))
        for column in known_columns(JOINED, matrices)
        if column.drawing is not None
    ]
    return [measure for _, measure in sorted(drawn, key=lambda pair: pair[0])[:_MAX_MEASURES]]


def measure_of(column: Column, drawing: Drawing) -> Measure[Spectrum]:
    """Return a column as it is drawn."""

    def share(matrices: Sequence[Spectrum]) -> float | None:
        value = column.joined(matrices)
        full = statistics.median(matrix.full_rank for matrix in matrices)
        return None if value is None else value / full

    title = column.title[:1].upper() + column.title[1:]
    if drawing.of_full_rank:
        return Measure(title, column.meaning, share, percent, drawing)
    return Measure(title, column.meaning, column.joined, column.unit.text, drawing)


@dataclass(frozen=True, slots=True)
class Table:
    """A measure of each kind in each layer."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    """Layers by number; what comes before them and after them has no number."""

    values: Numbers
    """(rows, columns); NaN where there is no matrix, or none of a known value."""

    left_out: int
    """Kinds beyond the rows that there is place for."""

    layers_in_column: int
    of_several: bool
    """Whether some value is that of several experts."""

    @property
    def known(self) -> Numbers:
        """All values that a colour can stand for."""
        known: Numbers = self.values[np.isfinite(self.values)]
        return known

    def beyond(self, scale: Scale, *, above: bool) -> NDArray[np.bool_]:
        """Return which cells lie above or below a scale; zeros have no place on a log one."""
        if above:
            return self.values > scale.high
        return (self.values < scale.low) & (self.values > (0 if scale.logarithmic else -np.inf))

    @property
    def has_layers(self) -> bool:
        """Whether there are several layers to see."""
        return sum(map(bool, self.columns)) > 1


def tabulate(kinds: Sequence[Kind[T]], measure: Measure[T]) -> Table:
    """Lay a measure out by kind and layer."""
    told = [kind for kind in kinds if any(measure.value([m]) is not None for m in kind.matrices)]
    shown = _most_units(told)
    layers = sorted({u.layer for kind in shown for u in kind.units if u.layer is not None})
    width = -(-len(layers) // MAX_COLUMNS) or 1
    columns, place_of = _columns(shown, layers, width)
    values = np.full((len(shown), len(columns)), np.nan)
    for row, kind in enumerate(shown):
        cells: dict[int, list[T]] = {}
        for unit in kind.units:
            place = kind.place if unit.layer is None else 1
            cells.setdefault(place_of[place, unit.layer], []).extend(unit.matrices)
        for column, matrices in cells.items():
            found = measure.value(matrices)
            values[row, column] = np.nan if found is None else found
    return Table(
        rows=tuple(kind.label for kind in shown),
        columns=tuple(columns),
        values=values,
        left_out=len(told) - len(shown),
        layers_in_column=width,
        of_several=any(len(unit.matrices) > 1 for kind in shown for unit in kind.units),
    )


def _columns(
    kinds: Sequence[Kind[T]], layers: Sequence[int], width: int
) -> tuple[list[str], dict[tuple[int, int | None], int]]:
    """Return the names of columns, and the column of each place and layer."""
    places: dict[tuple[int, int | None], int] = {}
    columns = []
    if not layers or any(_is_at(kind, 0) for kind in kinds):
        columns.append("")
    for number, layer in enumerate(layers):
        if number % width == 0:
            columns.append(str(layer))
        places[1, layer] = len(columns) - 1
    if layers and any(_is_at(kind, 2) for kind in kinds):
        columns.append("")
    last = len(columns) - 1
    return columns, places | {(0, None): 0, (1, None): last, (2, None): last}


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


def scale_of(table: Table, *, logarithmic: bool) -> Scale | None:
    """Return the scale of a table, or None if nothing in it has a colour.

    Outliers lie beyond it: else one of them would take all colours from the others.
    """
    known = table.known
    known = known[known > 0] if logarithmic else known
    if not known.size:
        return None
    common = _without_outliers(known, logarithmic=logarithmic)
    low, high = float(common.min()), float(common.max())
    if high < _SPREAD * low:
        # What hardly differs looks alike.
        middle = math.sqrt(low) * math.sqrt(high)
        low, high = middle / math.sqrt(_SPREAD), middle * math.sqrt(_SPREAD)
    return Scale(low, high, logarithmic and high > 3 * low)


def _without_outliers(values: Numbers, *, logarithmic: bool) -> Numbers:
    places = np.log10(values) if logarithmic else values
    first, third = np.quantile(places, (0.25, 0.75))
    reach = _FENCE * (third - first)
    common = values[(places >= first - reach) & (places <= third + reach)]
    return common if common.size >= _COMMON * values.size else values


def _is_at(kind: Kind[T], place: int) -> bool:
    return kind.place == place and any(unit.layer is None for unit in kind.units)


def _most_units(kinds: Sequence[Kind[T]]) -> list[Kind[T]]:
    ranked = sorted(kinds, key=lambda kind: -len(kind.units))[:MAX_ROWS]
    chosen = {id(kind) for kind in ranked}
    return [kind for kind in kinds if id(kind) in chosen]
