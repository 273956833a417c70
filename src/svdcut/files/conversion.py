"""How to turn pickled weights into safetensors: a command for the user to run.

svdcut opens no pickle itself: opening one can run any code.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

_is_class_name = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}").fullmatch
_is_plain = re.compile(r"[\w@%+=:,./ ~-]*").fullmatch


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
