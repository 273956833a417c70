"""Peak memory of ``svdcut truncate`` on a checkpoint of many small layers.

Makes a pair of 1.2 GB a side (600 matrices of 1024 x 1024 in bfloat16), truncates
it in a process of its own, and prints that process's peak resident memory beside
the promise: 700 MB plus eight times the largest tensor in float32. Exits 1 where
the promise does not hold.

    python bench/memory.py [FOLDER]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

SIDE = 1024
MATRICES_PER_SHARD = 50
NUM_SHARDS = 12
RANK = 64


def make_pair(folder: Path) -> None:
    """Write base and fine-tuned side, a shard at a time."""
    generator = torch.Generator().manual_seed(0)
    strength = torch.arange(1, 129) ** -0.7 * 1e-3
    for shard in range(NUM_SHARDS):
        base, finetuned = {}, {}
        for number in range(MATRICES_PER_SHARD):
            name = f"layers.{shard * MATRICES_PER_SHARD + number}.weight"
            weight = torch.randn(SIDE, SIDE, generator=generator) * 0.02
            left = torch.randn(SIDE, 128, generator=generator) * strength
            update = left @ torch.randn(128, SIDE, generator=generator)
            base[name] = weight.bfloat16()
            finetuned[name] = (base[name].float() + update).bfloat16()
        for side, tensors in (("base", base), ("finetuned", finetuned)):
            path = folder / side
            path.mkdir(parents=True, exist_ok=True)
            name = f"model-{shard + 1:05}-of-{NUM_SHARDS:05}.safetensors"
            save_file(tensors, path / name, metadata={"format": "pt"})
    for side in ("base", "finetuned"):
        write_index(folder / side)


def write_index(path: Path) -> None:
    """Write the index that names the shard of each tensor."""
    weight_map = {}
    for shard in sorted(path.glob("*.safetensors")):
        with safe_open(shard, "pt") as file:
            weight_map.update(dict.fromkeys(file.keys(), shard.name))
    size = len(weight_map) * SIDE * SIDE * 2
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def run(folder: Path) -> int:
    """Truncate the pair, and return the exit status of the benchmark."""
    command = [sys.executable, "-m", "svdcut", "truncate", "--quiet", "--force"]
    command += ["-k", str(RANK), "-o", str(folder / "out"), "--device", "cpu"]
    command += [str(folder / "base"), str(folder / "finetuned")]
    began = time.monotonic()
    # Of this process alone: what made the pair was larger.
    _, status, usage = os.wait4(subprocess.Popen(command).pid, 0)
    if status:
        return 1
    seconds = time.monotonic() - began
    peak = usage.ru_maxrss * 1024
    bound = 700e6 + 8 * 4 * SIDE * SIDE
    total = NUM_SHARDS * MATRICES_PER_SHARD * SIDE * SIDE * 2
    print(f"pair            {total / 1e9:.2f} GB a side, {NUM_SHARDS} shards")
    print(f"cores           {len(os.sched_getaffinity(0))}")
    print(f"time            {seconds:.1f} s")
    print(f"peak memory     {peak / 1e6:.0f} MB")
    print(f"promised bound  {bound / 1e6:.0f} MB")
    return int(peak > bound)


def main() -> int:
    """Make the pair where it is missing, and measure."""
    if sys.argv[1:2] == ["--make"]:
        make_pair(Path(sys.argv[2]))
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else name)
        if not (folder / "finetuned" / "model.safetensors.index.json").is_file():
            # By a child: a process's peak counts what its parent held at the fork.
            subprocess.run([sys.executable, __file__, "--make", str(folder)], check=True)
        return run(folder)


if __name__ == "__main__":
    sys.exit(main())
