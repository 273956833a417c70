"""Matrices gathered into the lines of a screen: by tensor, by module type, by depth.

It formats nothing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from svdcut.names import collapse_numbers, layer_number
from svdcut.spectra.comparison import Comparison
from svdcut.spectra.facts import Spectra, Spectrum


class SortKey(str, Enum):
    """What tensors are sorted by."""

    MODEL = "model"
    NAME = "name"
    NORM = "norm"
    RELATIVE_NORM = "relative_norm"
    SIGMA_FIRST = "sigma_first"
    SIGMA_LAST = "sigma_last"
    STABLE_RANK = "stable_rank"
    EFFECTIVE_RANK = "effective_rank"
    RANK_90 = "rank_90"
    RANK_99 = "rank_99"
    NOISE_EDGE = "noise_edge"
    ABOVE_NOISE_EDGE = "above_noise_edge"
    ZERO_FRACTION = "zero_fraction"
    INTRUDERS = "intruders"


@dataclass(frozen=True, slots=True)
class Summary:
    """Several matrices in one line, or one: medians, but for norms and extremes.

    A value is None where it is not known of one of them.
    """

    name: str
    shape: tuple[int, ...] | None
    """Of the tensor; None where shapes differ."""

    matrices: tuple[Spectrum, ...]
    full_rank: float
    norm: float
    """Of all together."""

    relative_norm: float | None
    """Of all together, over base's."""

    sigma_first: float
    """The largest."""

    sigma_last: float | None
    """The smallest, or the resolution; None where not all values are at hand."""

    is_last_resolved: bool
    """Whether the smallest value is `sigma_last`, and not below it."""

    stable_rank: float | None
    effective_rank: float | None
    rank_90: float | None
    rank_99: float | None
    noise_edge: float | None
    above_noise_edge: float | None
    zero_fraction: float
    """Mean over the matrices."""

    intruders: int | None
    """Sum over the matrices."""


def summarize(name: str, shape: tuple[int, ...] | None, matrices: Sequence[Spectrum]) -> Summary:
    """Return matrices, at least one, in one line."""
    bases = [matrix.base_norm for matrix in matrices if matrix.base_norm is not None]
    norm, base_norm = math.hypot(*(matrix.norm for matrix in matrices)), math.hypot(*bases)
    found = [matrix.intruders.count for matrix in matrices if matrix.intruders is not None]
    whole = all(len(matrix.singular_values) == matrix.full_rank for matrix in matrices)
    return Summary(
        name=name,
        shape=shape,
        matrices=tuple(matrices),
        full_rank=statistics.median(matrix.full_rank for matrix in matrices),
        norm=norm,
        relative_norm=norm / base_norm if base_norm else None,
        sigma_first=max(matrix.sigma_first for matrix in matrices),
        sigma_last=min(max(m.singular_values[-1], m.resolution) for m in matrices)
        if whole
        else None,
        is_last_resolved=all(m.singular_values[-1] >= m.resolution for m in matrices),
        stable_rank=_median(matrices, lambda matrix: matrix.stable_rank),
        effective_rank=_median(matrices, lambda matrix: matrix.effective_rank),
        rank_90=_median(matrices, lambda matrix: matrix.rank_90),
        rank_99=_median(matrices, lambda matrix: matrix.rank_99),
        noise_edge=_median(matrices, lambda matrix: matrix.noise_edge),
        above_noise_edge=_median(matrices, lambda matrix: matrix.above_noise_edge),
        zero_fraction=statistics.fmean(matrix.zero_fraction for matrix in matrices),
        intruders=sum(found) if found else None,
    )


def _median(
    matrices: Sequence[Spectrum], value: Callable[[Spectrum], float | None]
) -> float | None:
    """Return a median, or None where a value is not known; matrices of zeros have some of none."""
    found = [(matrix, value(matrix)) for matrix in matrices]
    known = [number for _, number in found if number is not None]
    unknown = any(number is None and matrix.norm > 0 for matrix, number in found)
    return None if unknown or not known else statistics.median(known)


def by_tensor(spectra: Spectra) -> list[Summary]:
    """Return a line for each tensor, in the order of the model."""
    return [
        summarize(name, tensor.shape, tensor.matrices) for name, tensor in spectra.tensors.items()
    ]


def sort_tensors(spectra: Spectra, key: SortKey) -> Spectra:
    """Return the same spectra with their tensors in another order.

    Parameters
    ----------
    spectra : Spectra
        In the order of the model.
    key : SortKey
        Names ascend, numbers descend; tensors without the number come last.
    """
    if key is SortKey.MODEL:
        return spectra
    lines = by_tensor(spectra)
    if key is SortKey.NAME:
        lines.sort(key=lambda line: line.name)
    else:
        lines.sort(key=lambda line: _descending(getattr(line, key.value)))
    return replace(spectra, tensors={line.name: spectra.tensors[line.name] for line in lines})


def sort_comparison(comparison: Comparison, key: SortKey) -> Comparison:
    """Return the same comparison with the tensors in the order of the first update's."""
    first = sort_tensors(comparison.first, key)
    found = comparison.overlaps
    return replace(
        comparison,
        first=first,
        overlaps={name: found[name] for name in first.tensors if name in found},
    )


def _descending(value: float | None) -> tuple[bool, float]:
    return value is None, -(value or 0)


def by_module(spectra: Spectra) -> list[Summary]:
    """Return a line for each module type: tensors whose names differ in numbers alone."""
    return _gather(spectra, collapse_numbers)


def by_depth(spectra: Spectra) -> list[Summary]:
    """Return a line for each layer by its number, and none for what is in no layer."""

    def key(name: str) -> str | None:
        number = layer_number(name)
        return None if number is None else str(number)

    return sorted(_gather(spectra, key), key=lambda line: int(line.name))


def _gather(spectra: Spectra, key: Callable[[str], str | None]) -> list[Summary]:
    shapes: dict[str, set[tuple[int, ...]]] = {}
    members: dict[str, list[Spectrum]] = {}
    for name, tensor in spectra.tensors.items():
        group = key(name)
        if group is not None:
            shapes.setdefault(group, set()).add(tensor.shape)
            members.setdefault(group, []).extend(tensor.matrices)
    return [
        summarize(group, shapes[group].pop() if len(shapes[group]) == 1 else None, matrices)
        for group, matrices in members.items()
    ]
