"""Everything in the result beside its weights: index, config, card, manifest.

It computes no numbers and writes no weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from svdcut.card import render_card
from svdcut.checkpoint import CARD_NAME, INDEX_NAME
from svdcut.manifest import Manifest
from svdcut.options import Options, StoredDtype
from svdcut.plan import Plan
from svdcut.writer import MANIFEST_NAME, CheckpointWriter

_CONFIG_NAME = "config.json"


def publish(writer: CheckpointWriter, plan: Plan, manifest: Manifest, options: Options) -> None:
    """Write what makes the weights a complete checkpoint.

    Parameters
    ----------
    writer : CheckpointWriter
        Of the result.
    plan : Plan
        For the fine-tuned side's files.
    manifest : Manifest
        Of the result.
    options : Options
        For the dtype that config.json must then name.
    """
    finetuned = plan.finetuned
    for name in finetuned.sidecars():
        assert finetuned.directory is not None
        if str(name) == _CONFIG_NAME and options.dtype is not StoredDtype.AUTO:
            config = with_dtype(finetuned.config, options.dtype)
            if "torch_dtype" not in config:
                # Without it, a loader takes the dtype of the first tensor for all of them.
                config.setdefault("dtype", options.dtype.value)
            writer.write_text(_CONFIG_NAME, json.dumps(config, indent=2) + "\n")
        else:
            writer.copy_file(finetuned.directory / name, name)
    if plan.index is not None:
        writer.write_text(INDEX_NAME, json.dumps(plan.index, indent=2) + "\n")
    writer.write_text(MANIFEST_NAME, manifest.dumps())
    card = render_card(manifest, finetuned.card(), plan.base.card())
    writer.write_text(CARD_NAME, card)


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
