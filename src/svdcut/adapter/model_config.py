"""The config of a base under an adapter: another class, other labels, more tokens.

PEFT wraps a classifier, and the adapter holds its head; base's config often names the
language model or the encoder that it was made of. An adapter that svdcut wrote has the
class and the labels in its manifest. Names and shapes alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from svdcut.adapter.application import Application
from svdcut.adapter.peft_config import CLASSIFIERS, PeftConfig
from svdcut.adapter.tying import unties
from svdcut.files.checkpoint import Checkpoint
from svdcut.files.filenames import MANIFEST_NAME, is_there
from svdcut.files.jsonfile import Bounds, read_json
from svdcut.files.wrong_input import class_name
from svdcut.names import is_in_numbered_layer, is_task_head, tied_part

_END = re.compile(
    r"(For[A-Z]\w*|(With)?LMHeadModel|DoubleHeadsModel|ModelWithLMHead|EncoderModel|Model)$"
)
"""Part of a class's name that follows the family of models."""

_LABELS = re.compile(r"(^|\.)(score|classifier|out_proj|linear_out|logits_proj|summary)\.weight$")
"""The last matrix of a head: it has a row for each label."""

_LANGUAGE_HEAD = re.compile(
    r"(lm_head|embed_out|proj_out|cls|predictions|lm_predictions|mask_predictions|pred_layer|"
    r"lm_loss|generator_(predictions|lm_head)|discriminator_predictions|sop_classifier|"
    r"vocab_(transform|layer_norm|projector))(\.|$)"
)
"""Parts beside the encoder or decoder that give tokens; a classifier has none of them."""

_DEFAULT_LABELS = 2
_FIELDS = {"architectures": list, "id2label": dict, "label2id": dict, "problem_type": str}
_BOUNDS = Bounds(num_bytes=1 << 28, num_values=50_000_000)


def task_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a config says of the task: the class of the model, and its labels."""
    return {key: config[key] for key, kind in _FIELDS.items() if isinstance(config.get(key), kind)}


def task_changes(
    base: Checkpoint, config: PeftConfig, applied: Application, folder: Path
) -> dict[str, Any]:
    """Return what base's config must say instead, for the task of the adapter.

    Parameters
    ----------
    base : Checkpoint
        The base, whose config names a class and labels.
    config : PeftConfig
        The adapter's config.
    applied : Application
        What the adapter does to base.
    folder : Path
        Where the adapter lies, perhaps with the manifest that svdcut wrote.

    Returns
    -------
    dict
        What the manifest says. Else, for a classifier whose head the adapter holds,
        ``architectures``, and ``id2label`` with ``label2id`` where the number of labels is
        another, as transformers makes them. Empty for other tasks.

    Raises
    ------
    CheckpointError
        If there is a manifest that cannot be read.
    """
    changes = _inferred(base, config, applied) | _known(folder)
    if "id2label" in changes and "num_labels" in base.config:
        changes["num_labels"] = len(changes["id2label"])
    return changes


def changed_config(
    base: Checkpoint, applied: Application, task: Mapping[str, object]
) -> dict[str, Any]:
    """Return base's config with the task's changes, and with those of embeddings."""
    resized = [
        entry.shape[0]
        for name, entry in applied.replaced.items()
        if len(entry.shape) == 2
        and entry.shape != base.tensors[name].shape
        and tied_part(name) is not None
        and not is_in_numbered_layer(name)
    ]
    changes: dict[str, object] = {"vocab_size": resized[0]} if resized else {}
    if base.ties_embeddings and unties(applied):
        changes["tie_word_embeddings"] = False
    config: dict[str, Any] = {**base.config, **task}
    text = config.get("text_config")
    if isinstance(text, dict):
        config["text_config"] = text | {key: changes[key] for key in changes if key in text}
        changes = {k: change for k, change in changes.items() if k in config or k not in text}
    return config | changes


def language_heads(
    base: Checkpoint, applied: Application, task: Mapping[str, Any]
) -> frozenset[str]:
    """Return the tensors of base that have no place in a classifier, and that nothing changes.

    `task` is what `task_changes` returns: without ``architectures`` where base is a
    classifier itself.
    """
    named = task.get("architectures") or [""]
    if not str(named[0]).endswith("Classification"):
        return frozenset()
    heads = {name for name in base.tensors if _LANGUAGE_HEAD.match(name)}
    return frozenset(heads.difference(applied.updates, applied.replaced))


def _known(folder: Path) -> dict[str, Any]:
    """Return what the manifest of an adapter that svdcut wrote says of its task."""
    if not is_there(folder / MANIFEST_NAME):
        return {}
    adapter = read_json(folder / MANIFEST_NAME, _BOUNDS).get("adapter")
    config = adapter.get("config") if isinstance(adapter, dict) else None
    return task_fields(config) if isinstance(config, dict) else {}


def _inferred(base: Checkpoint, config: PeftConfig, applied: Application) -> dict[str, Any]:
    """Return the changes for a classifier whose head, of some rows, the adapter holds."""
    whole: Mapping[str, Any] = {**applied.replaced, **applied.added}
    heads = [
        entry.shape[0]
        for name, entry in whole.items()
        if is_task_head(name) and _LABELS.search(name) and len(entry.shape) == 2
    ]
    if config.task_type not in CLASSIFIERS or not heads:
        return {}
    changes: dict[str, Any] = {}
    wanted = _architecture(base.config, CLASSIFIERS[config.task_type])
    if wanted is not None and base.config.get("architectures") != [wanted]:
        changes["architectures"] = [wanted]
    if heads[-1] != _named_labels(base.config):
        names = [f"LABEL_{number}" for number in range(heads[-1])]
        changes["id2label"] = {str(number): name for number, name in enumerate(names)}
        changes["label2id"] = {name: number for number, name in enumerate(names)}
    return changes


def _architecture(config: Mapping[str, Any], end: str) -> str | None:
    """Return the class for a task in the family that a config names; None where it names none."""
    first = class_name(config)
    if not first:
        return None
    texts = (name for name in config["architectures"] if isinstance(name, str))
    right = (name for name in texts if name.endswith(end))
    family = _END.sub("", first)
    return next(right, f"{family}{end}" if family and family != first else None)


def _named_labels(config: Mapping[str, Any]) -> int:
    """Return how many labels transformers takes a config to name."""
    labels, number = config.get("id2label"), config.get("num_labels")
    if isinstance(labels, dict):
        return len(labels)
    return number if isinstance(number, int) else _DEFAULT_LABELS
