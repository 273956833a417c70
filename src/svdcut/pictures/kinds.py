"""Matrices grouped by kind of module and layer, and the curves drawn of them.

Names and numbers alone; it draws nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from svdcut.names import group_by_kind, layer_number, model_order
from svdcut.spectra.column import Column
from svdcut.spectra.columns import ABOVE_NOISE_EDGE, RANK_90, RANK_99
from svdcut.spectra.matrix import Spectrum

T = TypeVar("T")
U = TypeVar("U")
Numbers = NDArray[np.float64]

MAX_GROUPS = 8
"""As many as the palette has colours, and one for the rest."""

NUM_POINTS = 96
"""Points of a curve, evenly by the logarithm of the index: more are not seen."""

_CONTAINERS = ("layer", "layers", "block", "blocks", "h")


@dataclass(frozen=True, slots=True)
class Unit(Generic[T]):
    """The matrices of one kind in one layer: one, or one for each expert."""

    layer: int | None
    matrices: tuple[T, ...]


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """The matrices whose names differ in numbers alone, or several such kinds as one."""

    label: str
    place: int
    """0 before the numbered layers, 1 in them, 2 after them."""

    units: tuple[Unit[T], ...]
    num_kinds: int = 1

    @property
    def matrices(self) -> list[T]:
        """All, in the order of the model."""
        return [matrix for unit in self.units for matrix in unit.matrices]

    def of(self, part: Callable[[T], U]) -> Kind[U]:
        """Return the kind with a part of each matrix in its place."""
        units = (Unit(unit.layer, tuple(map(part, unit.matrices))) for unit in self.units)
        return Kind(self.label, self.place, tuple(units), self.num_kinds)


def find_kinds(matrices: Mapping[str, Sequence[T]]) -> list[Kind[T]]:
    """Sort the matrices of tensors by what their names say, in the order of the model."""
    found = group_by_kind(matrices)
    kinds = []
    for label, names in zip(short_labels(list(found)), found.values(), strict=True):
        layers: dict[int | None, list[T]] = {}
        for name in names:
            layers.setdefault(layer_number(name), []).extend(matrices[name])
        units = tuple(Unit(layer, tuple(members)) for layer, members in layers.items())
        kinds.append(Kind(label, model_order(names[0])[0], units))
    return kinds


def short_labels(names: Sequence[str]) -> list[str]:
    """Return the shortest last parts of names that tell them apart.

    Parameters
    ----------
    names : sequence of str
        With ``*`` for numbers, all different.
    """
    reduced = [_reduced(name) for name in names]
    seen = Counter(reduced)
    texts = [
        short if seen[short] == 1 and short else name
        for name, short in zip(names, reduced, strict=True)
    ]
    parts = [text.split(".") for text in texts]
    if len(parts) == 1:
        return texts
    ends = Counter(".".join(part[-n:]) for part in parts for n in range(1, len(part) + 1))
    labels = []
    for part in parts:
        suffixes = (".".join(part[-n:]) for n in range(1, len(part) + 1))
        whole = ".".join(part)
        found = (end for end in suffixes if end != "weight" and end and ends[end] == 1)
        labels.append(next(found, whole))
    return labels


def _reduced(name: str) -> str:
    """Return a name without ``.weight`` and numbers; nor the word before its layer's."""
    parts = name.removesuffix(".weight").split(".")
    kept: list[str] = []
    first = True
    for part in parts:
        if part != "*":
            kept.append(part)
            continue
        if kept and (first or kept[-1] in _CONTAINERS) and len(parts) > 2:
            kept.pop()
        first = False
    return ".".join(kept) if kept else name


def group_kinds(kinds: Sequence[Kind[T]]) -> list[Kind[T]]:
    """Return at most `MAX_GROUPS` kinds: those with most matrices, and the rest as one."""
    if len(kinds) <= MAX_GROUPS:
        return list(kinds)
    candidates = [kind for kind in kinds if len(kind.units) > 1] or list(kinds)
    ranked = sorted(candidates, key=lambda kind: -len(kind.matrices))
    chosen = {id(kind) for kind in ranked[: MAX_GROUPS - 1]}
    rest = [kind for kind in kinds if id(kind) not in chosen]
    units = tuple(unit for kind in rest for unit in kind.units)
    others = Kind(f"{len(rest)} others", 2, units, len(rest))
    return [*(kind for kind in kinds if id(kind) in chosen), others]


def log_indices(length: int) -> NDArray[np.intp]:
    """Return some of the numbers 1 to `length`, evenly by their logarithms."""
    if length < 1:
        return np.zeros(0, np.intp)
    return np.unique(np.geomspace(1, length, NUM_POINTS).round().astype(np.intp))


