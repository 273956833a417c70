"""Extract an adapter with svdcut and with mergekit, and let PEFT say what each is worth.

    python bench/pairs.py 7b-slice PAIR         # or, a small mixture with biases:
    python bench/adapters.py PAIR --make-mixture
    python bench/adapters.py PAIR --mergekit VENV/bin [--rounds 3]

Prints a row for each: median seconds, peak memory, size, the norm of what the merged model
lacks of the update as a share of it, that of the matrices alone, and the tensors lost: those
that fine-tuning changed and that are base's again after the merge. Embeddings, the head and
norms are left to each tool's own way.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compare import RANK, Timing, run


def svdcut(base: Path, finetuned: Path, out: Path, timing: Timing) -> float:
    command = [sys.executable, "-m", "svdcut", "extract", str(base), str(finetuned), "-q"]
    command += ["-k", str(RANK), "-o", str(out), "--device", "cpu", "--force"]
    # As mergekit does: embeddings and head are stored whole.
    for pattern in ("*embed_tokens*", "lm_head*"):
        command += ["--skip", pattern]
    return run(command, timing)


def mergekit(scripts: Path) -> Callable[[Path, Path, Path, Timing], float]:
    def extract(base: Path, finetuned: Path, out: Path, timing: Timing) -> float:
        command = [str(scripts / "mergekit-extract-lora"), "--model", str(finetuned)]
        command += ["--base-model", str(base), "--out-path", str(out)]
        return run([*command, "--max-rank", str(RANK)], timing)

    return extract


def judge(base: Path, finetuned: Path, adapter: Path) -> dict[str, Any]:
    """Merge an adapter with PEFT, and compare with the fine-tuned model."""
    import torch
    import transformers
    from peft import PeftModel

    name = json.loads((base / "config.json").read_text())["architectures"][0]
    kind = getattr(transformers, name)

    def load(folder: Path) -> Any:
        return kind.from_pretrained(folder, dtype=torch.float32)

    merged = PeftModel.from_pretrained(load(base), str(adapter)).merge_and_unload()
    ours, before, after = (model.state_dict() for model in (merged, load(base), load(finetuned)))
    lost, lacks, whole = [], {1: 0.0, 2: 0.0}, {1: 0.0, 2: 0.0}
    for key, value in after.items():
        update = float((value - before[key]).norm()) ** 2
        dimensions = min(value.ndim, 2)
        lacks[dimensions] += float((value - ours[key]).norm()) ** 2
        whole[dimensions] += update
        if update and torch.equal(ours[key], before[key]):
            lost.append(key)
    return {
        "all": math.sqrt(sum(lacks.values()) / sum(whole.values())),
        "matrices": math.sqrt(lacks[2] / whole[2]),
        "lost": len(lost),
        "changed": sum(not torch.equal(value, before[key]) for key, value in after.items()),
        "example": lost[0] if lost else "",
    }


def make_mixture(folder: Path) -> None:
    """Save a small mixture of experts with biases, and a fine-tune of all its tensors."""
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=4096,
        hidden_size=512,
        intermediate_size=1024,
        moe_intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        num_experts=16,
        num_experts_per_tok=4,
        attention_bias=True,
        tie_word_embeddings=False,
    )
    model = Qwen3MoeForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder / "base")
    for parameter in model.parameters():
        values = parameter.data.float()
        if values.ndim == 1:
            update = 0.02 * torch.randn_like(values)
        else:
            left = torch.randn(*values.shape[:-1], 96) * torch.arange(1, 97) ** -0.7
            update = 2e-4 * left @ torch.randn(*values.shape[:-2], 96, values.shape[-1])
        parameter.data.copy_(values + update)
    model.save_pretrained(folder / "ft")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pair", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mergekit", type=Path, help="the bin of its virtual environment")
    parser.add_argument("--make-mixture", action="store_true")
    parser.add_argument("--judge", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    base, finetuned = (options.pair.resolve() / side for side in ("base", "ft"))
    if options.make_mixture:
        make_mixture(options.pair)
        return
    if options.judge:
        print(json.dumps(judge(base, finetuned, options.judge)))
        return
    tools = {"svdcut": svdcut}
    if options.mergekit:
        tools["mergekit"] = mergekit(options.mergekit)
    timings = {name: Timing() for name in tools}
    folder = Path(tempfile.mkdtemp(dir=options.pair)).resolve()
    for _ in range(options.rounds):
        for name, timing in timings.items():
            shutil.rmtree(folder / name, ignore_errors=True)
            timing.seconds.append(tools[name](base, finetuned, folder / name, timing))
    for name, timing in timings.items():
        # In a process of its own, whose memory is none of ours.
        command = [sys.executable, __file__, str(options.pair), "--judge", str(folder / name)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        size = sum(file.stat().st_size for file in (folder / name).glob("*.safetensors"))
        print(
            f"| {name} | {statistics.median(timing.seconds):.1f} s "
            f"| {timing.peak_bytes / 1e6:.0f} MB | {size / 1e6:.0f} MB | {found['all']:.4f} "
            f"| {found['matrices']:.4f} | {found['lost']} of {found['changed']} "
            f"{found['example']} |",
            flush=True,
        )
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
