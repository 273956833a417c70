"""Two updates of one base side by side, as data.

It computes nothing but what follows from its own fields.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from svdcut.shown import brief
from svdcut.spectra.facts import Spectra, join_documents
from svdcut.spectra.matrix import Spectrum

SCHEMA = "svdcut/comparison/1"


@dataclass(frozen=True, slots=True)
class Overlap:
    """Overlap of the leading singular spaces of two updates of one matrix."""

    __repr__ = brief

    rank: int
    """Rank of the spaces: as asked for, or the rank of an update if that is lower."""

    rows: int
    columns: int
    left_cosines: tuple[float, ...]
    """Cosines of the principal angles between the left spaces, descending."""

    right_cosines: tuple[float, ...]
    gaps: tuple[float, float] | None
    """Relative gap between the last singular value of the space and the next, of each update,
    relatively; None at rank 0. Where one is tiny, what lies in that space is half chance."""

    energy_distance: float | None
    """Largest difference between the shares of the energy that a rank keeps, over the ranks
    at hand in both; None where an update is zero."""

    @property
    def left_overlap(self) -> float | None:
        """Mean squared cosine, 0 to 1; None at rank 0."""
        return _mean_square(self.left_cosines)

    @property
    def right_overlap(self) -> float | None:
        """Mean squared cosine, 0 to 1; None at rank 0."""
        return _mean_square(self.right_cosines)

    @property
    def left_chance(self) -> float:
        """Overlap of random spaces, on average."""
        return self.rank / self.rows

    @property
    def right_chance(self) -> float:
        """Overlap of random spaces, on average."""
        return self.rank / self.columns


def _mean_square(cosines: tuple[float, ...]) -> float | None:
    if not cosines:
        return None
    return math.fsum(cosine * cosine for cosine in cosines) / len(cosines)


@dataclass(frozen=True, slots=True)
class Both:
    """A matrix of both updates."""

    number: int | None
    """Place in a stack; None for a tensor of one matrix."""

    sides: tuple[Spectrum, Spectrum]
    overlap: Overlap


@dataclass(frozen=True, slots=True)
class Comparison:
    """The spectra of two updates of one base, and what their leading spaces share."""

    __repr__ = brief

    first: Spectra
    second: Spectra
    """Each as if measured alone, but for the time: that of both together."""

    rank: int
    """As asked for."""

    overlaps: Mapping[str, tuple[Overlap, ...]]
    """Overlaps of the matrices of each shared tensor, by names in the first update."""

    partners: Mapping[str, str]
    """The second one's names of these tensors."""

    unmatched: tuple[str, ...]
    """Tensors with a spectrum in one of them only, or with another shape in the other."""

    @property
    def matrices(self) -> Iterator[tuple[str, Both]]:
        """The matrices that both updates have, with the first one's names of their tensors."""
        for name, overlaps in self.overlaps.items():
            ours = self.first.tensors[name]
            theirs = self.second.tensors[self.partners[name]]
            found = zip(ours.matrices, theirs.matrices, overlaps, strict=True)
            for number, (first, second, overlap) in enumerate(found):
                yield name, Both(number if ours.stacked else None, (first, second), overlap)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object; in a stack every value of an overlap is a list."""
        return {
            "schema": SCHEMA,
            "svdcut_version": self.first.svdcut_version,
            "torch_version": self.first.torch_version,
            "device": self.first.device,
            "rank": self.rank,
            "first": self.first.to_json(),
            "second": self.second.to_json(),
            "overlaps": {
                name: join_documents(
                    [_document(overlap) for overlap in found],
                    stacked=self.first.tensors[name].stacked,
                )
                for name, found in self.overlaps.items()
            },
            "partners": dict(self.partners),
            "unmatched": list(self.unmatched),
        }


def _document(overlap: Overlap) -> dict[str, Any]:
    return {
        "rank": overlap.rank,
        "left_cosines": list(overlap.left_cosines),
        "right_cosines": list(overlap.right_cosines),
        "left_overlap": overlap.left_overlap,
        "right_overlap": overlap.right_overlap,
        "left_chance": overlap.left_chance,
        "right_chance": overlap.right_chance,
        "gaps": None if overlap.gaps is None else list(overlap.gaps),
        "energy_distance": overlap.energy_distance,
    }
