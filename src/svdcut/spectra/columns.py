"""The columns of `svdcut spectrum`: one table that every output reads.

The screen, ``--csv``, ``--json``, ``--sort``, the page, the pictures by layer and the table in
docs/spectrum.md follow from `COLUMNS`. A new column is an entry there, and its test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from svdcut.choose.ranks import Noise, rank_for_energy
from svdcut.spectra.column import Column, Drawing, Join, Needs, Unit
from svdcut.spectra.matrix import Spectrum, Value, effective_rank, head_rank, stable_rank


def _rank_for(share: float) -> Callable[[Spectrum], Value]:
    def measure(matrix: Spectrum) -> int | None:
        if matrix.norm == 0:
            return 0
        if matrix.is_whole:
            return rank_for_energy(matrix.singular_values, share)
        return head_rank(matrix.singular_values, matrix.norm, share)

    return measure


def _above_edge(matrix: Spectrum) -> int | None:
    if matrix.noise_edge is None:
        return None
    values = matrix.singular_values
    above = Noise().rank(values, matrix.full_rank, edge=matrix.noise_edge)
    return above if matrix.is_whole or above < len(values) else None  # there may be more


FULL_RANK = Column(
    key="full_rank",
    title="full rank",
    meaning="min(rows, columns).",
    measure=lambda matrix: matrix.full_rank,
    unit=Unit.COUNT,
)
NORM = Column(
    key="norm",
    title="norm",
    short="norm",
    meaning="Frobenius norm: the root of the sum of the squares of all entries, which is that of "
    "all singular values.",
    measure=lambda matrix: matrix.norm,
    join=Join.NORM,
    priority=6,
)
BASE_NORM = Column(
    key="base_norm",
    title="base's norm",
    meaning="Frobenius norm of base's matrix.",
    measure=lambda matrix: matrix.base_norm,
)
RELATIVE_NORM = Column(
    key="relative_norm",
    title="relative norm",
    short="relative",
    meaning="Norm of the update over the norm of base's matrix.",
    measure=lambda matrix: matrix.norm / matrix.base_norm if matrix.base_norm else None,
    join=Join.RATIO,
    unit=Unit.SHARE,
    priority=1,
    needs=Needs.UPDATE,
    drawing=Drawing(2, of="of base's norm", logarithmic=True, colours="cividis"),
)
SIGMA_FIRST = Column(
    key="sigma_first",
    title="first",
    short="first",
    legend="singular values",
    meaning="The largest singular value.",
    measure=lambda matrix: matrix.singular_values[0],
    join=Join.LARGEST,
    priority=3,
    in_json=False,
)
SIGMA_LAST = Column(
    key="sigma_last",
    title="last",
    short="last",
    legend="singular values",
    meaning="The smallest singular value. Below 1e-7 of the first it is beneath the resolution of "
    "float32, and only that is shown.",
    measure=lambda matrix: matrix.singular_values[-1] if matrix.is_whole else None,
    join=Join.SMALLEST,
    priority=9,
    in_json=False,
)
STABLE_RANK = Column(
    key="stable_rank",
    title="stable rank",
    short="stable",
    legend="ranks",
    meaning="Squared norm over the squared first value: 1 if one direction holds everything, the "
    "full rank if all values are alike.",
    measure=lambda matrix: stable_rank(matrix.singular_values, matrix.norm),
    join=Join.MEDIAN,
    unit=Unit.COUNT,
    priority=7,
    drawing=Drawing(3, logarithmic=True),
)
EFFECTIVE_RANK = Column(
    key="effective_rank",
    title="effective rank",
    short="effective",
    legend="ranks",
    meaning="Exponential of the entropy of the values' shares (Roy and Vetterli 2007). It counts "
    "small values more than the stable rank does.",
    measure=lambda matrix: effective_rank(matrix.singular_values) if matrix.is_whole else None,
    join=Join.MEDIAN,
    unit=Unit.COUNT,
    priority=3,
    drawing=Drawing(1, of="of full rank", of_full_rank=True),
)
RANK_90 = Column(
    key="rank_90",
    title="rank 90 %",
    short="90 %",
    legend="ranks that hold this share of the energy",
    meaning="The smallest rank with 90 % of the energy, which is the sum of the squared values.",
    measure=_rank_for(0.9),
    join=Join.MEDIAN,
    unit=Unit.COUNT,
    priority=1,
)
RANK_99 = Column(
    key="rank_99",
    title="rank 99 %",
    short="99 %",
    legend="ranks that hold this share of the energy",
    meaning="The smallest rank with 99 % of the energy.",
    measure=_rank_for(0.99),
    join=Join.MEDIAN,
    unit=Unit.COUNT,
    priority=8,
)
NOISE_EDGE = Column(
    key="noise_edge",
    title="noise edge",
    meaning="The largest singular value that rounding to the dtype of the file explains.",
    measure=lambda matrix: matrix.noise_edge,
    join=Join.MEDIAN,
)
ABOVE_NOISE_EDGE = Column(
    key="above_noise_edge",
    title="above edge",
    short=">noise",
    legend="values above the edge of rounding",
    meaning="How many singular values are larger than the noise edge.",
    measure=_above_edge,
    join=Join.MEDIAN,
    unit=Unit.COUNT,
    priority=1,
)
ZERO_FRACTION = Column(
    key="zero_fraction",
    title="zeros",
    short="zeros",
    meaning="Share of the entries that are exactly zero: of an update, those that training left as "
    "they were.",
    measure=lambda matrix: matrix.zero_fraction,
    join=Join.ENTRIES,
    unit=Unit.SHARE,
    priority=5,
)
METHOD = Column(
    key="method",
    title="method",
    meaning="How the values were computed: `gram`, `exact`, `krylov` or `factored`; `none` for a "
    "matrix of zeros.",
    measure=lambda matrix: matrix.method,
)
VALUE_BOUND = Column(
    key="value_bound",
    title="bound",
    meaning="Largest relative error of any of the values, against the matrix as subtracted.",
    measure=lambda matrix: matrix.value_bound,
    unit=Unit.SHARE,
)
INTRUDERS = Column(
    key="intruders",
    title="intruders",
    short="intruders",
    legend="leading left vectors that are like none of base's",
    meaning="How many of the leading left singular vectors of the fine-tuned matrix match none of "
    "base's.",
    measure=lambda matrix: None if matrix.intruders is None else matrix.intruders.count,
    join=Join.SUM,
    unit=Unit.COUNT,
    priority=1,
    needs=Needs.INTRUDERS,
)

COLUMNS = (
    FULL_RANK,
    NORM,
    BASE_NORM,
    RELATIVE_NORM,
    SIGMA_FIRST,
    SIGMA_LAST,
    STABLE_RANK,
    EFFECTIVE_RANK,
    RANK_90,
    RANK_99,
    NOISE_EDGE,
    ABOVE_NOISE_EDGE,
    ZERO_FRACTION,
    METHOD,
    VALUE_BOUND,
    INTRUDERS,
)
"""In the order of every output."""

JOINED = tuple(column for column in COLUMNS if column.join is not None)
"""Those that can be shown and sorted by."""


def describe(matrix: Spectrum, top: int | None = None) -> Spectrum:
    """Fill the columns of a spectrum from all its values, and keep the first `top` of these."""
    numbers = {column.key: column.measure(matrix) for column in COLUMNS}
    return replace(matrix, singular_values=matrix.singular_values[:top], numbers=numbers)
