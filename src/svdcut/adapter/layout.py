"""Every tensor of an adapter, and its configuration, before any factor is made.

Source: peft 0.21.2, tuners/lora/{config,layer,model}.py, tuners/tuners_utils.py and
utils/save_and_load.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from svdcut.adapter.holding import Holding, find_unholdable, hold, is_tied, low_rank
from svdcut.adapter.memory import Shape
from svdcut.adapter.peft_config import CLASSIFIERS
from svdcut.adapter.places import Change, Kind, Model, Place, find_places, parents
from svdcut.adapter.targets import rank_patterns, shortest, shortest_raw, target_modules
from svdcut.errors import NothingKeptError, UsageError

_PREFIX = "base_model.model."
_PEFT_VERSION = "0.21.2"
"""Version whose layout this is; readers infer the orientation of square experts from it."""

_LAST = ".down_proj"
"""The stack of experts that transformers' modules own last; PEFT wraps it outermost."""

_TASKS = (
    ("ForCausalLM", "CAUSAL_LM", ()),
    ("LMHeadModel", "CAUSAL_LM", ()),
    *((end, task, ("classifier", "score")) for task, end in CLASSIFIERS.items()),
    ("ForQuestionAnswering", "QUESTION_ANS", ("qa_outputs",)),
)
"""Ends of architectures, PEFT's tasks, and the heads that PEFT then saves of itself."""
_TEXT_TO_TEXT = frozenset(
    {"bart", "blenderbot", "led", "longt5", "m2m_100", "marian", "mbart", "mt5", "pegasus"}
    | {"plbart", "prophetnet", "switch_transformers", "t5", "umt5"}
)
"""Models with two parts that take token ids, as PEFT's class for them passes no others."""


