"""How a result shows itself in a notebook: what it is, and not all that it holds."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields
from typing import Any

_MOST = 4
"""Items of a collection that are shown one by one."""

_LONGEST = 60
"""Characters of a text."""


def brief(self: Any) -> str:  # noqa: ANN401 - any dataclass
    """Return a dataclass in a few lines: ``__repr__`` of results that may be large."""
    shown = (f"{field.name}={_brief(getattr(self, field.name))}" for field in fields(self))
    return f"{type(self).__name__}({', '.join(shown)})"


def _brief(value: object) -> str:
    if isinstance(value, str):
        return repr(value if len(value) <= _LONGEST else value[:_LONGEST] + "...")
    if isinstance(value, Collection) and len(value) > _MOST:
        return f"<{len(value)} items>"
    if isinstance(value, float):
        return f"{value:.6g}"
    return repr(value)
