"""Matrices with a known spectrum, as the tests of the numerics need them.

Singular vectors are random and orthonormal in float64; nothing here decomposes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Random orthonormal columns, (rows, columns), float64."""
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64)).Q


def with_spectrum(
    m: int, n: int, s: Tensor, *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """An (m, n) matrix with the singular values `s`, up to the rounding of `dtype`."""
    generator = torch.Generator().manual_seed(seed)
    u, v = orthonormal(m, len(s), generator), orthonormal(n, len(s), generator)
    return ((u * s.double()) @ v.T).to(dtype)


def power_law(r: int, exponent: float = 1.0) -> Tensor:
    """1, 2**-exponent, 3**-exponent, ..."""
    return torch.arange(1, r + 1, dtype=torch.float64) ** -exponent


def flat(r: int) -> Tensor:
    """All values equal."""
    return torch.ones(r, dtype=torch.float64)


def head_over_flat_tail(r: int, head: int = 12, tail: float = 0.05) -> Tensor:
    """Some large values over a tail of equal ones."""
    head = min(head, r)
    return torch.cat((torch.linspace(1, 4 * tail, head).double(), tail * flat(r - head)))


def repeated(r: int, copies: int, below: float = 0.01) -> Tensor:
    """One value `copies` times over a power law far below."""
    copies = min(copies, r)
    return torch.cat((flat(copies), below * power_law(r - copies, 0.5)))


def deficient(r: int, rank: int) -> Tensor:
    """`rank` values that are not zero."""
    return torch.cat((power_law(rank, 0.7), torch.zeros(r - rank, dtype=torch.float64)))


def nearly_deficient(r: int, rank: int, tail: float = 1e-7) -> Tensor:
    """`rank` large values over a tail at the edge of float32."""
    return torch.cat((power_law(rank, 0.7), tail * flat(r - rank)))


def noise(m: int, n: int, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """White noise, entries of unit variance."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(m, n, generator=generator, dtype=torch.float64).to(dtype)


def merged(m: int, n: int, rank: int, dtype: torch.dtype, *, strength: float = 4e-3) -> Tensor:
    """A LoRA update as it is after it was merged into weights of a dtype; in float64."""
    base = 0.02 * noise(m, n, seed=1, dtype=torch.float64)
    left = noise(m, rank, seed=2, dtype=torch.float64)
    update = strength * left @ noise(rank, n, seed=3, dtype=torch.float64)
    return (base.to(dtype).double() + update).to(dtype).double() - base.to(dtype).double()


def hadamard(n: int) -> Tensor:
    """A matrix of 1 and -1 with columns at right angles, n a power of two; float64."""
    h = torch.ones(1, 1, dtype=torch.float64)
    while len(h) < n:
        h = torch.cat((torch.cat((h, h), dim=1), torch.cat((h, -h), dim=1)))
    return h


SPECTRA = {
    "power": power_law,
    "steep": lambda r: power_law(r, 2.0),
    "flat": flat,
    "flat_tail": head_over_flat_tail,
    "repeated40": lambda r: repeated(r, 40),
    "repeated100": lambda r: repeated(r, 100),
    "deficient": lambda r: deficient(r, max(1, r // 8)),
    "nearly_deficient": lambda r: nearly_deficient(r, max(1, r // 8)),
}
"""Singular values of each kind, for r of them."""


@dataclass(frozen=True)
class Case:
    """One matrix of the tests, built on demand."""

    kind: str
    m: int
    n: int
    dtype: torch.dtype = torch.float32
    scale: float = 1.0

    def build(self) -> Tensor:
        """The matrix, (m, n)."""
        if self.kind == "noise":
            a = noise(self.m, self.n, seed=7, dtype=torch.float64)
        else:
            s = SPECTRA[self.kind](min(self.m, self.n))
            a = with_spectrum(self.m, self.n, s, seed=7, dtype=torch.float64)
        return (a * self.scale).to(self.dtype)

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.kind}-{self.m}x{self.n}-{dtype}-{self.scale:g}"
