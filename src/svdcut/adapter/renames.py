"""Where a checkpoint's tensors are once transformers has loaded them.

An adapter names modules of the model in memory. Source: transformers 5.24,
conversion_mapping.py; the entries here are those whose checkpoints are common.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

_LLAVA = (
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^language_model\.model\.", "model.language_model."),
    (r"^vision_tower\.", "model.vision_tower."),
    (r"^multi_modal_projector\.", "model.multi_modal_projector."),
    (r"^image_newline$", "model.image_newline"),
)
_QWEN_VL = (
    (r"^visual\.", "model.visual."),
    (r"^model\.(?!language_model\.|visual\.)", "model.language_model."),
)
_VIT = (
    (r"(^|\.)encoder\.layer\.(\d+)\.", r"\1layers.\2."),
    (r"(layers\.\d+\.attention)\.attention\.(query|key|value)\.", r"\1.\2."),
    (r"(layers\.\d+\.attention)\.query\.", r"\1.q_proj."),
    (r"(layers\.\d+\.attention)\.key\.", r"\1.k_proj."),
    (r"(layers\.\d+\.attention)\.value\.", r"\1.v_proj."),
    (r"(layers\.\d+\.attention)\.output\.dense\.", r"\1.o_proj."),
    (r"(layers\.\d+)\.intermediate\.dense\.", r"\1.mlp.fc1."),
    (r"(layers\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
)
_GRANITE = (
    (r"(block_sparse_moe)\.input_linear\.weight$", r"\1.experts.gate_up_proj"),
    (r"(block_sparse_moe)\.output_linear\.weight$", r"\1.experts.down_proj"),
    (r"(block_sparse_moe\.router)\.layer\.weight$", r"\1.weight"),
)
_Renames = Mapping[str, tuple[tuple[str, str], ...]]
_OF_MODELS: _Renames = {
    **dict.fromkeys(("llava", "llava_next", "paligemma", "gemma3", "mistral3", "aria"), _LLAVA),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl"), _QWEN_VL),
    **dict.fromkeys(("vit", "deit", "vit_msn"), _VIT),
    "gpt_neox": ((r"^embed_out\.", "lm_head."),),
}
"""By the type of the whole model."""

_OF_PARTS: _Renames = {
    **dict.fromkeys(("mixtral", "minimax"), ((r"\.block_sparse_moe\.", ".mlp."),)),
    **dict.fromkeys(("granitemoe", "granitemoeshared", "granitemoehybrid"), _GRANITE),
}
"""By the type of the model, or of any part of it."""

_EXPERT = re.compile(r"(?P<module>.*\.experts)\.(?P<number>\d+)\.(?P<part>\w+)\.weight")
_ROWS_OF_ONE = (("gate_proj", "up_proj"), ("w1", "w3"))
"""Parts that are stacked along their rows, in this order, as ``gate_up_proj``."""


@dataclass(frozen=True, slots=True)
class Fused:
    """Where the matrix of one expert is within the stack of all of them."""

    target: str
    """Name of the stack."""

    number: int
    """Of the expert."""

    order: int
    """Among the parts that are stacked along the rows."""


def in_memory(name: str, types: tuple[str, ...]) -> str:
    """Return the name of a tensor once it is loaded.

    Parameters
    ----------
    name : str
        In the checkpoint, in any layout that transformers reads.
    types : tuple of str
        The model types that the config names, the whole model's first.
    """
    renames = [_OF_MODELS.get(kind, ()) for kind in types[:1]]
    renames += [_OF_PARTS.get(kind, ()) for kind in types]
    for pattern, replacement in chain.from_iterable(renames):
        name = re.sub(pattern, replacement, name)
    return name


def find_fused(shapes: Mapping[str, tuple[int, ...]], types: tuple[str, ...]) -> dict[str, Fused]:
    """Return where experts that are stored one by one are in memory.

    Since version 5 transformers loads the experts of every such model as stacks,
    ``experts.gate_up_proj`` and ``experts.down_proj``.
    """
    found: dict[str, Fused] = {}
    for name, shape in shapes.items():
        expert = _EXPERT.fullmatch(name)
        if expert is None or len(shape) != 2:
            continue
        module, part = expert["module"], expert["part"]
        gated = next((rows for rows in _ROWS_OF_ONE if part in rows), None)
        siblings = [f"{module}.{expert['number']}.{other}.weight" for other in gated or ()]
        if gated and all(sibling in shapes for sibling in siblings):
            target, order = f"{module}.gate_up_proj", gated.index(part)
        else:
            target, order = f"{module}.{'down_proj' if part == 'w2' else part}", 0
        found[name] = Fused(in_memory(target, types), int(expert["number"]), order)
    return found
