"""The update of one matrix: read both sides, subtract, measure. Or its weights, of one side.

One matrix at a time, on the device. It decomposes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from svdcut.device import host_buffer
from svdcut.errors import NonFiniteError
from svdcut.noise import Storage
from svdcut.pairing import Pair
from svdcut.rounding import RoundingMeter
from svdcut.sink import TensorSink
from svdcut.svd.decomposition import row_blocks, sum_of_squares
from svdcut.tensorfile import Dtype, TensorEntry, read_bytes, read_into, size_bytes

TORCH_DTYPES = {
    Dtype.F16: torch.float16,
    Dtype.BF16: torch.bfloat16,
    Dtype.F32: torch.float32,
    Dtype.F64: torch.float64,
}

_BLOCK_BYTES = {"cpu": 2 << 20, "cuda": 128 << 20}
"""Of a block of rows in float64. Small ones stay in the cache of a processor."""

_LARGEST = 2.0**1000
"""Room for norms below the end of float64."""


class Side(Enum):
    """The two checkpoints, as messages call them."""

    BASE = "base"
    FINETUNED = "the fine-tuned side"


@dataclass(frozen=True, slots=True)
class MatrixEntry:
    """Consecutive rows of a stored tensor, seen as a matrix."""

    tensor: TensorEntry
    first: int
    """Offset of the first element, in elements."""

    shape: tuple[int, int]

    def read(self, device: torch.device) -> Tensor:
        """Return the matrix, (m, n), in its stored dtype."""
        dtype = self.tensor.dtype
        data = read_bytes(self.tensor, *self._range(0, self.shape[0]))
        return torch.frombuffer(data, dtype=TORCH_DTYPES[dtype]).reshape(self.shape).to(device)

    def blocks(self, device: torch.device) -> Iterator[tuple[slice, Tensor]]:
        """Yield the matrix in blocks of rows, in its stored dtype.

        On the CPU, each lies where the one before it lay.
        """
        ranges = row_blocks(*self.shape, num_bytes=_BLOCK_BYTES[device.type])
        begin, end = self._range(*ranges[0]) if ranges else (0, 0)
        buffer = host_buffer(end - begin, device)
        for start, stop in ranges:
            begin, end = self._range(start, stop)
            data = buffer[: end - begin]
            read_into(self.tensor, begin, data.numpy().data)
            values = data.view(TORCH_DTYPES[self.tensor.dtype]).reshape(-1, self.shape[1])
            yield slice(start, stop), values.to(device)

    def _range(self, start: int, stop: int) -> tuple[int, int]:
        """Return where some rows begin and end in the tensor, in bytes."""
        first, columns = self.first, self.shape[1]
        begin, end = (
            size_bytes(self.tensor.dtype, (first + row * columns,)) for row in (start, stop)
        )
        return begin, end


def matrix_entries(pair: Pair) -> Iterator[tuple[MatrixEntry | None, MatrixEntry]]:
    """Yield base's and the fine-tuned side's entry of each matrix of a tensor."""
    base = pair.base
    for number, shape in enumerate(pair.matrices):
        first = number * math.prod(shape)
        ours = None if base is None else MatrixEntry(base, first, shape)
        yield ours, MatrixEntry(pair.finetuned, first, shape)


@dataclass(frozen=True, slots=True)
class Update:
    """``finetuned - base`` of one matrix, with what storage says of it."""

    base: MatrixEntry | None
    """None where nothing was subtracted: `matrix` is the weights."""

    matrix: Tensor
    """(m, n), float32, or float64 where a side is."""

    zero_fraction: float
    equal_bytes: bool
    """Whether the two sides are stored alike to the last bit."""

    storage: Storage | None
    """What the stored values tell of their rounding, if that was asked."""

    base_norm: float
    """Frobenius norm of base's matrix."""


