"""An adapter without a base beside it: the one that its config names, or another.

Reads headers and configs; no weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from svdcut.adapter.peft_config import read_peft_config
from svdcut.adapter.reading import is_adapter, open_on
from svdcut.errors import CheckpointError, HubError, MismatchError, QuantizedError, UsageError
from svdcut.files import hub
from svdcut.files.checkpoint import (
    Checkpoint,
    open_checkpoint,
    open_located,
    reading,
)
from svdcut.files.filenames import ADAPTER_CONFIG_NAME
from svdcut.files.hub import Location, locate
from svdcut.files.jsonfile import quoted

_HINT = "Name the base that it was trained on: --base BASE."


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A model by its headers."""

    checkpoint: Checkpoint
    """All of it, or an adapter on `base`."""

    base: Checkpoint | None = None
    """Of an adapter alone."""


def open_model(
    source: str | Path, base: str | Path | None = None, *, quiet: bool = False
) -> OpenedModel:
    """Open a checkpoint, or an adapter on its base.

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
        if is_adapter(location):
            ours = _open_base(location, base, quiet=quiet)
            return OpenedModel(_open_on(location, ours), ours)
        if base is None:
            return OpenedModel(open_located(location))
    raise UsageError(
        f"--base {base}: {location.source} is no PEFT adapter, which alone has a base",
        hint="Leave the option out.",
    )


def _open_on(adapter: Location, base: Checkpoint) -> Checkpoint:
    try:
        return open_on(adapter, base, {})
    except MismatchError as error:
        raise MismatchError(error.what, hint=_HINT) from error


def _open_base(adapter: Location, base: str | Path | None, *, quiet: bool) -> Checkpoint:
    if base is not None:
        return open_checkpoint(base, quiet=quiet)
    path = adapter.path / ADAPTER_CONFIG_NAME
    named = _named_base(path) if path.is_file() else None
    if named is None:
        raise CheckpointError(f"{adapter.source}: {ADAPTER_CONFIG_NAME} names no base", hint=_HINT)
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


def _named_base(path: Path) -> str | None:
    config = read_peft_config(path)
    if config.base is None or hub.is_local(config.base) or config.base_revision is None:
        return config.base
    return f"{config.base}@{config.base_revision}"
