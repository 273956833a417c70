"""Matrices gathered for a table: by tensor, by module type, by depth; and sorted.

What is said of a group is in `columns`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from svdcut.names import group_by_kind, layer_number
from svdcut.spectra.columns import ABOVE_NOISE_EDGE, JOINED
from svdcut.spectra.comparison import Comparison
from svdcut.spectra.facts import Spectra
from svdcut.spectra.matrix import Spectrum

MODEL_ORDER = "model"
SORT_KEYS = (MODEL_ORDER, "name", *(column.key for column in JOINED))
"""Keys to sort tensors by."""


@dataclass(frozen=True, slots=True)
class Group:
    """Matrices that are one row of a table."""

    name: str
    shape: tuple[int, ...] | None
    """Shape of every tensor; None where shapes differ."""

    matrices: tuple[Spectrum, ...]


def group_tensors(spectra: Spectra, name: str, members: Iterable[str]) -> Group:
    """Return some tensors as a group of that name."""
    tensors = [spectra.tensors[member] for member in members]
    shapes = {tensor.shape for tensor in tensors}
    matrices = tuple(matrix for tensor in tensors for matrix in tensor.matrices)
    return Group(name, shapes.pop() if len(shapes) == 1 else None, matrices)


def by_tensor(spectra: Spectra) -> list[Group]:
    """Return each tensor as a group, in the order of the model."""
    return [group_tensors(spectra, name, [name]) for name in spectra.tensors]


def by_module(spectra: Spectra) -> list[Group]:
    """Return a group for each module type: tensors whose names differ in numbers alone."""
    kinds = group_by_kind(spectra.tensors)
    return [group_tensors(spectra, kind, names) for kind, names in kinds.items()]


def by_depth(spectra: Spectra) -> list[Group]:
    """Return a group for each layer by its number, and none for what is in no layer."""
    layers: dict[int, list[str]] = {}
    for name in spectra.tensors:
        number = layer_number(name)
        if number is not None:
            layers.setdefault(number, []).append(name)
    return [group_tensors(spectra, str(number), layers[number]) for number in sorted(layers)]


def sort_tensors(spectra: Spectra, key: str) -> Spectra:
    """Return the same spectra with their tensors in another order.

    Parameters
    ----------
    spectra : Spectra
        In the order of the model.
    key : str
        One of `SORT_KEYS`. Names ascend, numbers descend; tensors without the number come last.
    """
    if key == MODEL_ORDER:
        return spectra
    tensors = spectra.tensors
    names = sorted(tensors)
    for column in JOINED:
        if column.key == key:
            found = {name: column.joined(tensor.matrices) for name, tensor in tensors.items()}
            names = sorted(tensors, key=lambda name: _descending(found[name]))
    return replace(spectra, tensors={name: tensors[name] for name in names})


def sort_comparison(comparison: Comparison, key: str) -> Comparison:
    """Return the same comparison with the tensors in the order of the first update's."""
    first = sort_tensors(comparison.first, key)
    found = comparison.overlaps
    overlaps = {name: found[name] for name in first.tensors if name in found}
    return replace(comparison, first=first, overlaps=overlaps)


def _descending(value: float | None) -> tuple[bool, float]:
    return value is None, -(value or 0)


def count_above_edge(matrices: Sequence[Spectrum]) -> tuple[int, list[Spectrum]]:
    """Return how many values are above the noise edge, and the matrices where that is known."""
    known = [matrix for matrix in matrices if ABOVE_NOISE_EDGE.of(matrix) is not None]
    return sum(int(ABOVE_NOISE_EDGE.of(matrix) or 0) for matrix in known), known
