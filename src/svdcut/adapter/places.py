"""The places in a model that take a low-rank update, and what PEFT makes of each.

Names, shapes and config; no weights. Source: peft 0.21.2, tuners/lora/layer.py, and
utils/transformers_weight_conversion.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from itertools import groupby
from typing import Any

from svdcut.adapter.memory import (
    CONV1D_MODELS,
    TRANSPOSED_STACKS,
    Parameter,
    Shape,
    model_types,
    parameters_in_memory,
)
from svdcut.files.wrong_input import class_name
from svdcut.names import is_expert_stack

_CONV1D = re.compile(r"\.(c_attn|q_attn|c_proj|c_fc)\.weight$")

_EMBEDDING = re.compile(
    r"(^|\.)(embed_tokens|embed_in|wte|wpe|shared|tokens_embed|positions_embed|"
    r"(word|position|token_type|relative|entity|tok)_embeddings?|rel_embeddings|"
    r"relative_attention_bias|token_embedding)\.weight$"
)
_UNSURE = re.compile(r"emb|wte|wpe|shared\.weight|positions?\.weight|queries|prototypes|codebook")
"""Names of modules that may be a plain matrix, an embedding or a class of their own."""

_IN_MIXTURE = re.compile(
    r"(^|\.)(router|wg|classifier_router|gate|w[123]|(gate|up|down)_proj)\.weight$"
)
"""Routers, and what PEFT takes for a part of an expert in any module of a mixture."""


@dataclass(frozen=True, slots=True)
class Change:
    """A tensor that differs from base, or may: an adapter has to hold it."""

    name: str
    shape: Shape
    """As the fine-tuned side stores it."""

    base_shape: Shape | None
    """As base stores it; None where base has none, as for a new head."""

    is_cut: bool = True
    """Whether its update is truncated; else it is stored as it is."""

    ranks: tuple[int, ...] | None = None
    """The rank of each matrix: one, or one for each expert of a stack; None while not known."""

    is_float: bool = True

    @property
    def is_empty(self) -> bool:
        """Whether no triplet was kept."""
        return self.ranks is not None and not any(self.ranks)


@dataclass(frozen=True)
class Model:
    """The fine-tuned model, which an adapter makes of base."""

    shapes: Mapping[str, Shape]
    """Shape of every tensor of the fine-tuned checkpoint."""

    config: Mapping[str, Any] = field(default_factory=dict)
    """config.json."""

    ties_embeddings: bool = False
    """Whether a head that gives tokens is the embedding; without such a head it says nothing."""

    names: Mapping[str, str] = field(default_factory=dict)
    """Name of each tensor in a file of the whole model, where this one may be of a part."""

    @cached_property
    def types(self) -> tuple[str, ...]:
        """The model types that the config names: its own, or nothing, then its parts'."""
        return model_types(self.config)

    @cached_property
    def architecture(self) -> str:
        """The class of the model; empty where the config names none."""
        return class_name(self.config)

    @cached_property
    def vocab_size(self) -> int | None:
        """The number of tokens that the config names."""
        configs = (self.config, self.config.get("text_config"))
        sizes = (config.get("vocab_size") for config in configs if isinstance(config, dict))
        return next((size for size in sizes if isinstance(size, int)), None)

    @cached_property
    def parameters(self) -> Mapping[str, Parameter]:
        """The parameters in memory, made of tensors of the file."""
        tensors = {self.names.get(tensor, tensor): tensor for tensor in self.shapes}
        shapes = {name: self.shapes[tensor] for name, tensor in tensors.items()}
        return {
            name: replace(
                parameter,
                pieces=tuple(replace(p, tensor=tensors[p.tensor]) for p in parameter.pieces),
            )
            for name, parameter in parameters_in_memory(shapes, self.types).items()
        }

    @cached_property
    def memory(self) -> Mapping[str, str]:
        """Return the name of each tensor's parameter in memory, in the order of the file."""
        found = {p.tensor: name for name, whole in self.parameters.items() for p in whole.pieces}
        return {tensor: found[tensor] for tensor in self.shapes}

    @cached_property
    def stacks(self) -> Mapping[str, Parameter]:
        """The stacks of experts that the file stores one by one, in the order of the file."""
        names = dict.fromkeys(self.memory.values())
        return {n: self.parameters[n] for n in names if self.parameters[n].is_joined}

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """Names in memory of all modules that hold tensors, the outer ones first."""
        return tuple(sorted({m for name in self.memory.values() for m in parents(name)}))

    @cached_property
    def is_mixture(self) -> bool:
        """Whether it has experts."""
        return any(f".{module}".endswith(".experts") for module in self.modules)


def module_of(name: str) -> str:
    """Return the module that owns a tensor; empty for the model itself."""
    return name.rpartition(".")[0]


def is_within(name: str, module: str) -> bool:
    """Whether a module or tensor is a module, or a part of it."""
    return name == module or name.startswith(f"{module}.")


def parents(name: str) -> Iterator[str]:
    """Yield the modules around a tensor or module, the innermost first."""
    while name := module_of(name):
        yield name


