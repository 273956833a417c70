"""The numbers of an adapter: its factors read as matrices, and matrices arranged as factors.

Where factors lie, and what they are for, is settled before. The one module of the package
with torch. Source: peft 0.21.2, tuners/lora/layer.py, get_delta_weight of each layer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from svdcut.adapter.layout import Slot
from svdcut.adapter.places import Matrix
from svdcut.errors import NonFiniteError
from svdcut.files.jsonfile import quoted
from svdcut.files.lora_factors import LowRankEntry
from svdcut.files.tensorfile import Dtype, TensorEntry, read_bytes, size_bytes

_DTYPES = {
    Dtype.F16: torch.float16,
    Dtype.BF16: torch.bfloat16,
    Dtype.F32: torch.float32,
    Dtype.F64: torch.float64,
}


def read_factors(entry: LowRankEntry, number: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Read the factors of one matrix of a tensor.

    Parameters
    ----------
    entry : LowRankEntry
        The tensor's update.
    number : int
        Which of its matrices, 0 for a tensor that is no stack.
    device : torch.device
        Where to put them.

    Returns
    -------
    left : Tensor
        (m, k), float64, with the scale in it.
    right : Tensor
        (k, n), float64. ``left @ right`` is the update of the matrix as it is stored, (m, n);
        a convolution is (out, rest), and a bias (out, 1).

    Raises
    ------
    NonFiniteError
        If a factor holds NaN or infinity.

    Notes
    -----
    For DoRA it is the inner update only: see `dora_update`. For a stack, all of `b` is read
    for each expert, and its rows of `a`.
    """
    if entry.a is None:
        vector = _read(entry.b, device) * entry.scale
        return vector.reshape(-1, 1), vector.new_ones(1, 1)
    expert = entry.first_expert + number
    first = expert * entry.rank
    a = _read(entry.a, device, rows=slice(first, first + entry.rank)).flatten(1)
    b = _read(entry.b, device, columns=slice(expert, None, entry.experts)).flatten(1)
    b *= entry.scale
    left, right = (a.T, b.T) if entry.transposed else (b, a)
    if entry.rows is not None:
        left = left[slice(*entry.rows)]
    return left.contiguous(), right.contiguous()


def read_magnitude(entry: LowRankEntry, device: torch.device) -> Tensor | None:
    """Return DoRA's norms: (m, 1) of rows, (1, n) of columns; raises as `read_factors`."""
    if entry.magnitude is None:
        return None
    values = _read(entry.magnitude, device)
    return values.reshape((1, -1) if entry.transposed else (-1, 1))


def dora_update(base: Tensor, left: Tensor, right: Tensor, magnitude: Tensor) -> Tensor:
    """Return the update that DoRA makes of a low-rank one; it is of full rank.

    Parameters
    ----------
    base : Tensor
        (m, n), float64.
    left, right : Tensor
        From `read_factors`.
    magnitude : Tensor
        From `read_magnitude`: the norms of the result's rows, (m, 1), or columns, (1, n).

    Returns
    -------
    Tensor
        (m, n). Not finite where a row or column to be scaled is zero, as in PEFT.

    Notes
    -----
    ``magnitude * (base + left @ right) / norm - base``, with the norms of the sum
    (peft.tuners.lora.variants.DoraLinearVariant, 0.21.2).
    """
    result = torch.addmm(base, left, right)
    axis = 1 if magnitude.shape[1] == 1 and magnitude.shape[0] == base.shape[0] else 0
    norms = torch.linalg.vector_norm(result, dim=axis, keepdim=True)
    return result.mul_(magnitude / norms).sub_(base)


def _read(
    entry: TensorEntry,
    device: torch.device,
    *,
    rows: slice | None = None,
    columns: slice | None = None,
) -> Tensor:
    """Return a tensor, or some of its rows or columns: a stack has those of all experts."""
    rows = rows or slice(0, entry.shape[0])
    shape = (rows.stop - rows.start, *entry.shape[1:])
    row = size_bytes(entry.dtype, entry.shape[1:])
    data = read_bytes(entry, row * rows.start, row * rows.stop)
    stored = torch.frombuffer(data, dtype=_DTYPES[entry.dtype]).reshape(shape)
    if columns is not None:
        stored = stored[:, columns]
    values = stored.to(device, torch.float64)
    if not bool(torch.isfinite(values).all()):
        raise NonFiniteError(
            f"{entry.path}: {quoted(entry.name)} holds NaN or infinity",
            hint="The adapter is damaged, or training diverged: nothing can be made of it.",
        )
    return values


def arrange(
    slot: Slot, factors: Callable[[Matrix], tuple[Tensor, Tensor]], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Arrange thin factors as PEFT stores them.

    Parameters
    ----------
    slot : Slot
        Where they go.
    factors : callable
        Returns (rows, rank) and (rank, columns) of a matrix with a rank above 0; their
        product is its truncated update.
    dtype : torch.dtype
        Of the factors.

    Returns
    -------
    (Tensor, Tensor)
        A and B, contiguous, with the slot's shapes.
    """
    pairs = [_arrange_expert(slot, expert, factors, dtype) for expert in slot.place.experts]
    first, second = (torch.stack(side) for side in zip(*pairs, strict=True))
    # Rows of A go by expert, then by rank; columns of B by rank, then by expert.
    a = first.flatten(0, 1).reshape(slot.shapes[0])
    b = second.permute(1, 2, 0).flatten(1).reshape(slot.shapes[1])
    return a.contiguous(), b.contiguous()


def _arrange_expert(
    slot: Slot,
    matrices: tuple[Matrix, ...],
    factors: Callable[[Matrix], tuple[Tensor, Tensor]],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Return A, (rank, in), and B, (out, rank), of one expert, its matrices below each other."""
    left = torch.zeros(sum(matrix.rows for matrix in matrices), slot.rank, dtype=dtype)
    right = torch.zeros(slot.rank, matrices[0].columns, dtype=dtype)
    row = triplet = 0
    for matrix in matrices:
        if matrix.rank:
            ours = slice(triplet, triplet + matrix.rank)
            left[row : row + matrix.rows, ours], right[ours] = factors(matrix)
        row += matrix.rows
        triplet += matrix.rank
    return (left.T, right.T) if slot.place.kind.is_transposed else (right, left)
