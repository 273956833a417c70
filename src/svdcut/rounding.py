"""What storage rounds: sums over the stored values that the noise edge is made from.

One pass over blocks of rows, on their device. It reads no files and knows no edge.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from svdcut.noise import Margins, Storage
from svdcut.tensorfile import Dtype

_PRECISION_BITS = {Dtype.F16: 11, Dtype.BF16: 8, Dtype.F32: 24, Dtype.F64: 53}
"""Bits of the significand, the hidden one included."""

_SMALLEST_HALF = 2.0**-14
"""Of normal numbers in float16; the spacing of subnormal ones is that of the smallest of these.

In the other types they are so small that their units are nothing beside any other."""

_HARMLESS = 2.0**-40
"""Values up to the inverse of it, and from it on, leave float32 room for squares."""

_EXPONENT_BITS = {
    Dtype.F16: (torch.int16, 0x7C00),
    Dtype.BF16: (torch.int16, 0x7F80),
    Dtype.F32: (torch.int32, 0x7F80_0000),
    Dtype.F64: (torch.int64, 0x7FF0_0000_0000_0000),
}
"""How to look at the bits of a number, and which of them are its exponent."""


class RoundingMeter:
    """Sums up what blocks of rows tell of their rounding.

    Parameters
    ----------
    shape : tuple of int
        (m, n) of the whole matrix.
    dtypes : sequence of Dtype
        Of the fine-tuned side and of base, or of weights alone.
    device : torch.device
        Where the blocks are.
    """

    def __init__(
        self, shape: tuple[int, int], dtypes: Sequence[Dtype], device: torch.device
    ) -> None:
        self._dtypes = dtypes
        self._rows = torch.zeros(len(dtypes), shape[0], dtype=torch.float64, device=device)
        self._columns = torch.zeros(len(dtypes), shape[1], dtype=torch.float64, device=device)
        self._within = 0.0

    def add(self, rows: slice, sides: Sequence[Tensor], update: Tensor) -> None:
        """Take a block in.

        Parameters
        ----------
        rows : slice
            Which rows it has.
        sides : sequence of Tensor
            Stored values of each side.
        update : Tensor
            Their difference.
        """
        work = _work_dtype(sides)
        pairs = zip(sides, self._dtypes, strict=True)
        units = [_square_units(side, dtype, work) for side, dtype in pairs]
        if len(units) == 1:
            self._sum(0, rows, units[0])
            return
        unit = torch.maximum(*units)
        both = units[0].add_(units[1])
        self._sum(0, rows, both)
        squares = update.to(work).square()
        self._within += float(torch.minimum(squares, unit).sum())
        # By arithmetic: torch.where branches, and is thirty times slower (measured, CPU).
        within = torch.le(squares, unit, out=torch.empty_like(squares))
        # By twelve, as the sums of both are divided by that.
        self._sum(1, rows, squares.mul_(12).sub_(both).mul_(within).add_(both))

    def _sum(self, kind: int, rows: slice, values: Tensor) -> None:
        self._rows[kind, rows] = values.sum(1).double()
        self._columns[kind] += values.sum(0)

    def storage(self, zero_fraction: float) -> Storage:
        """Return what was found; all rows must have been seen.

        Parameters
        ----------
        zero_fraction : float
            Share of the update's entries that are exactly zero.
        """
        margins = [
            Margins(rows.cpu().numpy() / 12, columns.cpu().numpy() / 12)
            for rows, columns in zip(self._rows, self._columns, strict=True)
        ]
        if len(margins) == 1:
            return Storage(margins[0])
        return Storage(margins[0], margins[1], zero_fraction, self._within)


def _work_dtype(sides: Sequence[Tensor]) -> torch.dtype:
    """Return float32 where it holds the squares of all units that matter, as it is faster."""
    if any(side.itemsize > 2 for side in sides):
        return torch.float64
    ends = [float(end) for side in sides for end in torch.aminmax(side)]
    largest = max(map(abs, ends))
    return torch.float32 if _HARMLESS < largest < 1 / _HARMLESS else torch.float64


def _square_units(values: Tensor, dtype: Dtype, work: torch.dtype) -> Tensor:
    """Return the squares of the units in the last place, in a dtype; 0 for a zero."""
    kind, mask = _EXPONENT_BITS[dtype]
    # A number without its sign and significand is the power of two at or below it.
    powers = values.view(kind).bitwise_and(mask).view(values.dtype).to(work)
    if dtype is Dtype.F16:  # the one whose subnormal numbers are met
        powers.clamp_min_(_SMALLEST_HALF).mul_(values != 0)
    return powers.mul_(2.0 ** (1 - _PRECISION_BITS[dtype])).square_()
