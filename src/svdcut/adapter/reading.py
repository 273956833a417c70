"""Open the fine-tuned side: a checkpoint, or an adapter on its base.

Reads headers and configs; no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from svdcut.adapter.application import Application, apply_adapter
from svdcut.adapter.collection import collect_tensors
from svdcut.adapter.peft_config import read_peft_config
from svdcut.adapter.task import language_heads, own_fields, task_changes
from svdcut.adapter.tying import drop_copies, unties
from svdcut.errors import CheckpointError
from svdcut.files.checkpoint import (
    Checkpoint,
    holds_model,
    open_located,
    reading,
)
from svdcut.files.filenames import ADAPTER_CONFIG_NAME, ADAPTER_NAME
from svdcut.files.header import read_header
from svdcut.files.hub import Location, locate
from svdcut.files.tensorfile import TensorEntry, TensorFile
from svdcut.names import is_in_numbered_layer, tied_part


def open_finetuned(
    source: str | Path,
    base: Checkpoint,
    *,
    renames: Mapping[str, str] | None = None,
    quiet: bool = False,
) -> Checkpoint:
    """Open the fine-tuned side of a pair.

    Parameters
    ----------
    source : str or Path
        As `open_checkpoint` takes it, or the folder or Hub id of a PEFT adapter. Where
        there are weights of a model too, they win.
    base : Checkpoint
        What an adapter is applied to.
    renames : mapping of str to str
        Prefixes of base's names, old to new, to find those of an adapter.
    quiet : bool
        Whether downloads show no progress.

    Returns
    -------
    Checkpoint
        Of an adapter, base's tensors but for those that it stores whole, under base's
        names; `updates` says what is to be added to them.

    Raises
    ------
    CheckpointError
        If it is neither a readable checkpoint nor an adapter that is supported.
    QuantizedError
        If the factors of an adapter are codes.
    MismatchError
        If an adapter does not fit base.
    HubError
        If it could not be had from the Hub.
    UsageError
        If a rename matches no name of base.
    """
    return open_on(locate(source, quiet=quiet), base, renames or {})


def open_on(location: Location, base: Checkpoint, renames: Mapping[str, str]) -> Checkpoint:
    """Open what is there as the fine-tuned side; takes and raises what `open_finetuned` does."""
    with reading(location):
        if not is_adapter(location):
            return open_located(location)
        return _open_adapter(location, base, renames)


def is_adapter(location: Location) -> bool:
    """Whether it is an adapter, and no model.

    Raises
    ------
    CheckpointError
        If it is the weights of one, without the folder around them.
    """
    path = location.path
    if path.name == ADAPTER_NAME and (path.parent / ADAPTER_CONFIG_NAME).is_file():
        raise CheckpointError(
            f"{location.source}: the weights of an adapter, which its config is needed for",
            hint=f"Name the folder that holds both: {path.parent}",
        )
    return (path / ADAPTER_NAME).is_file() and not holds_model(path)


def _open_adapter(location: Location, base: Checkpoint, renames: Mapping[str, str]) -> Checkpoint:
    folder = location.path
    if not (folder / ADAPTER_CONFIG_NAME).is_file():
        raise CheckpointError(
            f"{location.source}: {ADAPTER_NAME}, but no {ADAPTER_CONFIG_NAME}, which says its "
            "scale",
            hint="The adapter is incomplete; fetch or save it again.",
        )
    config = read_peft_config(folder / ADAPTER_CONFIG_NAME)
    weights = read_header(folder / ADAPTER_NAME)
    applied = apply_adapter(collect_tensors(weights), config, base, renames)
    applied = drop_copies(applied, config, base)
    changes = task_changes(base, config, applied, own_fields(folder))
    changed = _config(base, applied, changes)
    left_out = frozenset(language_heads(base, applied, changes))
    tensors = {
        name: applied.replaced.get(name, entry)
        for name, entry in base.tensors.items()
        if name not in left_out
    }
    return Checkpoint(
        source=location.source,
        revision=location.revision,
        directory=folder,
        files=(weights, _without_entries(folder / ADAPTER_CONFIG_NAME)),
        tensors={**tensors, **applied.added},
        shards=_shards(base.shards, list(applied.added), left_out),
        metadata=base.metadata,
        index=base.index,
        config=changed,
        updates=applied.updates,
        model_names=applied.model_names,
        under=base.directory,
        is_adapter=True,
        rewrites_config=changed != base.config,
    )


def _without_entries(path: Path) -> TensorFile:
    """Return a file that decides on tensors and holds none."""
    status = path.stat()
    return TensorFile(path, status.st_size, (), {}, status.st_mtime_ns)


def _shards(
    shards: Mapping[str, tuple[str, ...]], added: list[str], left_out: frozenset[str]
) -> Mapping[str, tuple[str, ...]]:
    """Return the names in each file, of which none is empty; new ones are in the last."""
    found = {
        file: tuple(name for name in names if name not in left_out)
        for file, names in shards.items()
    }
    *_, last = found
    found[last] += tuple(added)
    return {file: names for file, names in found.items() if names}


def _config(
    base: Checkpoint, applied: Application, of_task: Mapping[str, object]
) -> Mapping[str, Any]:
    """Return base's config, with what the adapter makes another of its embeddings and task."""
    resized = [
        entry.shape[0]
        for name, entry in applied.replaced.items()
        if _is_resized(entry, base.tensors[name])
    ]
    changes: dict[str, object] = {"vocab_size": resized[0]} if resized else {}
    if base.ties_embeddings and unties(applied):
        changes["tie_word_embeddings"] = False
    config: dict[str, Any] = {**base.config, **of_task}
    text = config.get("text_config")
    if isinstance(text, dict):
        config["text_config"] = text | {key: changes[key] for key in changes if key in text}
        changes = {
            key: change for key, change in changes.items() if key in config or key not in text
        }
    return config | changes


def _is_resized(entry: TensorEntry, base: TensorEntry) -> bool:
    matrix = len(entry.shape) == 2 and tied_part(base.name) is not None
    return matrix and entry.shape != base.shape and not is_in_numbered_layer(base.name)
