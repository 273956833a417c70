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
from svdcut.files.tensorfile import FileLayout
from svdcut.pair.plan import Plan
from svdcut.record.card import Loading, render_card
from svdcut.record.manifest import FileFact, Manifest, WeightFileFact

_CONFIG_NAME = "config.json"


class Destination(Protocol):
    """Takes small files: see `svdcut.write.writer.CheckpointWriter`."""

    def write_file(self, name: Path, data: bytes) -> None:
        """Write a small file."""

    def copy_file(self, source: Path, name: Path) -> tuple[int, str]:
        """Copy a small file; return its size in bytes and its sha256."""


Files = dict[str, WeightFileFact | FileFact]
"""What is known of each file of a result, by its name."""


def publish(writer: Destination, plan: Plan, manifest: Manifest, options: Options) -> Manifest:
    """Write what makes the weights a complete checkpoint; see `write_record`."""
    files = write_sidecars(writer, plan, options)
    return write_record(writer, plan, manifest, files, Loading(plan.finetuned.config))


def write_record(
    writer: Destination, plan: Plan, manifest: Manifest, files: Files, loading: Loading
) -> Manifest:
    """Write the last two files of a result: its card, and the manifest.

    Parameters
    ----------
    writer : Destination
        The writer of the result.
    plan : Plan
        For the cards of both sides.
    manifest : Manifest
        The manifest, without its files.
    files : dict
        All other files.
    loading : Loading
        For the card.

    Returns
    -------
    Manifest
        With all files; as it is written.
    """
    card = render_card(manifest, plan.finetuned.card(), plan.base.card(), loading)
    files[CARD_NAME] = write_text(writer, CARD_NAME, card)
    manifest = replace(manifest, files=files)
    write_text(writer, MANIFEST_NAME, manifest.dumps())
    return manifest


def write_text(writer: Destination, name: str, text: str) -> FileFact:
    """Write a small file."""
    data = text.encode()
    writer.write_file(Path(name), data)
    return FileFact(len(data), hashlib.sha256(data).hexdigest())


def copy_files(writer: Destination, sources: Mapping[Path, Path]) -> Files:
    """Copy small files, by their new names."""
    return {
        str(name): FileFact(*writer.copy_file(source, name)) for name, source in sources.items()
    }


def describe_weights(file: FileLayout) -> WeightFileFact:
    """Return what is known of a weight file."""
    return WeightFileFact(file.size_bytes, hashlib.sha256(file.header).hexdigest())


def write_sidecars(writer: Destination, plan: Plan, options: Options) -> Files:
    """Write the fine-tuned side's small files and the index.

    Parameters
    ----------
    writer : Destination
        The writer of the result.
    plan : Plan
        For the fine-tuned side's files.
    options : Options
        For the dtype that config.json must then name.

    Returns
    -------
    dict
        The facts of these files, and of the weight files.
    """
    finetuned, files = plan.finetuned, Files()
    for file in plan.files:
        files[file.name] = describe_weights(file)
    config = _changed_config(finetuned, options.dtype)
    for name, source in finetuned.sidecars().items():
        if config and str(name) == _CONFIG_NAME:
            text = json.dumps(config, indent=2) + "\n"
            files[_CONFIG_NAME] = write_text(writer, _CONFIG_NAME, text)
        else:
            files |= copy_files(writer, {name: source})
    if plan.index is not None:
        text = json.dumps(plan.index, indent=2) + "\n"
        files[INDEX_NAME] = write_text(writer, INDEX_NAME, text)
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
