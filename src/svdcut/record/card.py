"""Write the model card of a result.

It names no local path, and claims only what the manifest holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from svdcut.files.wrong_input import class_name
from svdcut.record.manifest import Manifest, Source
from svdcut.record.summary import summarize
from svdcut.shown import printable

_CHECKPOINT = (
    "A fine-tuned model with the tail of its update cut",
    "These weights are `base + truncated(finetuned - base)`",
    "Like the fine-tuned model, with the same class and tokenizer",
)
"""Title, formula and how to load it."""

_ADAPTER = (
    "The update of a fine-tuned model, cut, as a LoRA adapter",
    "These factors are those of `truncated(finetuned - base)`",
    "Onto base, loaded with the class of the fine-tuned model",
)

_INHERITED = (
    "license",
    "license_name",
    "license_link",
    "language",
    "library_name",
    "pipeline_tag",
)
_LISTS = ("language", "license", "tags", "base_model")
_MAX_TEXT = 300
_MAX_ITEMS = 1000
_FRONT_MATTER = re.compile(r"\s{,9}---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", re.DOTALL)
_LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
"""Makes texts, lists and maps alone, in linear time: it knows no numbers, dates or merges."""

_CELL_ENDS = str.maketrans({"`": "\\x60", "|": "\\x7c"})
_NULLS = ("", "~", "null")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@.*)?")


@dataclass(frozen=True, slots=True)
class AdapterLoading:
    """Facts from which an adapter's card describes how to load it."""

    config: Mapping[str, Any]
    """The fine-tuned side's config, which names the class."""

    task: Mapping[str, Any]
    """The entries of `config` about the task that base's config lacks."""

    has_tokenizer: bool
    limits: Sequence[str]
    """How other programs than PEFT differ in reading it."""


def render_card(
    manifest: Manifest,
    finetuned_card: str | None,
    base_card: str | None,
    config: Mapping[str, Any],
) -> str:
    """Return the text of the model card.

    Parameters
    ----------
    manifest : Manifest
        Of the result.
    finetuned_card, base_card : str or None
        The cards of the two sides; license and languages come from the first that
        names them.
    config : mapping
        The fine-tuned side's config, which names its class.
    """
    code = f"""\
from transformers import {_model_class(config)}

model = {_model_class(config)}.from_pretrained("PATH_OR_ID")"""
    card = _card(manifest, finetuned_card, base_card)
    return card + (_block(code) if config else ".\n")  # a file alone loads nowhere


def render_adapter_card(
    manifest: Manifest,
    finetuned_card: str | None,
    base_card: str | None,
    loading: AdapterLoading,
) -> str:
    """Return the text of an adapter's card.

    Parameters
    ----------
    manifest, finetuned_card, base_card
        As for `render_card`.
    loading : AdapterLoading
        How to load it.
    """
    limits = "".join(f"- {limit}\n" for limit in loading.limits)
    said = f"\nPEFT reads all of it. Other readers do not:\n\n{limits}"
    card = _card(manifest, finetuned_card, base_card)
    return card + _block(_adapter_code(loading)) + said


def _block(code: str) -> str:
    return f":\n\n```python\n{code}\n```\n"


def _model_class(config: Mapping[str, Any]) -> str:
    """Return the class of transformers that loads a model."""
    return (None if "auto_map" in config else class_name(config)) or "AutoModel"


def _adapter_code(loading: AdapterLoading) -> str:
    """Return the code that loads an adapter; untrusted text appears as literals only."""
    name, labels = _model_class(loading.config), _labels(loading.task)
    names = f"AutoTokenizer, {name}" if loading.has_tokenizer else name
    lines = ["from peft import PeftModel", f"from transformers import {names}", ""]
    if len(labels) > _MAX_ITEMS:
        lines.append(f'base = {name}.from_pretrained("BASE_PATH_OR_ID", num_labels={len(labels)})')
    elif labels:
        lines += [f"labels = {labels!r}", f"base = {name}.from_pretrained("]
        lines += ['    "BASE_PATH_OR_ID",', "    id2label=dict(enumerate(labels)),"]
        lines += ["    label2id={label: number for number, label in enumerate(labels)},", ")"]
    else:
        lines.append(f'base = {name}.from_pretrained("BASE_PATH_OR_ID")')
    lines.append('model = PeftModel.from_pretrained(base, "PATH_OR_ID")')
    lines.append("model = model.merge_and_unload()  # for the weights themselves")
    if loading.has_tokenizer:
        lines.append('tokenizer = AutoTokenizer.from_pretrained("PATH_OR_ID")')
    return "\n".join(lines)


def _labels(task: Mapping[str, Any]) -> list[str]:
    """Return the names of the classes, in their order; empty where there are none."""
    named = task.get("id2label", {})
    return [str(named.get(str(number), f"LABEL_{number}")) for number in range(len(named))]


