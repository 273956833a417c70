"""The rows and columns of the tables, as data.

It knows no HTML; what a number looks like is in `text`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import median

from svdcut.names import collapse_numbers
from svdcut.page.sparkline import Curve, curve, median_curve
from svdcut.page.text import known, number, whole
from svdcut.shown import percent
from svdcut.spectra.facts import Spectra, Spectrum, TensorSpectra

MAX_ROWS = 6000
"""At most so many rows are on a page: a browser is quick with them, and mail takes the file."""

MAX_KINDS = 500

_EXPERT = re.compile(r"(?<=\bexperts\.)(?:expert_)?\d+(?=\.)")


@dataclass(frozen=True, slots=True)
class Column:
    """A column of numbers."""

    key: str
    """One of `svdcut.spectra.facts.FACTS`."""

    title: str
    meaning: str
    text: Callable[[float], str] = number


COLUMNS = (
    Column(
        "norm",
        "norm",
        "Frobenius norm: the root of the sum of the squares of all entries, which is that of "
        "all singular values.",
    ),
    Column(
        "relative_norm",
        "relative norm",
        "Norm of the update over the norm of base's matrix.",
        percent,
    ),
    Column("sigma_first", "first", "The largest singular value."),
    Column(
        "sigma_last",
        "last",
        "The smallest singular value. Below 1e-7 of the first it is beneath the resolution of "
        "float32, and only that is shown.",
    ),
    Column(
        "stable_rank",
        "stable rank",
        "Squared norm over the squared first value: 1 if one direction holds everything, the "
        "full rank if all values are alike.",
    ),
    Column(
        "effective_rank",
        "effective rank",
        "Exponential of the entropy of the values' shares (Roy and Vetterli 2007). It counts "
        "small values more than the stable rank does.",
    ),
    Column(
        "rank_90",
        "rank 90 %",
        "The smallest rank with 90 % of the energy, which is the sum of the squared values.",
        whole,
    ),
    Column(
        "rank_99",
        "rank 99 %",
        "The smallest rank with 99 % of the energy.",
        whole,
    ),
    Column(
        "above_noise_edge",
        "above edge",
        "How many singular values are larger than the noise edge.",
        whole,
    ),
    Column(
        "noise_edge",
        "noise edge",
        "The largest singular value that rounding to the dtype of the file explains.",
    ),
    Column(
        "zero_fraction",
        "zeros",
        "Share of the entries that are exactly zero: of an update, those that training left as "
        "they were.",
        percent,
    ),
    Column(
        "intruders",
        "intruders",
        "How many of the leading left singular vectors of the fine-tuned matrix match none of "
        "base's.",
        whole,
    ),
)


@dataclass(frozen=True, slots=True)
class Row:
    """A matrix, or the experts of a stack."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    values: tuple[float | None, ...]
    """One for each of `COLUMNS`; of experts the medians of what is known."""

    curve: Curve
    experts: tuple[Row, ...] = ()


@dataclass(frozen=True, slots=True)
class Kind:
    """Tensors whose names differ in numbers alone."""

    name: str
    num_matrices: int
    norm: float | None
    relative_norm: float | None
    energy_share: float | None
    stable_rank: float | None
    effective_rank: float | None
    rank_90: float | None
    above_edge: float | None
    """Share of the values whose noise edge is known."""


@dataclass(frozen=True, slots=True)
class Totals:
    """The whole checkpoint in a few numbers."""

    norm: float | None
    relative_norm: float | None
    num_matrices: int
    num_values: int
    """Of the matrices whose noise edge is known."""

    num_above_edge: int
    zero_fraction: float | None


def tensor_rows(spectra: Spectra) -> list[Row]:
    """Return a row for each tensor, in the order of the model.

    A stack of experts is one row, and so are numbered experts of one layer.
    """
    gathered: dict[str, list[str]] = {}
    for name in spectra.tensors:
        gathered.setdefault(_EXPERT.sub("*", name), []).append(name)
    rows = []
    for common, names in gathered.items():
        members = list(chain.from_iterable(_matrix_rows(n, spectra.tensors[n]) for n in names))
        if len(names) == 1 and not spectra.tensors[names[0]].stacked:
            rows += members
        else:
            title = names[0] if len(names) == 1 else common
            shape = spectra.tensors[names[0]].shape
            rows.append(_expert_row(title, shape, spectra.tensors[names[0]].dtype, members))
    return rows


