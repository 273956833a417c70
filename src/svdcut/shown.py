"""Format values for people: foreign texts, counts, sizes, shares, results in a notebook.

It knows no names and no formats.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Any

MISSING = "-"
"""Stands for a number that is not known."""

_FORMULA = ("=", "+", "-", "@")

_MOST_ITEMS = 4
"""Items of a collection that `brief` shows one by one."""

_LONGEST_TEXT = 60
"""Characters of a text that `brief` shows."""


def printable(text: str) -> str:
    """Return a text without control characters, nor marks that turn the line around."""
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape", "surrogatepass").decode()


def counted(number: int, noun: str) -> str:
    """Return a number of things: ``1 tensor``, ``2 tensors``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def byte_size(num_bytes: float) -> str:
    """Return a size of files or memory: ``1.2 MB``, ``3.4 GB``."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"


def percent(share: float) -> str:
    """Return a share in percent, to two digits; a part is shown neither as nothing nor as all."""
    number = 100 * share
    if number in {0, 100} or not math.isfinite(number):
        return f"{number:.0f}%"
    if not 1e-2 <= abs(number) < 1e5:
        return f"{number:.0e}%"
    if 99.5 <= number < 100:
        return ">99%"
    decimals = 1 - math.floor(math.log10(abs(number)))
    return f"{number:.{max(decimals, 0)}f}%"


def points(share: float) -> str:
    """Return an accuracy, or a difference of some, in percent to a tenth: ``81.3``."""
    return f"{100 * share:.1f}"


def size_text(value: float) -> str:
    """Return a norm or a singular value in at most seven characters: ``0.0312``, ``1.2e-05``."""
    return f"{value:.3g}" if value == 0 or 1e-3 <= value < 1000 else f"{value:.1e}"


def rank_text(value: float) -> str:
    """Return a rank or a count, or a mean of some, to two digits: ``2.5``, ``48``."""
    return f"{value:.1f}" if value < 9.95 and value != int(value) else f"{value:.0f}"


def safe_cell(value: object) -> object:
    r"""Return the cell of a CSV file that a terminal and a spreadsheet show as it is.

    Parameters
    ----------
    value : object
        A text is a stranger's: controls become escapes, as ``\x1b``, and an apostrophe goes
        before what a spreadsheet would compute; numbers stay.
    """
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(_FORMULA) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def brief(self: Any) -> str:  # noqa: ANN401 - any dataclass
    """Return a dataclass in a few lines: the ``__repr__`` of results that may be large."""
    found = {field.name: getattr(self, field.name) for field in fields(self)}
    return brief_items(type(self).__name__, found)


def brief_items(name: str, items: Mapping[str, object]) -> str:
    """Return named values in a few lines, as `brief` does for the fields of a dataclass."""
    return f"{name}({', '.join(f'{key}={_brief(value)}' for key, value in items.items())})"


def _brief(value: object) -> str:
    if isinstance(value, str):
        return repr(value if len(value) <= _LONGEST_TEXT else value[:_LONGEST_TEXT] + "...")
    if isinstance(value, Collection) and len(value) > _MOST_ITEMS:
        return f"<{len(value)} items>"
    if isinstance(value, float):
        return f"{value:.6g}"
    return repr(value)


def write_csv(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write rows of the same columns below their names, each cell as `safe_cell` makes it."""
    rows = iter(rows)
    first = next(rows, {})
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(map(safe_cell, first))
        writer.writerows(map(safe_cell, row.values()) for row in chain([first], rows))
