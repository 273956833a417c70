"""What an adapter of a classifier makes of its base: another class, other labels, one head.

PEFT wraps a classifier, of which the adapter holds the head; base's config often names the
language model or the encoder that it was made of. What svdcut wrote has the class and the
labels in its manifest. Names and shapes alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from svdcut.adapter.application import Application
from svdcut.adapter.peft_config import CLASSIFIERS, PeftConfig
from svdcut.files.checkpoint import Checkpoint
from svdcut.files.filenames import MANIFEST_NAME, is_there
from svdcut.files.jsonfile import Bounds, read_json
from svdcut.files.wrong_input import class_name
from svdcut.names import is_task_head

_END = re.compile(
    r"(For[A-Z]\w*|(With)?LMHeadModel|DoubleHeadsModel|ModelWithLMHead|EncoderModel|Model)$"
)
"""What follows the name of a family of models in the name of a class."""

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


def own_fields(folder: Path) -> dict[str, Any]:
    """Return what the manifest of an adapter that svdcut wrote says of its task.

    Raises
    ------
    CheckpointError
        If there is a manifest that cannot be read.
    """
    if not is_there(folder / MANIFEST_NAME):
        return {}
    adapter = read_json(folder / MANIFEST_NAME, _BOUNDS).get("adapter")
    config = adapter.get("config") if isinstance(adapter, dict) else None
    return task_fields(config) if isinstance(config, dict) else {}


def task_changes(
    base: Checkpoint, config: PeftConfig, applied: Application, known: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what base's config must say instead, for the task of the adapter.

    Parameters
    ----------
    base : Checkpoint
        Whose config names a class and labels.
    config : PeftConfig
        Of the adapter.
    applied : Application
        What the adapter has for base.
    known : mapping
        What its manifest says of the task: see `own_fields`.

    Returns
    -------
    dict
        What is known; else, of a classifier whose head is the adapter's, ``architectures``, and
        ``id2label`` with ``label2id`` where the number of labels is another, as transformers
        makes them; empty for other tasks.
    """
    changes = _inferred(base, config, applied) | dict(known)
    if "id2label" in changes and "num_labels" in base.config:
        changes["num_labels"] = len(changes["id2label"])
    return changes


def _inferred(base: Checkpoint, config: PeftConfig, applied: Application) -> dict[str, Any]:
    rows = _num_labels(config, applied)
    if rows is None:
        return {}
    changes: dict[str, Any] = {}
    named = base.config.get("architectures")
    wanted = _architecture(base.config, CLASSIFIERS[str(config.task)])
    if wanted is not None and named != [wanted]:
        changes["architectures"] = [wanted]
    if rows != _named_labels(base.config):
        names = [f"LABEL_{number}" for number in range(rows)]
        changes["id2label"] = {str(number): name for number, name in enumerate(names)}
        changes["label2id"] = {name: number for number, name in enumerate(names)}
    return changes


def language_heads(
    base: Checkpoint, applied: Application, changes: Mapping[str, Any]
) -> tuple[str, ...]:
    """Return the tensors of base that no adapter changes, and that have no place in a classifier.

    Parameters
    ----------
    base, applied
        As for `task_changes`.
    changes : mapping
        What that returns: empty of architectures where base is a classifier itself.
    """
    named = changes.get("architectures") or [""]
    if not str(named[0]).endswith("Classification"):
        return ()
    changed = {*applied.updates, *applied.replaced}
    return tuple(
        name for name in base.tensors if _LANGUAGE_HEAD.match(name) and name not in changed
    )


def _num_labels(config: PeftConfig, applied: Application) -> int | None:
    """Return the rows of a classifier's head that the adapter holds; None where it holds none."""
    if config.task not in CLASSIFIERS:
        return None
    whole: Mapping[str, Any] = {**applied.replaced, **applied.added}
    heads = [
        entry.shape[0]
        for name, entry in whole.items()
        if is_task_head(name) and _LABELS.search(name) and len(entry.shape) == 2
    ]
    return heads[-1] if heads else None


def _architecture(config: Mapping[str, Any], end: str) -> str | None:
    """Return the class of a task, of the family that a config names; None where it names none."""
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
