"""The tensors of an adapter's file, by what they are: pairs of factors, whole tensors.

Keys are those of any version of PEFT, with what other trainers leave in them. Headers
alone; it knows no base.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from svdcut.errors import CheckpointError, QuantizedError, listed
from svdcut.files.jsonfile import quoted
from svdcut.files.tensorfile import TensorEntry, TensorFile
from svdcut.pair.matching import WRAPPERS

_PREFIX = ["base_model", "model"]
_BASE_LAYER = "base_layer"
_SAVED, _ORIGINAL = "modules_to_save", "original_module"

_NOT_GATHERED = (
    "Training with ZeRO-3 or FSDP saved its shards without gathering them: save it again "
    "within deepspeed.zero.GatheredParameters or summon_full_params."
)
_DAMAGED = "The adapter is incomplete; fetch or save it again."
_UNKNOWN = "If PEFT can merge it, merge it into its base first, and name the merged model."

_K = TypeVar("_K")


class Role(Enum):
    """Role of a tensor of an adapter in its module."""

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
    """Its path in memory; for a whole tensor, the tensor's."""

    role: Role
    level: int = 0
    """Number of wrappers of parameters around it (`lora.ParamWrapper`), 0 for the outermost."""


@dataclass(frozen=True, slots=True)
class Factors:
    """Factors of the update of one parameter of a module."""

    module: str
    level: int
    """Number of wrappers around it, where several parameters of the module are adapted."""

    a: TensorEntry | None
    """None for the bias of the module: what is added to it is `b`."""

    b: TensorEntry
    embedding: bool = False
    magnitude: TensorEntry | None = None

    @property
    def key(self) -> str:
        """The key that messages name."""
        return (self.a or self.b).name

    @property
    def rank(self) -> int:
        """The sum of the ranks of all experts."""
        return 1 if self.a is None else self.a.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of ``b @ a``."""
        return self.b.shape if self.a is None else (self.b.shape[0], *self.a.shape[1:])


@dataclass(frozen=True, slots=True)
class AdapterTensors:
    """All tensors of an adapter."""

    factors: tuple[Factors, ...]
    whole: Mapping[str, TensorEntry]
    """Tensors that replace or join those of base, by the name in memory."""


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
        With the role `UNKNOWN` where it has a part of PEFT's that is not known here.
    """
    parts = [part for part in key.split(".") if part not in WRAPPERS]
    if parts[:2] == _PREFIX:
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


def collect_tensors(file: TensorFile) -> AdapterTensors:
    """Sort out the tensors of an adapter.

    Raises
    ------
    CheckpointError
        If a key is not understood, a factor lacks its partner, or one is empty.
    QuantizedError
        If factors are not plain numbers.
    """
    pairs: dict[tuple[str, int], dict[Role, TensorEntry]] = defaultdict(dict)
    whole: dict[str, TensorEntry] = {}
    saved: dict[str, TensorEntry] = {}
    unknown: list[str] = []
    for entry in file.entries:
        key = parse_key(entry.name)
        if key.role is Role.UNKNOWN:
            unknown.append(entry.name)
        elif key.role in {Role.WHOLE, Role.SAVED}:
            _add(whole if key.role is Role.WHOLE else saved, key.module, entry)
        elif key.role is not Role.UNUSED:
            _check_values(entry, key.role)
            _add(pairs[key.module, key.level], key.role, entry)
    if unknown:
        names = listed(map(quoted, unknown))
        raise CheckpointError(
            f"{file.path}: {len(unknown)} tensors of a kind of LoRA not known here:{names}",
            hint=_UNKNOWN,
        )
    if not (pairs or whole or saved):
        raise CheckpointError(f"{file.path}: holds no tensors", hint=_DAMAGED)
    factors = [_pair(module, level, found) for (module, level), found in pairs.items()]
    biases = [
        Factors(module, level, None, found[Role.BIAS])
        for (module, level), found in pairs.items()
        if Role.BIAS in found
    ]
    return AdapterTensors((*factors, *biases), saved | whole)


def _add(found: dict[_K, TensorEntry], key: _K, entry: TensorEntry) -> None:
    other = found.setdefault(key, entry)
    if other is not entry:
        raise CheckpointError(
            f"{entry.path}: {quoted(other.name)} and {quoted(entry.name)} mean the same",
            hint="Several adapters in one file? Save each in a folder of its own.",
        )


def _check_values(entry: TensorEntry, role: Role) -> None:
    where = f"{entry.path}: {quoted(entry.name)}"
    least = 1 if role in {Role.BIAS, Role.MAGNITUDE} else 2
    if len(entry.shape) < least or 0 in entry.shape:
        raise CheckpointError(
            f"{where} has the shape {list(entry.shape)}: it is empty", hint=_NOT_GATHERED
        )
    if not entry.dtype.is_plain_float:
        raise QuantizedError(
            f"{where} holds {entry.dtype.value}, not plain numbers",
            hint="Use the adapter before it was quantised, in bfloat16, float16 or float32.",
        )


def _pair(module: str, level: int, found: Mapping[Role, TensorEntry]) -> Factors:
    embedding = Role.EMBEDDING_A in found or Role.EMBEDDING_B in found
    roles = (Role.EMBEDDING_A, Role.EMBEDDING_B) if embedding else (Role.A, Role.B)
    some = next(iter(found.values()))
    missing = [role.value for role in roles if role not in found]
    if embedding and (Role.A in found or Role.B in found):
        problem = f"{quoted(module)} has factors of an embedding and of others"
    elif missing:
        problem = f"{quoted(some.name)} is there, but no {missing[0]} beside it"
    else:
        a, b = (found[role] for role in roles)
        if a.shape[0] == b.shape[1]:
            return Factors(module, level, a, b, embedding, found.get(Role.MAGNITUDE))
        problem = (
            f"{quoted(a.name)} {list(a.shape)} and {quoted(b.name)} {list(b.shape)} differ in "
            "their rank"
        )
    raise CheckpointError(f"{some.path}: {problem}", hint=_DAMAGED)
