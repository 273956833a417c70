"""What one writes without a tool: load both, one full SVD a matrix, save.

python bench/straight.py BASE FT OUT RANK
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def load(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def main() -> None:
    base, finetuned, out = map(Path, sys.argv[1:4])
    rank = int(sys.argv[4])
    ours, theirs = load(finetuned), load(base)
    result = {}
    for name, weight in ours.items():
        result[name] = weight
        if weight.dim() == 2 and "embed" not in name and "lm_head" not in name:
            update = weight.float() - theirs[name].float()
            u, s, vh = torch.linalg.svd(update, full_matrices=False)
            cut = (u[:, :rank] * s[:rank]) @ vh[:rank]
            result[name] = (theirs[name].float() + cut).to(weight.dtype)
    out.mkdir(parents=True)
    save_file(result, out / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(finetuned / "config.json", out)


if __name__ == "__main__":
    main()
