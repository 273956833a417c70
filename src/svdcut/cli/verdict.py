"""The screen of ``svdcut verify``."""

from __future__ import annotations

import re
from collections.abc import Iterator

from svdcut.cli.output import Screen
from svdcut.shown import counted, printable
from svdcut.verification.findings import Checked, Failure, Verification

_HASH = re.compile("[0-9a-f]{64}")
_SHOWN = 20
"""False claims on a screen; the rest are counted."""

_MAX_VALUE = 100
"""Characters of a value on a screen."""


def print_verdict(out: str, outcome: Verification, *, everything: bool) -> None:
    """Print what was checked, and what does not hold.

    Parameters
    ----------
    out : str
        As the user named it.
    outcome : Verification
        What was found.
    everything : bool
        Whether to print every false claim.
    """
    screen = Screen(highlight=False)
    shown = outcome.failures if everything else outcome.failures[:_SHOWN]
    for failure in shown:
        screen.say(describe(failure), markup=False)
    more = len(outcome.failures) - len(shown)
    if more:
        screen.print(f"... and {more} more; -v shows all.")
    if shown:
        screen.print()
    for line in _summary(out, outcome):
        screen.say(line, markup=False)


def first_lines(out: str, outcome: Verification) -> Iterator[str]:
    """Yield in few lines what is wrong."""
    count = len(outcome.failures)
    yield f"{printable(out)}: {counted(count, 'false claim')}"
    for failure in outcome.failures[:3]:
        yield describe(failure)


def describe(failure: Failure) -> str:
    """Return a false claim in a line."""
    place = failure.tensor if failure.file is None else failure.file
    expected, found = _value(failure.expected), _value(failure.found)
    return f"{printable(str(place))}: {failure.claim}: expected {expected}, found {found}"


def _value(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, float):
        return f"{value:.9g}"
    if isinstance(value, (list, tuple)):
        return (
            "[" + ", ".join(_value(item) for item in value[:8]) + ", ..." * (len(value) > 8) + "]"
        )
    text = printable(str(value).replace("\n", " "))
    if _HASH.fullmatch(text):
        return text[:12] + "..."
    return text if len(text) <= _MAX_VALUE else text[:_MAX_VALUE] + "..."


def _summary(out: str, outcome: Verification) -> Iterator[str]:
    checked, count = outcome.checked, len(outcome.failures)
    yield f"Read: {counted(checked.tensors, 'tensor')}, {counted(checked.files, 'file')}."
    if checked.input_files:
        yield from _recomputed(checked)
    else:
        yield "Nothing was computed again: --base BASE --ft FT does that."
    for note in outcome.notes:
        yield f"{printable(str(note.file))}: the card was edited, which is no false claim."
    false = f"does NOT match its manifest: {counted(count, 'false claim')}"
    yield f"{printable(out)}: {'OK: matches its manifest' if outcome.ok else false}"


def _recomputed(checked: Checked) -> Iterator[str]:
    yield f"Of the inputs: {counted(checked.input_files, 'weight file')}."
    if checked.recomputed:
        yield f"Computed again: {checked.recomputed} of {checked.truncated} truncated tensors."
