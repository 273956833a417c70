"""Tokenised texts, in batches of about one length.

It knows no models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from svdcut.evaluation.answers import Answers


class Side(Enum):
    """Where a short sequence of a batch is filled up."""

    LEFT = "left"
    RIGHT = "right"


@dataclass(frozen=True, slots=True)
class Continuation:
    """Tokens that a language model may go on with."""

    answer: int
    """The place of the word among the answers."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Item:
    """Tokens that go through the model once."""

    row: int
    """The place of the text in the dataset."""

    ids: tuple[int, ...]
    types: tuple[int, ...] | None = None
    """Of each token, which of two texts it is of; None where the model does not ask."""

    continuations: tuple[Continuation, ...] = ()
    """Of a language model: what is scored, each against the last outputs; they share all
    tokens but their last."""


@dataclass(frozen=True, slots=True)
class Task:
    """A dataset as a model is asked it."""

    answers: Answers
    items: list[Item]
    """One or more for each row."""

    num_truncated: int
    """Rows that were too long, and were cut."""

    score: Callable[[Any, Sequence[Item]], list[dict[int, float]]]
    """Runs a model on a batch; returns the scores of some answers for each item."""


def make_batches(items: Iterable[Item], size: int) -> tuple[tuple[Item, ...], ...]:
    """Return items in batches, the longest first: too little memory shows at once.

    The order depends on the tokens alone, so that the order of the rows changes no batch.
    """
    ordered = sorted(items, key=lambda item: (-len(item.ids), item.ids, item.row))
    return tuple(tuple(ordered[n : n + size]) for n in range(0, len(ordered), size))


def pad(items: Sequence[Item], pad_id: int, side: Side, device: torch.device) -> dict[str, Tensor]:
    """Return the inputs of a batch, filled up to its longest item at one side.

    Returns
    -------
    dict
        ``input_ids`` and ``attention_mask``, and ``token_type_ids`` where there are types:
        each (items, length of the longest), int64.
    """
    width = max(len(item.ids) for item in items)

    def stack(rows: Iterable[tuple[int, ...]], filler: int) -> Tensor:
        fillers = ((row, (filler,) * (width - len(row))) for row in rows)
        full = [fill + row if side is Side.LEFT else row + fill for row, fill in fillers]
        return torch.tensor(full, dtype=torch.int64).to(device)

    inputs = {
        "input_ids": stack((item.ids for item in items), pad_id),
        "attention_mask": stack(((1,) * len(item.ids) for item in items), 0),
    }
    types = [item.types for item in items if item.types is not None]
    return inputs | ({"token_type_ids": stack(types, 0)} if types else {})
