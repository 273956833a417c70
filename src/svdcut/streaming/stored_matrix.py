"""The matrices of a stored tensor: where they lie, their values in blocks, and back to bytes.

`matrix_sides` alone says which matrices a tensor has; their shapes are `Pair.matrices`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from svdcut.device import host_buffer
from svdcut.errors import NonFiniteError
from svdcut.files.lora_factors import LowRankEntry
from svdcut.files.tensorfile import Dtype, TensorEntry, read_bytes, read_into, size_bytes
from svdcut.pair.pairing import Pair
from svdcut.svd.decomposition import row_blocks

TORCH_DTYPES = {
    Dtype.F16: torch.float16,
    Dtype.BF16: torch.bfloat16,
    Dtype.F32: torch.float32,
    Dtype.F64: torch.float64,
}


class Side(Enum):
    """The two checkpoints, as messages call them."""

    BASE = "base"
    FINETUNED = "the fine-tuned side"


@dataclass(frozen=True, slots=True)
class MatrixEntry:
    """Consecutive rows of a stored tensor, seen as a matrix."""

    tensor: TensorEntry
    first: int
    """Index of the first element in the tensor."""

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
        ranges = row_blocks(self.shape, device)
        begin, end = self._range(*ranges[0]) if ranges else (0, 0)
        buffer = host_buffer(end - begin, device)
        for start, stop in ranges:
            begin, end = self._range(start, stop)
            data = buffer[: end - begin]
            read_into(self.tensor, begin, data.numpy().data)
            values = data.view(TORCH_DTYPES[self.tensor.dtype]).reshape(-1, self.shape[1])
            yield slice(start, stop), values.to(device)

    def following(self, count: int) -> MatrixEntry:
        """Return the rows that follow in the tensor."""
        m, n = self.shape
        return MatrixEntry(self.tensor, self.first + m * n, (count, n))

    def with_following(self, count: int) -> MatrixEntry:
        """Return these rows and those that follow."""
        m, n = self.shape
        return MatrixEntry(self.tensor, self.first, (m + count, n))

    def _range(self, start: int, stop: int) -> tuple[int, int]:
        """Return where some rows begin and end in the tensor, in bytes."""
        first, columns = self.first, self.shape[1]
        begin, end = (
            size_bytes(self.tensor.dtype, (first + row * columns,)) for row in (start, stop)
        )
        return begin, end


@dataclass(frozen=True, slots=True)
class MatrixSides:
    """Where one matrix of a tensor lies on both sides."""

    base: MatrixEntry | None
    finetuned: MatrixEntry
    """With an adapter, base's own matrix, unless the adapter stores the tensor whole too."""

    update: LowRankEntry | None = None
    """The update that an adapter adds to `finetuned` and to the rows that base lacks."""

    number: int = 0
    """Index of the matrix in the tensor."""

    new_rows: int = 0
    """Number of following rows that base lacks."""


def matrix_sides(pair: Pair) -> Iterator[MatrixSides]:
    """Yield both sides of each matrix of a tensor."""
    first = 0
    for number, shape in enumerate(pair.matrices):
        ours = None if pair.base is None else MatrixEntry(pair.base, first, shape)
        theirs = MatrixEntry(pair.finetuned, first, shape)
        yield MatrixSides(ours, theirs, pair.update, number, pair.new_rows)
        first += math.prod(shape)


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


def to_bytes(values: Tensor) -> memoryview:
    """Return the bytes of the elements of a tensor, in order."""
    flat = values.contiguous().reshape(-1).view(torch.uint8)
    if flat.device.type != "cpu":
        flat = host_buffer(len(flat), flat.device).copy_(flat)
    view: memoryview = flat.numpy().data
    return view