class Source(str, Enum):
    """Where the values of a tensor stored whole come from."""

    FINETUNED = "finetuned"
    BASE = "base"
    """Unchanged, but PEFT demands all tensors of a module that it saves."""

    TRUNCATED = "truncated"
    """Base plus the truncated update: a tied embedding."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A pair of low-rank factors, as PEFT stores it."""

    place: Place
    rank: int
    """The rank of each expert; smaller ones are padded with zeros."""

    wrappers: int
    """Number of wrappers around it: those of later parameters of the module."""

    @property
    def keys(self) -> tuple[str, str]:
        """The names of A and B."""
        module = _PREFIX + self.place.module + self.wrappers * ".base_layer"
        if self.place.kind is Kind.EMBEDDING:
            return f"{module}.lora_embedding_A", f"{module}.lora_embedding_B"
        return f"{module}.lora_A.weight", f"{module}.lora_B.weight"

    @property
    def shapes(self) -> tuple[Shape, Shape]:
        """The shapes of A and B."""
        experts, kernel = self.place.experts, self.place.kernel
        rows = sum(matrix.rows for matrix in experts[0])
        columns, width = experts[0][0].columns, self.rank * len(experts)
        if self.place.kind.is_transposed:
            return (width, rows), (columns, width)
        if kernel:
            return (width, *kernel), (rows, width, *(1 for _ in kernel[1:]))
        return (width, columns), (rows, width)


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor that the adapter stores whole."""

    key: str
    tensor: str
    shape: Shape
    source: Source


@dataclass(frozen=True, slots=True)
class AdapterLayout:
    """Contents of ``adapter_config.json`` and ``adapter_model.safetensors``."""

    config: Mapping[str, Any]
    slots: tuple[Slot, ...]
    wholes: tuple[Stored, ...]


def lay_out_adapter(
    changes: Sequence[Change], model: Model, *, apart: bool = False
) -> AdapterLayout:
    """Lay out an adapter.

    Parameters
    ----------
    changes : sequence of Change
        Tensors that changed; those that are cut have their ranks.
    model : Model
        The fine-tuned model.
    apart : bool
        Whether experts that are stored one by one have factors each, all of one rank.

    Returns
    -------
    AdapterLayout
        Slots in the order of the changes, then what is stored whole, modules first.

    Raises
    ------
    UsageError
        If nothing low-rank is left, or a tensor cannot be held; all of them are listed.
    """
    if refused := find_unholdable(changes, model):
        listed = "".join(f"\n    {name} {reason}" for name, reason in refused)
        raise UsageError(f"an adapter cannot hold:{listed}")
    cuts = low_rank(changes, model)
    if any(cut.ranks is None for cut in cuts):
        raise ValueError("a cut without ranks")
    if not cuts:
        raise NothingKeptError(
            "an adapter of rank 0 holds nothing: no update but of tied embeddings is left",
            hint="Keep more: a higher rank, or a rule that keeps more of the energy.",
        )
    slots = _slots(find_places(cuts, model, apart=apart), one_rank=apart)
    holding = hold(changes, model)
    return AdapterLayout(
        _config(slots, holding, model), slots, _stored(holding, changes, slots, model)
    )


def _slots(places: Sequence[Place], *, one_rank: bool) -> tuple[Slot, ...]:
    owned = Counter(place.module for place in places)
    ranks = {
        place: max(sum(matrix.rank for matrix in expert) for expert in place.experts)
        for place in places
    }
    if one_rank or all(place.kind.is_parameter for place in places):
        # PEFT warns of a pattern of ranks that matches no module: one rank for all.
        ranks = dict.fromkeys(places, max(ranks.values()))
    return tuple(
        Slot(place, rank, 0 if place.name.endswith(_LAST) else owned[place.module] - 1)
        for place, rank in ranks.items()
    )


def _stored(
    holding: Holding, changes: Sequence[Change], slots: Sequence[Slot], model: Model
) -> tuple[Stored, ...]:
    sources = {
        change.name: Source.TRUNCATED if change.is_cut else Source.FINETUNED
        for change in changes
        if not change.is_empty and (not change.is_cut or is_tied(change.name, model))
    }
    saved = set(holding.modules)
    keys = {
        tensor: _PREFIX + name
        for tensor, name in model.memory.items()
        if not saved.isdisjoint(parents(name))
    }
    wrappers = Counter(slot.place.module for slot in slots)
    for tensor in holding.loose:
        module, _, leaf = model.memory[tensor].rpartition(".")
        keys[tensor] = _PREFIX + module + wrappers[module] * ".base_layer" + f".{leaf}"
    return tuple(
        Stored(key, tensor, model.shapes[tensor], sources.get(tensor, Source.BASE))
        for tensor, key in keys.items()
    )


def _config(slots: Sequence[Slot], holding: Holding, model: Model) -> dict[str, Any]:
    rank = max(slot.rank for slot in slots)
    ranks = {slot.place.target: slot.rank for slot in slots}
    parameters = {s.place.target: s.rank for s in slots if s.place.kind.is_parameter}
    modules = {target: r for target, r in ranks.items() if target not in parameters}
    patterns = rank_patterns(modules, parameters, rank)
    saved = shortest_raw(holding.modules, [m for m in model.modules if m not in holding.modules])
    other_names = set(model.memory.values()).difference(parameters)
    has_bias = any(name.endswith(".bias") for name in holding.loose)
    return {
        "peft_type": "LORA",
        "peft_version": _PEFT_VERSION,
        "task_type": _task(holding, model),
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "rank_pattern": patterns,
        "alpha_pattern": patterns,
        "target_modules": target_modules(modules, model.modules),
        "target_parameters": shortest(parameters, other_names) or None,
        "modules_to_save": saved or None,
        "fan_in_fan_out": any(slot.place.kind is Kind.CONV1D for slot in slots),
        "bias": "all" if has_bias else "none",
    }


def _task(holding: Holding, model: Model) -> str | None:
    """Return PEFT's name of the task, where PEFT then finds the heads that it looks for."""
    if model.architecture.endswith("ForConditionalGeneration"):
        return "SEQ_2_SEQ_LM" if _TEXT_TO_TEXT.intersection(model.types) else None
    for end, task, heads in _TASKS:
        if model.architecture.endswith(end):
            sought = [m for m in model.modules if m.endswith(heads)] if heads else []
            return task if set(sought) <= set(holding.modules) else None
    return None
