"""Read both sides of one matrix and subtract; or read the weights of one side.

One matrix at a time, on the device. It decomposes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from svdcut.adapter.numbers import dora_update, read_factors, read_magnitude
from svdcut.choose.noise import Storage
from svdcut.errors import NonFiniteError
from svdcut.files.lora_factors import LowRankEntry
from svdcut.files.tensorfile import Dtype, TensorEntry
from svdcut.streaming.rounding import RoundingMeter
from svdcut.streaming.stored_matrix import (
    MatrixEntry,
    MatrixSides,
    Side,
    is_finite,
    nonfinite_error,
)
from svdcut.svd.decomposition import sum_of_squares
from svdcut.svd.product import Product

_LARGEST = 2.0**1000
"""Room for norms below the end of float64."""


@dataclass(frozen=True, slots=True)
class Update:
    """``finetuned - base`` of one matrix, with what storage says of it."""

    base: MatrixEntry | None
    """None where nothing was subtracted: `matrix` is the weights."""

    matrix: Tensor | Product
    """(m, n), float32, or float64 where a side is; the factors of an adapter in float64.

    In memory the longer side of a tensor lies along its rows.
    """

    zero_fraction: float
    """Share of entries that are zero; for factors, estimated from their zero rows and columns."""

    equal_bytes: bool
    """Whether the two sides are stored alike to the last bit."""

    storage: Storage | None
    """Statistics of the rounding of the stored values, if asked for and if there is any."""

    base_norm: float
    """Frobenius norm of base's matrix."""

    is_wide: bool = False
    """Whether a side is stored in float64."""

    @property
    def full_rank(self) -> int:
        """The most that its rank can be."""
        matrix = self.matrix
        return matrix.rank if isinstance(matrix, Product) else min(matrix.shape)


def read_update(sides: MatrixSides, device: torch.device, *, measure_rounding: bool) -> Update:
    """Read one matrix of both sides and subtract, or read what an adapter adds.

    Parameters
    ----------
    sides : MatrixSides
        Where to read; without a base nothing is subtracted.
    device : torch.device
        Where to put it.
    measure_rounding : bool
        Whether `storage` and `base_norm` are wanted; they are None and 0 otherwise.

    Returns
    -------
    Update
        Subtracted in float32, or in float64 where a side is stored so. In float32 entries
        of more than 24 bits are rounded: of 16-bit pairs those whose exponents differ by
        more than 12 (float16) or 16 (bfloat16), of float32 those larger than their weight.

    Raises
    ------
    NonFiniteError
        If a side holds NaN or infinity, or their difference overflows.
    """
    if sides.update is not None:
        return _read_low_rank(sides, sides.update, device, measure_base=measure_rounding)
    return _subtract(sides.base, sides.finetuned, device, measure_rounding=measure_rounding)


def _subtract(
    base: MatrixEntry | None,
    finetuned: MatrixEntry,
    device: torch.device,
    *,
    measure_rounding: bool,
) -> Update:
    entries = (finetuned,) if base is None else (finetuned, base)
    wide = any(entry.tensor.dtype is Dtype.F64 for entry in entries)
    matrix = _tall_storage(finetuned.shape, torch.float64 if wide else torch.float32, device)
    scratch = torch.empty(0, dtype=matrix.dtype, device=device)
    alike = base is not None and finetuned.tensor.dtype is base.tensor.dtype
    nonzeros, base_squares = 0, 0.0
    meter = RoundingMeter(finetuned.shape, device) if measure_rounding else None
    for blocks in zip(*(entry.blocks(device) for entry in entries), strict=True):
        rows, ours = blocks[0]
        block = matrix[rows] if matrix.is_contiguous() else scratch.resize_(ours.shape)
        block.copy_(ours)
        values = [ours, *(theirs for _, theirs in blocks[1:])]
        for theirs in values[1:]:
            block.sub_(theirs)
        _refuse_nonfinite(block, entries, values)
        nonzeros += _count_nonzero(block)
        # Zeros differ in sign without a difference in value.
        alike = alike and nonzeros == 0 and _same_bytes(ours, values[-1])
        if not matrix.is_contiguous():
            matrix[rows].copy_(block)
        if meter is not None:
            meter.add(rows, ours, None if base is None else block)
            base_squares += sum(sum_of_squares(theirs) for theirs in values[1:])
    zero_fraction = 1 - nonzeros / matrix.numel()
    return Update(
        base=base,
        matrix=matrix,
        zero_fraction=zero_fraction,
        equal_bytes=alike,
        storage=None if meter is None else meter.storage(None if base is None else zero_fraction),
        base_norm=math.sqrt(base_squares),
        is_wide=wide,
    )


