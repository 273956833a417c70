"""What is asked of a model, and what it answered. It imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class Kind(str, Enum):
    """How a model says which label a text has."""

    CLASSIFIER = "classifier"
    """By a head with a class for each label."""

    LANGUAGE_MODEL = "language model"
    """By how likely a word for each label is after a prompt."""


@dataclass(frozen=True, slots=True)
class ScoringOptions:
    """How to ask a model for the labels of texts."""

    prompt: str | None = None
    """Of a language model: a template with ``{text}``, and ``{text_pair}`` where there are
    pairs; None for the texts themselves, a line each."""

    labels: tuple[str, ...] = ()
    """What the model calls the labels of the data: a word for each in their order, or
    ``LABEL=WORD``; nothing where it calls them by their own names."""

    normalize: bool = False
    """Of a language model: divide log-likelihoods by the number of characters of the word."""

    chat_template: bool = True
    """Whether a prompt is a message in the chat template of a language model that has one."""

    batch_size: int = 32
    max_length: int | None = None
    """Tokens of a text at most; None for what the model allows."""

    device: str = "auto"
    dtype: str = "auto"
    """``auto`` (bfloat16 on CUDA, float32 on a CPU), ``float32``, ``bfloat16`` or ``float16``."""


@dataclass(frozen=True, slots=True)
class Answers:
    """The labels that a model chooses from."""

    labels: tuple[str, ...]
    """As the data has them; what it has none for keeps the model's own name."""

    words: tuple[str, ...]
    """What the model calls each: the name of a class, or the word after the prompt."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """The label that a model gives each row of a dataset, and how sure it is."""

    kind: Kind
    answers: Answers
    predicted: tuple[str, ...]
    """One of the labels for each row; the first where several are equally likely."""

    scores: tuple[tuple[float, ...], ...]
    """For each row and label, the natural logarithm of its probability: of the class, or of
    the word given the prompt, which is divided by its length where that was asked for."""

    num_truncated: int
    """Rows that were too long for the model, and were cut."""

    chat_template: bool | None
    """Whether prompts were messages in a chat template; None of a classifier."""

    device: str
    dtype: str

    def matches(self, labels: Sequence[str]) -> list[bool]:
        """Return which rows have the right label."""
        return [ours == theirs for ours, theirs in zip(self.predicted, labels, strict=True)]
