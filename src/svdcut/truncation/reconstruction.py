"""Rows of a result: base plus a cut update, or a matrix as the fine-tuned side has it.

It computes them block by block, and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from svdcut.streaming.stored_matrix import (
    MatrixEntry,
)
from svdcut.streaming.update import MatrixSides, read_added
from svdcut.svd.product import rows_of


@dataclass(frozen=True, slots=True)
class Rows:
    """A block of rows of a result."""

    stored: Tensor
    intended: Tensor
    """In float64 where storage or a side is wider than 16 bits, else in float32."""


def compose(
    base: MatrixEntry,
    factors: tuple[Tensor, Tensor],
    factor: float,
    stored: torch.dtype,
    *,
    is_wide: bool,
) -> Iterator[Rows]:
    """Yield ``base + factor * left @ right`` in blocks of rows, one where the other lay.

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
    """Yield the rows of a matrix as they are, but for the dtype."""
    for _, values in entry.blocks(torch.device("cpu")):
        yield Rows(values.to(stored), values)


def merged_rows(
    sides: MatrixSides, device: torch.device, stored: torch.dtype, *, new: bool = False
) -> Iterator[Rows]:
    """Yield the fine-tuned rows of a matrix: with what an adapter adds, all or the new ones.

    Parameters
    ----------
    sides : MatrixSides
        Where they lie.
    device : torch.device
        Where to compute.
    stored : torch.dtype
        Of the stored rows.
    new : bool
        Whether those alone are wanted that base lacks.
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
