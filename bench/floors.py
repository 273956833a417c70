"""What a run cannot be faster than on this machine: its bytes, and its matrix products.

    python bench/floors.py PAIR [--rank RULE]

Bytes are those of both inputs, read, and of one output, written and synced. Products
are those that the engine makes for one matrix of each shape, times how many there are,
at the rate of square products, each core on its own. Neither counts anything else: no
hashes, no eigenvalues, no passes over a matrix.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from svdcut.api.truncation import plan_truncation
from svdcut.files.checkpoint import open_checkpoint
from svdcut.machine import num_cores
from svdcut.pair.pairing import Action
from svdcut.streaming.stored_matrix import matrix_sides
from svdcut.truncation.options import TruncateOptions
from svdcut.truncation.tensor_job import Job, decompose_matrix

SQUARE = 2048
BUFFER_BYTES = 16 << 20
SKIPPED = ("*embed*", "*lm_head*")


class Products(TorchDispatchMode):
    """Counts the operations of matrix products, by dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[torch.dtype] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None) -> Any:  # noqa: ANN001
        name = function.overloadpacket.__name__
        if name in ("mm", "addmm", "addmm_"):
            left, right = args[-2:] if name == "mm" else args[1:3]
            count = 2 * left.shape[0] * left.shape[1] * right.shape[1]
            self.operations[left.dtype] += count
        return function(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Floors:
    """Seconds."""

    read: float
    write: float
    products: float

    @property
    def total(self) -> float:
        return self.read + self.write + self.products

    def __str__(self) -> str:
        return (
            f"floors: {self.total:.2f} s = {self.read:.2f} read + {self.write:.2f} written "
            f"+ {self.products:.2f} of products"
        )


def product_rate(dtype: torch.dtype) -> float:
    """Return operations a second of all cores together."""
    cores = num_cores()
    a = torch.randn(SQUARE, SQUARE, dtype=dtype)

    def work(_: int) -> None:
        for _ in range(4):
            a @ a

    with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(work, range(cores)))
        began = time.perf_counter()
        list(pool.map(work, range(cores)))
        return cores * 4 * 2 * SQUARE**3 / (time.perf_counter() - began)


def skipped(pair: Path) -> list[str]:
    """Return the patterns of what is left alone, those that match."""
    names = open_checkpoint(pair / "ft").tensors
    return [pattern for pattern in SKIPPED if any(fnmatch(name, pattern) for name in names)]


def count_products(pair: Path, rank: str, **options: Any) -> Counter[torch.dtype]:
    """Return the operations of the engine's products for all tensors of a pair."""
    options.setdefault("skip", skipped(pair))
    sides = (pair / "base", pair / "ft")
    request = plan_truncation(TruncateOptions(*sides, pair / "never", rank=rank, **options))
    job = Job((request.outputs[0].rule,), request.options, torch.device("cpu"), {})
    by_shape: dict[tuple[int, int], Counter[torch.dtype]] = {}
    total: Counter[torch.dtype] = Counter()
    for tensor in request.plan.tensors:
        if tensor.pair.action is not Action.TRUNCATE:
            continue
        for number, sides in enumerate(matrix_sides(tensor.pair)):
            shape = sides.finetuned.shape
            if shape not in by_shape:
                with Products() as products:
                    decompose_matrix(job, tensor.pair, sides, job.requests(tensor.pair, number))
                by_shape[shape] = products.operations
            total += by_shape[shape]
    return total


def measure(pair: Path, rank: str, **options: Any) -> Floors:
    """Measure the floors of one run."""
    operations = count_products(pair, rank, **options)
    products = sum(count / product_rate(dtype) for dtype, count in operations.items())
    files = [*pair.glob("base/*.safetensors"), *pair.glob("ft/*.safetensors")]
    buffer = memoryview(bytearray(BUFFER_BYTES))
    size, began = 0, time.perf_counter()
    for file in files:
        with file.open("rb", buffering=0) as source:
            while count := source.readinto(buffer):
                size += count
    read = time.perf_counter() - began
    target = pair / "floor.bin"
    began = time.perf_counter()
    with target.open("wb", buffering=0) as out:
        for _ in range(size // 2 // BUFFER_BYTES):
            out.write(buffer)
        os.fsync(out.fileno())
    write = time.perf_counter() - began
    target.unlink()
    return Floors(read, write, products)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pair", type=Path)
    parser.add_argument("--rank", default="64")
    options = parser.parse_args()
    print(measure(options.pair, options.rank))


if __name__ == "__main__":
    main()
