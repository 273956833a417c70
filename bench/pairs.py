"""Make pairs of checkpoints in the shapes of real models.

The update has a power-law head of rank 128 over the flat tail that rounding to bfloat16 puts
there. With --noise SHARE it has that share of the weights' norm: 48 triplets over noise of the
same norm, where a cut at rank 64 falls into noise, as in most real updates stored in bfloat16.
With --lora RANK it is a LoRA update of even strengths, merged. Layers repeat the draws of the
first ones with a shift, so that a 7B pair is made at the speed of the disk.

    python bench/pairs.py qwen-0.5b FOLDER [--layers N] [--noise 0.01 | --lora 16] [--float32]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

HEAD_RANK = 128
NOISY_RANK = 48
WEIGHT = 0.02
"""Standard deviation of weights."""

SHARD_BYTES = 4 << 30


@dataclass(frozen=True)
class Shape:
    """What of a model matters here."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    vocabulary: int
    tied: bool = False
    experts: int = 0

    def config(self) -> dict[str, Any]:
        """Return the config of a model of transformers."""
        config = {
            "model_type": "qwen3_moe" if self.experts else "llama",
            "architectures": ["Qwen3MoeForCausalLM" if self.experts else "LlamaForCausalLM"],
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "head_dim": self.hidden // self.heads,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        }
        if self.experts:
            config |= {
                "num_experts": self.experts,
                "num_experts_per_tok": 8,
                "moe_intermediate_size": self.intermediate,
                "decoder_sparse_step": 1,
                "mlp_only_layers": [],
                "norm_topk_prob": True,
            }
        return config

    def layer(self) -> dict[str, tuple[int, ...]]:
        """Return the tensors of one layer."""
        wide = self.hidden // self.heads * self.key_value_heads
        tensors: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (self.hidden,),
            "self_attn.q_proj.weight": (self.hidden, self.hidden),
            "self_attn.k_proj.weight": (wide, self.hidden),
            "self_attn.v_proj.weight": (wide, self.hidden),
            "self_attn.o_proj.weight": (self.hidden, self.hidden),
            "post_attention_layernorm.weight": (self.hidden,),
        }
        if self.experts:
            tensors |= {
                "self_attn.q_norm.weight": (self.hidden // self.heads,),
                "self_attn.k_norm.weight": (self.hidden // self.heads,),
                "mlp.gate.weight": (self.experts, self.hidden),
            }
        for part in [f"mlp.experts.{i}" for i in range(self.experts)] or ["mlp"]:
            tensors |= {
                f"{part}.gate_proj.weight": (self.intermediate, self.hidden),
                f"{part}.up_proj.weight": (self.intermediate, self.hidden),
                f"{part}.down_proj.weight": (self.hidden, self.intermediate),
            }
        return tensors

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield name and shape of every tensor."""
        yield "model.embed_tokens.weight", (self.vocabulary, self.hidden)
        for number in range(self.layers):
            for name, shape in self.layer().items():
                yield f"model.layers.{number}.{name}", shape
        yield "model.norm.weight", (self.hidden,)
        if not self.tied:
            yield "lm_head.weight", (self.vocabulary, self.hidden)


SHAPES = {
    "qwen-0.5b": Shape(24, 896, 4864, 14, 2, 151936, tied=True),
    "7b-slice": Shape(2, 4096, 11008, 32, 32, 2048),
    "7b": Shape(32, 4096, 11008, 32, 32, 32000),
    "moe-64": Shape(2, 1024, 768, 16, 4, 2048, experts=64),
    "small": Shape(24, 1024, 2816, 16, 16, 2048),
    "tiny": Shape(2, 256, 512, 4, 2, 512),
}


@dataclass(frozen=True)
class Update:
    """The kind of update; a power-law head where neither `noise` nor `lora` is given."""

    noise: float | None = None
    """Norm of the update as a share of the weights'."""

    lora: int | None = None
    """Rank of a merged LoRA update."""

    dtype: torch.dtype = torch.bfloat16
    """Both sides are stored in it."""


class Draws:
    """Weights and updates; a shape is drawn once, and rolled for each further tensor."""

    def __init__(self, seed: int, device: torch.device, update: Update) -> None:
        self._kind = update
        self._generator = torch.Generator(device).manual_seed(seed)
        self._device = device
        self._drawn: dict[tuple[int, ...], tuple[torch.Tensor, torch.Tensor]] = {}

    def _normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self._generator, device=self._device)

    def pair(self, shape: tuple[int, ...], shift: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a tensor of base and of the fine-tuned side."""
        if shape not in self._drawn:
            weight = self._normal(*shape) * WEIGHT + (len(shape) == 1)
            self._drawn[shape] = weight, self._update(shape)
        weight, update = self._drawn[shape]
        # Rolled by other steps: no two tensors have the same rounding, or the same vectors.
        base = weight.roll(shift, 0).to(self._kind.dtype)
        tuned = (base.float() + update.roll(3 * shift, 0)).to(self._kind.dtype)
        return base, tuned

    def _update(self, shape: tuple[int, ...]) -> torch.Tensor:
        if len(shape) == 1:
            return self._normal(*shape) * 1e-3
        m, n = shape
        if self._kind.lora is not None:
            return self._low_rank(shape, torch.full((self._kind.lora,), 1e-3))
        if self._kind.noise is None:
            return self._low_rank(shape, 2e-4 * _power_law(min(HEAD_RANK, m, n)))
        # Two parts of one norm, at right angles but for chance.
        strength = _power_law(min(NOISY_RANK, m, n))
        size = self._kind.noise * WEIGHT / 2**0.5
        low_rank = self._low_rank(shape, size * strength / strength.norm())
        return low_rank + size * self._normal(m, n)

    def _low_rank(self, shape: tuple[int, int], strength: torch.Tensor) -> torch.Tensor:
        left = self._normal(shape[0], len(strength)) * strength.to(self._device)
        return left @ self._normal(len(strength), shape[1])


def _power_law(rank: int) -> torch.Tensor:
    return torch.arange(1, rank + 1) ** -0.7


def make_pair(
    shape: Shape,
    folder: Path,
    *,
    seed: int = 0,
    device: str = "cpu",
    update: Update = Update(),
) -> None:
    """Write ``folder/base`` and ``folder/ft``."""
    draws = Draws(seed, torch.device(device), update)
    config = shape.config() | {"dtype": str(update.dtype).removeprefix("torch.")}
    for side in ("base", "ft"):
        (folder / side).mkdir(parents=True)
        (folder / side / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    shards = split(shape, update.dtype.itemsize)
    weight_map, shift = {}, 0
    for number, shard in enumerate(shards, 1):
        file = "model.safetensors"
        if len(shards) > 1:
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        sides: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] = ({}, {})
        for name, dimensions in shard.items():
            shift += 1
            for side, tensor in zip(sides, draws.pair(dimensions, shift), strict=True):
                side[name] = tensor.cpu().contiguous()
            weight_map[name] = file
        for side_name, tensors in zip(("base", "ft"), sides, strict=True):
            save_file(tensors, folder / side_name / file, metadata={"format": "pt"})
    if len(shards) > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        for side_name in ("base", "ft"):
            path = folder / side_name / "model.safetensors.index.json"
            path.write_text(json.dumps(index, indent=2) + "\n")


def split(shape: Shape, itemsize: int) -> list[dict[str, tuple[int, ...]]]:
    """Return the tensors of each file."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, dimensions in shape.tensors():
        num_bytes = itemsize * int(torch.Size(dimensions).numel())
        if size and size + num_bytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = dimensions
        size += num_bytes
    return shards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--noise", type=float, metavar="SHARE")
    kind.add_argument("--lora", type=int, metavar="RANK")
    parser.add_argument("--float32", action="store_true", help="store both sides in it")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    if options.layers:
        shape = replace(shape, layers=options.layers)
    dtype = torch.float32 if options.float32 else torch.bfloat16
    update = Update(options.noise, options.lora, dtype)
    make_pair(shape, options.folder, device=options.device, update=update)


if __name__ == "__main__":
    main()
