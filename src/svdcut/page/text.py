"""Numbers and strangers' names as a page shows them.

It knows no columns and no layout.
"""

from __future__ import annotations

import html
import json
import math

MISSING = "–"
MAX_NAME = 240
"""Characters of a name that are shown: real ones have half as many."""

_DIGITS = 9
"""Significant digits of what a script reads: more than any method warrants."""

_NARROW_SPACE = "\u202f"
_SCRIPT_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def visible(text: str) -> str:
    """Return a text in which nothing hides: controls and turned writing are spelled out.

    Parameters
    ----------
    text : str
        From a stranger; may hold half a surrogate pair.
    """
    if len(text) > MAX_NAME:
        half = MAX_NAME // 2
        text = f"{text[:half]}…{text[-half:]}"
    return text if text.isprintable() else "".join(map(_spelled, text))


def _spelled(character: str) -> str:
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


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


def known(value: object) -> float | None:
    """Return a number that can be shown: None for NaN and infinity."""
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


def exact(value: float | None) -> float | None:
    """Return a number for a script, to 9 digits; counts stay whole."""
    if value is None or isinstance(value, int):
        return value
    return float(f"{value:.{_DIGITS}g}")


def number(value: float) -> str:
    """Return a number of any size, to three or four digits."""
    size = abs(value)
    if value == 0:
        return "0"
    if not 1e-3 <= size < 1e6:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{mantissa}e{int(exponent)}".replace("-", "−")
    text = f"{value:.0f}" if size >= 1e3 else f"{value:#.4g}"
    return text.removesuffix(".").replace("-", "−")


def whole(value: float) -> str:
    """Return a count, or the median of counts."""
    return f"{value:.0f}" if value == int(value) else f"{value:.1f}"


def grouped(count: int) -> str:
    """Return a count with its thousands apart."""
    return f"{count:,}".replace(",", _NARROW_SPACE)
