"""Look for a false certificate: random small matrices of families that were false once.

Each is decomposed by the iteration and by the leading eigenvectors of its Gram matrix, and
compared with a float64 SVD. Prints every certificate that claims less than is so, and how many
were given by which route.

    python bench/certificates.py [CASES] [--first NUMBER]
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from svdcut.choose.cut import is_certified
from svdcut.svd.certificate import ERROR_FLOOR, VALUE_FLOOR
from svdcut.svd.decomposition import Decomposition
from svdcut.svd.engine import decompose
from svdcut.svd.route import Route

TOLERANCE = 1e-6

SLACK = 1e-9
"""Of the comparison: rounding of the float64 reference, relative to the floors."""


@dataclass(frozen=True)
class Draw:
    """Random numbers of one case."""

    generator: Generator

    def whole(self, low: int, high: int) -> int:
        """Return one of low .. high."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def share(self) -> float:
        """Return a number between 0 and 1."""
        return float(torch.rand((), generator=self.generator))

    def spread(self) -> float:
        """Return 0 or a small number of any size up to 0.3."""
        return 0.0 if self.share() < 0.2 else 10 ** (-12 + 11.5 * self.share())

    def normal(self, *shape: int) -> Tensor:
        """Return white noise, float64."""
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def uniform(self, count: int) -> Tensor:
        """Return numbers between 0 and 1, float64."""
        return torch.rand(count, generator=self.generator, dtype=torch.float64)


def with_values(draw: Draw, s: Tensor) -> Tensor:
    """Return a matrix of some rows more than it has singular values."""
    n = len(s)
    s = (s * (1 + draw.spread() * draw.uniform(n))).sort(descending=True).values
    left = torch.linalg.qr(draw.normal(n + draw.whole(0, n), n)).Q
    return (left * s) @ torch.linalg.qr(draw.normal(n, n)).Q.T


def blocks(draw: Draw) -> Tensor:
    """Copies of one block on the diagonal, each scaled a little differently."""
    block, spread = draw.normal(*2 * [draw.whole(4, 32)]), draw.spread()
    copies = draw.whole(2, max(2, 160 // len(block)))
    return torch.block_diag(*(block * (1 + spread * draw.share()) for _ in range(copies)))


def levels(draw: Draw) -> Tensor:
    """Few distinct values, each many times."""
    n, ratio = draw.whole(60, 160), 0.7 + 0.3 * draw.share()
    return with_values(draw, ratio ** (torch.arange(n).double() // draw.whole(10, 60)))


def power_law(draw: Draw) -> Tensor:
    """A power law, cut off at some rank, over noise of any size."""
    n = draw.whole(40, 160)
    s = torch.arange(1, n + 1).double() ** (-2.5 * draw.share())
    s[draw.whole(1, n) :] *= draw.share()
    a = with_values(draw, s)
    return a + 10 ** (-8 * draw.share()) / n * draw.normal(*a.shape)


def white(draw: Draw) -> Tensor:
    """Noise of any shape."""
    n = draw.whole(30, 160)
    return draw.normal(n + draw.whole(0, 2 * n), n)


def lora(draw: Draw) -> Tensor:
    """A merged LoRA update over the rounding of its storage."""
    m, n, rank = draw.whole(100, 200), draw.whole(60, 100), draw.whole(1, 20)
    dtype = torch.bfloat16 if draw.share() < 0.5 else torch.float32
    base = (0.02 * draw.normal(m, n)).to(dtype).double()
    update = 10 ** (-4 * draw.share()) / 50 * draw.normal(m, rank) @ draw.normal(rank, n)
    return (base + update).to(dtype).double() - base


def cliff(draw: Draw) -> Tensor:
    """A cluster that the cut goes through, far below some first values."""
    n, first = draw.whole(60, 160), draw.whole(0, 10)
    depth = 10 ** (-7 * draw.share())
    cluster = torch.ones(n - first).double() * depth
    return with_values(draw, torch.cat((1 + torch.arange(first, 0, -1).double(), cluster)))


FAMILIES: tuple[Callable[[Draw], Tensor], ...] = (blocks, levels, power_law, white, lora, cliff)


def is_false(found: Decomposition, k: int, a: Tensor, s: Tensor) -> str | None:
    """Return what a certificate claims wrongly, if anything."""
    bounds, norm = found.measured().bounds(k), float(s.norm())
    left, right = found.factors(range(k))
    reached = float((a - left.double() @ right.double() * found.scale).norm())
    best = float(s[k:].norm())
    excess = (reached - best) / max(best, ERROR_FLOOR * norm)
    values = found.measured().singular_values()
    places = {0, max(k - 1, 0), min(k, len(s) - 1)}
    floor = VALUE_FLOOR * float(s[0])
    value = max(abs(values[i] - float(s[i])) / max(float(s[i]), floor) for i in places)
    if excess > bounds.excess + SLACK or value > bounds.value + SLACK:
        return (
            f"excess {excess:.1e} of {bounds.excess:.1e}, value {value:.1e} of {bounds.value:.1e}"
        )
    return None


def examine(number: int) -> Iterator[tuple[str, str | None]]:
    """Yield the family and route of each certificate of a case, and what it claims wrongly."""
    draw = Draw(Generator().manual_seed(number))
    family = FAMILIES[number % len(FAMILIES)]
    a = family(draw).float()
    k = draw.whole(1, min(a.shape) // 3)
    s = torch.linalg.svdvals(a.double())
    for route in (Route.KRYLOV, Route.GRAM):
        found = decompose(
            a.clone(),
            k,
            accept=lambda d: is_certified(d.measured().bounds(k), TOLERANCE),
            route=route,
            seed=number,
        )
        name = found.method.value + ("" if found.num_triplets == len(s) else ", leading")
        yield f"{family.__name__}: {name}", is_false(found, k, a.double(), s)


def main() -> None:
    """Run the cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", type=int, nargs="?", default=2000)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    given: Counter[str] = Counter()
    wrong = 0
    for number in range(options.first, options.first + options.cases):
        for name, claim in examine(number):
            given[name] += 1
            if claim:
                wrong += 1
                print(f"FALSE case {number}, {name}: {claim}", flush=True)
    for key, count in sorted(given.items()):
        print(f"{count:7} {key}")
    sys.exit(f"{wrong} false certificates" if wrong else None)


if __name__ == "__main__":
    main()
