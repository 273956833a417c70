"""A matrix given as a product of two thin factors, such as the update of a LoRA adapter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Product:
    """The matrix ``left @ right``, which need not be formed.

    It is the sum of `r` terms: column `i` of `left` times row `i` of `right`. Terms may have
    any scale, if float64 can hold the singular values of the sum.
    """

    left: Tensor
    """(m, r) float64, finite."""

    right: Tensor
    """(r, n) float64, finite."""

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def rank(self) -> int:
        """min(m, n, r): the most that the rank can be."""
        return min(*self.shape, self.left.shape[1])

    @property
    def device(self) -> torch.device:
        """Device of both factors."""
        return self.left.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of both factors."""
        return self.left.dtype

    @property
    def T(self) -> Product:  # noqa: N802 -- as a tensor has it
        """The transpose; nothing is copied."""
        return Product(self.right.T, self.left.T)

    @property
    def size(self) -> float:
        """Largest absolute entry of any term; infinite or NaN if it overflows float64."""
        left = torch.linalg.vector_norm(self.left, math.inf, dim=0)
        right = torch.linalg.vector_norm(self.right, math.inf, dim=1)
        return float((left * right).max())

    def dense(self) -> Tensor:
        """Return the matrix, (m, n): for tests and last resorts."""
        return self.left @ self.right

    def normalised(self) -> tuple[Product, int]:
        """Scale by powers of two so that both factors have a like size and nothing overflows.

        Returns
        -------
        tuple of Product and int
            The scaled product, and the exponent of two that undoes the scaling.

        Notes
        -----
        The largest term gets a size near one, and both parts of a term get the root of its
        size. Rounding is proportional to the product of the norms of the factors, which is
        then near the least that scaling can reach. Scaling is exact, except for terms below
        1e-300 of the largest.
        """
        left = torch.linalg.vector_norm(self.left, math.inf, dim=0).tolist()
        right = torch.linalg.vector_norm(self.right, math.inf, dim=1).tolist()
        sizes = [
            (math.frexp(a)[1], math.frexp(b)[1]) if a and b else None
            for a, b in zip(left, right, strict=True)
        ]
        exponent = max((sum(size) for size in sizes if size), default=0)
        shifts = [_shifts(*size, exponent) if size else None for size in sizes]
        scaled = Product(
            _scale(self.left, [shift and shift[0] for shift in shifts]),
            _scale(self.right.T, [shift and shift[1] for shift in shifts]).T,
        )
        return scaled, exponent


def rows_of(a: Tensor | Product, start: int, stop: int) -> Tensor:
    """Return some rows of a matrix."""
    return a.left[start:stop] @ a.right if isinstance(a, Product) else a[start:stop]


def full_rank(a: Tensor | Product) -> int:
    """Return the most that the rank of a matrix can be."""
    return a.rank if isinstance(a, Product) else min(a.shape)


def _shifts(left: int, right: int, exponent: int) -> tuple[int, int]:
    """Return the powers of two that give both parts of a term the root of its size."""
    size = left + right - exponent
    return size // 2 - left, size - size // 2 - right


def _scale(columns: Tensor, exponents: Sequence[int | None]) -> Tensor:
    """Multiply columns by powers of two; by zero for None."""
    # In two steps: a single factor could itself leave the range of float64.
    steps = [(0.0, 0.0) if e is None else _split_power(e) for e in exponents]
    first, second = columns.new_tensor(steps).reshape(-1, 2).unbind(1)
    return columns * first * second


def _split_power(exponent: int) -> tuple[float, float]:
    half = exponent // 2
    return math.ldexp(1.0, half), math.ldexp(1.0, exponent - half)
