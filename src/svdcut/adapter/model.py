"""What an adapter is to hold, and of which model: names, shapes and config, no weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from svdcut.adapter.renames import Fused, find_fused, in_memory
from svdcut.files.wrong_input import class_name

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cut:
    """A tensor whose update was, or is to be, truncated."""

    name: str
    shape: Shape
    """As the fine-tuned side stores it."""

    base_shape: Shape
    """As base stores it."""

    ranks: tuple[int, ...] | None = None
    """Of each matrix: one, or one for each expert of a stack; None while not known."""

    @property
    def is_empty(self) -> bool:
        """Whether no triplet was kept."""
        return self.ranks is not None and not any(self.ranks)


@dataclass(frozen=True, slots=True)
class Whole:
    """A tensor that changed, or may have, and is not truncated."""

    name: str
    shape: Shape
    base_shape: Shape | None
    """None where base has none of it, as of a new head."""

    is_float: bool = True


@dataclass(frozen=True)
class Model:
    """The fine-tuned model, which an adapter makes of base."""

    shapes: Mapping[str, Shape]
    """Of every tensor of the fine-tuned checkpoint."""

    config: Mapping[str, Any] = field(default_factory=dict)
    """config.json."""

    ties_embeddings: bool = False
    """Whether a head that gives tokens is the embedding; of no weight where there is none."""

    names: Mapping[str, str] = field(default_factory=dict)
    """By tensor: its name in a file of the whole model, where this one may be of a part."""

    @cached_property
    def types(self) -> tuple[str, ...]:
        """The model types that the config names: its own, or nothing, then its parts'."""
        own = self.config.get("model_type")
        return (own if isinstance(own, str) else "", *_model_types(self.config))

    @cached_property
    def architecture(self) -> str:
        """The class of the model; empty where the config names none."""
        return class_name(self.config)

    @cached_property
    def vocab_size(self) -> int | None:
        """The number of tokens that the config names."""
        for config in (self.config, self.config.get("text_config")):
            if isinstance(config, dict) and isinstance(config.get("vocab_size"), int):
                return int(config["vocab_size"])
        return None

    @cached_property
    def is_mixture(self) -> bool:
        """Whether it has experts."""
        return any(re.search(r"(^|\.)experts$", module) for module in self.modules)

    @cached_property
    def fused(self) -> Mapping[str, Fused]:
        """By tensor: the stack in memory that experts stored one by one become part of."""
        names = {tensor: self._name(tensor) for tensor in self.shapes}
        fused = find_fused({names[t]: shape for t, shape in self.shapes.items()}, self.types)
        return {tensor: fused[name] for tensor, name in names.items() if name in fused}

    @cached_property
    def stacks(self) -> frozenset[str]:
        """Names of the stacks that are in no file as they are in memory."""
        return frozenset(fused.target for fused in self.fused.values())

    @cached_property
    def memory(self) -> Mapping[str, str]:
        """By tensor: its name in memory, where transformers may have moved it."""
        return {
            tensor: self.fused[tensor].target
            if tensor in self.fused
            else in_memory(self._name(tensor), self.types)
            for tensor in self.shapes
        }

    def _name(self, tensor: str) -> str:
        return self.names.get(tensor, tensor)

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """Names in memory of all modules that hold tensors, the outer ones first."""
        found = {module: None for name in self.memory.values() for module in parents(name)}
        return tuple(sorted(found))


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


def _model_types(config: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(kind := config.get("model_type"), str):
        yield kind
    for part in config.values():
        if isinstance(part, dict):
            yield from _model_types(part)
