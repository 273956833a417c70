"""Where a checkpoint's tensors are once transformers has loaded them.

An adapter names parameters of the model in memory. Some have other names in the file, and
experts that the file stores one by one are a single stack in memory. Names and shapes
alone. Source: transformers 5.24, conversion_mapping.py, for common checkpoints.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

Shape = tuple[int, ...]

CONV1D_MODELS = frozenset(
    {"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp", "clvp_decoder"}
)
"""Models whose layers are `transformers.pytorch_utils.Conv1D`, stored as (in, out)."""

TRANSPOSED_STACKS = frozenset({"gpt_oss", "aria", "aria_text", "openai_privacy_filter"})
"""Models whose experts have `is_transposed`, stored as (experts, in, out)."""

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
_Renames = tuple[tuple[str, str], ...]
_WHOLE_MODELS: Mapping[str, _Renames] = {
    **dict.fromkeys(("llava", "llava_next", "paligemma", "gemma3", "mistral3", "aria"), _LLAVA),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl"), _QWEN_VL),
    **dict.fromkeys(("vit", "deit", "vit_msn"), _VIT),
    "gpt_neox": ((r"^embed_out\.", "lm_head."),),
}
"""Renames by the type of the whole model."""

_PARTS: Mapping[str, _Renames] = {
    **dict.fromkeys(("mixtral", "minimax"), ((r"\.block_sparse_moe\.", ".mlp."),)),
    **dict.fromkeys(("granitemoe", "granitemoeshared", "granitemoehybrid"), _GRANITE),
}
"""Renames by the type of the model, or of any part of it."""

_OTHER_NAMES = ((r"(^|\.)block_sparse_moe\.", r"\1mlp."), (r"\.in_proj_weight$", ".weight"))
"""Renames without a known model type: those of mixtures, and PEFT's of torch's attention."""

_EXPERT = re.compile(r"(?P<experts>(?:.*\.)?experts)\.(?P<number>\d{1,5})\.(?P<part>\w+)\.weight")
_STACKS = (
    ("gate_up_proj", ("gate_proj", "up_proj")),
    ("gate_up_proj", ("w1", "w3")),
    ("gate_up_proj", ("fc1", "fc3")),
    ("down_proj", ("down_proj",)),
    ("down_proj", ("w2",)),
    ("down_proj", ("fc2",)),
    ("up_proj", ("up_proj",)),
)
"""Stacks, and the matrices of one expert in each, one above the other. The first that fits."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor of a file, as a part of a parameter."""

    tensor: str
    expert: int = 0
    """The expert that is its first matrix."""

    rows: tuple[int, int] | None = None
    """Rows of an expert's matrix that are this tensor's, if not all."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter in memory: one tensor of the file, or several, by expert and then by row."""

    shape: Shape
    pieces: tuple[Piece, ...]
    is_joined: bool = False
    """Whether it is a stack of experts that the file stores one by one."""


def model_types(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the model types that a config names: its own, or nothing, then its parts'."""
    own = config.get("model_type")
    return (own if isinstance(own, str) else "", *_nested_types(config))


def _nested_types(config: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(kind := config.get("model_type"), str):
        yield kind
    for part in config.values():
        if isinstance(part, dict):
            yield from _nested_types(part)


def parameters_in_memory(
    shapes: Mapping[str, Shape], types: tuple[str, ...]
) -> dict[str, Parameter]:
    """Return the parameters that transformers makes of a file, each tensor in one of them.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        The tensors of the file, by name.
    types : tuple of str
        See `model_types`.
    """
    stacks = dict(_stacks(shapes))
    members = {piece.tensor for stack in stacks.values() for piece in stack.pieces}
    single = {name: shape for name, shape in shapes.items() if name not in members}
    return {_renamed(n, types): p for n, p in (*stacks.items(), *_singles(single).items())}


def parameters_by_any_name(
    shapes: Mapping[str, Shape], types: tuple[str, ...]
) -> dict[str, Parameter]:
    """Return parameters under every name that an adapter may have for them.

    Experts are there both one by one and as a stack. Takes what `parameters_in_memory` does.
    """
    found = dict(_stacks(shapes)) | _singles(shapes)
    found = {_renamed(name, types): parameter for name, parameter in found.items()} | found
    for pattern, replacement in _OTHER_NAMES:
        found = {re.sub(pattern, replacement, name): p for name, p in found.items()} | found
    return found


def _singles(shapes: Mapping[str, Shape]) -> dict[str, Parameter]:
    return {name: Parameter(shape, (Piece(name),)) for name, shape in shapes.items()}


def _renamed(name: str, types: tuple[str, ...]) -> str:
    renames = [_WHOLE_MODELS.get(kind, ()) for kind in types[:1]]
    renames += [_PARTS.get(kind, ()) for kind in types]
    for pattern, replacement in chain.from_iterable(renames):
        name = re.sub(pattern, replacement, name)
    return name


def _stacks(shapes: Mapping[str, Shape]) -> Iterator[tuple[str, Parameter]]:
    groups: dict[str, dict[str, dict[int, str]]] = defaultdict(lambda: defaultdict(dict))
    for name, shape in shapes.items():
        if (match := _EXPERT.fullmatch(name)) and len(shape) == 2:
            groups[match["experts"]][match["part"]][int(match["number"])] = name
    for experts, parts in groups.items():
        for stack, recipe in _STACKS:
            columns = [parts[part] for part in recipe if part in parts]
            if len(columns) == len(recipe) and (parameter := _stack(columns, shapes)):
                yield f"{experts}.{stack}", parameter
                for part in recipe:
                    del parts[part]


def _stack(columns: list[dict[int, str]], shapes: Mapping[str, Shape]) -> Parameter | None:
    """Return experts one after the other, if all have the same parts and shapes."""
    numbers = range(len(columns[0]))
    if any(column.keys() != set(numbers) for column in columns):
        return None
    sizes = [{shapes[name] for name in column.values()} for column in columns]
    widths = {shape[1] for found in sizes for shape in found}
    if len(widths) != 1 or any(len(found) != 1 for found in sizes):
        return None
    ends = [0]
    for ((height, _),) in sizes:
        ends.append(ends[-1] + height)
    rows = list(pairwise(ends)) if len(columns) > 1 else [None]
    pieces = tuple(
        Piece(column[number], number, part)
        for number in numbers
        for part, column in zip(rows, columns, strict=True)
    )
    return Parameter((len(numbers), ends[-1], widths.pop()), pieces, is_joined=True)
