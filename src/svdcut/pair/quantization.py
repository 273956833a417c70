"""Refuse checkpoints whose stored numbers are codes: by their config, names or dtypes."""

from __future__ import annotations

import re

from svdcut.errors import QuantizedError
from svdcut.files.checkpoint import Checkpoint

_QUANTIZED_NAMES = {
    r"\.qweight$": ("GPTQ or AWQ", "gptq"),
    r"\.(absmax|quant_map|quant_state\.bitsandbytes__\w+)$": ("bitsandbytes 4-bit", "bitsandbytes"),
    r"\.SCB$": ("bitsandbytes 8-bit", "bitsandbytes"),
    r"\.weight_packed$": ("compressed-tensors", "compressed-tensors"),
    r"\.weight_scale_inv$": ("fp8 with scales", "fp8"),
    r"\.weight_scale$": ("fp8 or int8 with scales", ""),
    r"_proj_(blocks|scales)$": ("MXFP4", "mxfp4"),
}
"""Name for messages, and the method's name in a config."""

_DEQUANTIZE = "from_pretrained(..., quantization_config={}(dequantize=True))"
_HOW_TO_DEQUANTIZE = {
    "fp8": _DEQUANTIZE.format("FineGrainedFP8Config"),
    "mxfp4": _DEQUANTIZE.format("Mxfp4Config"),
    "compressed-tensors": _DEQUANTIZE.format("CompressedTensorsConfig"),
    "bitsandbytes": "from_pretrained(...).dequantize()",
}
"""In transformers, by the name of the method. None is known for GPTQ, AWQ and others."""


def refuse_quantized(checkpoint: Checkpoint) -> None:
    """Raise `QuantizedError` if a checkpoint is quantised."""
    kind, method, where = _find_quantization(checkpoint)
    if kind is None:
        return
    hint = "Use the checkpoint before it was quantised, in bfloat16, float16 or float32."
    if how := _HOW_TO_DEQUANTIZE.get(method):
        # Without the option, transformers quantises again what it saves.
        hint += (
            f"\n  Or dequantise it with transformers: {how}, then "
            "save_pretrained('plain', save_original_format=False)."
        )
    raise QuantizedError(
        f"{checkpoint.source} is quantised ({kind}, says {where}): its stored numbers are "
        "codes, and their difference means nothing",
        hint=hint,
    )


def _find_quantization(checkpoint: Checkpoint) -> tuple[str | None, str, str]:
    """Return what to call the quantisation, its method, and what says so."""
    if method := checkpoint.quantization:
        return method, method, "its config.json"
    for pattern, (kind, method) in _QUANTIZED_NAMES.items():
        for name in filter(re.compile(pattern).search, checkpoint.tensors):
            return kind, method, f"tensor {name!r}"
    for name, entry in checkpoint.tensors.items():
        if entry.dtype.is_quantized:
            return entry.dtype.value, "", f"tensor {name!r}"
    return None, "", ""
