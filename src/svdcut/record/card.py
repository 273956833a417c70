"""Write the model card of a result.

It names no local path, and claims only what the manifest holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from svdcut.files.wrong_input import class_name
from svdcut.record.manifest import Manifest, Source
from svdcut.record.summary import summarize
from svdcut.shown import printable

_OF_LICENSE = ("license", "license_name", "license_link")
_INHERITED = (*_OF_LICENSE, "language", "library_name", "pipeline_tag")
_LISTS = ("language", "license", "tags", "base_model")
_MAX_TEXT = 300
_MAX_ITEMS = 1000
_FRONT_MATTER = re.compile(r"\s{,9}---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", re.DOTALL)
_LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
"""Makes texts, lists and maps alone, in linear time: it knows no numbers, dates or merges."""

_CELL_ENDS = str.maketrans({"`": "\\x60", "|": "\\x7c"})
_NULLS = ("", "~", "null")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@.*)?")


_ABOUT = """\
# {title}

{formula}: of the singular value
decomposition of each weight's update, only a part of the triplets was kept. They
were made by svdcut {version};
no training took place. `svdcut.json` holds the ranks, errors and hashes of every
tensor. The effect on any task was not measured by this tool.

{facts}
## Ranks

{ranks}
## How to load it

{loading}"""

_CHECKPOINT = {
    "title": "A fine-tuned model with the tail of its update cut",
    "formula": "These weights are `base + truncated(finetuned - base)`",
    "loading": "Like the fine-tuned model, with the same class and tokenizer",
}
_ADAPTER = {
    "title": "The update of a fine-tuned model, cut, as a LoRA adapter",
    "formula": "These factors are those of `truncated(finetuned - base)`",
    "loading": "Onto base, loaded with the class of the fine-tuned model",
}


@dataclass(frozen=True, slots=True)
class Loading:
    """Facts from which a card describes how to load a result."""

    config: Mapping[str, Any]
    """The fine-tuned side's config, which names the class; empty for a file alone."""

    task: Mapping[str, Any] = field(default_factory=dict)
    """For an adapter, the entries of `config` about the task that base's config lacks."""

    has_tokenizer: bool = False
    """True if an adapter has a tokenizer beside it."""

    limits: Sequence[str] = ()
    """How other programs than PEFT differ in reading an adapter."""


def render_card(
    manifest: Manifest, finetuned_card: str | None, base_card: str | None, loading: Loading
) -> str:
    """Return the text of the model card.

    Parameters
    ----------
    manifest : Manifest
        The manifest of the result.
    finetuned_card, base_card : str or None
        The cards of the two sides; license and languages come from the first that
        names them.
    loading : Loading
        How to load the result.
    """
    from huggingface_hub import ModelCardData

    header = ModelCardData(
        **_metadata(manifest, finetuned_card, base_card), ignore_metadata_errors=True
    ).to_yaml()
    about = _ABOUT.format(
        **(_ADAPTER if manifest.adapter else _CHECKPOINT),
        version=manifest.svdcut_version,
        facts=_table(("what", "value"), _facts(manifest)),
        ranks=_table(
            ("tensors", "count", "shape", "rank", "full rank", "energy kept"), _rank_rows(manifest)
        ),
    )
    return f"---\n{header}\n---\n\n{about}{_end(manifest, loading)}"


def _end(manifest: Manifest, loading: Loading) -> str:
    """Return the code that loads a result; untrusted text appears as literals only."""
    named = "auto_map" not in loading.config and class_name(loading.config)
    model = named or "AutoModel"
    if manifest.adapter:
        said = "".join(f"- {limit}\n" for limit in loading.limits)
        end = f"\nPEFT reads all of it. Other readers do not:\n\n{said}"
        code = "\n".join(_adapter_code(model, loading))
    elif loading.config:
        end = ""
        code = f"""\
from transformers import {model}

model = {model}.from_pretrained("PATH_OR_ID")"""
    else:
        return ".\n"  # a file alone loads nowhere
    return f":\n\n```python\n{code}\n```\n{end}"


