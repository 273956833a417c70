"""What other readers of PEFT's format make of an adapter.

Source: vllm-project/vllm, vllm/lora/{peft_helper,lora_model,utils}.py and
vllm/config/lora.py.
"""

from __future__ import annotations

from svdcut.adapter.layout import AdapterLayout
from svdcut.adapter.places import Kind

_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def list_vllm_limits(layout: AdapterLayout) -> list[str]:
    """Return what vLLM refuses of an adapter, or asks for, in words.

    Parameters
    ----------
    layout : AdapterLayout
        Of the adapter.
    """
    config = layout.config
    kinds = {slot.kind for slot in layout.slots}
    rank = next((rank for rank in _VLLM_RANKS if rank >= config["r"]), None)
    found = [
        f"vLLM needs --max-lora-rank {rank} (config/lora.py)"
        if rank
        else f"vLLM refuses ranks above {_VLLM_RANKS[-1]} (config/lora.py)"
    ]
    if layout.wholes:
        found.append(
            f"vLLM refuses tensors stored whole, here {len(layout.wholes)}: modules_to_save "
            "(peft_helper.py), biases and tied embeddings (utils.py)"
        )
    if kinds & {Kind.STACK, Kind.TRANSPOSED_STACK}:
        found.append(
            "vLLM reads the stacks of experts, experts.base_layer and experts, of models that "
            "it keeps so, and of others if is_3d_lora_weight is set (lora_model.py)"
        )
    if Kind.CONVOLUTION in kinds:
        found.append("vLLM refuses low-rank convolutions (lora_model.py)")
    return found
