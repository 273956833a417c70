"""Tiny models of many architectures, with random weights.

Each is a real model of transformers: its names, shapes and files are the library's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from checkpoints import Pair, finetune, make_model, save_pair

TEXT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LAYOUTS = ("default", "internal")
"""As `save_pretrained` writes a model, and with `save_original_format=False`."""

GROUPED = TEXT | {"num_key_value_heads": 1, "head_dim": 8}


@dataclass(frozen=True)
class Architecture:
    """Recipe for one model and its input."""

    model: str
    """Name of its class."""

    config: str
    fields: Mapping[str, Any]
    note: str
    """Remark on its tensors, for docs/kinds.md."""

    stacks: tuple[str, ...] = ()
    """Endings of the names of its expert stacks, in any layout."""

    copied: Mapping[str, str] = field(default_factory=dict)
    """Tensors of two or more dimensions that are not truncated, layers as ``*``, and why."""

    inputs: Callable[[], dict[str, torch.Tensor]] = lambda: {"input_ids": token_ids()}

    def build(self) -> Any:
        config = getattr(transformers, self.config)(**self.fields)
        return getattr(transformers, self.model)(config)

    def pair(self, folder: Path, *, layout: str = "default") -> Pair:
        """Save a pair; transformers knows two layouts, which differ for some models."""
        base = make_model(self.build)
        original = layout == "default"
        return save_pair(base, finetune(base), folder, save_original_format=original)


def kind_of(name: str) -> str:
    """Return a name with ``*`` for its numbers."""
    return re.sub(r"(^|(?<=\.))\d+(?=\.)", "*", name)


def token_ids() -> torch.Tensor:
    return torch.arange(3, 15).reshape(2, 6)


def seq2seq() -> dict[str, torch.Tensor]:
    return {"input_ids": token_ids(), "decoder_input_ids": token_ids()[:, :4]}


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def qwen2_vl_inputs() -> dict[str, torch.Tensor]:
    ids = torch.tensor([[3, 4, 37, 38, 38, 38, 38, 36, 5]])
    return {
        "input_ids": ids,
        "mm_token_type_ids": (ids == 38).int(),
        "pixel_values": noise(16, 3 * 2 * 4 * 4),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
    }


def llava_inputs() -> dict[str, torch.Tensor]:
    ids = torch.tensor([[3, 4, 38, 38, 38, 38, 5]])
    return {"input_ids": ids, "pixel_values": noise(1, 3, 8, 8)}


STACKS = ("experts.gate_up_proj", "experts.down_proj")

ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(
        "LlamaForCausalLM", "LlamaConfig", GROUPED, "Head and embedding are two matrices."
    ),
    "qwen2": Architecture(
        "Qwen2ForCausalLM", "Qwen2Config", GROUPED, "Biases of the attention are copied."
    ),
    "qwen3_moe": Architecture(
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        GROUPED | {"moe_intermediate_size": 12, "num_experts": 3, "num_experts_per_tok": 2},
        "Experts are stored one by one, or as stacks.",
        stacks=STACKS,
    ),
    "mixtral": Architecture(
        "MixtralForCausalLM",
        "MixtralConfig",
        GROUPED | {"num_local_experts": 3, "num_experts_per_tok": 2},
        "Experts are stored one by one, or as stacks.",
        stacks=STACKS,
    ),
    "deepseek_v3": Architecture(
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        TEXT
        | {"num_key_value_heads": 2, "moe_intermediate_size": 12, "n_routed_experts": 4}
        | {"num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1}
        | {"q_lora_rank": 6, "kv_lora_rank": 6, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4}
        | {"v_head_dim": 8},
        "Shared experts are plain matrices; so are both factors of the latent attention.",
        stacks=STACKS,
    ),
    "granitemoe": Architecture(
        "GraniteMoeForCausalLM",
        "GraniteMoeConfig",
        GROUPED | {"num_local_experts": 3, "num_experts_per_tok": 2},
        "Experts are stacks, named `input_linear` and `output_linear` in the default layout.",
        stacks=(*STACKS, "block_sparse_moe.input_linear.weight", "output_linear.weight"),
    ),
    "llama4": Architecture(
        "Llama4ForCausalLM",
        "Llama4TextConfig",
        GROUPED
        | {"intermediate_size_mlp": 24, "num_local_experts": 3, "num_experts_per_tok": 1}
        | {"interleave_moe_layer_step": 1, "attention_chunk_size": 16},
        "Experts are stacks of transposed matrices.",
        stacks=STACKS,
    ),
    "gpt_oss": Architecture(
        "GptOssForCausalLM",
        "GptOssConfig",
        GROUPED
        | {"num_local_experts": 3, "num_experts_per_tok": 2, "sliding_window": 8}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        "Experts are stacks with biases.",
        stacks=STACKS,
        copied={
            "model.layers.*.mlp.experts.gate_up_proj_bias": "a bias vector of each expert",
            "model.layers.*.mlp.experts.down_proj_bias": "a bias vector of each expert",
        },
    ),
    "gemma2": Architecture(
        "Gemma2ForCausalLM",
        "Gemma2Config",
        GROUPED | {"sliding_window": 8},
        "The head is the embedding, stored once.",
    ),
    "gemma3": Architecture(
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        GROUPED | {"sliding_window": 8},
        "The head is the embedding, stored once.",
    ),
    "phi3": Architecture(
        "Phi3ForCausalLM",
        "Phi3Config",
        GROUPED,
        "Query, key and value are one matrix, and get one rank; so are gate and up.",
    ),
    "gpt2": Architecture(
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
        | {"bos_token_id": 1, "eos_token_id": 2},
        "Matrices are transposed, which changes no rank.",
    ),
    "gpt_neox": Architecture(
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        TEXT,
        "Query, key and value are one matrix, and get one rank.",
    ),
    "bert": Architecture(
        "BertForMaskedLM",
        "BertConfig",
        TEXT,
        "The head is the embedding, stored once; the table of two token types is a matrix.",
    ),
    "deberta-v2": Architecture(
        "DebertaV2ForSequenceClassification",
        "DebertaV2Config",
        TEXT | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
        "The table of relative positions is a matrix.",
    ),
    "t5": Architecture(
        "T5ForConditionalGeneration",
        "T5Config",
        {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
        | {"decoder_start_token_id": 0},
        "Head and both embeddings are one matrix, stored once.",
        inputs=seq2seq,
    ),
    "whisper": Architecture(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {"vocab_size": 40, "num_mel_bins": 6, "d_model": 16, "encoder_layers": 2}
        | {"decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
        | {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_source_positions": 8}
        | {"max_target_positions": 12, "decoder_start_token_id": 1, "pad_token_id": 0}
        | {"bos_token_id": 1, "eos_token_id": 2, "suppress_tokens": None}
        | {"begin_suppress_tokens": None},
        "Convolutions over time, (out, in, 3), are cut as (out, 3 in).",
        inputs=lambda: {"input_features": noise(1, 6, 16), "decoder_input_ids": token_ids()[:1]},
    ),
    "vit": Architecture(
        "ViTForImageClassification",
        "ViTConfig",
        {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
        | {"num_attention_heads": 2, "image_size": 8, "patch_size": 4, "num_labels": 3},
        "The patch embedding, (out, in, h, w), is cut as (out, in h w).",
        copied={
            "vit.embeddings.cls_token": "one row",
            "vit.embeddings.position_embeddings": "one row, as it is stored, (1, places, width)",
        },
        inputs=lambda: {"pixel_values": noise(2, 3, 8, 8)},
    ),
    "qwen2_vl": Architecture(
        "Qwen2VLForConditionalGeneration",
        "Qwen2VLConfig",
        {
            "text_config": GROUPED
            | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
            "vision_config": {"depth": 2, "embed_dim": 16, "hidden_size": 16, "num_heads": 2}
            | {"mlp_ratio": 2, "patch_size": 4, "spatial_merge_size": 2},
            "image_token_id": 38,
            "video_token_id": 39,
            "vision_start_token_id": 37,
            "vision_end_token_id": 36,
        },
        "The patch embedding, (out, in, t, h, w), is cut as (out, in t h w).",
        inputs=qwen2_vl_inputs,
    ),
    "llava": Architecture(
        "LlavaForConditionalGeneration",
        "LlavaConfig",
        {
            "text_config": {"model_type": "llama"} | GROUPED,
            "vision_config": {"model_type": "clip_vision_model", "hidden_size": 16}
            | {"intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
            | {"image_size": 8, "patch_size": 4, "projection_dim": 8},
            "image_token_index": 38,
        },
        "Language model, projector and vision tower are cut alike.",
        inputs=llava_inputs,
    ),
    "mamba": Architecture(
        "MambaForCausalLM",
        "MambaConfig",
        {"vocab_size": 40, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 2}
        | {"time_step_rank": 2, "conv_kernel": 4},
        "The convolution over time, (channels, 1, 4), is cut as (channels, 4).",
    ),
    "wav2vec2": Architecture(
        "Wav2Vec2ForCTC",
        "Wav2Vec2Config",
        {"vocab_size": 12, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        | {"intermediate_size": 24, "conv_dim": (8, 8), "conv_stride": (2, 2)}
        | {"conv_kernel": (3, 3), "num_conv_pos_embeddings": 4, "pad_token_id": 0}
        | {"num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 2},
        "Convolutions are cut; of the one with normalised weights, the magnitudes are copied.",
        copied={
            "wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight.original0": "one row, "
            "the magnitudes",
        },
        inputs=lambda: {"input_values": noise(1, 200)},
    ),
}
