"""The files of a model: their names, and whether they are there and can be read."""

from __future__ import annotations

import os
from pathlib import Path

from svdcut.errors import CheckpointError
from svdcut.jsonfile import Bounds, check_regular, quoted

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
ADAPTER_NAME = "adapter_model.safetensors"
CARD_NAME = "README.md"
CONFIG_NAME = "config.json"

MAX_TENSORS = 250_000
"""Bounds the memory; the largest models have a quarter of that."""

CONFIG_BOUNDS = Bounds(num_bytes=16_000_000, num_values=1_000_000)
INCOMPLETE = "The checkpoint is incomplete; fetch or save it again."


def is_there(path: Path) -> bool:
    """Whether a name is taken, if only by a link that leads nowhere."""
    return os.path.lexists(path)


def check_readable(path: Path) -> None:
    """Raise if a file cannot be read, or would not end, as a pipe."""
    try:
        check_regular(path)
        with path.open("rb"):
            pass
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path | str, error: OSError) -> CheckpointError:
    """Return the error of a file that the system does not give."""
    if isinstance(path, Path) and path.is_symlink() and not path.exists():
        target = quoted(str(path.readlink()))
        return CheckpointError(f"{path}: a link to {target}, which is not there", hint=INCOMPLETE)
    return CheckpointError(f"{path}: cannot be read: {error.strerror}")
