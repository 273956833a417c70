"""A column of spectra: how its number is measured, joined over matrices, written and drawn.

The columns themselves are in `columns`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from svdcut.shown import MISSING, percent, rank_text, size_text
from svdcut.spectra.matrix import Spectrum, Value


class Join(Enum):
    """How to join the numbers of several matrices, as of a stack or a layer."""

    NORM = "norm of all together"
    RATIO = "norm of all over that of base's"
    LARGEST = "largest"
    SMALLEST = "smallest"
    MEDIAN = "median"
    ENTRIES = "share of all entries"
    SUM = "sum"


class Unit(Enum):
    """In what a number is measured, and so how it is written."""

    SIZE = "as the weights"
    SHARE = "share"
    COUNT = "count"

    def text(self, value: float | None) -> str:
        """Return a number as people read it."""
        if value is None:
            return MISSING
        writers = {Unit.SIZE: size_text, Unit.SHARE: percent, Unit.COUNT: rank_text}
        return writers[self](value)


class Needs(Enum):
    """Inputs that a column needs besides a checkpoint, in words for the user."""

    NOTHING = ""
    UPDATE = "two checkpoints, BASE FT"
    INTRUDERS = "--intruders, and two checkpoints"


@dataclass(frozen=True, slots=True)
class Drawing:
    """How a column is drawn by module and layer. A figure has room for two: the first known."""

    order: int
    of: str = ""
    """Completes a title, as ``of full rank``."""

    of_full_rank: bool = False
    """Whether the number is drawn as a share of the full rank."""

    logarithmic: bool = False
    colours: str = "viridis"
    """matplotlib's name of a colour map."""


@dataclass(frozen=True, slots=True)
class Column:
    """A number of one matrix, and of several."""

    key: str
    """Name in files, in ``--sort`` and as an attribute of a `Spectrum`."""

    title: str
    meaning: str
    """One or two sentences."""

    measure: Callable[[Spectrum], Value]
    """Compute the number from a measured spectrum; None where the computed values do not tell."""

    join: Join | None = None
    """Without one a column is in files alone: nothing shows, draws or sorts by it."""

    unit: Unit = Unit.SIZE
    short: str = ""
    """Title on the screen; without one the column is not there."""

    legend: str = ""
    """A few words that the screen explains it with; columns may share them."""

    priority: int = 0
    """Where the screen is narrow, columns of higher numbers go first."""

    needs: Needs = Needs.NOTHING
    in_json: bool = True
    """False for what stands among the singular values already."""

    drawing: Drawing | None = None

    def of(self, matrix: Spectrum) -> float | None:
        """Return the number of a matrix."""
        value = matrix.numbers[self.key]
        return None if isinstance(value, str) else value

    def joined(self, matrices: Sequence[Spectrum]) -> float | None:
        """Return the number of matrices together; None where one that is not zero has none."""
        if self.join is None or not matrices:
            return None
        value = _JOINS[self.join](self, matrices)
        return value if value is not None and math.isfinite(value) else None

    def text(self, matrices: Sequence[Spectrum]) -> str:
        """Return that number for people; ``<`` stands before what is below the resolution."""
        value = self.joined(matrices)
        below = self.join is Join.SMALLEST and any(self.is_below(matrix) for matrix in matrices)
        return ("<" if below and value is not None else "") + self.unit.text(value)

    def is_below(self, matrix: Spectrum) -> bool:
        """Whether a number is only known to be smaller than the resolution."""
        value = self.of(matrix)
        return value is not None and value < matrix.resolution


def _known(column: Column, matrices: Sequence[Spectrum]) -> list[float] | None:
    """Return what is known, or None where a matrix that is not all zeros has no number."""
    found = [(matrix, column.of(matrix)) for matrix in matrices]
    if any(value is None and matrix.norm > 0 for matrix, value in found):
        return None
    return [value for _, value in found if value is not None] or None


def _join_by(
    join: Callable[[Sequence[float]], float],
) -> Callable[[Column, Sequence[Spectrum]], float | None]:
    """Return how to join numbers of which all must be known."""

    def joined(column: Column, matrices: Sequence[Spectrum]) -> float | None:
        known = _known(column, matrices)
        return None if known is None else join(known)

    return joined


def _ratio(_column: Column, matrices: Sequence[Spectrum]) -> float | None:
    base = math.hypot(*(matrix.base_norm or 0.0 for matrix in matrices))
    return math.hypot(*(matrix.norm for matrix in matrices)) / base if base else None


def _smallest(column: Column, matrices: Sequence[Spectrum]) -> float | None:
    if _known(column, matrices) is None:
        return None
    return min(max(column.of(matrix) or 0.0, matrix.resolution) for matrix in matrices)


def _of_entries(column: Column, matrices: Sequence[Spectrum]) -> float | None:
    entries = sum(matrix.size for matrix in matrices)
    return math.fsum(matrix.size * (column.of(matrix) or 0.0) for matrix in matrices) / entries


_JOINS: dict[Join, Callable[[Column, Sequence[Spectrum]], float | None]] = {
    Join.NORM: _join_by(lambda values: math.hypot(*values)),
    Join.RATIO: _ratio,
    Join.LARGEST: _join_by(max),
    Join.SMALLEST: _smallest,
    Join.MEDIAN: _join_by(statistics.median),
    Join.ENTRIES: _of_entries,
    Join.SUM: _join_by(sum),
}


def known_columns(columns: Sequence[Column], matrices: Sequence[Spectrum]) -> list[Column]:
    """Return the columns that hold a number for any of the matrices."""
    return [
        column
        for column in columns
        if any(column.joined([matrix]) is not None for matrix in matrices)
    ]
