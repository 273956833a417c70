"""The places in a model that take a low-rank update, and what PEFT makes of each.

Source: peft 0.21.2, tuners/lora/layer.py, and utils/transformers_weight_conversion.py.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from itertools import chain

from svdcut.adapter.model import Model, Shape, module_of
from svdcut.adapter.orientation import CONV1D_MODELS, TRANSPOSED_STACKS
from svdcut.names import is_expert_stack

_CONV1D = re.compile(r"\.(c_attn|q_attn|c_proj|c_fc)\.weight$")

_EMBEDDING = re.compile(
    r"(^|\.)(embed_tokens|embed_in|wte|wpe|shared|tokens_embed|positions_embed|"
    r"(word|position|token_type|relative|entity|tok)_embeddings?|rel_embeddings|"
    r"relative_attention_bias|token_embedding)\.weight$"
)
_UNSURE = re.compile(r"emb|wte|wpe|shared\.weight|positions?\.weight|queries|prototypes|codebook")
"""Names of modules that may be a plain matrix, an embedding or a class of their own."""

_ROUTER = re.compile(r"(^|\.)(gate|router|wg|classifier_router)\.weight$")
_READ_AS_EXPERTS = re.compile(r"(^|\.)(gate|w[123]|(gate|up|down)_proj)\.weight$")
"""What PEFT takes for a part of an expert in any module of a mixture, be it a dense one."""


class Kind(str, Enum):
    """What a place is, and so how PEFT stores its factors."""

    LINEAR = "linear"
    CONV1D = "conv1d"
    """A matrix stored (in, out), as of GPT-2: ``fan_in_fan_out``."""

    EMBEDDING = "embedding"
    CONVOLUTION = "convolution"
    PARAMETER = "parameter"
    """A matrix targeted by its own name, whatever the class of its module."""

    STACK = "stack"
    """The matrices of all experts, (experts, out, in)."""

    TRANSPOSED_STACK = "transposed_stack"
    """The matrices of all experts, (experts, in, out)."""

    @property
    def is_parameter(self) -> bool:
        """Whether ``target_parameters`` names it, not ``target_modules``."""
        return self in _PARAMETERS


_PARAMETERS = frozenset({Kind.PARAMETER, Kind.STACK, Kind.TRANSPOSED_STACK})


@dataclass(frozen=True, slots=True)
class Matrix:
    """One matrix of the checkpoint."""

    tensor: str
    number: int
    """In its stack; 0 for a tensor that is one matrix."""

    rows: int
    columns: int


@dataclass(frozen=True, slots=True)
class Place:
    """A matrix or a stack in memory."""

    kind: Kind
    name: str
    """Of the parameter, in memory."""

    experts: tuple[tuple[Matrix, ...], ...]
    """What makes each matrix of it, along the rows: one, or gate and up."""

    kernel: Shape
    """(in, *k) of a convolution, or empty."""

    @property
    def module(self) -> str:
        """The module that owns it."""
        return module_of(self.name)

    @property
    def target(self) -> str:
        """What PEFT's lists of targets and patterns of ranks name."""
        return self.name if self.kind.is_parameter else self.module


def find_places(tensors: Iterable[str], model: Model) -> tuple[Place, ...]:
    """Return the places that tensors belong to, in the order of the tensors.

    Parameters
    ----------
    tensors : iterable of str
        Names of those that are cut.
    model : Model
        Whose they are.

    Returns
    -------
    tuple of Place
        Fewer than tensors where experts are stored one by one: with all of the matrices
        of the stack, also those that are not cut.
    """
    stacks = _members(model)
    found: dict[str, Place] = {}
    for tensor in tensors:
        name = model.memory[tensor]
        if name not in found:
            found[name] = (
                Place(_stack_kind(model), name, stacks[name], ())
                if tensor in model.fused
                else _single(tensor, name, model)
            )
    places = tuple(found.values())
    if any(place.kind is not Kind.CONV1D for place in places if _is_matrix(place)):
        # PEFT has one fan_in_fan_out for all, and warns of each that it does not fit.
        return tuple(
            replace(p, kind=Kind.PARAMETER) if p.kind is Kind.CONV1D else p for p in places
        )
    return places


def part_experts(places: Iterable[Place], model: Model) -> tuple[Place, ...]:
    """Return places with one for each matrix of each expert, where any stack is among them.

    PEFT and SGLang expect all experts of all layers.
    """
    places = tuple(places)
    others = tuple(place for place in places if place.name not in model.stacks)
    if others == places:
        return places
    matrices = chain.from_iterable(chain.from_iterable(_members(model).values()))
    single = (
        Place(Kind.LINEAR, model.names.get(m.tensor, m.tensor), ((m,),), ()) for m in matrices
    )
    return (*others, *single)


def _is_matrix(place: Place) -> bool:
    return place.kind not in (Kind.EMBEDDING, Kind.CONVOLUTION)


def _members(model: Model) -> Mapping[str, tuple[tuple[Matrix, ...], ...]]:
    """Return the matrices of the stacks whose experts are stored one by one."""
    found: dict[str, dict[int, dict[int, Matrix]]] = defaultdict(lambda: defaultdict(dict))
    for tensor, fused in model.fused.items():
        rows, columns = model.shapes[tensor]
        found[fused.target][fused.number][fused.order] = Matrix(tensor, 0, rows, columns)
    return {
        target: tuple(
            tuple(matrix for _, matrix in sorted(parts.items()))
            for _, parts in sorted(experts.items())
        )
        for target, experts in found.items()
    }


def _single(tensor: str, name: str, model: Model) -> Place:
    shape = model.shapes[tensor]
    if is_expert_stack(tensor, shape):
        stack = tuple((Matrix(tensor, i, shape[1], shape[2]),) for i in range(shape[0]))
        return Place(_stack_kind(model), name, stack, ())
    columns = 1
    for size in shape[1:]:
        columns *= size
    kind = _kind(name, shape, model)
    kernel = shape[1:] if kind is Kind.CONVOLUTION else ()
    return Place(kind, name, ((Matrix(tensor, 0, shape[0], columns),),), kernel)


def _stack_kind(model: Model) -> Kind:
    return Kind.TRANSPOSED_STACK if TRANSPOSED_STACKS.intersection(model.types) else Kind.STACK


def _kind(name: str, shape: Shape, model: Model) -> Kind:
    if not name.endswith(".weight"):
        return Kind.PARAMETER
    if len(shape) > 2:
        return Kind.CONVOLUTION
    if _EMBEDDING.search(name):
        return Kind.EMBEDDING
    if CONV1D_MODELS.intersection(model.types) and _CONV1D.search(name):
        return Kind.CONV1D
    if model.is_mixture and (_READ_AS_EXPERTS.search(name) or _ROUTER.search(name)):
        return Kind.PARAMETER
    return Kind.PARAMETER if _UNSURE.search(name) else Kind.LINEAR
