"""Every tensor of an adapter, and its configuration, before any factor is made.

Source: peft 0.21.2, tuners/lora/{config,layer,model}.py, tuners/tuners_utils.py and
utils/save_and_load.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from svdcut.adapter.model import Cut, Model, Shape, Whole, module_of, parents
from svdcut.adapter.modules_to_save import Holding, hold, is_tied
from svdcut.adapter.peft_config import CLASSIFIERS
from svdcut.adapter.places import Kind, Matrix, Place, find_places, part_experts
from svdcut.adapter.suffixes import matches, pattern, shortest, shortest_raw
from svdcut.adapter.unsupported import find_unholdable
from svdcut.errors import NothingKeptError, UsageError

_PREFIX = "base_model.model."
_PEFT_VERSION = "0.21.2"
"""Whose layout it is: it tells which way round the factors of square experts are."""

_LAST = "down_proj"
"""Of the two stacks of experts, the one that transformers' modules own last."""

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
class Part:
    """A matrix of the checkpoint, and the rank that is kept of its update."""

    matrix: Matrix
    rank: int


@dataclass(frozen=True, slots=True)
class Slot:
    """A pair of low-rank factors, as PEFT stores it."""

    kind: Kind
    target: str
    """The module or parameter in memory."""

    key_a: str
    key_b: str
    shape_a: Shape
    shape_b: Shape
    rank: int
    """Of each expert; smaller ones are padded with zeros."""

    experts: tuple[tuple[Part, ...], ...]
    """What makes each matrix, along its rows; one expert where it is no stack."""

    @property
    def has_parts(self) -> bool:
        """Whether any triplet is in it; an expert may have none, where others have some."""
        return any(part.rank for expert in self.experts for part in expert)


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor that the adapter stores whole."""

    key: str
    tensor: str
    shape: Shape
    source: Source


@dataclass(frozen=True, slots=True)
class AdapterLayout:
    """What goes into ``adapter_config.json`` and ``adapter_model.safetensors``."""

    config: Mapping[str, Any]
    slots: tuple[Slot, ...]
    wholes: tuple[Stored, ...]


def lay_out_adapter(
    cuts: Sequence[Cut], wholes: Sequence[Whole], model: Model, *, apart: bool = False
) -> AdapterLayout:
    """Lay out an adapter.

    Parameters
    ----------
    cuts : sequence of Cut
        With their ranks; those of rank 0 are left out.
    wholes : sequence of Whole
        Tensors that changed and are stored as they are.
    model : Model
        The fine-tuned model.
    apart : bool
        Whether experts that are stored one by one have factors each, all of one rank.

    Returns
    -------
    AdapterLayout
        Slots in the order of the cuts, then what is stored whole, modules first.

    Raises
    ------
    UsageError
        If nothing low-rank is left, or a tensor cannot be held; all of them are listed.
    """
    full = [cut for cut in cuts if not cut.is_empty]
    if refused := find_unholdable(full, wholes, model):
        listed = "".join(f"\n    {name} {reason}" for name, reason in refused)
        raise UsageError(f"an adapter cannot hold:{listed}")
    ranks = {cut.name: cut.ranks for cut in full if cut.ranks is not None}
    if len(ranks) < len(full):
        raise ValueError("a cut without ranks")
    places = find_places([cut.name for cut in full if not is_tied(cut.name, model)], model)
    if not places:
        raise NothingKeptError(
            "an adapter of rank 0 holds nothing: no update but of tied embeddings is left",
            hint="Keep more: a higher rank, or a rule that keeps more of the energy.",
        )
    if apart:
        places = part_experts(places, model)
    slots = _slots(places, ranks, one_rank=apart)
    holding = hold(full, wholes, model)
    stored = _stored(holding, full, wholes, slots, model)
    return AdapterLayout(_config(slots, holding, model), slots, stored)


def _slots(
    places: Sequence[Place], ranks: Mapping[str, Sequence[int]], *, one_rank: bool
) -> tuple[Slot, ...]:
    nested = _nested(places)
    parts = {place: _parts(place, ranks) for place in places}
    sizes = {place: max(sum(p.rank for p in e) for e in parts[place]) for place in places}
    if one_rank or all(place.kind.is_parameter for place in places):
        # PEFT warns of a pattern of ranks that matches no module: one rank for all.
        sizes = dict.fromkeys(places, max(sizes.values()))
    return tuple(_slot(place, parts[place], sizes[place], nested[place]) for place in places)


def _parts(place: Place, ranks: Mapping[str, Sequence[int]]) -> tuple[tuple[Part, ...], ...]:
    def rank(matrix: Matrix) -> int:
        found = ranks.get(matrix.tensor)
        return found[matrix.number] if found else 0

    return tuple(tuple(Part(m, rank(m)) for m in expert) for expert in place.experts)


def _nested(places: Iterable[Place]) -> dict[Place, int]:
    """Return how many wrappers are around each place's own: those of later parameters."""
    owned = Counter(place.module for place in places)
    return {
        place: owned[place.module] - 1 if not place.name.endswith(f".{_LAST}") else 0
        for place in places
    }


