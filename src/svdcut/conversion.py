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
    architectures = config.get("architectures")
    named = isinstance(architectures, list) and architectures and architectures[0]
    model = named if isinstance(named, str) and _is_class_name(named) else "AutoModel"
    pinned = f", revision={revision!r}" if revision else ""
    code = (
        f"from transformers import {model} as M; "
        f"M.from_pretrained({source!r}{pinned}).save_pretrained('converted')"
    )
    # Single quotes are easier to read, but names may hold what a shell acts on.
    plain = _is_plain(source + (revision or ""))
    words = f'"{code}"' if plain else shlex.quote(code)
    return f"If you trust it, convert it: python -c {words}"