def _tall_storage(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return an empty matrix whose longer side lies along the rows in memory.

    The engine takes it by panels of these (measured, CPU: half as fast across them).
    """
    m, n = shape
    if m >= n:
        return torch.empty(m, n, dtype=dtype, device=device)
    return torch.empty(n, m, dtype=dtype, device=device).T


def _read_low_rank(
    sides: MatrixSides, entry: LowRankEntry, device: torch.device, *, measure_base: bool
) -> Update:
    """Return an adapter's update: as factors, or dense where it has no low rank."""
    base = sides.base
    assert base is not None
    matrix = read_added(sides, entry, device)
    if sides.finetuned != base:
        # The adapter stores the matrix whole too.
        ours, theirs = (side.read(device).double() for side in (sides.finetuned, base))
        matrix = _as_dense(matrix)[: len(ours)].add_(ours).sub_(theirs)
        _refuse_nonfinite(matrix, (sides.finetuned, base), (ours, theirs))
    zeros = _zero_fraction(matrix)
    return Update(
        base=base,
        matrix=matrix,
        zero_fraction=zeros,
        equal_bytes=zeros == 1,
        storage=None,
        base_norm=_norm(base, device) if measure_base else 0.0,
        is_wide=base.tensor.dtype is Dtype.F64,
    )


def read_added(sides: MatrixSides, entry: LowRankEntry, device: torch.device) -> Tensor | Product:
    """Return what an adapter adds to the fine-tuned matrix and the rows that follow."""
    product = Product(*read_factors(entry, sides.number, device))
    if not product.size < _LARGEST:
        raise _overflow(sides.finetuned.tensor)
    magnitude = read_magnitude(entry, device)
    if magnitude is None:
        return product
    stored = sides.finetuned.with_following(sides.new_rows).read(device)
    dense = dora_update(stored.double(), product.left, product.right, magnitude)
    if not is_finite(dense, _LARGEST):
        side = Side.BASE if sides.finetuned == sides.base else Side.FINETUNED
        if not is_finite(stored):
            raise nonfinite_error(sides.finetuned.tensor, side)
        raise NonFiniteError(
            f"tensor {sides.finetuned.tensor.name!r}: the update of DoRA overflows",
            hint="It divides by the norm of each row or column of the weights: is one zero?",
        )
    return dense


def _as_dense(matrix: Tensor | Product) -> Tensor:
    return matrix.dense() if isinstance(matrix, Product) else matrix


def _zero_fraction(matrix: Tensor | Product) -> float:
    if isinstance(matrix, Tensor):
        return 1 - _count_nonzero(matrix) / matrix.numel()
    rows, columns = (
        (factor != 0).any(dim) for factor, dim in ((matrix.left, 1), (matrix.right, 0))
    )
    return 1 - float(rows.double().mean() * columns.double().mean())


def _norm(entry: MatrixEntry, device: torch.device) -> float:
    squares = sum(sum_of_squares(values) for _, values in entry.blocks(device))
    if not math.isfinite(squares):
        raise nonfinite_error(entry.tensor, Side.BASE)
    return math.sqrt(squares)


def read_weights(sides: MatrixSides, device: torch.device) -> Tensor:
    """Return the fine-tuned weights of a matrix, (m, n), in float32 or float64."""
    stored = _subtract(None, sides.finetuned, device, measure_rounding=False).matrix
    assert isinstance(stored, Tensor)
    if sides.update is None:
        return stored
    return stored.double().add_(_as_dense(read_added(sides, sides.update, device))[: len(stored)])


def _count_nonzero(block: Tensor) -> int:
    # Not by torch.count_nonzero: it branches at every entry, and is ten times slower where
    # zeros are frequent (measured, CPU). A block has less entries than float32 can count.
    return int(torch.ne(block, 0, out=torch.empty_like(block)).sum())


def _same_bytes(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def _refuse_nonfinite(
    block: Tensor, sides: Sequence[MatrixEntry], values: Sequence[Tensor]
) -> None:
    if is_finite(block, _LARGEST):
        return
    for side, entry, stored in zip((Side.FINETUNED, Side.BASE), sides, values, strict=False):
        if not is_finite(stored):
            raise nonfinite_error(entry.tensor, side)
    raise _overflow(sides[0].tensor)


def _overflow(entry: TensorEntry) -> NonFiniteError:
    return NonFiniteError(f"tensor {entry.name!r}: the update overflows")
