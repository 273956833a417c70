"""The keys of an adapter's tensors: which module, and what of it.

Written by PEFT of any version, with what other trainers leave in them. Names alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from svdcut.pair.matching import WRAPPERS

_PREFIX = ("base_model", "model")
_BASE_LAYER = "base_layer"
_SAVED, _ORIGINAL = "modules_to_save", "original_module"


class Role(Enum):
    """What a tensor of an adapter is to its module."""

    A = "lora_A"
    B = "lora_B"
    EMBEDDING_A = "lora_embedding_A"
    EMBEDDING_B = "lora_embedding_B"
    MAGNITUDE = "lora_magnitude_vector"
    BIAS = "the bias of lora_B"
    WHOLE = "a tensor of base, as a whole"
    SAVED = "such a tensor, as training had it"
    """PEFT writes these beside the others where it saves embeddings."""

    UNUSED = "what base has too"
    UNKNOWN = "unknown"


_ROLES = {role.value: role for role in Role if role.value.startswith("lora_")}


@dataclass(frozen=True, slots=True)
class Key:
    """A key, taken apart."""

    module: str
    """Its path in memory; of a whole tensor, the tensor's."""

    role: Role
    level: int = 0
    """How many wrappers of parameters are around it (`lora.ParamWrapper`), 0 for the outermost."""


def parse_key(key: str) -> Key:
    """Take the key of a tensor apart.

    Parameters
    ----------
    key : str
        As ``base_model.model.layers.0.q_proj.lora_A.weight``. The prefix may be missing; the
        name of the adapter may be in it, as may parts of `torch.compile` and FSDP.

    Returns
    -------
    Key
        Of role `UNKNOWN` where it has a part of PEFT's that is not known here.
    """
    parts = [part for part in key.split(".") if part not in WRAPPERS]
    if tuple(parts[:2]) == _PREFIX:
        parts = parts[2:]
    places = [place for place, part in enumerate(parts) if part in _ROLES]
    if places:
        return _factor(parts[: places[-1]], _ROLES[parts[places[-1]]], parts[places[-1] + 1 :])
    return _whole(parts)


def _factor(before: list[str], role: Role, after: list[str]) -> Key:
    # What follows is the adapter's name, if any, and the parameter's, where it is a module's.
    if after and after[-1] == "bias" and role is Role.B:
        role = Role.BIAS
    if len(after) > 2 or (len(after) == 2 and after[-1] not in {"weight", "bias"}):
        role = Role.UNKNOWN
    module = [part for part in before if part != _BASE_LAYER]
    level = 0
    while level < len(before) and before[-1 - level] == _BASE_LAYER:
        level += 1
    return Key(".".join(module), role, level)


def _whole(parts: list[str]) -> Key:
    role = Role.WHOLE
    if _SAVED in parts:
        role = Role.SAVED
        place = len(parts) - 1 - parts[::-1].index(_SAVED)
        # modules_to_save.NAME.weight, or modules_to_save.weight where the name was left out
        parts = parts[:place] + parts[place + (1 if len(parts) - place <= 2 else 2) :]
    if _ORIGINAL in parts:
        role = Role.UNUSED
    elif any(part.startswith("lora_") or part == "token_adapter" for part in parts):
        role = Role.UNKNOWN
    return Key(".".join(part for part in parts if part != _BASE_LAYER), role)
