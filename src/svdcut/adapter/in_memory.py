"""The tensors of a file as a model in memory has them: experts are stacked there.

Names and shapes alone. What transformers stacks: transformers.conversion_mapping, 5.24.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from svdcut.files.tensorfile import TensorEntry

_EXPERT = re.compile(r"(?P<experts>(?:.*\.)?experts)\.(?P<number>\d{1,5})\.(?P<part>\w+)\.weight")

_STACKS = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3"), ("fc1", "fc3")),
    "down_proj": (("down_proj",), ("w2",), ("fc2",)),
    "up_proj": (("up_proj",),),
}
"""What each expert's matrices are, in a stack of this name, one above the other."""

_OTHER_NAMES = (
    (re.compile(r"(^|\.)block_sparse_moe\."), r"\1mlp."),
    (re.compile(r"\.in_proj_weight$"), ".weight"),
)
"""How files name what is called otherwise in memory, or by PEFT."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor of a file, as a part of a parameter."""

    tensor: TensorEntry
    expert: int = 0
    """The expert that is its first matrix."""

    rows: tuple[int, int] | None = None
    """Which rows of an expert's matrix are this tensor's, if not all."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter in memory: one tensor of the file, or several."""

    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


def parameters_in_memory(tensors: Mapping[str, TensorEntry]) -> dict[str, Parameter]:
    """Return what a model may have in memory that was read from a file.

    Parameters
    ----------
    tensors : mapping of str to TensorEntry
        Those of the file, by name.

    Returns
    -------
    dict of str to Parameter
        Every tensor by itself, and experts as a stack as well; under all the names that
        each may go by.
    """
    found = {name: Parameter(entry.shape, (Piece(entry),)) for name, entry in tensors.items()}
    found |= dict(_stacks(tensors))
    for pattern, replacement in _OTHER_NAMES:
        renamed = {pattern.sub(replacement, name): parameter for name, parameter in found.items()}
        found = renamed | found
    return found


def _stacks(tensors: Mapping[str, TensorEntry]) -> Iterator[tuple[str, Parameter]]:
    groups: dict[str, dict[str, dict[int, TensorEntry]]] = defaultdict(lambda: defaultdict(dict))
    for name, entry in tensors.items():
        if (match := _EXPERT.fullmatch(name)) and len(entry.shape) == 2:
            groups[match["experts"]][match["part"]][int(match["number"])] = entry
    for experts, parts in groups.items():
        for stack, recipes in _STACKS.items():
            for recipe in recipes:
                if parameter := _stack([parts[part] for part in recipe if part in parts], recipe):
                    yield f"{experts}.{stack}", parameter


def _stack(columns: list[dict[int, TensorEntry]], recipe: tuple[str, ...]) -> Parameter | None:
    """Return experts one after the other, unless one has not the parts and shapes of all."""
    if len(columns) != len(recipe):
        return None
    numbers = set(range(len(columns[0])))
    shapes = [{entry.shape for entry in column.values()} for column in columns]
    complete = all(column.keys() == numbers for column in columns)
    if not complete or any(len(shape) != 1 for shape in shapes):
        return None
    sizes = [next(iter(shape)) for shape in shapes]
    if len({width for _, width in sizes}) != 1:
        return None
    pieces: list[Piece] = []
    begin = 0
    for (height, _), column in zip(sizes, columns, strict=True):
        rows = (begin, begin + height) if len(columns) > 1 else None
        pieces += [Piece(column[number], number, rows) for number in sorted(column)]
        begin += height
    return Parameter((len(numbers), begin, sizes[0][1]), tuple(pieces))
