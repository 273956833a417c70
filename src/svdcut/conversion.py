"""How to turn pickled weights into safetensors: a command for the user to run.

svdcut opens no pickle itself: opening one can run any code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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
    named = isinstance(architectures, list) and architectures and str(architectures[0])
    model = named if named and named.isidentifier() else "AutoModel"
    pinned = f", revision='{revision}'" if revision else ""
    return (
        f'If you trust it, convert it: python -c "from transformers import {model} as M; '
        f"M.from_pretrained('{source}'{pinned}).save_pretrained('converted')\""
    )
