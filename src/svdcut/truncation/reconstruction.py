"""Matrices after their cut: their facts, and base plus the cut update; tensors that are copied.

It computes rows block by block, and writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from svdcut.choose.cut import Cut, is_certified
from svdcut.choose.options import Options
from svdcut.choose.ranks import Rule
from svdcut.errors import NonFiniteError
from svdcut.files.tensorfile import Dtype, TensorEntry, iterate_bytes
from svdcut.pair.pairing import Action, Pair
from svdcut.pair.plan import PlannedTensor
from svdcut.record.manifest import MatrixFact, SvdFact, Truncation
from svdcut.streaming.stored_matrix import (
    TORCH_DTYPES,
    MatrixEntry,
    MatrixSides,
    Side,
    is_finite,
    matrix_sides,
    nonfinite_error,
    to_bytes,
)
from svdcut.streaming.update import read_added
from svdcut.svd.certificate import MeasuredValues
from svdcut.svd.product import rows_of


@dataclass(frozen=True, slots=True)
class Rows:
    """A block of rows of a result."""

    stored: Tensor
    intended: Tensor
    """In float64 where storage or a side is wider than 16 bits, else in float32."""


@dataclass(frozen=True, slots=True)
class MatrixResult:
    """The cut of one matrix for one output, and the rounding of its storage."""

    cut: Cut
    measured: MeasuredValues
    zero_fraction: float
    equal_bytes: bool
    """Whether the two sides are stored alike to the last bit."""

    rounding_square: float = 0.0
    """Sum of squares of ``stored - intended``."""


def compose(
    base: MatrixEntry,
    factors: tuple[Tensor, Tensor],
    factor: float,
    stored: torch.dtype,
    *,
    is_wide: bool,
) -> Iterator[Rows]:
    """Yield ``base + factor * left @ right`` in blocks of rows; blocks reuse one buffer.

    Parameters
    ----------
    base : MatrixEntry
        It is read again: the system has it in its cache.
    factors : tuple of Tensor
        `left` (m, k) and `right` (k, n).
    factor : float
        Scale of the product.
    stored : torch.dtype
        Of the stored rows.
    is_wide : bool
        Whether a side is stored in float64.
    """
    left, right = factors
    narrow = stored.itemsize == 2 and not is_wide
    work = torch.float32 if narrow else torch.float64
    right = right.to(work) * factor
    whole = torch.empty(0, dtype=work, device=left.device)
    for rows, values in base.blocks(left.device):
        if not len(whole):
            whole = torch.empty_like(values, dtype=work)
        intended = whole[: len(values)].copy_(values)
        if len(right):  # adding a zero would turn -0 into 0
            intended.addmm_(left[rows].to(work), right)
        yield Rows(intended.to(stored), intended)


def copy_rows(entry: MatrixEntry, stored: torch.dtype) -> Iterator[Rows]:
    """Yield the rows of a matrix, converted to the stored dtype."""
    for _, values in entry.blocks(torch.device("cpu")):
        yield Rows(values.to(stored), values)


def stays_whole(sides: MatrixSides, rank: int, full_rank: int, scale: float) -> bool:
    """Whether a cut keeps everything, so that the stored fine-tuned matrix is the result."""
    return rank == full_rank and scale == 1 and sides.update is None


@dataclass(frozen=True, slots=True)
class CutMatrix:
    """One matrix on its way to an output."""

    sides: MatrixSides
    result: MatrixResult
    factors: Callable[[Sequence[int]], tuple[Tensor, Tensor]]
    """Returns the factors of chosen triplets: see `Decomposition.factors`."""

    is_wide: bool
    """Whether a side is stored in float64."""

    def rows(self, dtype: torch.dtype, scale: float) -> Iterator[Rows]:
        """Return the rows of the result, stored in `dtype`, with the kept update scaled."""
        cut, measured = self.result.cut, self.result.measured
        if stays_whole(self.sides, cut.rank, measured.full_rank, scale):
            return copy_rows(self.sides.finetuned, dtype)
        assert self.sides.base is not None
        factors, scale = self.factors(cut.indices), scale * measured.scale
        return compose(self.sides.base, factors, scale, dtype, is_wide=self.is_wide)


def describe_truncation(
    pair: Pair,
    rule: Rule,
    options: Options,
    results: Sequence[MatrixResult],
) -> Truncation:
    """Return the facts of one tensor from those of its matrices."""
    cuts = [result.cut for result in results]
    kept = math.hypot(*(cut.kept_norm for cut in cuts))
    tail = math.hypot(*(cut.tail_norm for cut in cuts))
    norm = math.hypot(kept, tail)
    # The expert that needed the most care stands for the stack.
    hardest = max(results, key=lambda result: result.cut.bounds.excess)
    rejected = {route for result in results for route in result.measured.rejected}
    return Truncation(
        rule=str(rule),
        keep=options.keep.value,
        rows=pair.matrices[0][0],
        full_rank=pair.full_ranks[0],
        energy_retained=(kept / norm) ** 2 if norm else 1.0,
        update_norm=norm,
        tail_norm=tail,
        rounding_error=math.sqrt(math.fsum(result.rounding_square for result in results)),
        zero_fraction=math.fsum(r.zero_fraction for r in results) / len(results),
        svd=SvdFact(
            method=hardest.measured.method.value,
            proof=hardest.measured.proof.value,
            residual=max(cut.residual for cut in cuts),
            excess_bound=max(cut.bounds.excess for cut in cuts),
            value_bound=max(cut.bounds.value for cut in cuts),
            certified=all(is_certified(cut.bounds, options.tolerance) for cut in cuts),
            rejected=tuple(sorted(rejected)),
        ),
        matrices=tuple(
            MatrixFact(cut.rank, cut.sigma_first, cut.sigma_last_kept, cut.sigma_next, cut.edge)
            for cut in cuts
        ),
    )


def merged_rows(
    sides: MatrixSides, device: torch.device, stored: torch.dtype, *, new: bool = False
) -> Iterator[Rows]:
    """Yield the rows of the fine-tuned matrix, with an adapter merged in.

    Parameters
    ----------
    sides : MatrixSides
        Where they lie.
    device : torch.device
        Where to compute.
    stored : torch.dtype
        Of the stored rows.
    new : bool
        Yield only the rows that base lacks.
    """
    shared = sides.finetuned.shape[0] if new else 0
    theirs = sides.finetuned
    entry = theirs.following(sides.new_rows) if new else theirs.with_following(sides.new_rows)
    added = None if sides.update is None else read_added(sides, sides.update, device)
    for rows, values in entry.blocks(device):
        intended = values
        if added is not None:
            more = rows_of(added, rows.start + shared, rows.stop + shared)
            intended = values.double().add_(more)
        yield Rows(intended.to(stored), intended)


def copied_bytes(planned: PlannedTensor, device: torch.device) -> Iterator[bytearray | memoryview]:
    """Yield the bytes of a tensor that is not truncated, in the dtype that it is stored in."""
    pair = planned.pair
    from_base = pair.action is Action.COPY_BASE
    source = pair.base if from_base else pair.finetuned
    assert source is not None
    if from_base or (pair.update is None and source.dtype is planned.target.dtype):
        side = Side.BASE if source == pair.base else Side.FINETUNED
        for data in iterate_bytes(source):
            _refuse_nonfinite_bytes(source, data, side)
            yield data
    else:
        for sides in matrix_sides(pair):
            for rows in merged_rows(sides, device, TORCH_DTYPES[planned.target.dtype]):
                refuse_overflow(planned, sides, rows.stored)
                yield to_bytes(rows.stored)


def new_row_bytes(planned: PlannedTensor, device: torch.device) -> Iterator[memoryview]:
    """Yield the rows that base lacks, from the fine-tuned side."""
    pair = planned.pair
    if not pair.new_rows:
        return
    (sides,) = matrix_sides(pair)
    for rows in merged_rows(sides, device, TORCH_DTYPES[planned.target.dtype], new=True):
        if not is_finite(rows.intended):
            raise nonfinite_error(pair.finetuned, Side.FINETUNED)
        refuse_overflow(planned, None, rows.stored)
        yield to_bytes(rows.stored)


def _refuse_nonfinite_bytes(entry: TensorEntry, data: bytearray, side: Side) -> None:
    # A complex number is two float32. Only looked at: the bytes themselves are written.
    dtype = torch.float32 if entry.dtype is Dtype.C64 else TORCH_DTYPES.get(entry.dtype)
    if dtype is None or not data:
        return
    if not is_finite(torch.frombuffer(data, dtype=dtype)):
        raise nonfinite_error(entry, side)


def measure_rounding(planned: PlannedTensor, sides: MatrixSides, rows: Rows) -> float:
    """Return the sum of squares of ``stored - intended``; refuse rows that overflow."""
    # Exact, in the dtype that holds both: the numbers are next to each other.
    error = torch.sub(rows.stored, rows.intended)
    square = float(torch.linalg.vector_norm(error, dtype=torch.float64)) ** 2
    if not math.isfinite(square):
        refuse_overflow(planned, sides, rows.stored)
    return square


def refuse_overflow(planned: PlannedTensor, sides: MatrixSides | None, stored: Tensor) -> None:
    """Raise if a stored block holds NaN or infinity, and name the side that caused it."""
    if is_finite(stored):
        return
    if sides is not None and sides.base is not None:
        for _, values in sides.base.blocks(torch.device("cpu")):
            if not is_finite(values):
                raise nonfinite_error(sides.base.tensor, Side.BASE)
    raise NonFiniteError(
        f"tensor {planned.pair.name!r}: the result overflows {planned.target.dtype.value}",
        hint="Store it in another --dtype, or use a smaller --scale.",
    )
