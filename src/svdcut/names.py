"""Read the name of a tensor: layer numbers, biases, experts, heads.

Names alone; it knows no checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)")
_IN_NUMBERED_LAYER = re.compile(r"(^|\.)(\d+)(\.|$)")
_EMBEDDING = re.compile(r"emb|wte|wpe|(^|\.)shared\.")
_EXPERTS = re.compile(r"(^|\.)(experts|\w*moe|(input|output)_linear)(\.|$)")
_BIAS = re.compile(r"(^|[._])bias$")
_TASK_HEAD = re.compile(
    r"(^|\.)(\w*classifier|classification_heads?|score|head|fc|qa_outputs|seq_relationship|"
    r"regressor|v_head|value_head|logits_proj|sequence_summary|pooler)(\.|$)"
)
_CLASSIFIER = re.compile(
    r"(^|\.)(\w*classifier|classification_heads?|score|qa_outputs|regressor)(\.|$)"
)
_VOCABULARIES = frozenset(
    {"wte", "wpe", "shared", "lm_head", "output", "decoder", "predictions", "proj_out"}
)
_TIED = tuple(
    re.compile(rf"(^|\.)({pattern})\.weight$")
    for pattern in (
        "shared",
        "embed_tokens|word_embeddings|wte|embed_in",
        r"lm_head|embed_out|proj_out|vocab_projector|(predictions|lm_head)\.decoder",
    )
)
"""Parts of a model that are often one matrix: what encoder and decoder share, embeddings, heads."""

HEAD = 2
"""The value of `tied_part` for a head."""


def collapse_numbers(name: str) -> str:
    """Return a name with ``*`` for every number, so that layers of one kind share it."""
    return _NUMBER.sub("*", name)


def group_by_kind(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the names that differ in numbers alone, by what `collapse_numbers` makes of them."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(collapse_numbers(name), []).append(name)
    return kinds


def is_in_numbered_layer(name: str) -> bool:
    """Return True for a tensor of a numbered layer or block."""
    return bool(_IN_NUMBERED_LAYER.search(name))


def is_expert_stack(name: str, shape: tuple[int, ...]) -> bool:
    """Return True for a tensor that stacks the matrices of several experts."""
    return len(shape) == 3 and bool(_EXPERTS.search(name))


def is_bias(name: str) -> bool:
    """Return True for a bias, or a stack of biases of experts."""
    return bool(_BIAS.search(name))


def is_task_head(name: str) -> bool:
    """Return True for a head that fine-tuning usually creates, such as a classifier."""
    return bool(_TASK_HEAD.search(name)) and not is_in_numbered_layer(name)


def is_task_classifier(name: str) -> bool:
    """Return True for the head of a classifier, which a pretrained model seldom has."""
    return bool(_CLASSIFIER.search(name)) and not is_in_numbered_layer(name)


def is_vocabulary(name: str) -> bool:
    """Return True if rows stand for tokens or positions: fine-tuning may add some."""
    module = name.removesuffix(".weight").removesuffix(".bias").rpartition(".")[2]
    is_table = module in _VOCABULARIES or "emb" in module or "vocab" in module
    return is_table and not is_in_numbered_layer(name)


def tied_part(name: str) -> int | None:
    """Return which of the parts that are often tied it is: 0 to 2, the owner first; or None."""
    return next((part for part, pattern in enumerate(_TIED) if pattern.search(name)), None)


def model_order(name: str) -> tuple[int, tuple[tuple[int, int, str], ...]]:
    """Return a key that sorts names as a model uses them: embeddings, layers by number, heads.

    Files sort them as texts, with layer 10 before layer 2.
    """
    place = 1 if is_in_numbered_layer(name) else 0 if _EMBEDDING.search(name) else 2
    parts = re.split(r"[._](\d+)(?=[._]|$)", name)
    key = tuple(
        (0, int(part), "") if index % 2 else (1, 0, part) for index, part in enumerate(parts)
    )
    return place, key


def layer_number(name: str) -> int | None:
    """Return the first number among the parts of a name: that of its layer."""
    found = _IN_NUMBERED_LAYER.search(name)
    return int(found[2]) if found else None
