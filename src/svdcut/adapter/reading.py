"""Open a checkpoint, or an adapter on its base.

An adapter on its base is a `Checkpoint` of base's tensors, but for those that the adapter
stores whole; its `updates` are what the factors add. Reads headers and configs; no weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path

from svdcut.adapter.application import apply_adapter
from svdcut.adapter.model_config import changed_config, language_heads, task_changes
from svdcut.adapter.peft_config import read_peft_config
from svdcut.adapter.tensors import collect_tensors
from svdcut.adapter.tying import drop_copies
from svdcut.errors import CheckpointError, HubError, MismatchError, QuantizedError, UsageError
from svdcut.files import hub
from svdcut.files.checkpoint import (
    Checkpoint,
    holds_model,
    open_checkpoint,
    open_located,
    reading,
)
from svdcut.files.filenames import ADAPTER_CONFIG_NAME, ADAPTER_NAME
from svdcut.files.header import read_header
from svdcut.files.hub import Location, locate
from svdcut.files.jsonfile import quoted
from svdcut.files.tensorfile import TensorFile

_HINT = "Name the base that it was trained on: --base BASE."


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
        For an adapter, base's tensors but for those that it stores whole, under base's
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
    location = locate(source, quiet=quiet)
    with reading(location):
        if not _is_adapter(location):
            return open_located(location)
        return _open_adapter(location, base, renames or {})


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A model by its headers."""

    checkpoint: Checkpoint
    """All of it, or an adapter on `base`."""

    base: Checkpoint | None = None
    """The base of an adapter; None for a whole model."""


def open_model(
    source: str | Path, base: str | Path | None = None, *, quiet: bool = False
) -> OpenedModel:
    """Open a checkpoint, or an adapter on the base that its config names, or on another.

    Parameters
    ----------
    source : str or Path
        A directory, a ``.safetensors`` file, or a Hub id ``org/name[@revision]``.
    base : str or Path, optional
        The base of an adapter, named likewise. Without it, the one that adapter_config.json
        names: a relative path is relative to the current directory, as PEFT has it.
    quiet : bool
        Whether downloads show no progress.

    Raises
    ------
    CheckpointError, MismatchError, QuantizedError, HubError
        As `open_finetuned` does, or if the base that the config names cannot be had or used.
    UsageError
        If there is a base, and no adapter.
    """
    location = locate(source, quiet=quiet)
    with reading(location):
        if _is_adapter(location):
            if base is None:
                ours = _own_base(location, quiet=quiet)
            else:
                ours = open_checkpoint(base, quiet=quiet)
            try:
                return OpenedModel(_open_adapter(location, ours, {}), ours)
            except MismatchError as error:
                raise MismatchError(error.what, hint=_HINT) from error
        if base is None:
            return OpenedModel(open_located(location))
    raise UsageError(
        f"--base {base}: {location.source} is no PEFT adapter, which alone has a base",
        hint="Leave the option out.",
    )


def _is_adapter(location: Location) -> bool:
    """Whether it is an adapter, and no model; refuse its weights without the folder around."""
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
    task = task_changes(base, config, applied, folder)
    changed = changed_config(base, applied, task)
    left_out = language_heads(base, applied, task)
    kept = {name: entry for name, entry in base.tensors.items() if name not in left_out}
    return Checkpoint(
        source=location.source,
        revision=location.revision,
        directory=folder,
        files=(weights, _without_entries(folder / ADAPTER_CONFIG_NAME)),
        tensors={**kept, **applied.replaced, **applied.added},
        shards=_shards(base.shards, tuple(applied.added), left_out),
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
    shards: Mapping[str, tuple[str, ...]], added: tuple[str, ...], left_out: Set[str]
) -> Mapping[str, tuple[str, ...]]:
    """Return the names in each file, of which none is empty; new ones are in the last."""
    found = {f: tuple(n for n in names if n not in left_out) for f, names in shards.items()}
    *_, last = found
    found[last] += added
    return {file: names for file, names in found.items() if names}


def _own_base(adapter: Location, *, quiet: bool) -> Checkpoint:
    """Open the base that the config of an adapter names."""
    path = adapter.path / ADAPTER_CONFIG_NAME
    config = read_peft_config(path) if path.is_file() else None
    named = config and config.base_model_name_or_path
    if not (config and named):
        raise CheckpointError(f"{adapter.source}: {ADAPTER_CONFIG_NAME} names no base", hint=_HINT)
    if config.revision is not None and not hub.is_local(named):
        named = f"{named}@{config.revision}"
    said = f"{adapter.source}: {ADAPTER_CONFIG_NAME} names the base {quoted(named)}"
    try:
        found = open_checkpoint(named, quiet=quiet)
    except (CheckpointError, HubError) as error:
        more = "" if error.hint is None else f"\n  Of that one: {error.hint}"
        raise type(error)(
            f"{said}, which cannot be had: {error.what}", hint=_HINT + more
        ) from error
    if found.quantization is not None:
        raise QuantizedError(
            f"{said}, which is quantised ({found.quantization}): its numbers are codes",
            hint="Name the one that it was before, in bfloat16, float16 or float32: --base BASE.",
        )
    return found
