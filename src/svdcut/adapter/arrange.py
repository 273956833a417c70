"""Thin factors, arranged as PEFT stores them. The one module of the package with torch.

Source: peft 0.21.2, tuners/lora/layer.py, get_delta_weight of each kind of layer.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from svdcut.adapter.layout import Slot
from svdcut.adapter.places import Kind, Matrix

Factors = Mapping[Matrix, tuple[Tensor, Tensor]]
"""By matrix: (rows, rank) and (rank, columns), whose product is the truncated update."""

_TRANSPOSED = frozenset({Kind.EMBEDDING, Kind.CONV1D, Kind.TRANSPOSED_STACK})


def arrange(slot: Slot, factors: Factors) -> tuple[Tensor, Tensor]:
    """Return the two tensors of a slot.

    Parameters
    ----------
    slot : Slot
        Where they go.
    factors : mapping of Matrix to (Tensor, Tensor)
        Of every part of the slot with a rank above 0.

    Returns
    -------
    (Tensor, Tensor)
        A and B, contiguous, of the slot's shapes and the factors' dtype.
    """
    experts = [_expert(slot, number, factors) for number in range(len(slot.experts))]
    first = torch.stack([a for a, _ in experts])
    second = torch.stack([b for _, b in experts])
    # Rows of A go by expert, then by rank; columns of B by rank, then by expert.
    a = first.flatten(0, 1).reshape(slot.shape_a)
    b = second.permute(1, 2, 0).flatten(1).reshape(slot.shape_b)
    return a.contiguous(), b.contiguous()


def _expert(slot: Slot, number: int, factors: Factors) -> tuple[Tensor, Tensor]:
    """Return A, (rank, in), and B, (out, rank), of one matrix, its parts below each other."""
    parts = slot.experts[number]
    some = next(iter(factors.values()))[0]
    left = some.new_zeros(sum(part.matrix.rows for part in parts), slot.rank)
    right = some.new_zeros(slot.rank, parts[0].matrix.columns)
    row = triplet = 0
    for part in parts:
        if part.rank:
            ours = slice(triplet, triplet + part.rank)
            thin, wide = factors[part.matrix]
            left[row : row + part.matrix.rows, ours] = thin
            right[ours] = wide
        row += part.matrix.rows
        triplet += part.rank
    return (left.T, right.T) if slot.kind in _TRANSPOSED else (right, left)
