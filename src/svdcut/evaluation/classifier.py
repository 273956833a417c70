"""Score labels by the head of a sequence classifier."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from svdcut.errors import EvaluationError, UsageError
from svdcut.evaluation.answers import Answers, ScoringOptions, match_classes
from svdcut.evaluation.batches import Item, Side, Task, pad
from svdcut.evaluation.dataset import Dataset
from svdcut.evaluation.model import LoadedModel, find_max_length, tokenizer_limit

_FILLED_LEFT = frozenset({"xlnet"})
"""Types of models that read the label off the last place, whatever token is there."""


def ask_classifier(loaded: LoadedModel, dataset: Dataset, options: ScoringOptions) -> Task:
    """Match the labels with the classes of the head, and tokenise the texts or pairs.

    Of texts that are too long the ends are cut, that of the longer one of a pair first.

    Raises
    ------
    UsageError
        If an option is of language models.
    EvaluationError
        If the head cannot choose one label of several, or they do not match.
    """
    for option, value in (
        ("--prompt", options.prompt),
        ("--normalize", options.normalize),
        ("--no-chat-template", not options.chat_template),
    ):
        if value:
            raise UsageError(f"{option} is of language models; {loaded.source} is a classifier")
    answers = _read_classes(loaded, dataset.classes, options.labels)
    items, num_truncated = _encode_texts(loaded, dataset, options)
    pad_id = _find_padding(loaded, items)
    side = Side.LEFT if loaded.model.config.model_type in _FILLED_LEFT else Side.RIGHT
    return Task(answers, items, num_truncated, partial(_score, pad_id, side))


def _score(
    pad_id: int,
    side: Side,
    model: Any,  # noqa: ANN401
    batch: Sequence[Item],
) -> list[dict[int, float]]:
    """Return the log-probability of each class, for each item of the batch."""
    logits = model(**pad(batch, pad_id, side, model.device)).logits
    found = torch.log_softmax(logits.float(), dim=-1).tolist()
    return [dict(enumerate(row)) for row in found]


def _read_classes(loaded: LoadedModel, labels: Iterable[str], words: Sequence[str]) -> Answers:
    """Match the labels of the data with the classes of a head."""
    config = loaded.model.config
    if config.num_labels < 2:
        raise EvaluationError(
            f"{loaded.source}: its head has one class, which is a number, not a label",
            hint="Name a classifier with a class for each label.",
        )
    if config.problem_type == "multi_label_classification":
        raise EvaluationError(
            f"{loaded.source}: its head says yes or no to each label (problem_type "
            "'multi_label_classification'); expected one that chooses a label",
        )
    classes: Mapping[int, str] = {int(n): str(name) for n, name in config.id2label.items()}
    return match_classes(labels, words, classes)


def _encode_texts(
    loaded: LoadedModel, dataset: Dataset, options: ScoringOptions
) -> tuple[list[Item], int]:
    """Return an item for each row, and how many rows were cut."""
    tokenizer = loaded.tokenizer
    limit = _max_length(loaded, options)
    encoded = _tokenize(tokenizer, dataset.texts, dataset.pairs)
    long = [row for row, (ids, _) in enumerate(encoded) if limit is not None and len(ids) > limit]
    if long:
        texts = [dataset.texts[row] for row in long]
        pairs = None if dataset.pairs is None else [dataset.pairs[row] for row in long]
        cut = _tokenize(tokenizer, texts, pairs, truncation=True, max_length=limit)
        for row, found in zip(long, cut, strict=True):
            encoded[row] = found
    return [Item(row, ids, types) for row, (ids, types) in enumerate(encoded)], len(long)


def _tokenize(
    tokenizer: Any,  # noqa: ANN401
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    **options: object,
) -> list[tuple[tuple[int, ...], tuple[int, ...] | None]]:
    """Return tokens and their types for each text; with the marks that the model expects."""
    found = tokenizer(
        list(texts),
        None if pairs is None else list(pairs),
        return_attention_mask=False,
        verbose=False,
        padding_side="right",
        **options,
    )
    ids = map(tuple, found["input_ids"])
    if "token_type_ids" not in found:
        return [(row, None) for row in ids]
    return list(zip(ids, map(tuple, found["token_type_ids"]), strict=True))


def _max_length(loaded: LoadedModel, options: ScoringOptions) -> int | None:
    limits = [
        options.max_length,
        tokenizer_limit(loaded.tokenizer),
        find_max_length(loaded.model.config, loaded.tokenizer),
        _places(loaded.model),
    ]
    return min((limit for limit in limits if limit is not None), default=None)


def _places(model: torch.nn.Module) -> int | None:
    """Return for how many tokens there are embeddings of places, if the model has a table.

    As in RoBERTa, whose places are counted from the one after that of the padding.
    """
    found = [
        int(module.num_embeddings) - int(module.padding_idx) - 1
        for name, module in model.named_modules()
        if name.endswith("position_embeddings")
        and isinstance(module, torch.nn.Embedding)
        and module.padding_idx is not None
    ]
    return min(found, default=None)


def _find_padding(loaded: LoadedModel, items: Sequence[Item]) -> int:
    """Return the token that fills up batches; the model knows it as its padding.

    The padding that the model was built with comes first: models like GPT-2 find the last
    token by it, and models like RoBERTa count places by it. Where it has none, a token that
    no text has serves, and the model is told.
    """
    text_config = loaded.model.config.get_text_config()
    pad_id, size = text_config.pad_token_id, _vocabulary(loaded)
    if pad_id is None or not 0 <= pad_id < size:
        text_config.pad_token_id = _unused_id(loaded, items)
    return int(text_config.pad_token_id)


def _unused_id(loaded: LoadedModel, items: Sequence[Item]) -> int:
    used = {token for item in items for token in item.ids}
    wanted = [loaded.tokenizer.pad_token_id, loaded.tokenizer.eos_token_id]
    size = _vocabulary(loaded)
    free = (n for n in (*wanted, *range(size)) if n is not None and n < size and n not in used)
    found: int | None = next(free, None)
    if found is None:
        raise EvaluationError(
            f"{loaded.source}: config.json names no pad_token_id, and every token is in the data",
            hint="Name in config.json the padding that the model was trained with.",
        )
    return found


def _vocabulary(loaded: LoadedModel) -> int:
    return int(loaded.model.get_input_embeddings().num_embeddings)
