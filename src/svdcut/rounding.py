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

_SMALLEST_EXPONENT = {Dtype.F16: -14, Dtype.BF16: -126, Dtype.F32: -126, Dtype.F64: -1022}
"""Of normal numbers; the spacing of subnormal ones is that of the smallest of these."""

_EXPONENT_BITS = {
    Dtype.F16: (torch.int16, 0x7C00),
    Dtype.BF16: (torch.int16, 0x7F80),
    Dtype.F32: (torch.int32, 0x7F80_0000),
    Dtype.F64: (torch.int64, 0x7FF0_0000_0000_0000),
}
"""How to look at the bits of a number, and which of them are its exponent."""

_PART = 1 << 18
"""Entries that are looked at at once: temporaries in float64 stay in the cache."""


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
        step = max(1, _PART // max(1, update.shape[1]))
        for start in range(0, len(update), step):
            part = slice(start, start + step)
            self._add(rows.start + start, [side[part] for side in sides], update[part])

    def _add(self, first: int, sides: Sequence[Tensor], update: Tensor) -> None:
        units = [
            _square_units(side, dtype) for side, dtype in zip(sides, self._dtypes, strict=True)
        ]
        variances = sum(units[1:], units[0]) / 12
        self._sum(0, first, variances)
        if len(units) == 1:
            return
        unit = torch.maximum(*units)
        squares = update.double().square()
        self._sum(1, first, torch.where(squares <= unit, squares, variances))
        self._within += float(torch.minimum(squares, unit).sum())

    def _sum(self, kind: int, first: int, values: Tensor) -> None:
        self._rows[kind, first : first + len(values)] = values.sum(1)
        self._columns[kind] += values.sum(0)

    def storage(self, zero_fraction: float) -> Storage:
        """Return what was found; all rows must have been seen.

        Parameters
        ----------
        zero_fraction : float
            Share of the update's entries that are exactly zero.
        """
        margins = [
            Margins(tuple(rows.tolist()), tuple(columns.tolist()))
            for rows, columns in zip(self._rows, self._columns, strict=True)
        ]
        if len(margins) == 1:
            return Storage(margins[0])
        return Storage(margins[0], margins[1], zero_fraction, self._within)


def _square_units(values: Tensor, dtype: Dtype) -> Tensor:
    """Return the squares of the units in the last place, in float64; 0 for a zero."""
    kind, mask = _EXPONENT_BITS[dtype]
    # A number without its sign and significand is the power of two at or below it.
    powers = values.view(kind).bitwise_and(mask).view(values.dtype).double()
    powers.clamp_min_(2.0 ** _SMALLEST_EXPONENT[dtype])
    units = powers.mul_(2.0 ** (1 - _PRECISION_BITS[dtype]))
    return units.square_().mul_(values != 0)
