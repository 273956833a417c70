"""Measure how storage rounds a matrix, in one pass over blocks of its rows.

The noise edge is computed from these sums, in `svdcut.choose.noise`. It reads no files.
"""

from __future__ import annotations

import torch
from torch import Tensor

from svdcut.choose.noise import Margins, Storage

_HARMLESS = 2.0**-40
"""Values between this and its inverse have squares that float32 holds."""

_EXPONENT_BITS = {
    torch.float16: (torch.int16, 0x7C00),
    torch.bfloat16: (torch.int16, 0x7F80),
    torch.float32: (torch.int32, 0x7F80_0000),
    torch.float64: (torch.int64, 0x7FF0_0000_0000_0000),
}
"""The integer type that shows the bits of each dtype, and the mask of its exponent."""


class RoundingMeter:
    """Accumulates the rounding statistics of a matrix, block by block.

    Parameters
    ----------
    shape : tuple of int
        (m, n) of the whole matrix.
    device : torch.device
        Where the blocks are.
    """

    def __init__(self, shape: tuple[int, int], device: torch.device) -> None:
        self._rows, self._columns = (
            torch.zeros(2, size, dtype=torch.float64, device=device) for size in shape
        )
        self._within = 0.0

    def add(self, rows: slice, stored: Tensor, update: Tensor | None) -> None:
        """Add a block of rows.

        Parameters
        ----------
        rows : slice
            Which rows it has.
        stored : Tensor
            Values of the fine-tuned side, in their own dtype.
        update : Tensor or None
            What they differ from base's by; None for weights alone.
        """
        unit = _square_units(stored, _work_dtype(stored, update))
        self._sum(0, rows, unit)
        if update is None:
            return
        squares = update.to(unit.dtype).square()
        self._within += float(torch.minimum(squares, unit).sum())
        # By arithmetic: torch.where branches, and is thirty times slower (measured, CPU).
        within = torch.le(squares, unit, out=torch.empty_like(squares))
        # By twelve, as the sums of both are divided by that.
        self._sum(1, rows, squares.mul_(12).sub_(unit).mul_(within).add_(unit))

    def _sum(self, kind: int, rows: slice, values: Tensor) -> None:
        self._rows[kind, rows] = values.sum(1).double()
        self._columns[kind] += values.sum(0)

    def storage(self, zero_fraction: float | None) -> Storage:
        """Return what was found; all rows must have been seen.

        Parameters
        ----------
        zero_fraction : float or None
            Share of the update's entries that are exactly zero; None for weights alone.
        """
        rounding, observed = (
            Margins(rows.cpu().numpy() / 12, columns.cpu().numpy() / 12)
            for rows, columns in zip(self._rows, self._columns, strict=True)
        )
        if zero_fraction is None:
            return Storage(rounding)
        return Storage(rounding, observed, zero_fraction, self._within)


def _work_dtype(stored: Tensor, update: Tensor | None) -> torch.dtype:
    """Return float32 where it holds the squares of all units that matter, as it is faster."""
    if stored.itemsize > 2:
        return torch.float64
    values = [stored] if update is None else [stored, update]
    largest = max(abs(float(end)) for side in values for end in torch.aminmax(side))
    return torch.float32 if _HARMLESS < largest < 1 / _HARMLESS else torch.float64


def _square_units(values: Tensor, work: torch.dtype) -> Tensor:
    """Return the squares of the units in the last place; 0 for a zero."""
    kind, mask = _EXPONENT_BITS[values.dtype]
    info = torch.finfo(values.dtype)
    # A number without its sign and significand is the power of two at or below it.
    powers = values.view(kind).bitwise_and(mask).view(values.dtype).to(work)
    if values.dtype is torch.float16:
        # Subnormal numbers are spaced as the smallest normal ones. In the other dtypes they
        # are so small that their units are nothing beside any other.
        powers.clamp_min_(info.smallest_normal).mul_(values != 0)
    return powers.mul_(info.eps).square_()