class Kind(str, Enum):
    """Kind of a place, which decides how PEFT stores its factors."""

    LINEAR = "linear"
    CONV1D = "conv1d"
    """A matrix stored (in, out), as GPT-2 has it: ``fan_in_fan_out``."""

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
        return self in {Kind.PARAMETER, Kind.STACK, Kind.TRANSPOSED_STACK}

    @property
    def is_transposed(self) -> bool:
        """Whether the checkpoint stores it as (in, out)."""
        return self in {Kind.EMBEDDING, Kind.CONV1D, Kind.TRANSPOSED_STACK}


@dataclass(frozen=True, slots=True)
class Matrix:
    """One matrix of the checkpoint, and the rank that is kept of its update."""

    tensor: str
    number: int
    """In its stack; 0 for a tensor that is one matrix."""

    rows: int
    columns: int
    rank: int = 0


@dataclass(frozen=True, slots=True)
class Place:
    """A matrix or a stack in memory."""

    kind: Kind
    name: str
    """The parameter's, in memory."""

    experts: tuple[tuple[Matrix, ...], ...]
    """Stored matrices of each expert, stacked along the rows: one, or gate and up."""

    kernel: Shape = ()
    """(in, *k) of a convolution."""

    @property
    def module(self) -> str:
        """The module that owns it."""
        return module_of(self.name)

    @property
    def target(self) -> str:
        """Return the name in PEFT's lists of targets and patterns of ranks."""
        return self.name if self.kind.is_parameter else self.module

    @property
    def tensor(self) -> str:
        """The first tensor of the checkpoint in it."""
        return self.experts[0][0].tensor


def find_places(cuts: Sequence[Change], model: Model, *, apart: bool = False) -> tuple[Place, ...]:
    """Return the places that truncated tensors belong to, in the order of the tensors.

    Parameters
    ----------
    cuts : sequence of Change
        The truncated tensors.
    model : Model
        Whose they are.
    apart : bool
        Whether experts that are stored one by one have a place each.

    Returns
    -------
    tuple of Place
        A stack in memory has all of its matrices, cut or not. If experts are apart and any
        is cut, all experts of all layers have places: PEFT and SGLang expect them.
    """
    ranks = {cut.name: cut.ranks for cut in cuts}
    names = dict.fromkeys(model.memory[cut.name] for cut in cuts)
    places = [_place(name, model, ranks) for name in names]
    plain = [place for place in places if place.kind not in {Kind.EMBEDDING, Kind.CONVOLUTION}]
    if any(place.kind is not Kind.CONV1D for place in plain):
        # PEFT has one fan_in_fan_out for all, and warns of each that it does not fit.
        places = [replace(p, kind=Kind.PARAMETER) if p.kind is Kind.CONV1D else p for p in places]
    if apart and not model.stacks.keys().isdisjoint(names):
        places = [place for place in places if place.name not in model.stacks]
        places += [
            Place(Kind.LINEAR, model.names.get(matrix.tensor, matrix.tensor), ((matrix,),))
            for name in model.stacks
            for expert in _experts(name, model, ranks)
            for matrix in expert
        ]
    return tuple(places)


_Ranks = Mapping[str, tuple[int, ...] | None]


def _place(name: str, model: Model, ranks: _Ranks) -> Place:
    kind = kind_of(name, model)
    kernel = model.parameters[name].shape[1:] if kind is Kind.CONVOLUTION else ()
    return Place(kind, name, _experts(name, model, ranks), kernel)


def _experts(name: str, model: Model, ranks: _Ranks) -> tuple[tuple[Matrix, ...], ...]:
    """Return the matrices of a parameter, by expert, along the rows."""

    def matrix(tensor: str, number: int, rows: int, columns: int) -> Matrix:
        found = ranks.get(tensor)
        return Matrix(tensor, number, rows, columns, found[number] if found else 0)

    parameter = model.parameters[name]
    if parameter.is_joined:
        experts = groupby(parameter.pieces, lambda piece: piece.expert)
        return tuple(
            tuple(matrix(piece.tensor, 0, *model.shapes[piece.tensor]) for piece in pieces)
            for _, pieces in experts
        )
    tensor, shape = parameter.pieces[0].tensor, parameter.shape
    if is_expert_stack(tensor, shape):
        return tuple((matrix(tensor, number, *shape[1:]),) for number in range(shape[0]))
    return ((matrix(tensor, 0, shape[0], math.prod(shape[1:])),),)


def kind_of(name: str, model: Model) -> Kind:
    """Return what a parameter in memory is."""
    parameter = model.parameters[name]
    if parameter.is_joined or is_expert_stack(parameter.pieces[0].tensor, parameter.shape):
        transposed = TRANSPOSED_STACKS.intersection(model.types)
        return Kind.TRANSPOSED_STACK if transposed else Kind.STACK
    if len(parameter.shape) > 2 and name.endswith(".weight"):
        return Kind.CONVOLUTION
    if _EMBEDDING.search(name):
        return Kind.EMBEDDING
    if CONV1D_MODELS.intersection(model.types) and _CONV1D.search(name):
        return Kind.CONV1D
    unsure = _UNSURE.search(name) or (model.is_mixture and _IN_MIXTURE.search(name))
    return Kind.LINEAR if name.endswith(".weight") and not unsure else Kind.PARAMETER
