"""Planted updates: known low-rank matrices, stored as checkpoints store them.

The tests of the noise edge and docs/noise.md count with the same tensors. Each is made
from its number alone.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor

from svdcut.choose.noise import storage_edge
from svdcut.files.tensorfile import Dtype
from svdcut.streaming.rounding import RoundingMeter

TORCH = {Dtype.BF16: torch.bfloat16, Dtype.F16: torch.float16, Dtype.F32: torch.float32}
BITS = {Dtype.BF16: 8, Dtype.F16: 11, Dtype.F32: 24}

ON_GRID = "base as stored, tuned, rounded"
BOTH = "both sides rounded"
WIDE = "base in float32"
NARROW = "base in bfloat16"

GROUPS = (
    (Dtype.BF16, ON_GRID),
    (Dtype.BF16, BOTH),
    (Dtype.BF16, WIDE),
    (Dtype.F16, ON_GRID),
    (Dtype.F16, BOTH),
    (Dtype.F16, WIDE),
    (Dtype.F32, ON_GRID),
    (Dtype.F32, NARROW),
)
"""Dtype of the fine-tuned side, and how the pair came to be. The edge does not assume `BOTH`."""

PER_GROUP = 80

SHAPES = (
    (256, 256), (512, 128), (128, 512), (512, 512), (1024, 128), (128, 1024),
    (640, 320), (320, 640), (200, 180), (96, 768), (768, 96),
)  # fmt: skip
RANKS = (1, 1, 2, 3, 4, 6, 8, 12, 16)
SIZES = (0.05, 0.1, 0.3, 0.6, 0.9, 1.1, 1.3, 1.6, 2, 3, 4, 6, 8, 12, 20, 40, 100)
FACTORS = ("normal", "normal", "heavy", "sparse", "patch")


@dataclass(frozen=True)
class Planted:
    """One tensor of the simulation."""

    number: int
    dtype: Dtype
    situation: str
    shape: tuple[int, int]
    rank: int
    row_spread: float
    """Standard deviation of the logarithm of the scale of a row."""

    factors: str
    strengths: tuple[float, ...]
    """Size of each product, in units of the norm of one side's rounding."""


@dataclass(frozen=True)
class Outcome:
    """Result of counting one tensor."""

    count: int
    rank: int
    strong: bool
    """True if every planted value is above 1.2 times the norm of the storage error."""

    zero_fraction: float


def tensor(number: int) -> Planted:
    """Return one tensor of the simulation; groups take turns."""
    # Only `random` itself is promised to stay the same from version to version.
    draw = random.Random(number).random

    def pick(options):
        return options[int(draw() * len(options))]

    dtype, situation = GROUPS[number % len(GROUPS)]
    shape, rank = pick(SHAPES), pick(RANKS)
    row_spread, factors = pick((0.0, 0.0, 0.5, 1.0)), pick(FACTORS)
    if number // len(GROUPS) % 3:
        size, ratio, first = pick(SIZES), pick((1, 1.2, 2, 5)), pick((1, 1, 1, 3, 10))
    else:
        # The smallest just above the edge, the largest anywhere above it.
        rank, ratio, first = max(rank, 2), pick((3, 5, 20, 60)), 1
        size = ratio * (1.2 + 0.5 * draw()) * (math.sqrt(2) if situation == BOTH else 1)
    strengths = [size * ratio ** (-i / max(1, rank - 1)) for i in range(rank)]
    strengths[0] *= first
    return Planted(
        number, dtype, situation, shape, rank, row_spread, factors, tuple(strengths)
    )  # fmt: skip


def planted_factors(kind: str, rows: int, rank: int, generator: torch.Generator) -> Tensor:
    """Return columns of unit norm, (rows, rank)."""
    x = torch.randn(rows, rank, generator=generator, dtype=torch.float64)
    if kind == "heavy":  # Student's law of three degrees of freedom
        spread = torch.randn(3, rows, rank, generator=generator, dtype=torch.float64)
        x /= spread.square().mean(0).sqrt()
    elif kind == "sparse":  # a tenth, of each column another
        keep = torch.rand(rows, rank, generator=generator) < 0.1
        keep[:rank].fill_diagonal_(True)
        x *= keep
    elif kind == "patch":  # a fifth, of all columns the same
        keep = torch.rand(rows, 1, generator=generator) < 0.2
        keep[:rank] = True
        x *= keep
    return x / x.norm(dim=0)


def count(planted: Planted) -> Outcome:
    """Store a pair, and count what its update has above the noise edge."""
    generator = torch.Generator().manual_seed(planted.number)
    m, n = planted.shape
    dtype = TORCH[planted.dtype]
    weights = 0.02 * torch.randn(m, n, generator=generator, dtype=torch.float64)
    scales = torch.randn(m, 1, generator=generator, dtype=torch.float64)
    weights *= torch.exp(planted.row_spread * scales)
    base = weights.to({WIDE: torch.float32, NARROW: torch.bfloat16}.get(planted.situation, dtype))
    origin = weights if planted.situation == BOTH else base.double()

    units = torch.exp2(torch.frexp(origin)[1].double() - BITS[planted.dtype])
    unit = float(units.square().mean().div(12).sqrt()) * (math.sqrt(m) + math.sqrt(n))
    left = planted_factors(planted.factors, m, planted.rank, generator)
    right = planted_factors(planted.factors, n, planted.rank, generator)
    left *= torch.tensor(planted.strengths, dtype=torch.float64) * unit
    update = left @ right.T
    values = torch.linalg.svdvals(torch.linalg.qr(left).R @ torch.linalg.qr(right).R.T)

    finetuned = (origin + update).to(dtype)
    stored = finetuned.float() - base.float()
    error = float(_singular_values(stored.double() - update)[0])
    found = _singular_values(stored).tolist()
    zeros = float((stored == 0).double().mean())
    meter = RoundingMeter(planted.shape, torch.device("cpu"))
    meter.add(slice(0, m), finetuned, stored)
    # A matrix of zeros has no values above anything.
    edge = storage_edge(meter.storage(zeros), found) if found[0] > 0 else 0.0
    assert edge is not None
    return Outcome(
        count=sum(value > edge for value in found),
        rank=planted.rank,
        strong=float(values[-1]) > 1.2 * error,
        zero_fraction=zeros,
    )


def _singular_values(matrix: Tensor) -> Tensor:
    wide = matrix.double() if matrix.shape[0] >= matrix.shape[1] else matrix.double().T
    return torch.linalg.svdvals(torch.linalg.qr(wide, mode="r").R)
