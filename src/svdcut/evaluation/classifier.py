"""Score labels by the head of a sequence classifier."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from svdcut.errors import EvaluationError, UsageError
from svdcut.evaluation.answers import Answers, Item, Task, match_classes
from svdcut.evaluation.dataset import Dataset
from svdcut.evaluation.model import LoadedModel, find_max_length, pad, tokenizer_limit
from svdcut.evaluation.options import DataOptions

_PADDED_LEFT = ("xlnet",)
"""Types of models that read the label off the last position, even of a padding token."""


def ask_classifier(loaded: LoadedModel, dataset: Dataset, options: DataOptions) -> Task:
    """Match labels with the classes of the head, and tokenise the texts.

    Texts that are too long lose their end; of a pair, the longer text loses it first.

    Raises
    ------
    UsageError
        If an option applies to language models only.
    EvaluationError
        If the head does not choose one label of several, or labels and classes do not match.
    """
    for option, value in (
        ("--prompt", options.prompt),
        ("--normalize", options.normalize),
        ("--no-chat-template", not options.chat_template),
    ):
        if value:
            raise UsageError(f"{option} is for language models; {loaded.source} is a classifier")
    answers = _match_labels(loaded, dataset, options)
    limit = _max_length(loaded)
    items = _tokenize(loaded, dataset)
    num_truncated = 0 if limit is None else sum(len(item.ids) > limit for item in items)
    if num_truncated:
        items = _tokenize(loaded, dataset, truncation=True, max_length=limit)
    side = "left" if loaded.model.config.model_type in _PADDED_LEFT else "right"
    return Task(answers, items, num_truncated, partial(_score, _find_padding(loaded, items), side))


def _score(
    pad_id: int,
    side: str,
    model: Any,  # noqa: ANN401
    batch: Sequence[Item],
) -> list[dict[int, float]]:
    """Return the log-probability of each class, for each item of the batch."""
    logits = model(**pad(batch, pad_id, side, model.device)).logits
    found = torch.log_softmax(logits.float(), dim=-1).tolist()
    return [dict(enumerate(row)) for row in found]


def _match_labels(loaded: LoadedModel, dataset: Dataset, options: DataOptions) -> Answers:
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
    names = {int(number): str(name) for number, name in config.id2label.items()}
    return match_classes(dataset.classes, options.labels, [names[n] for n in range(len(names))])


def _tokenize(loaded: LoadedModel, dataset: Dataset, **options: object) -> list[Item]:
    """Return an item for each row, with the special tokens that the model expects."""
    found = loaded.tokenizer(
        list(dataset.texts),
        None if dataset.pairs is None else list(dataset.pairs),
        return_attention_mask=False,
        verbose=False,
        padding_side="right",
        **options,
    )
    ids = found["input_ids"]
    types = map(tuple, found["token_type_ids"]) if "token_type_ids" in found else [None] * len(ids)
    rows = enumerate(zip(map(tuple, ids), types, strict=True))
    return [Item(row, tokens, kinds) for row, (tokens, kinds) in rows]


def _max_length(loaded: LoadedModel) -> int | None:
    limits = [
        tokenizer_limit(loaded.tokenizer),
        find_max_length(loaded.model.config, loaded.tokenizer),
        *_num_positions(loaded.model),
    ]
    return min((limit for limit in limits if limit is not None), default=None)


def _num_positions(model: torch.nn.Module) -> list[int]:
    """Return the usable positions of each table whose positions start after the padding's.

    RoBERTa has such a table.
    """
    return [
        int(module.num_embeddings) - int(module.padding_idx) - 1
        for name, module in model.named_modules()
        if name.endswith("position_embeddings")
        and isinstance(module, torch.nn.Embedding)
        and module.padding_idx is not None
    ]


def _find_padding(loaded: LoadedModel, items: Sequence[Item]) -> int:
    """Return the padding token, and make sure that the model knows it.

    The padding in the model's config comes first: GPT-2 finds the last token by it, and RoBERTa
    counts positions by it. Without one, a token serves that no text contains.
    """
    config = loaded.model.config.get_text_config()
    size = int(loaded.model.get_input_embeddings().num_embeddings)
    if config.pad_token_id is None or not 0 <= config.pad_token_id < size:
        config.pad_token_id = _unused_id(loaded, items, size)
    return int(config.pad_token_id)


def _unused_id(loaded: LoadedModel, items: Sequence[Item], size: int) -> int:
    used = {token for item in items for token in item.ids}
    wanted = (loaded.tokenizer.pad_token_id, loaded.tokenizer.eos_token_id)
    for token in (*wanted, *range(size)):
        if token is not None and token < size and token not in used:
            return int(token)
    raise EvaluationError(
        f"{loaded.source}: config.json names no pad_token_id, and every token is in the data",
        hint="Name in config.json the padding that the model was trained with.",
    )
