"""The update of one matrix: read both sides, subtract, measure.

One matrix at a time, on the device. It decomposes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from svdcut.errors import NonFiniteError
from svdcut.sink import TensorSink
from svdcut.svd.decomposition import row_blocks
from svdcut.tensorfile import Dtype, TensorEntry, read_bytes, size_bytes

TORCH_DTYPES = {
    Dtype.F16: torch.float16,
    Dtype.BF16: torch.bfloat16,
    Dtype.F32: torch.float32,
    Dtype.F64: torch.float64,
}

_PRECISION_BITS = {Dtype.F16: 11, Dtype.BF16: 8, Dtype.F32: 24, Dtype.F64: 53}
"""Bits of the significand, the hidden one included."""


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
        start = size_bytes(dtype, (self.first,))
        buffer = read_bytes(self.tensor, start, start + size_bytes(dtype, self.shape))
        flat = torch.frombuffer(buffer, dtype=TORCH_DTYPES[dtype])
        return flat.reshape(self.shape).to(device)


@dataclass(frozen=True, slots=True)
class Update:
    """``finetuned - base`` of one matrix, with what storage says of it."""

    base: Tensor
    """(m, n), stored dtype."""

    matrix: Tensor
    """(m, n), float32, or float64 where a side is."""

    zero_fraction: float
    equal_bytes: bool
    """Whether the two sides are stored alike to the last bit."""

    rounding_rms: float
    """Root mean square of the rounding error that storage explains, per entry."""


def read_update(
    base: MatrixEntry, finetuned: MatrixEntry, device: torch.device, *, measure_rounding: bool
) -> Update:
    """Read one matrix of both sides and subtract.

    Parameters
    ----------
    base, finetuned : MatrixEntry
        Of one shape.
    device : torch.device
        Where to put it.
    measure_rounding : bool
        Whether `rounding_rms` is wanted; it is 0 otherwise.

    Returns
    -------
    Update
        Subtracted in float32, which is exact for 16-bit pairs unless their
        exponents differ by more than 16, or in float64 where a side is.

    Raises
    ------
    NonFiniteError
        If a side holds NaN or infinity, or their difference overflows.
    """
    ours, theirs = finetuned.read(device), base.read(device)
    wide = torch.float64 in (ours.dtype, theirs.dtype)
    dtype = torch.float64 if wide else torch.float32
    # A copy of its own even where the dtype is right: the buffer is Python's.
    matrix = ours.to(dtype, copy=True).sub_(theirs.to(dtype))
    largest = float(matrix.abs().max())
    if not largest < _LARGEST:
        _refuse_nonfinite(finetuned, ours, Side.FINETUNED)
        _refuse_nonfinite(base, theirs, Side.BASE)
        raise NonFiniteError(f"tensor {finetuned.tensor.name!r}: the update overflows")
    rounding = 0.0
    if measure_rounding:
        rounding = _rounding_square(ours, finetuned.tensor.dtype)
        rounding += _rounding_square(theirs, base.tensor.dtype)
    nonzeros = int(torch.count_nonzero(matrix))
    return Update(
        base=theirs,
        matrix=matrix,
        zero_fraction=1 - nonzeros / matrix.numel(),
        # Zeros differ in sign without a difference in value.
        equal_bytes=nonzeros == 0
        and ours.dtype == theirs.dtype
        and torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8)),
        rounding_rms=math.sqrt(rounding),
    )


def _refuse_nonfinite(entry: MatrixEntry, values: Tensor, side: Side) -> None:
    if not bool(torch.isfinite(values).all()):
        raise nonfinite_error(entry.tensor, side)


def nonfinite_error(entry: TensorEntry, side: Side) -> NonFiniteError:
    """Return the error to raise where a tensor of a side holds NaN or infinity."""
    return NonFiniteError(
        f"tensor {entry.name!r} of {side.value} holds NaN or infinity ({entry.path})",
        hint="The checkpoint is damaged, or training diverged: nothing can be made of it.",
    )


def _rounding_square(values: Tensor, dtype: Dtype) -> float:
    """Return the mean square of a rounding error, uniform within one unit in the last place."""
    bits = _PRECISION_BITS[dtype]
    total = 0.0
    for start, stop in row_blocks(*values.shape):
        block = values[start:stop].double()
        exponents = torch.frexp(block)[1].double()
        units = torch.exp2(exponents - bits)
        total += float(units.square_().mul_(block != 0).sum())
    return total / 12 / values.numel()


@dataclass(frozen=True, slots=True)
class Rows:
    """A block of rows of a result."""

    stored: Tensor
    intended: Tensor
    """In float64 where storage or a side is wider than 16 bits, else in float32."""


def compose(
    update: Update, factors: tuple[Tensor, Tensor], factor: float, dtype: torch.dtype
) -> Iterator[Rows]:
    """Yield ``base + factor * left @ right`` in blocks of about 32 MB.

    Parameters
    ----------
    update : Update
        For its base.
    factors : tuple of Tensor
        `left` (m, k) and `right` (k, n).
    factor : float
        Scale of the product.
    dtype : torch.dtype
        Of the stored rows.
    """
    left, right = factors
    narrow = dtype in (torch.float16, torch.bfloat16)
    work = torch.float32 if narrow and update.matrix.dtype == torch.float32 else torch.float64
    right = right.to(work)
    for start, stop in row_blocks(*update.base.shape):
        base = update.base[start:stop].to(work)
        if right.shape[0] == 0:
            # Adding a zero would turn -0 into 0.
            yield Rows(base.to(dtype), base)
            continue
        intended = (left[start:stop].to(work) @ right).mul_(factor).add_(base)
        yield Rows(intended.to(dtype), intended)


def write_values(sink: TensorSink, values: Tensor) -> None:
    """Write the elements of a tensor, in order."""
    flat = values.contiguous().cpu().reshape(-1).view(torch.uint8)
    sink.write(flat.numpy().data)
