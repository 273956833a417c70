"""Errors for inputs that are no checkpoint: they say what it is instead, and what to do.

Pickled weights are never opened, for that can run any code: the user gets the command that
converts them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from svdcut.errors import CheckpointError
from svdcut.files.filenames import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_NAME,
    CONFIG_BOUNDS,
    CONFIG_NAME,
    INCOMPLETE,
    INDEX_NAME,
    WEIGHTS_NAME,
    is_there,
)
from svdcut.files.jsonfile import quoted, read_json

_is_class_name = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}").fullmatch
_is_plain = re.compile(r"[\w@%+=:,./ ~-]*").fullmatch
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_OTHER_FORMATS = {
    ".gguf": "GGUF holds quantised weights; use the safetensors checkpoint that it was made from.",
    ".h5": "TensorFlow weights; save the model as safetensors.",
    ".msgpack": "Flax weights; save the model as safetensors.",
    ".onnx": "An exported model; use the checkpoint that it was made from.",
    ".incomplete": "A download did not finish; fetch it again.",
}


def not_there(source: str, path: Path) -> CheckpointError:
    """Return the error of a name at which there is neither a file nor a folder."""
    if path.is_symlink():
        return CheckpointError(f"{source}: a link that leads nowhere")
    if is_there(path):
        return CheckpointError(f"{source}: neither a file nor a folder")
    return CheckpointError(f"{source}: no such file or directory")


def not_safetensors(source: str, path: Path) -> CheckpointError:
    """Return the error of a file of another kind."""
    if path.suffix == ".incomplete":
        return CheckpointError(f"{source}: a download that did not finish", hint=INCOMPLETE)
    if path.name == INDEX_NAME:
        hint = f"Name the folder that holds it: {shlex.quote(str(path.parent))}"
    elif any(path.match(pattern) for pattern in _PICKLES):
        return CheckpointError(
            f"{source}: pickled weights, and a pickle can run any code: never opened",
            hint=conversion_hint(str(path.parent), _read_config(path.parent)),
        )
    else:
        hint = _OTHER_FORMATS.get(path.suffix.lower(), "Name a folder or a .safetensors file.")
    return CheckpointError(f"{source}: not a .safetensors file", hint=hint)


def _adapter_alone(source: str, path: Path) -> CheckpointError | None:
    """Return the error of a folder that has no weights of a model, but those of an adapter."""
    if (path / ADAPTER_NAME).is_file():
        named = _read_config(path, ADAPTER_CONFIG_NAME).get("base_model_name_or_path")
        base = "BASE"
        if isinstance(named, str) and named and named.isprintable():
            base = shlex.quote(named)
        return CheckpointError(
            f"{source}: a PEFT adapter, which is no model by itself",
            hint="Name it second, after the base that it was trained on: "
            f"svdcut truncate {base} {shlex.quote(source)} ...",
        )
    if (path / "adapter_model.bin").is_file():
        return CheckpointError(
            f"{source}: a PEFT adapter whose weights are pickled, and a pickle can run any code: "
            "never opened",
            hint=adapter_conversion_hint(source),
        )
    below = sorted(found.parent.name for found in path.glob(f"*/{ADAPTER_NAME}"))
    if below:
        names = ", ".join(map(quoted, below[:5])) + (", ..." if len(below) > 5 else "")
        return CheckpointError(
            f"{source}: no weights in it, but adapters in folders beneath: {names}",
            hint=f"Name one of them: {shlex.quote(str(Path(source) / below[0]))}",
        )
    return None


def no_weights(source: str, path: Path) -> CheckpointError:
    """Return the error of a folder without safetensors weights of a model."""
    if error := _adapter_alone(source, path):
        return error
    none = f"{source}: no {WEIGHTS_NAME} and no {INDEX_NAME} in it"
    if (path / "model_index.json").is_file():
        found = sorted(path.glob("*/*.safetensors"))
        hint = f"Name one of its parts: {shlex.quote(str(found[0]))}" if found else None
        return CheckpointError(f"{none}, but model_index.json: a pipeline of diffusers", hint=hint)
    if any(found for pattern in _PICKLES for found in path.glob(pattern)):
        return CheckpointError(
            f"{source}: its weights are pickled, and a pickle can run any code: never opened",
            hint=conversion_hint(source, _read_config(path)),
        )
    others = sorted(found.name for found in path.glob("*.safetensors"))
    if others:
        names = ", ".join(map(quoted, others[:3]))
        named = shlex.quote(str(Path(source) / others[0]))
        return CheckpointError(f"{none}, but {names}", hint=f"Name the file itself: {named}")
    for suffix, hint in _OTHER_FORMATS.items():
        if found := sorted(path.glob(f"*{suffix}")):
            return CheckpointError(f"{none}, but {quoted(found[0].name)}", hint=hint)
    hint = None if any(path.iterdir()) else "The folder is empty."
    return CheckpointError(none, hint=hint)


def _read_config(folder: Path, name: str = CONFIG_NAME) -> Mapping[str, Any]:
    """Return a config as far as it helps to word a hint."""
    try:
        return read_json(folder / name, CONFIG_BOUNDS)
    except CheckpointError:
        return {}


def class_name(config: Mapping[str, Any]) -> str:
    """Return the first class that a config.json names; empty where it names none."""
    named = config.get("architectures")
    first = named[0] if isinstance(named, list) and named else None
    return first if isinstance(first, str) and _is_class_name(first) else ""


def conversion_hint(source: str, config: Mapping[str, Any], *, revision: str | None = None) -> str:
    """Return the command that converts a checkpoint.

    Parameters
    ----------
    source : str
        What transformers is to load: a folder, or the name of a repository.
    config : mapping
        Its config.json; the class that it names keeps the head, which AutoModel drops.
    revision : str, optional
        Of a repository.
    """
    model = class_name(config) or "AutoModel"
    pinned = f", revision={revision!r}" if revision else ""
    code = (
        f"from transformers import {model} as M; "
        f"M.from_pretrained({source!r}{pinned}).save_pretrained('converted')"
    )
    return _command(code, source + (revision or ""))


def adapter_conversion_hint(folder: str) -> str:
    """Return the command that converts the pickled weights of an adapter in a folder."""
    code = (
        f"import os, torch; from safetensors.torch import save_file as s; os.chdir({folder!r}); "
        "s({k: v.contiguous() for k, v in torch.load('adapter_model.bin', weights_only=True)"
        ".items()}, 'adapter_model.safetensors')"
    )
    return _command(code, folder)


def _command(code: str, names: str) -> str:
    # Single quotes are easier to read, but names may hold what a shell acts on.
    plain = _is_plain(names)
    words = f'"{code}"' if plain else shlex.quote(code)
    return f"If you trust it, convert it: python -c {words}"
