"""Score labels by how likely their words are to a causal language model.

Definitions are those of lm-evaluation-harness 0.4.13: ``HFLM._loglikelihood_tokens``.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from svdcut.errors import EvaluationError
from svdcut.evaluation.answers import ScoringOptions, match_words
from svdcut.evaluation.batches import Continuation, Item, Side, Task, pad
from svdcut.evaluation.dataset import Dataset
from svdcut.evaluation.model import LoadedModel, find_max_length
from svdcut.evaluation.prompts import check_prompt, delimiter, encode_pairs, fill_prompts

_DEFAULT_LENGTH = 2048
"""Tokens, where neither config nor tokenizer says; as the harness has it."""


def ask_language_model(loaded: LoadedModel, dataset: Dataset, options: ScoringOptions) -> Task:
    """Tokenise prompts and words.

    Words that differ in their last token alone share an item, and so a pass of the model. Of
    rows that are too long, the beginning of the prompt is cut.

    Raises
    ------
    EvaluationError
        If the words do not fit the labels; or one is longer than the model allows, or cannot be
        told from the prompt.
    """
    answers = match_words(dataset.classes, options.labels)
    tokenizer = loaded.tokenizer
    limit = find_max_length(loaded.model.config, tokenizer) or _DEFAULT_LENGTH
    if options.max_length is not None:
        limit = min(limit, options.max_length)
    template = check_prompt(options.prompt, has_pairs=dataset.pairs is not None)
    words = [delimiter(template, word, tokenizer) + word for word in answers.words]
    items: list[Item] = []
    num_truncated = 0
    contexts = list(fill_prompts(template, dataset, tokenizer))
    for row, pairs in enumerate(encode_pairs(contexts, words, tokenizer)):
        num_truncated += any(len(before) + len(after) > limit + 1 for before, after in pairs)
        items.extend(_items_of(row, pairs, limit))
    # As the acc_norm of the harness: ConfigurableTask.process_results in lm_eval/api/task.py.
    lengths = [len(word) if options.normalize else 1 for word in answers.words]
    return Task(answers, items, num_truncated, partial(_score, lengths))


def _items_of(row: int, pairs: Sequence[tuple[list[int], list[int]]], limit: int) -> list[Item]:
    shared: dict[tuple[int, ...], list[Continuation]] = {}
    for answer, (before, after) in enumerate(pairs):
        if len(after) > limit:
            raise EvaluationError(
                f"a word of {len(after)} tokens, and the model takes {limit}",
                hint="Choose shorter words: --labels.",
            )
        # The last token is only ever predicted. What is too long loses its beginning.
        ids = tuple((before + after)[-(limit + 1) : -1])
        shared.setdefault(ids, []).append(Continuation(answer, tuple(after)))
    return [Item(row, ids, None, tuple(ends)) for ids, ends in shared.items()]


def _score(
    lengths: Sequence[int],
    model: Any,  # noqa: ANN401
    batch: Sequence[Item],
) -> list[dict[int, float]]:
    """Return the log-likelihood of each word that an item asks for, divided by its length.

    Batches are filled up at the right, where no token before can see it.
    """
    inputs = pad(batch, 0, Side.RIGHT, model.device)
    width = inputs["input_ids"].shape[1]
    first = min(len(item.ids) - _longest(item) for item in batch)
    logits = _last_logits(model, inputs, width - first)
    return [
        _score_item(lengths, item, row[: len(item.ids) - first])
        for item, row in zip(batch, logits, strict=True)
    ]


def _score_item(lengths: Sequence[int], item: Item, logits: Tensor) -> dict[int, float]:
    """Score the words of one item, whose last token is the last of `logits` (n, vocab)."""
    # In float32 whatever the model computes in: bfloat16 has two or three digits.
    found = torch.log_softmax(logits[-_longest(item) :].float(), dim=-1)
    return {end.answer: _sum_of(found, end.ids) / lengths[end.answer] for end in item.continuations}


def _sum_of(logprobs: Tensor, ids: tuple[int, ...]) -> float:
    """Return the sum of the log-probabilities (n, vocab) of the last tokens."""
    places = torch.tensor(ids, device=logprobs.device).unsqueeze(1)
    return logprobs[-len(ids) :].gather(1, places).sum().item()


def _longest(item: Item) -> int:
    return max(len(end.ids) for end in item.continuations)


def _last_logits(model: Any, inputs: dict[str, Tensor], count: int) -> Tensor:  # noqa: ANN401
    """Return the logits of the last places alone, (items, count, vocab).

    Of all places they would be the largest tensor by far: the vocabulary has more entries
    than a layer has channels.
    """
    accepted = "logits_to_keep" in inspect.signature(model.forward).parameters
    kept = {"logits_to_keep": count} if accepted else {}
    logits: Tensor = model(**inputs, **kept, use_cache=False).logits
    return logits[:, -count:]
