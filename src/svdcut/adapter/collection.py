"""The tensors of an adapter's file, by what they are: pairs of factors, whole tensors.

Headers alone; it knows no base.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from svdcut.adapter.keys import Key, Role, parse_key
from svdcut.errors import CheckpointError, QuantizedError, listed
from svdcut.files.jsonfile import quoted
from svdcut.files.tensorfile import TensorEntry, TensorFile

_NOT_GATHERED = (
    "Training with ZeRO-3 or FSDP saved its shards without gathering them: save it again "
    "within deepspeed.zero.GatheredParameters or summon_full_params."
)
_DAMAGED = "The adapter is incomplete; fetch or save it again."
_UNKNOWN = "If PEFT can merge it, merge it into its base first, and name the merged model."


_K = TypeVar("_K")


@dataclass(frozen=True, slots=True)
class Factors:
    """What an adapter adds to one parameter of the model in memory."""

    module: str
    level: int
    """How many wrappers are around it, where several parameters of the module are adapted."""

    a: TensorEntry
    b: TensorEntry
    embedding: bool
    bias: TensorEntry | None = None
    magnitude: TensorEntry | None = None

    @property
    def rows(self) -> int:
        """How many rows ``b @ a`` has."""
        return self.b.shape[0]

    @property
    def rank(self) -> int:
        """The sum of the ranks of all experts."""
        return self.a.shape[0]


@dataclass(frozen=True, slots=True)
class AdapterTensors:
    """All tensors of an adapter."""

    factors: tuple[Factors, ...]
    whole: Mapping[str, TensorEntry]
    """What replaces or joins the tensors of base, by the name in memory."""


def collect_tensors(file: TensorFile) -> AdapterTensors:
    """Sort out the tensors of an adapter.

    Raises
    ------
    CheckpointError
        If a key is not understood, a factor lacks its partner, or one is empty.
    QuantizedError
        If factors are not plain numbers.
    """
    slots: dict[tuple[str, int], dict[Role, TensorEntry]] = defaultdict(dict)
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
            _check_values(entry, key)
            _add(slots[key.module, key.level], key.role, entry)
    if unknown:
        names = listed(map(quoted, unknown))
        raise CheckpointError(
            f"{file.path}: {len(unknown)} tensors of a kind of LoRA not known here:{names}",
            hint=_UNKNOWN,
        )
    whole = saved | whole
    if not slots and not whole:
        raise CheckpointError(f"{file.path}: holds no tensors", hint=_DAMAGED)
    factors = tuple(_pair(module, level, found) for (module, level), found in slots.items())
    return AdapterTensors(factors, whole)


def _add(found: dict[_K, TensorEntry], key: _K, entry: TensorEntry) -> None:
    other = found.setdefault(key, entry)
    if other is not entry:
        raise CheckpointError(
            f"{entry.path}: {quoted(other.name)} and {quoted(entry.name)} mean the same",
            hint="Several adapters in one file? Save each in a folder of its own.",
        )


def _check_values(entry: TensorEntry, key: Key) -> None:
    where = f"{entry.path}: {quoted(entry.name)}"
    least = 1 if key.role in {Role.BIAS, Role.MAGNITUDE} else 2
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
    a, b = (Role.EMBEDDING_A, Role.EMBEDDING_B) if embedding else (Role.A, Role.B)
    some = next(iter(found.values()))
    if embedding and (Role.A in found or Role.B in found):
        raise CheckpointError(
            f"{some.path}: {quoted(module)} has factors of an embedding and of others",
            hint=_DAMAGED,
        )
    missing = [role.value for role in (a, b) if role not in found]
    if missing:
        raise CheckpointError(
            f"{some.path}: {quoted(some.name)} is there, but no {missing[0]} beside it",
            hint=_DAMAGED,
        )
    if found[a].shape[0] != found[b].shape[1]:
        raise CheckpointError(
            f"{some.path}: {quoted(found[a].name)} {list(found[a].shape)} and "
            f"{quoted(found[b].name)} {list(found[b].shape)} differ in their rank",
            hint=_DAMAGED,
        )
    return Factors(
        module,
        level,
        found[a],
        found[b],
        embedding,
        found.get(Role.BIAS),
        found.get(Role.MAGNITUDE),
    )
