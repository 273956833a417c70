"""The spectrum of one matrix, as data.

What its columns say is in `columns`; it computes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from svdcut.shown import brief_items

RESOLUTION = 1e-7
"""Share of the first singular value. Below it lies what float32 inputs do not resolve."""

Value = str | int | float | None
"""What a column holds for a matrix; None where it is not known."""


@dataclass(frozen=True, slots=True)
class Intruders:
    """Leading left vectors of a fine-tuned matrix, compared with all of base's.

    Ten vectors, or as many as the matrix has; none for a matrix of zeros.
    """

    cosines: tuple[float, ...]
    """For each vector the largest cosine with any left vector of base, 0 to 1."""

    threshold: float

    @property
    def count(self) -> int:
        """How many match no vector of base."""
        return sum(cosine < self.threshold for cosine in self.cosines)


@dataclass(frozen=True, slots=True)
class Spectrum:
    """The singular values of one matrix, and the numbers that follow from them.

    Every column of `svdcut.spectra.columns` is an attribute too, as ``matrix.stable_rank``.
    """

    singular_values: Sequence[float]
    """Descending; all min(m, n), or the leading ones that were asked for."""

    full_rank: int
    """min(m, n), or less for a product of factors."""

    size: int
    """Number of entries."""

    norm: float
    """Frobenius norm."""

    base_norm: float | None
    """Frobenius norm of base's matrix; None where the values are those of weights."""

    noise_edge: float | None
    """Largest singular value that storage rounding explains; None where it is not known."""

    zero_fraction: float
    """Share of the entries that are exactly zero."""

    method: str
    """gram, krylov, exact or factored; none for a matrix of zeros."""

    value_bound: float
    """Largest relative error of a singular value."""

    intruders: Intruders | None = None
    numbers: Mapping[str, Value] = field(default_factory=dict)
    """What each column holds, by its key: filled by `svdcut.spectra.columns.describe`."""

    def __getattr__(self, key: str) -> Any:  # noqa: ANN401 - of whatever type the column is
        """Return what a column holds."""
        try:
            return self.numbers[key]
        except KeyError:
            raise AttributeError(f"a spectrum has no {key!r}") from None

    def __repr__(self) -> str:
        """Return the numbers, and how many singular values there are."""
        return brief_items("Spectrum", {"singular_values": self.singular_values, **self.numbers})

    @property
    def resolution(self) -> float:
        """Singular values below it are only known to be smaller."""
        return RESOLUTION * self.singular_values[0]

    @property
    def is_whole(self) -> bool:
        """Whether all singular values are at hand."""
        return len(self.singular_values) == self.full_rank