@dataclass(frozen=True, slots=True)
class Curve:
    """Some singular values of a unit; logarithms to base 10."""

    layer: int | None
    index: Numbers
    value: Numbers
    num_matrices: int
    """Number of matrices behind the medians."""


def log_curves(kind: Kind[Spectrum]) -> list[Curve]:
    """Return the spectra of a kind: medians over the experts of a layer, zeros left out."""
    found = []
    for unit in kind.units:
        by_length: dict[int, list[Spectrum]] = {}
        for matrix in unit.matrices:
            if matrix.norm > 0:
                by_length.setdefault(len(matrix.singular_values), []).append(matrix)
        for length, matrices in by_length.items():
            index = log_indices(length)
            rows = [_numbers(matrix.singular_values)[index - 1] for matrix in matrices]
            value = np.median(np.stack(rows), axis=0)
            positive = value > 0
            if positive.any():
                logs = np.log10(index[positive]), np.log10(value[positive])
                found.append(Curve(unit.layer, *logs, len(matrices)))
    return found


def _numbers(values: Sequence[float]) -> Numbers:
    """Return values as an array; those of an `array.array` are not copied."""
    return np.asarray(values, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Energy:
    """Share of the energy that ranks keep, over the matrices of a kind."""

    ranks: NDArray[np.intp]
    median: Numbers
    low: Numbers
    high: Numbers


def kept_energy(matrices: Sequence[Spectrum]) -> Energy | None:
    """Return the energy kept by rank, as far as all matrices know it; None of zeros alone."""
    if not matrices:
        return None
    known = [len(m.singular_values) for m in matrices if not m.is_whole]
    ranks = log_indices(min([max(m.full_rank for m in matrices), *known]))
    if not ranks.size:
        return None
    shares = np.stack([_energy_at(matrix, ranks) for matrix in matrices])
    return Energy(ranks, np.median(shares, axis=0), shares.min(axis=0), shares.max(axis=0))


def _energy_at(matrix: Spectrum, ranks: NDArray[np.intp]) -> Numbers:
    values = _numbers(matrix.singular_values) / matrix.norm
    shares = np.minimum(np.cumsum(values * values), 1.0)
    kept: Numbers = shares[np.minimum(ranks, len(shares)) - 1]
    # All values are all of the energy, whatever their squares add up to.
    return np.where(ranks >= matrix.full_rank, 1.0, kept)


@dataclass(frozen=True, slots=True)
class Group:
    """A kind, and the colour that it has in every panel."""

    kind: Kind[Spectrum]
    colour: str
    curves: tuple[Curve, ...]
    energy: Energy | None

    @property
    def changed(self) -> list[Spectrum]:
        """The matrices that are not all zeros."""
        return [matrix for matrix in self.kind.matrices if matrix.norm > 0]

    @property
    def noise_edges(self) -> list[float]:
        """The noise edges that are known and have a logarithm."""
        return [matrix.noise_edge for matrix in self.changed if matrix.noise_edge]


def make_group(kind: Kind[Spectrum], colour: str) -> Group:
    """Compute what the panels show of a kind."""
    changed = [matrix for matrix in kind.matrices if matrix.norm > 0]
    return Group(kind, colour, tuple(log_curves(kind)), kept_energy(changed))


@dataclass(frozen=True, slots=True)
class RuleMark:
    """A column of ranks, and how it is marked."""

    name: str
    column: Column
    marker: str
    offset: float
    """Within a row of height 1."""


ENERGY_90 = RuleMark("90% energy", RANK_90, "o", 0.24)
ENERGY_99 = RuleMark("99% energy", RANK_99, "D", 0.0)
NOISE = RuleMark("noise edge", ABOVE_NOISE_EDGE, "^", -0.24)
RULES = (ENERGY_90, ENERGY_99, NOISE)


@dataclass(frozen=True, slots=True)
class Spread:
    """Least, median and largest rank of a rule; infinity where one is beyond the values at hand."""

    low: float
    middle: float
    high: float

    def text(self) -> str:
        """Return the least and the largest."""
        return f"{self.low:.0f}" + (f" to {self.high:.0f}" if self.low != self.high else "")


def spread_of_ranks(rule: RuleMark, matrices: Sequence[Spectrum]) -> Spread | None:
    """Return how the ranks of a rule spread; None where no matrix has one."""
    ranks = [rule.column.of(matrix) for matrix in matrices]
    if rule is NOISE:
        ranks = [rank for rank in ranks if rank is not None]
    found = sorted(math.inf if rank is None else rank for rank in ranks)
    return Spread(found[0], found[(len(found) - 1) // 2], found[-1]) if found else None
