"""Print the error of one stored matrix over the best possible one of its rank, less 1.

    python bench/excess.py BASE FT RESULT RANK

The matrix is the first query projection. Rounding in storage is part of the error.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors import safe_open

SAMPLE = "layers.0.self_attn.q_proj.weight"


def read(folder: Path) -> torch.Tensor:
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                if name.endswith(SAMPLE):
                    return tensors.get_tensor(name).double()
    raise SystemExit(f"{folder} has no {SAMPLE}")


def main() -> None:
    base, finetuned, result = (read(Path(folder)) for folder in sys.argv[1:4])
    rank = int(sys.argv[4])
    update = finetuned - base
    tail = torch.linalg.eigvalsh(update.T @ update)[:-rank].clamp_min(0)
    print(float((finetuned - result).norm() / tail.sum().sqrt()) - 1)


if __name__ == "__main__":
    main()
