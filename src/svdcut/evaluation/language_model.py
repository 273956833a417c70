"""Score labels by how likely their words are to a causal language model.

The definitions are those of lm-evaluation-harness 0.4.13: ``HFLM._loglikelihood_tokens``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from svdcut.errors import EvaluationError
from svdcut.evaluation.answers import Item, Task, match_words
from svdcut.evaluation.dataset import Dataset
from svdcut.evaluation.model import LoadedModel, find_max_length, pad
from svdcut.evaluation.options import DataOptions
from svdcut.files.jsonfile import quoted

_DEFAULT_LENGTH = 2048
"""Tokens, if neither config nor tokenizer gives a limit; the harness has the same."""

_FIELD = re.compile(r"\{(text|text_pair)\}")


def ask_language_model(loaded: LoadedModel, dataset: Dataset, options: DataOptions) -> Task:
    """Tokenise prompts and words.

    Words that differ only in their last token share an item, and so one pass of the model. A
    prompt that is too long loses its beginning.

    Raises
    ------
    EvaluationError
        If the words do not fit the labels; if a word is longer than the model allows, or has no
        tokens of its own after a prompt.
    """
    answers = match_words(dataset.classes, options.labels)
    tokenizer = loaded.tokenizer
    limit = find_max_length(loaded.model.config, tokenizer) or _DEFAULT_LENGTH
    template = options.template()
    words = [_delimiter(template, word, tokenizer) + word for word in answers.words]
    contexts = _fill_prompts(template, dataset, tokenizer)
    items: list[Item] = []
    num_truncated = 0
    for row, pairs in enumerate(encode_pairs(contexts, words, tokenizer)):
        num_truncated += any(len(before) + len(after) > limit + 1 for before, after in pairs)
        items.extend(_make_items(row, pairs, limit))
    # As acc_norm of the harness: ConfigurableTask.process_results in lm_eval/api/task.py.
    lengths = [len(word) if options.normalize else 1 for word in answers.words]
    return Task(answers, items, num_truncated, partial(_score, lengths))


# Prompts


def _fill_prompts(template: str, dataset: Dataset, tokenizer: Any) -> list[str]:  # noqa: ANN401
    """Return the prompt of each row, as a user's message if there is a chat template.

    Other braces than ``{text}`` and ``{text_pair}`` stay, in the template and in texts.
    """
    pairs = dataset.pairs or ("",) * len(dataset.rows)
    prompts = [_fill(template, *texts) for texts in zip(dataset.texts, pairs, strict=True)]
    return [_chat(text, tokenizer) for text in prompts] if tokenizer.chat_template else prompts


def _fill(template: str, text: str, pair: str) -> str:
    return _FIELD.sub(lambda field: text if field[1] == "text" else pair, template)


def _chat(prompt: str, tokenizer: Any) -> str:  # noqa: ANN401
    from jinja2 import TemplateError

    messages = [{"role": "user", "content": prompt}]
    try:
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        )
    except TemplateError as error:
        raise EvaluationError(
            f"the chat template of the tokenizer cannot be rendered: {error}",
            hint="It has to take one message of a user.",
        ) from error


def _delimiter(template: str, word: str, tokenizer: Any) -> str:  # noqa: ANN401
    """Return a space if neither prompt nor word brings one, and no chat template ends the turn.

    As in lm-evaluation-harness: ``ConfigurableTask.construct_requests`` and its default
    ``target_delimiter``.
    """
    spaced = template[-1:].isspace() or word[:1].isspace()
    return "" if spaced or tokenizer.chat_template else " "


def encode_pairs(
    contexts: Sequence[str],
    words: Sequence[str],
    tokenizer: Any,  # noqa: ANN401
) -> Iterator[list[tuple[list[int], list[int]]]]:
    """Yield for each context and each word the tokens of both.

    Context and word are tokenised as one text, and split where the context alone would end.
    Spaces at the end of the context belong to the word, as most vocabularies have words with a
    space in front. An empty context becomes the token that begins a text, or ends one if there
    is none.

    Raises
    ------
    EvaluationError
        If a word has no tokens of its own, or no token can stand for an empty context.

    References
    ----------
    .. [1] lm-evaluation-harness 0.4.13, ``TemplateLM._encode_pair`` and ``loglikelihood`` in
       ``lm_eval/api/model.py``, ``HFLM.tok_encode`` in ``lm_eval/models/huggingface.py``.
    """
    wholes = [_encode([context + word for context in contexts], tokenizer) for word in words]
    prefix = _prefix_id(tokenizer)
    for row, before in enumerate(_encode([text.rstrip() for text in contexts], tokenizer)):
        if not before and prefix is None:
            raise EvaluationError(
                "a text is empty, and the tokenizer has no token that begins a text",
                hint="A --prompt with words before {text} is never empty.",
            )
        afters = [whole[row][len(before) :] for whole in wholes]
        if not all(afters):
            word = words[afters.index([])]
            raise EvaluationError(
                f"the tokenizer has no tokens of its own for {quoted(word)} after "
                f"{quoted(contexts[row][-40:])}",
                hint="End the --prompt with a space or a new line, or choose other --labels.",
            )
        start = before if before or prefix is None else [prefix]
        yield [(start, after) for after in afters]


def _encode(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:  # noqa: ANN401
    """Return the tokens of each text, with the special tokens that the tokenizer adds.

    A chat template often begins with such a token itself, and gets no second one.
    """
    prefix = _prefix_id(tokenizer)
    mark = None if prefix is None else tokenizer.decode(prefix)
    return [
        tokenizer(
            text,
            add_special_tokens=mark is None or not text.startswith(mark),
            verbose=False,
        )["input_ids"]
        for text in texts
    ]


def _prefix_id(tokenizer: Any) -> int | None:  # noqa: ANN401
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    return next((int(token) for token in ids if token is not None), None)


def _make_items(
    row: int, pairs: Sequence[tuple[list[int], list[int]]], limit: int
) -> Iterator[Item]:
    shared: dict[tuple[int, ...], dict[int, tuple[int, ...]]] = {}
    for answer, (before, after) in enumerate(pairs):
        if len(after) > limit:
            raise EvaluationError(
                f"a word of {len(after)} tokens, and the model takes {limit}",
                hint="Choose shorter words: --labels.",
            )
        # The last token is only predicted, never read.
        ids = tuple((before + after)[-(limit + 1) : -1])
        shared.setdefault(ids, {})[answer] = tuple(after)
    for ids, words in shared.items():
        yield Item(row, ids, continuations=words)


# Scores


def _score(
    lengths: Sequence[int],
    model: Any,  # noqa: ANN401
    batch: Sequence[Item],
) -> list[dict[int, float]]:
    """Return the log-likelihood of each word of an item, divided by the word's length.

    Padding is at the right, where no token before it sees it.
    """
    inputs = pad(batch, 0, "right", model.device)
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
    logprobs = torch.log_softmax(logits[-_longest(item) :].float(), dim=-1)
    return {
        answer: _sum_last(logprobs, ids) / lengths[answer]
        for answer, ids in item.continuations.items()
    }


def _sum_last(logprobs: Tensor, ids: tuple[int, ...]) -> float:
    """Return the sum of the log-probabilities (n, vocab) of the last tokens."""
    places = torch.tensor(ids, device=logprobs.device).unsqueeze(1)
    return logprobs[-len(ids) :].gather(1, places).sum().item()


def _longest(item: Item) -> int:
    return max(map(len, item.continuations.values()))


def _last_logits(model: Any, inputs: dict[str, Tensor], count: int) -> Tensor:  # noqa: ANN401
    """Return the logits of the last positions only, (items, count, vocab).

    For all positions they would be the largest tensor by far: the vocabulary has more entries
    than a layer has channels.
    """
    accepted = "logits_to_keep" in inspect.signature(model.forward).parameters
    kept = {"logits_to_keep": count} if accepted else {}
    logits: Tensor = model(**inputs, **kept, use_cache=False).logits
    return logits[:, -count:]
