"""Adapters as users have them: trained with PEFT for some steps of an optimiser."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel

from trained_adapters import SIZES, Folders, bert, gpt2, llama, make, quietly, read, results

TOKENS = torch.arange(3, 15).reshape(2, 6)
LAYERS = ["q_proj", "v_proj", "down_proj"]


def optimise(model: PeftModel) -> None:
    """Take three steps of Adam."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.02)
    for _ in range(3):
        optimizer.zero_grad()
        model(input_ids=TOKENS)[0].float().logsumexp(-1).mean().backward()
        optimizer.step()


def qwen3_moe() -> transformers.Qwen3MoeForCausalLM:
    experts = {"moe_intermediate_size": 16, "num_experts": 3, "num_experts_per_tok": 2}
    return transformers.Qwen3MoeForCausalLM(
        transformers.Qwen3MoeConfig(**SIZES, **experts, head_dim=8, tie_word_embeddings=False)
    )


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the norm of a difference, relative to the second."""
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm().clamp_min(1e-9))


def dense_updates(folders: Folders) -> dict[str, torch.Tensor]:
    """Return what an adapter adds to each matrix that it changes, (m, n) in float64."""
    checkpoint, base = folders.open(), read(folders.base)
    merged = results(checkpoint)
    return {
        name: (merged[name] - base[name].double()).flatten(1)
        for name in checkpoint.updates
        if merged[name].dim() > 1
    }


@dataclass(frozen=True)
class Case:
    """Recipe for one base and one adapter."""

    model: Callable[[], torch.nn.Module]
    config: Mapping[str, Any]
    base: Callable[[torch.nn.Module], torch.nn.Module] | None = None
    """Returns the model to save as base; None saves the model itself."""

    tokens: int | None = None
    load: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments with which transformers loads the folder."""

    def make(self, folder: Path, dtype: torch.dtype = torch.float32) -> Folders:
        torch.manual_seed(0)
        model = self.model().to(dtype)
        base = None if self.base is None else self.base(model)
        config = LoraConfig(r=4, **self.config)
        made = make(folder, model, config, base=base, tokens=self.tokens, train=optimise)
        (made.base / "tokenizer_config.json").write_text('{"from": "base"}')
        (made.base / "tokenizer.json").write_text("{}")
        (made.adapter / "tokenizer_config.json").write_text('{"from": "adapter"}')
        return made

    def load_result(self, folder: Path) -> tuple[torch.nn.Module, Mapping[str, Any]]:
        """Return what transformers makes of a checkpoint, and what it says of its keys."""
        with quietly():
            return type(self.model()).from_pretrained(folder, output_loading_info=True, **self.load)


def _encoder(model: torch.nn.Module) -> torch.nn.Module:
    return model.bert


def _decoder(model: torch.nn.Module) -> torch.nn.Module:
    return model.transformer


def _masked(model: torch.nn.Module) -> torch.nn.Module:
    other = bert(transformers.BertForMaskedLM)
    other.bert.load_state_dict(model.bert.state_dict(), strict=False)
    return other.to(model.dtype)


CASES: Mapping[str, Case] = {
    "lora": Case(llama, {"target_modules": LAYERS, "lora_alpha": 6}),
    "rslora": Case(llama, {"target_modules": LAYERS, "use_rslora": True}),
    "dora": Case(llama, {"target_modules": LAYERS, "use_dora": True}),
    "patterns": Case(
        llama,
        {
            "target_modules": LAYERS,
            "rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 6},
            "alpha_pattern": {"v_proj": 3},
        },
    ),
    "gpt2": Case(gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "gpt2 without prefix": Case(gpt2, {"target_modules": ["c_attn", "wte"]}, base=_decoder),
    "lora_bias": Case(bert, {"target_modules": ["query", "dense"], "lora_bias": True}),
    "embeddings": Case(llama, {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    "tied embeddings": Case(
        lambda: llama(tie_word_embeddings=True), {"target_modules": ["embed_tokens", "q_proj"]}
    ),
    "more tokens": Case(
        llama,
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
        tokens=70,
    ),
    "more tokens, adapted": Case(llama, {"target_modules": ["embed_tokens", "lm_head"]}, tokens=70),
    "new head": Case(
        bert,
        {"target_modules": ["query", "value"], "task_type": "SEQ_CLS"},
        base=_encoder,
    ),
    "experts": Case(
        qwen3_moe,
        {
            "target_modules": ["q_proj"],
            "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
        },
    ),
}
