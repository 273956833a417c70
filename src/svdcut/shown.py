"""Texts of strangers as people see them: on a terminal, in a card, in a table.

It knows no names and no formats.
"""

from __future__ import annotations

_FORMULA = ("=", "+", "-", "@")


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
