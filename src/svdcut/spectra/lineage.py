"""What a checkpoint says it was fine-tuned from, where that is at hand.

It opens no weights and asks no Hub.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from svdcut import hub
from svdcut.card import card_metadata
from svdcut.checkpoint import Checkpoint


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
