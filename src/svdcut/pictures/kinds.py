"""What is drawn together: matrices of one kind of module, layer by layer.

Names and numbers alone; it draws nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from svdcut.names import collapse_numbers, layer_number, model_order
from svdcut.spectra.facts import Spectra
from svdcut.spectra.matrix import Spectrum

Numbers = NDArray[np.float64]

MAX_GROUPS = 8
"""As many as the palette has colours, and one for the rest."""

NUM_POINTS = 96
"""Of a curve, evenly by the logarithm of the index: more are not seen."""

MAX_LINES = 48
"""Of a group."""

_CONTAINERS = ("layer", "layers", "block", "blocks", "h")


@dataclass(frozen=True, slots=True)
class Unit:
    """The matrices of one kind in one layer: one, or one for each expert."""

    layer: int | None
    matrices: tuple[Spectrum, ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """The matrices whose names differ in numbers alone, or several such kinds as one."""

    label: str
    place: int
    """0 before the numbered layers, 1 in them, 2 after them."""

    units: tuple[Unit, ...]
    num_kinds: int = 1

    @property
    def matrices(self) -> list[Spectrum]:
        """All, in the order of the model."""
        return [matrix for unit in self.units for matrix in unit.matrices]

    @property
    def changed(self) -> list[Spectrum]:
        """Those that are not all zeros."""
        return [matrix for matrix in self.matrices if matrix.norm > 0]


def find_kinds(spectra: Spectra) -> tuple[Kind, ...]:
    """Sort the matrices by what their names say, in the order of the model."""
    found: dict[str, dict[int | None, list[Spectrum]]] = {}
    places: dict[str, int] = {}
    for name, tensor in spectra.tensors.items():
        collapsed = collapse_numbers(name)
        places.setdefault(collapsed, model_order(name)[0])
        units = found.setdefault(collapsed, {})
        units.setdefault(layer_number(name), []).extend(tensor.matrices)
    labels = short_labels(list(found))
    return tuple(
        Kind(
            label,
            places[name],
            tuple(Unit(layer, tuple(matrices)) for layer, matrices in found[name].items()),
        )
        for name, label in zip(found, labels, strict=True)
    )


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


def group_kinds(kinds: Sequence[Kind]) -> tuple[Kind, ...]:
    """Return at most `MAX_GROUPS` kinds: those with most matrices, and the rest as one."""
    if len(kinds) <= MAX_GROUPS:
        return tuple(kinds)
    repeated = [kind for kind in kinds if len(kind.units) > 1]
    candidates = repeated or list(kinds)
    ranked = sorted(candidates, key=lambda kind: (-len(kind.matrices), -_size(kind)))
    chosen = {id(kind) for kind in ranked[: MAX_GROUPS - 1]}
    rest = [kind for kind in kinds if id(kind) not in chosen]
    units = tuple(unit for kind in rest for unit in kind.units)
    label = f"{len(rest)} others"
    return (*(k for k in kinds if id(k) in chosen), Kind(label, 2, units, len(rest)))


def _size(kind: Kind) -> int:
    return max((matrix.full_rank for matrix in kind.matrices), default=0)


def log_indices(length: int) -> NDArray[np.intp]:
    """Return some of the numbers 1 to `length`, evenly by their logarithms."""
    if length < 1:
        return np.zeros(0, np.intp)
    return np.unique(np.geomspace(1, length, NUM_POINTS).round().astype(np.intp))


@dataclass(frozen=True, slots=True)
class Curve:
    """Singular values of a unit, of some indices; logarithms to base 10."""

    layer: int | None
    index: Numbers
    value: Numbers
    num_matrices: int
    """Of which these are the medians."""


def log_curves(kind: Kind) -> list[Curve]:
    """Return the spectra of a kind: medians over the experts of a layer, zeros left out."""
    found = []
    for unit in kind.units:
        by_length: dict[int, list[Spectrum]] = {}
        for matrix in unit.matrices:
            if matrix.norm > 0:
                by_length.setdefault(len(matrix.singular_values), []).append(matrix)
        for length, matrices in by_length.items():
            index = log_indices(length)
            rows = [as_numbers(matrix.singular_values)[index - 1] for matrix in matrices]
            value = np.median(np.stack(rows), axis=0)
            positive = value > 0
            if positive.any():
                logs = np.log10(index[positive]), np.log10(value[positive])
                found.append(Curve(unit.layer, *logs, len(matrices)))
    return found


def some_curves(curves: list[Curve]) -> list[Curve]:
    """Return at most `MAX_LINES`, evenly by their first values, in the order they had."""
    if len(curves) <= MAX_LINES:
        return curves
    ranked = sorted(range(len(curves)), key=lambda i: float(curves[i].value[0]))
    places = np.linspace(0, len(ranked) - 1, MAX_LINES).round().astype(int)
    return [curves[i] for i in sorted({ranked[place] for place in places})]


def as_numbers(values: Sequence[float]) -> Numbers:
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
    known = [len(m.singular_values) for m in matrices if len(m.singular_values) < m.full_rank]
    ranks = log_indices(min([max(m.full_rank for m in matrices), *known]))
    if not ranks.size:
        return None
    shares = np.stack([_energy_at(matrix, ranks) for matrix in matrices])
    return Energy(ranks, np.median(shares, axis=0), shares.min(axis=0), shares.max(axis=0))


def _energy_at(matrix: Spectrum, ranks: NDArray[np.intp]) -> Numbers:
    values = as_numbers(matrix.singular_values) / matrix.norm
    shares = np.minimum(np.cumsum(values * values), 1.0)
    kept: Numbers = shares[np.minimum(ranks, len(shares)) - 1]
    # All values are all of the energy, whatever their squares add up to.
    return np.where(ranks >= matrix.full_rank, 1.0, kept)


def median_or_none(values: Sequence[float | None]) -> float | None:
    """Return the median of those that are known."""
    known: Any = [value for value in values if value is not None]
    return float(np.median(known)) if known else None