def _adapter_code(model: str, loading: Loading) -> Iterator[str]:
    """Yield the lines of code that load an adapter onto a class of models."""
    named = loading.task.get("id2label", {})
    labels = [str(named.get(str(number), f"LABEL_{number}")) for number in range(len(named))]
    yield "from peft import PeftModel"
    yield f"from transformers import {'AutoTokenizer, ' * loading.has_tokenizer}{model}"
    yield ""
    if len(labels) > _MAX_ITEMS:
        yield f'base = {model}.from_pretrained("BASE_PATH_OR_ID", num_labels={len(labels)})'
    elif labels:
        yield f"labels = {labels!r}"
        yield f"base = {model}.from_pretrained("
        yield '    "BASE_PATH_OR_ID",'
        yield "    id2label=dict(enumerate(labels)),"
        yield "    label2id={label: number for number, label in enumerate(labels)},"
        yield ")"
    else:
        yield f'base = {model}.from_pretrained("BASE_PATH_OR_ID")'
    yield 'model = PeftModel.from_pretrained(base, "PATH_OR_ID")'
    yield "model = model.merge_and_unload()  # for the weights themselves"
    if loading.has_tokenizer:
        yield 'tokenizer = AutoTokenizer.from_pretrained("PATH_OR_ID")'


def _metadata(
    manifest: Manifest, finetuned_card: str | None, base_card: str | None
) -> dict[str, Any]:
    """Return the front matter."""
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
    return data


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
    texts = {key: found[key] for key in (*_INHERITED, "base_model") if _is_text(found.get(key))}
    lists = {key: _texts(found[key]) for key in _LISTS if isinstance(found.get(key), list)}
    return texts | lists


def _is_text(value: object) -> bool:
    """Return whether a value is a printable text of one line."""
    is_line = isinstance(value, str) and len(value) <= _MAX_TEXT and value.isprintable()
    return is_line and value not in _NULLS


def _texts(value: object) -> list[str]:
    items = value if isinstance(value, list) else []
    return [item for item in items if _is_text(item)][:_MAX_ITEMS]


def _hub_name(source: Source) -> str | None:
    """Return the Hub id of a side; None for a local one."""
    return source.source.partition("@")[0] if source.revision is not None else None


def _parents(manifest: Manifest, finetuned: Mapping[str, Any]) -> list[str]:
    """Return the Hub ids of base and fine-tuned side, as far as they are known."""
    named = _hub_name(manifest.base) or finetuned.get("base_model")
    parents = [*(named if isinstance(named, list) else [named]), _hub_name(manifest.finetuned)]
    return [name for name in dict.fromkeys(parents) if name and _HUB_ID.fullmatch(name)]


def _facts(manifest: Manifest) -> list[tuple[str, str]]:
    totals, energy = manifest.totals, manifest.totals.energy_retained
    return [
        ("base", _link(manifest.base)),
        ("fine-tuned", _link(manifest.finetuned)),
        ("rank rule", f"`{manifest.options['rank']}`, keep `{manifest.options['keep']}`"),
        ("tensors truncated", f"{totals.truncated} of {totals.tensors}"),
        ("rank kept", f"{totals.rank} of {totals.full_rank}"),
        ("energy of the update kept", "-" if energy is None else f"{energy:.2%}"),
        ("norm of what was cut", f"{totals.tail_norm:.4g}"),
        ("norm of the rounding of storage", f"{totals.rounding_error:.4g}"),
    ]


def _link(source: Source) -> str:
    name = _hub_name(source)
    if name is None:
        return "a local checkpoint"
    return f"[{name}](https://huggingface.co/{name}) at `{source.revision}`"


def _rank_rows(manifest: Manifest) -> Iterator[tuple[str, ...]]:
    for group in summarize(manifest):
        yield (
            f"`{_inert(group.name)}`",
            str(group.count),
            " x ".join(map(str, group.shape)),
            group.rank_text(),
            str(group.full_rank),
            f"{group.energy_retained:.2%}",
        )


def _inert(name: str) -> str:
    """Return an untrusted name, escaped so that it cannot end its table cell."""
    shown = printable(name).translate(_CELL_ENDS)
    return shown if len(shown) <= _MAX_TEXT else f"{shown[:_MAX_TEXT]}..."


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