def limited(rows: Sequence[Row]) -> list[Row]:
    """Return the rows for which there is room: the largest ones, then experts, in order."""
    room = MAX_ROWS
    if len(rows) > room:
        largest = sorted(range(len(rows)), key=lambda i: -(rows[i].values[0] or 0))[:room]
        rows = [rows[i] for i in sorted(largest)]
    room -= len(rows)
    kept = []
    for row in rows:
        experts = row.experts if len(row.experts) <= room else ()
        room -= len(experts)
        kept.append(Row(row.name, row.shape, row.dtype, row.values, row.curve, experts))
    return kept


def _matrix_rows(name: str, tensor: TensorSpectra) -> list[Row]:
    return [
        Row(
            f"{name}[{index}]" if tensor.stacked else name,
            tensor.shape[1:] if tensor.stacked else tensor.shape,
            tensor.dtype,
            tuple(known(matrix.cell(column.key)) for column in COLUMNS),
            curve(matrix),
        )
        for index, matrix in enumerate(tensor.matrices)
    ]


def _expert_row(name: str, shape: tuple[int, ...], dtype: str, experts: list[Row]) -> Row:
    columns = zip(*(expert.values for expert in experts), strict=True) if experts else ()
    values = [_median(column) for column in columns] or [None] * len(COLUMNS)
    middle = median_curve([expert.curve for expert in experts])
    return Row(name, shape, dtype, tuple(values), middle, tuple(experts))


def _median(values: Iterable[float | None]) -> float | None:
    numbers = [value for value in map(known, values) if value is not None]
    return median(numbers) if numbers else None


def _norm(values: Iterable[float | None]) -> float | None:
    """Return the norm of parts with these norms, or None where one is not known."""
    return known(math.hypot(*(math.inf if value is None else value for value in values)))


def _ratio(part: float | None, whole: float | None) -> float | None:
    return known(part / whole) if part is not None and whole else None


def kinds(spectra: Spectra) -> list[Kind]:
    """Return what like tensors have in common, in the order of the model."""
    gathered: dict[str, list[Spectrum]] = {}
    for name, tensor in spectra.tensors.items():
        gathered.setdefault(collapse_numbers(name), []).extend(tensor.matrices)
    total = _norm(matrix.norm for _, matrix in spectra.matrices)
    return [_kind(name, matrices, total) for name, matrices in gathered.items() if matrices][
        :MAX_KINDS
    ]


def _kind(name: str, matrices: Sequence[Spectrum], total: float | None) -> Kind:
    norm = _norm(matrix.norm for matrix in matrices)
    share = _ratio(norm, total)
    above, values = _above_edge(matrices)
    return Kind(
        name=name,
        num_matrices=len(matrices),
        norm=norm,
        relative_norm=_ratio(norm, _norm(matrix.base_norm for matrix in matrices)),
        energy_share=None if share is None else share**2,
        stable_rank=_median(matrix.stable_rank for matrix in matrices),
        effective_rank=_median(matrix.effective_rank for matrix in matrices),
        rank_90=_median(matrix.rank_90 for matrix in matrices),
        above_edge=_ratio(above, values),
    )


def _above_edge(matrices: Iterable[Spectrum]) -> tuple[int, int]:
    """Return how many values are above their noise edge, and of how many that is known."""
    known_ones = [
        (matrix.above_noise_edge, matrix.full_rank)
        for matrix in matrices
        if matrix.above_noise_edge is not None
    ]
    return sum(above for above, _ in known_ones), sum(rank for _, rank in known_ones)


def totals(spectra: Spectra) -> Totals:
    """Return the numbers of the whole checkpoint."""
    matrices = [matrix for _, matrix in spectra.matrices]
    norm = _norm(matrix.norm for matrix in matrices)
    above, values = _above_edge(matrices)
    return Totals(
        norm=norm,
        relative_norm=_ratio(norm, _norm(matrix.base_norm for matrix in matrices)),
        num_matrices=len(matrices),
        num_values=values,
        num_above_edge=above,
        zero_fraction=known(spectra.zero_fraction),
    )
