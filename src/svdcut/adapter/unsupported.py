"""What no adapter can hold, and why: known from names, shapes and config alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from svdcut.adapter.model import Cut, Model, Whole, is_within, module_of, parents
from svdcut.adapter.modules_to_save import Holding, hold, is_tied
from svdcut.adapter.places import Kind, Place, find_places
from svdcut.names import is_bias

_MAMBA_TYPES = frozenset({"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"})
_MAMBA = re.compile(r"\.(out_proj|conv1d)\.weight$")
"""Refused by peft 0.21.2, tuners/tuners_utils.py, _check_lora_target_modules_mamba."""

_WHISPER = re.compile(r"encoder\.(conv\d|embed_positions)\.weight$")
_NOT_CONVOLVED = re.compile(r"depthwise|dw_?conv|conv_?transpose|deconv|pos_conv|conv1d\.weight$")
_EXPERT = re.compile(r"(^|\.)experts\.\d+\.")
_KNOWN_ORDER = ("gate_up_proj", "up_proj", "down_proj")
"""The order in which transformers' modules of experts own their stacks."""


_COMPUTED = "is a part of a weight that the model computes, which PEFT cannot change"


def find_unholdable(
    cuts: Sequence[Cut], wholes: Sequence[Whole], model: Model
) -> list[tuple[str, str]]:
    """Return the tensors that an adapter cannot hold.

    Parameters
    ----------
    cuts : sequence of Cut
        Tensors whose update is truncated, or is to be.
    wholes : sequence of Whole
        Tensors that changed, or may have.
    model : Model
        The fine-tuned model.

    Returns
    -------
    list of (str, str)
        Name and reason, a clause that follows the name. Of a whole it counts only if the
        tensor did change.
    """
    full = [cut for cut in cuts if not cut.is_empty]
    places = find_places([cut.name for cut in full if not is_tied(cut.name, model)], model)
    by_name = {place.name: place for place in places}
    held = [whole for whole in wholes if not _alone(whole, model)]
    return [
        *(
            (cut.name, reason)
            for cut in full
            if (reason := _cut_alone(cut, by_name.get(model.memory[cut.name]), model))
        ),
        *((whole.name, reason) for whole in wholes if (reason := _alone(whole, model))),
        *_places_in_conflict(places),
        *_wholes_in_conflict(held, places, model),
    ]


def _rows(shape: tuple[int, ...], base_shape: tuple[int, ...]) -> str:
    return (
        f"has shape {list(shape)}, base's {list(base_shape)}: an adapter changes weights and "
        "adds none"
    )


def _cut_alone(cut: Cut, place: Place | None, model: Model) -> str | None:
    """Return why a truncated tensor cannot be held whatever the others are."""
    name = model.memory[cut.name]
    if cut.shape != cut.base_shape:
        return _rows(cut.shape, cut.base_shape)
    if place is None:  # tied, and so stored whole
        return None
    if not module_of(name):
        return "belongs to no module but the model itself, of which PEFT wraps no part"
    return _read_elsewhere(cut.name, name, model) or _shape_alone(place, cut)


def _read_elsewhere(tensor: str, name: str, model: Model) -> str | None:
    """Return who reads a weight, or its module, without asking PEFT's wrapper."""
    if _is_computed_from(name):
        return _COMPUTED
    if _MAMBA_TYPES.intersection(model.types) and _MAMBA.search(name):
        return "is used by the kernels of the model past PEFT, which refuses it"
    if "whisper" in model.types and _WHISPER.search(name):
        return "is in a module whose attributes the model reads, which PEFT's wrapper has not"
    attention = tensor.removesuffix("out_proj.weight").removesuffix("in_proj_weight")
    if f"{attention}in_proj_weight" in model.shapes:
        return "is in an attention of torch's own, which reads weights past PEFT's wrappers"
    return None


def _is_computed_from(name: str) -> bool:
    return "parametrizations" in name or name.endswith(("weight_v", "weight_g"))


def _shape_alone(place: Place, cut: Cut) -> str | None:
    if place.kind is Kind.CONVOLUTION and _NOT_CONVOLVED.search(place.name):
        return "is a convolution by groups or a transposed one, which PEFT cannot merge"
    if place.kind is Kind.PARAMETER and len(cut.shape) > 2:
        return f"has {len(cut.shape)} dimensions and is no weight of a convolution"
    return None


def _alone(whole: Whole, model: Model) -> str | None:
    """Return why a tensor cannot be saved whole whatever the others are."""
    name = model.memory[whole.name]
    if whole.base_shape not in (None, whole.shape):
        assert whole.base_shape is not None
        return _rows(whole.shape, whole.base_shape)
    reasons = (
        (not whole.is_float, "holds integers, and PEFT saves none"),
        (
            not module_of(name),
            "belongs to no module but the model itself, which PEFT cannot save as a part",
        ),
        (_is_computed_from(name), _COMPUTED),
        (
            whole.name in model.fused,
            "is a part of the stack that transformers makes of all experts",
        ),
        (
            is_bias(name) and (len(whole.shape) > 1 or bool(_EXPERT.search(name))),
            "holds a bias of each expert, and PEFT has biases of plain modules alone",
        ),
    )
    return next((reason for holds, reason in reasons if holds), None)


def _places_in_conflict(places: Collection[Place]) -> Iterator[tuple[str, str]]:
    """Yield what cannot be cut together.

    PEFT wraps the module that owns a parameter, merges nothing within it, and tells two
    parameters of one module apart by their order alone.
    """
    owned = Counter(place.module for place in places if place.kind.is_parameter)
    inner = {
        module: place.experts[0][0].tensor for place in places for module in parents(place.module)
    }
    for place in places:
        if not place.kind.is_parameter:
            continue
        tensor = place.experts[0][0].tensor
        if place.module in inner:
            yield tensor, _beside(place.module, inner[place.module], "is cut too")
        if owned[place.module] > 1 and place.name.rpartition(".")[2] not in _KNOWN_ORDER:
            yield tensor, f"is one of several matrices of {place.module}, which PEFT mixes up"


def _beside(module: str, other: str, what: str) -> str:
    return f"belongs to {module}, as does {other}, which {what}: PEFT holds but one of them"


def _wholes_in_conflict(
    wholes: Sequence[Whole], places: Collection[Place], model: Model
) -> Iterator[tuple[str, str]]:
    """Yield what cannot be saved: PEFT saves a module with all that is in it."""
    left = list(wholes)
    # Each by itself first: one that cannot be saved must not stand in the way of others.
    for group in [*([whole] for whole in wholes), left]:
        holding = hold((), group, model)
        for whole in list(group):
            if whole.name not in holding.loose:
                module = _holder(model.memory[whole.name], holding)
                if reason := _module_conflict(module, places, model):
                    left.remove(whole)
                    yield whole.name, reason


def _holder(name: str, holding: Holding) -> str:
    return next((m for m in holding.modules if is_within(name, m)), "")


def _module_conflict(module: str, places: Collection[Place], model: Model) -> str | None:
    if not module:
        return "belongs to a head whose matrix is the embedding's, and PEFT saves it with that"
    for place in places:
        within = is_within(place.module, module)
        around = place.kind.is_parameter and is_within(module, place.module)
        if within or around:
            return _beside(module, place.experts[0][0].tensor, "is cut")
    stack = next((stack for stack in sorted(model.stacks) if is_within(stack, module)), None)
    return _beside(module, stack, "is in no file as it is") if stack else None
