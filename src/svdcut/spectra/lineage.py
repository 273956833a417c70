"""Read from configs which base a checkpoint names, and whether two sides look swapped.

It opens no weights and asks no Hub.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from svdcut.files import hub
from svdcut.files.checkpoint import Checkpoint
from svdcut.names import is_task_classifier
from svdcut.pair.pairing import Pairing
from svdcut.record.card import card_metadata


def find_base(checkpoint: Checkpoint) -> str | None:
    """Return the base that a checkpoint's config or card names, if it is here.

    Parameters
    ----------
    checkpoint : Checkpoint
        The fine-tuned one.

    Returns
    -------
    str or None
        A folder, or a Hub id of which the local cache holds something; None where
        nothing is named, or nothing of that name is at hand.
    """
    for name in _named(checkpoint):
        if hub.is_local(name):
            if _is_other_folder(name, checkpoint):
                return name
        elif hub.is_cached(name):
            return name
    return None


def signs_of_swap(base: Checkpoint, finetuned: Checkpoint, pairing: Pairing) -> Iterator[str]:
    """Yield what tells that base was fine-tuned from the other side, in words; none is certain.

    Parameters
    ----------
    base, finetuned : Checkpoint
        As the user gave them.
    pairing : Pairing
        Of the two.
    """
    names = [name for name in _named(base) if _means(name, finetuned) and not _means(name, base)]
    if names and not any(_means(name, base) for name in _named(finetuned)):
        yield f"BASE says that it was fine-tuned from {names[0]!r}"
    heads = [name for name in pairing.base_only if is_task_classifier(name)]
    if heads and not any(map(is_task_classifier, finetuned.tensors)):
        yield f"only BASE has the head of a classifier, {heads[0]!r}"


def _means(name: str, checkpoint: Checkpoint) -> bool:
    """Whether a name in a config may be that of a checkpoint: its id, or its folder's own name."""
    found = {checkpoint.source.partition("@")[0]}
    if checkpoint.directory is not None and hub.is_local(checkpoint.source):
        found |= {str(checkpoint.directory), checkpoint.directory.resolve().name}
    return bool({name, name.rstrip("/").rpartition("/")[2]} & found)


def _named(checkpoint: Checkpoint) -> Iterator[str]:
    said = [checkpoint.config.get("_name_or_path")]
    base = card_metadata(checkpoint.card()).get("base_model")
    said += base if isinstance(base, list) else [base]
    yield from (name for name in said if isinstance(name, str) and name)


def _is_other_folder(name: str, checkpoint: Checkpoint) -> bool:
    """Whether it is a folder, and not the checkpoint's own: a config may name itself."""
    try:
        folder = Path(name)
        own = checkpoint.directory
        return folder.is_dir() and (own is None or not folder.samefile(own))
    except (OSError, ValueError):
        return False