def read_update(
    base: MatrixEntry | None,
    finetuned: MatrixEntry,
    device: torch.device,
    *,
    measure_rounding: bool,
    exact: bool = False,
) -> Update:
    """Read one matrix of both sides and subtract.

    Parameters
    ----------
    base : MatrixEntry or None
        Of the same shape; None subtracts nothing.
    finetuned : MatrixEntry
        What it is subtracted from.
    device : torch.device
        Where to put it.
    measure_rounding : bool
        Whether `storage` and `base_norm` are wanted; they are None and 0 otherwise.
    exact : bool
        Whether to subtract float32 in float64, for the sake of small singular values.

    Returns
    -------
    Update
        Subtracted in float32, which is exact for 16-bit pairs unless their
        exponents differ by more than 16, or in float64 where a side is.
        For float32 that rounds where an entry of the update is larger than its weight.

    Raises
    ------
    NonFiniteError
        If a side holds NaN or infinity, or their difference overflows.
    """
    sides = (finetuned,) if base is None else (finetuned, base)
    dtypes = {side.tensor.dtype for side in sides}
    wide = Dtype.F64 in dtypes or (exact and len(sides) > 1 and Dtype.F32 in dtypes)
    dtype = torch.float64 if wide else torch.float32
    matrix = torch.empty(finetuned.shape, dtype=dtype, device=device)
    alike = base is not None and finetuned.tensor.dtype is base.tensor.dtype
    nonzeros, base_squares = 0, 0.0
    types = [side.tensor.dtype for side in sides]
    meter = RoundingMeter(finetuned.shape, types, device) if measure_rounding else None
    for blocks in zip(*(side.blocks(device) for side in sides), strict=True):
        rows, ours = blocks[0]
        block = matrix[rows].copy_(ours)
        values = [ours, *(theirs for _, theirs in blocks[1:])]
        for theirs in values[1:]:
            block.sub_(theirs)
        _refuse_nonfinite(block, sides, values)
        nonzeros += _count_nonzero(block)
        # Zeros differ in sign without a difference in value.
        alike = alike and nonzeros == 0 and _same_bytes(ours, values[-1])
        if meter is not None:
            meter.add(rows, values, block)
            base_squares += sum(sum_of_squares(theirs) for theirs in values[1:])
    zero_fraction = 1 - nonzeros / matrix.numel()
    return Update(
        base=base,
        matrix=matrix,
        zero_fraction=zero_fraction,
        equal_bytes=alike,
        storage=meter.storage(zero_fraction) if meter is not None else None,
        base_norm=math.sqrt(base_squares),
    )


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
    raise NonFiniteError(f"tensor {sides[0].tensor.name!r}: the update overflows")


def is_finite(values: Tensor, bound: float = math.inf) -> bool:
    """Whether all values are below a bound in size; a NaN is not.

    Many times faster than ``isfinite`` (measured, CPU).
    """
    smallest, largest = torch.aminmax(values)  # NaN, if there is one
    return float(smallest) > -bound and float(largest) < bound


def nonfinite_error(entry: TensorEntry, side: Side) -> NonFiniteError:
    """Return the error to raise where a tensor of a side holds NaN or infinity."""
    return NonFiniteError(
        f"tensor {entry.name!r} of {side.value} holds NaN or infinity ({entry.path})",
        hint="The checkpoint is damaged, or training diverged: nothing can be made of it.",
    )


@dataclass(frozen=True, slots=True)
class Rows:
    """A block of rows of a result."""

    stored: Tensor
    intended: Tensor
    """In float64 where storage or a side is wider than 16 bits, else in float32."""


def compose(
    update: Update, factors: tuple[Tensor, Tensor], factor: float, stored: torch.dtype
) -> Iterator[Rows]:
    """Yield ``base + factor * left @ right`` in blocks of rows, one where the other lay.

    Parameters
    ----------
    update : Update
        For its base, which is read again: the system has it in its cache.
    factors : tuple of Tensor
        `left` (m, k) and `right` (k, n).
    factor : float
        Scale of the product.
    stored : torch.dtype
        Of the stored rows.
    """
    assert update.base is not None
    left, right = factors
    narrow = stored.itemsize == 2 and update.matrix.dtype == torch.float32
    work = torch.float32 if narrow else torch.float64
    right = right.to(work) * factor
    whole = torch.empty(0, dtype=work, device=left.device)
    for rows, values in update.base.blocks(left.device):
        if not len(whole):
            whole = torch.empty_like(values, dtype=work)
        intended = whole[: len(values)].copy_(values)
        if len(right):  # adding a zero would turn -0 into 0
            intended.addmm_(left[rows].to(work), right)
        yield Rows(intended.to(stored), intended)


def copy_rows(entry: MatrixEntry, stored: torch.dtype) -> Iterator[Rows]:
    """Yield the rows of a matrix as they are, but for the dtype."""
    for _, values in entry.blocks(torch.device("cpu")):
        yield Rows(values.to(stored), values)


def write_values(sink: TensorSink, values: Tensor) -> None:
    """Write the elements of a tensor, in order."""
    flat = values.contiguous().cpu().reshape(-1).view(torch.uint8)
    sink.write(flat.numpy().data)