def _card(manifest: Manifest, finetuned_card: str | None, base_card: str | None) -> str:
    from huggingface_hub import ModelCardData

    ours = card_metadata(finetuned_card)
    merged = card_metadata(base_card) | ours
    data = {key: merged[key] for key in _INHERITED if key in merged}
    if parents := _parents(manifest, ours):
        relation = "merge" if len(parents) > 1 else "finetune"
        data["base_model"] = parents
        data["base_model_relation"] = "adapter" if manifest.adapter else relation
    if manifest.adapter:
        data["library_name"] = "peft"
    data["tags"] = list(dict.fromkeys([*_texts(ours.get("tags")), "svdcut"]))
    header = ModelCardData(**data, ignore_metadata_errors=True).to_yaml()
    return f"---\n{header}\n---\n\n{_body(manifest)}"


def card_metadata(card: str | None) -> dict[str, Any]:
    """Return the inherited part of a card's metadata; empty if it cannot be read.

    Parameters
    ----------
    card : str or None
        Untrusted text.

    Returns
    -------
    dict
        Texts and lists of texts alone.
    """
    front = _FRONT_MATTER.match(card or "")
    if front is None:
        return {}
    try:
        found = yaml.load(front[1], Loader=_LOADER)  # noqa: S506 - a stricter one than the safe
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    texts = {key: found[key] for key in _INHERITED if _is_text(found.get(key))}
    lists = {key: _texts(found.get(key)) for key in _LISTS if isinstance(found.get(key), list)}
    named = found.get("base_model")
    return texts | lists | ({"base_model": named} if _is_text(named) else {})


def _is_text(value: object) -> bool:
    """Whether a value is a printable text of one line."""
    return (
        isinstance(value, str)
        and len(value) <= _MAX_TEXT
        and value.isprintable()
        and value not in _NULLS
    )


def _texts(value: object) -> list[str]:
    items = value if isinstance(value, list) else []
    return [item for item in items if _is_text(item)][:_MAX_ITEMS]


def _on_hub(source: Source) -> bool:
    return source.revision is not None


def _parents(manifest: Manifest, finetuned: Mapping[str, Any]) -> list[str]:
    """Return the Hub ids of base and fine-tuned side, as far as they are known."""
    parents: list[str] = []
    if _on_hub(manifest.base):
        parents.append(manifest.base.source.partition("@")[0])
    else:
        named = finetuned.get("base_model")
        parents += [named] if isinstance(named, str) else (named or [])
    if _on_hub(manifest.finetuned):
        parents.append(manifest.finetuned.source.partition("@")[0])
    return list(dict.fromkeys(name for name in parents if _HUB_ID.fullmatch(str(name))))


def _body(manifest: Manifest) -> str:
    title, formula, loading = _ADAPTER if manifest.adapter else _CHECKPOINT
    totals = manifest.totals
    energy = totals.energy_retained
    facts = [
        ("base", _name(manifest.base)),
        ("fine-tuned", _name(manifest.finetuned)),
        ("rank rule", f"`{manifest.options['rank']}`, keep `{manifest.options['keep']}`"),
        ("tensors truncated", f"{totals.truncated} of {totals.tensors}"),
        ("rank kept", f"{totals.rank} of {totals.full_rank}"),
        ("energy of the update kept", "-" if energy is None else f"{energy:.2%}"),
        ("norm of what was cut", f"{totals.tail_norm:.4g}"),
        ("norm of the rounding of storage", f"{totals.rounding_error:.4g}"),
    ]
    return f"""# {title}

{formula}: of the singular value
decomposition of each weight's update, only a part of the triplets was kept. They
were made by svdcut {manifest.svdcut_version};
no training took place. `svdcut.json` holds the ranks, errors and hashes of every
tensor. The effect on any task was not measured by this tool.

{_table(("what", "value"), facts)}
## Ranks

{_table(("tensors", "count", "shape", "rank", "full rank", "energy kept"), _rank_rows(manifest))}
## How to load it

{loading}"""


def _name(source: Source) -> str:
    if not _on_hub(source):
        return "a local checkpoint"
    name = source.source.partition("@")[0]
    return f"[{name}](https://huggingface.co/{name}) at `{source.revision}`"


def _rank_rows(manifest: Manifest) -> list[tuple[str, ...]]:
    return [
        (
            f"`{_inert(group.name)}`",
            str(group.count),
            " x ".join(map(str, group.shape)),
            group.rank_text(),
            str(group.full_rank),
            f"{group.energy_retained:.2%}",
        )
        for group in summarize(manifest)
    ]


def _inert(name: str) -> str:
    """Return an untrusted name, escaped so that it cannot end its table cell."""
    shown = printable(name).translate(_CELL_ENDS)
    return shown if len(shown) <= _MAX_TEXT else f"{shown[:_MAX_TEXT]}..."


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
