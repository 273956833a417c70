"""Write every file of a result but its weights: index, config, card, manifest.

It computes no numbers and writes no weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from svdcut.choose.options import Options, StoredDtype
from svdcut.files.checkpoint import Checkpoint
from svdcut.files.filenames import CARD_NAME, INDEX_NAME, MANIFEST_NAME
from svdcut.pair.plan import Plan
from svdcut.record.card import render_card
from svdcut.record.manifest import FileFact, Manifest, WeightFileFact

_CONFIG_NAME = "config.json"


class Destination(Protocol):
    """Where the files go: see `svdcut.write.writer.CheckpointWriter`."""

    def write_file(self, name: Path, data: bytes) -> None:
        """Write a small file."""

    def copy_file(self, source: Path, name: Path) -> tuple[int, str]:
        """Copy a small file; return its size in bytes and its sha256."""


def publish(writer: Destination, plan: Plan, manifest: Manifest, options: Options) -> Manifest:
    """Write what makes the weights a complete checkpoint.

    Parameters
    ----------
    writer : Destination
        Of the result.
    plan : Plan
        For the fine-tuned side's files.
    manifest : Manifest
        Of the result, without its files.
    options : Options
        For the dtype that config.json must then name.

    Returns
    -------
    Manifest
        With all files; as it is written.
    """
    files = write_sidecars(writer, plan, options)
    finetuned = plan.finetuned
    card = render_card(manifest, finetuned.card(), plan.base.card(), finetuned.config).encode()
    writer.write_file(Path(CARD_NAME), card)
    files[CARD_NAME] = _fact(card)
    manifest = replace(manifest, files=files)
    writer.write_file(Path(MANIFEST_NAME), manifest.dumps().encode())
    return manifest


def write_sidecars(
    writer: Destination, plan: Plan, options: Options
) -> dict[str, WeightFileFact | FileFact]:
    """Write the fine-tuned side's small files and the index.

    Parameters
    ----------
    writer, plan, options
        As for `publish`.

    Returns
    -------
    dict
        What is known of these files, and of the weight files.
    """
    files: dict[str, WeightFileFact | FileFact] = {
        file.name: WeightFileFact(file.size_bytes, hashlib.sha256(file.header).hexdigest())
        for file in plan.files
    }

    def write(name: str, text: str) -> None:
        data = text.encode()
        writer.write_file(Path(name), data)
        files[name] = _fact(data)

    finetuned = plan.finetuned
    for name, source in finetuned.sidecars().items():
        if str(name) == _CONFIG_NAME and (config := _changed_config(finetuned, options.dtype)):
            write(_CONFIG_NAME, json.dumps(config, indent=2) + "\n")
        else:
            files[str(name)] = FileFact(*writer.copy_file(source, name))
    if plan.index is not None:
        write(INDEX_NAME, json.dumps(plan.index, indent=2) + "\n")
    return files


def _changed_config(finetuned: Checkpoint, dtype: StoredDtype) -> Mapping[str, Any] | None:
    """Return the config of the result; None where its file can be copied."""
    if dtype is StoredDtype.AUTO:
        return finetuned.config if finetuned.rewrites_config else None
    config = with_dtype(finetuned.config, dtype)
    if "torch_dtype" not in config:
        # Without it, a loader takes the dtype of the first tensor for all of them.
        config.setdefault("dtype", dtype.value)
    return config


def _fact(data: bytes) -> FileFact:
    return FileFact(len(data), hashlib.sha256(data).hexdigest())


def with_dtype(config: Mapping[str, Any], dtype: StoredDtype) -> dict[str, Any]:
    """Return a config that names the dtype of the result.

    A loader that goes by the config would otherwise round float32 weights to
    bfloat16 on the way in, and bring back the tail that was cut.
    """
    changed = dict(config)
    for key, value in config.items():
        if isinstance(value, dict):
            changed[key] = with_dtype(value, dtype)
        elif key in ("dtype", "torch_dtype"):
            changed[key] = dtype.value
    return changed
