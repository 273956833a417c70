"""Strangers' names and counts as HTML in which nothing hides and nothing runs.

It knows no columns and no layout.
"""

from __future__ import annotations

import html
import json

from svdcut.shown import printable

MAX_NAME = 240
"""Characters of a name that are shown: real ones have half as many."""

_NARROW_SPACE = "\u202f"
_SCRIPT_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def visible(text: str) -> str:
    """Return a stranger's text, shortened, with controls and turned writing spelled out."""
    if len(text) > MAX_NAME:
        half = MAX_NAME // 2
        text = f"{text[:half]}…{text[-half:]}"
    return printable(text)


def markup(text: str) -> str:
    """Return the HTML of a text, between tags or in a quoted attribute."""
    return html.escape(visible(text))


def name_markup(name: str) -> str:
    """Return the HTML of a dotted name, which may break after its dots."""
    # bdi keeps letters that are written from the right from turning what stands beside them.
    return f"<bdi>{markup(name).replace('.', '.<wbr>')}</bdi>"


def script_json(value: object) -> str:
    """Return JSON that may stand within a script element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(_SCRIPT_ESCAPES)


def grouped(count: int) -> str:
    """Return a count with its thousands apart."""
    return f"{count:,}".replace(",", _NARROW_SPACE)
