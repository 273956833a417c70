"""Limits of vLLM and SGLang in reading PEFT's format.

Source: vllm 0.33.0, vllm/lora/{peft_helper,lora_model,request,utils}.py and
vllm/config/lora.py; sglang 0.5.23, sglang/srt/lora/{lora,lora_config,mem_pool,utils}.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from svdcut.adapter.layout import AdapterLayout
from svdcut.adapter.places import Kind

_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_VLLM_HEADS = re.compile(r"\.(classifier|score)\.")
_STACKS = {Kind.STACK, Kind.TRANSPOSED_STACK}


def list_limits(layout: AdapterLayout) -> list[str]:
    """Return what vLLM and SGLang refuse of an adapter, or ask for, in words.

    Parameters
    ----------
    layout : AdapterLayout
        Of the adapter.
    """
    return [*_of_vllm(layout), *_of_sglang(layout)]


def _of_vllm(layout: AdapterLayout) -> Iterator[str]:
    kinds = {slot.place.kind for slot in layout.slots}
    rank = next((rank for rank in _VLLM_RANKS if rank >= layout.config["r"]), None)
    if rank:
        yield f"vLLM needs --max-lora-rank {rank} (config/lora.py)"
    else:
        yield f"vLLM refuses ranks above {_VLLM_RANKS[-1]} (config/lora.py)"
    if refused := [whole for whole in layout.wholes if not _VLLM_HEADS.search(whole.key)]:
        yield (
            f"vLLM refuses tensors stored whole, here {len(refused)}: modules_to_save but for "
            "`classifier` and `score` (peft_helper.py), biases and tied embeddings (utils.py)"
        )
    if kinds & _STACKS:
        yield (
            "vLLM reads the stacks of experts, experts.base_layer and experts, of models that "
            "it keeps so; of others with --enable-mixed-moe-lora-format, where the adapter's "
            'entry of --lora-modules says "is_3d_lora_weight": true (request.py)'
        )
    if Kind.CONVOLUTION in kinds:
        yield "vLLM refuses low-rank convolutions (lora_model.py)"


def _of_sglang(layout: AdapterLayout) -> Iterator[str]:
    kinds = {slot.place.kind for slot in layout.slots}
    if kinds & _STACKS:
        yield "SGLang refuses stacks of experts: svdcut extract --experts separate (lora.py)"
    if layout.wholes or kinds & {Kind.PARAMETER, Kind.CONVOLUTION}:
        yield (
            "SGLang refuses what is neither a linear layer nor an embedding: routers, norms, "
            "biases (mem_pool.py)"
        )
    if layout.config["rank_pattern"]:
        yield "SGLang refuses ranks that differ (mem_pool.py)"
    if isinstance(layout.config["target_modules"], str):
        yield "SGLang refuses an expression as target_modules (utils.py)"