def _slot(place: Place, parts: tuple[tuple[Part, ...], ...], rank: int, nested: int) -> Slot:
    rows = sum(matrix.rows for matrix in place.experts[0])
    columns = place.experts[0][0].columns
    module = _PREFIX + place.module + nested * ".base_layer"
    stem, end = (".lora_embedding_", "") if place.kind is Kind.EMBEDDING else (".lora_", ".weight")
    width = rank * len(parts)
    shapes: tuple[Shape, Shape] = (width, columns), (rows, width)
    if place.kind in (Kind.EMBEDDING, Kind.CONV1D, Kind.TRANSPOSED_STACK):
        shapes = (width, rows), (columns, width)
    if place.kind is Kind.CONVOLUTION:
        shapes = (rank, *place.kernel), (rows, rank, *(1 for _ in place.kernel[1:]))
    return Slot(
        kind=place.kind,
        target=place.target,
        key_a=f"{module}{stem}A{end}",
        key_b=f"{module}{stem}B{end}",
        shape_a=shapes[0],
        shape_b=shapes[1],
        rank=rank,
        experts=parts,
    )


def _stored(
    holding: Holding,
    cuts: Iterable[Cut],
    wholes: Iterable[Whole],
    slots: Sequence[Slot],
    model: Model,
) -> tuple[Stored, ...]:
    sources = {whole.name: Source.FINETUNED for whole in wholes}
    sources |= {cut.name: Source.TRUNCATED for cut in cuts if is_tied(cut.name, model)}
    wrappers = Counter(
        module_of(slot.target) if slot.kind.is_parameter else slot.target for slot in slots
    )
    saved = set(holding.modules)
    keys = {
        tensor: _PREFIX + name
        for tensor, name in model.memory.items()
        if not saved.isdisjoint(parents(name))
    }
    for tensor in holding.loose:
        module, _, leaf = model.memory[tensor].rpartition(".")
        keys[tensor] = _PREFIX + module + wrappers[module] * ".base_layer" + f".{leaf}"
    return tuple(
        Stored(key, tensor, model.shapes[tensor], sources.get(tensor, Source.BASE))
        for tensor, key in keys.items()
    )


def _config(slots: Sequence[Slot], holding: Holding, model: Model) -> dict[str, Any]:
    rank = max(slot.rank for slot in slots)
    patterns = _rank_patterns(slots, rank)
    saved = shortest_raw(holding.modules, [m for m in model.modules if m not in holding.modules])
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
        "target_modules": _target_modules(slots, model),
        "target_parameters": _target_parameters(slots, model),
        "modules_to_save": saved or None,
        "fan_in_fan_out": any(slot.kind is Kind.CONV1D for slot in slots),
        "bias": "all" if has_bias else "none",
    }


def _target_modules(slots: Iterable[Slot], model: Model) -> list[str] | str:
    """Return ends of names, or one regular expression where a name is an end of another."""
    wanted = {slot.target: None for slot in slots if not slot.kind.is_parameter}
    others = [module for module in model.modules if module not in wanted]
    ends = shortest(wanted, others)
    if not any(matches(other, ends) for other in others):
        return ends
    patterns = [pattern(end, others) for end in ends]
    return rf"(?:.*\.)?(?:{'|'.join(patterns)})"


def _target_parameters(slots: Iterable[Slot], model: Model) -> list[str] | None:
    wanted = [slot.target for slot in slots if slot.kind.is_parameter]
    others = set(model.memory.values()).difference(wanted)
    return shortest(wanted, others) or None


def _rank_patterns(slots: Sequence[Slot], rank: int) -> dict[str, int]:
    """Return the ranks that differ from the common one, by regular expression.

    The first that matches a name counts. PEFT looks up modules and parameters alike, but
    warns of a pattern that matches no module (tuners_utils.py, inject_adapter): those of
    parameters match also a module that an earlier one has settled.
    """
    others = {
        size: [slot.target for slot in slots if slot.rank != size]
        for size in {slot.rank for slot in slots}
    }

    def keys(kept: Iterable[Slot], size: int) -> list[str]:
        ends = shortest([slot.target for slot in kept], others[size])
        return [pattern(end, others[size]) for end in ends]

    found: dict[str, int] = {}
    modules = [slot for slot in slots if not slot.kind.is_parameter]
    parameters = [slot for slot in slots if slot.kind.is_parameter and slot.rank != rank]
    if parameters:
        found |= dict.fromkeys(keys(modules[:1], modules[0].rank), modules[0].rank)
    for size in sorted(others.keys() - {rank}, reverse=True):
        ours = [slot for slot in modules if slot.rank == size]
        found |= dict.fromkeys(keys(ours, size), size)
    for size in sorted({slot.rank for slot in parameters}, reverse=True):
        ours = [slot for slot in parameters if slot.rank == size]
        settled = next(iter(found))
        found |= {f"{key}|{settled}": size for key in keys(ours, size)}
    return found


def _task(holding: Holding, model: Model) -> str | None:
    """Return PEFT's name of the task, where PEFT then finds the heads that it looks for."""
    if model.architecture.endswith("ForConditionalGeneration"):
        return "SEQ_2_SEQ_LM" if _TEXT_TO_TEXT.intersection(model.types) else None
    for end, task, heads in _TASKS:
        if model.architecture.endswith(end):
            sought = [m for m in model.modules if m.endswith(heads)] if heads else []
            return task if set(sought) <= set(holding.modules) else None
    return None
