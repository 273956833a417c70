"""``svdcut verify``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import KW_ONLY

from svdcut.api.verification import carry_out_verification
from svdcut.cli.app import ScreenOptions, command
from svdcut.cli.guard import guard, warn
from svdcut.cli.progress import show_progress
from svdcut.cli.screen import open_screen, print_json
from svdcut.option import Panel
from svdcut.option_kinds import Switch, options
from svdcut.shown import counted, printable
from svdcut.verification.findings import Checked, Failure, Verification
from svdcut.verification.options import VerifyOptions

_FAILED = 4

_HASH = re.compile("[0-9a-f]{64}")
_SHOWN = 20
"""False claims on a screen; the rest are counted."""

_MAX_VALUE = 100
"""Characters of a value on a screen."""


@options
class VerifyCommand(ScreenOptions, VerifyOptions):
    """Options of the command."""

    _: KW_ONLY
    json: Switch = Switch("Print the outcome on stdout.", default=False, panel=Panel.SCREEN)
    quiet: Switch = Switch(
        "Print nothing but false claims, on stderr, and errors.",
        default=False,
        panel=Panel.SCREEN,
        short="-q",
    )
    verbose: Switch = Switch(
        "Print a line for each tensor, all false claims, and the traceback of an error.",
        default=False,
        panel=Panel.SCREEN,
        short="-v",
    )


@command(
    VerifyCommand,
    usage="[--base BASE --ft FT] [OPTIONS]",
    examples="""\
svdcut verify out/  # check every byte against the manifest

svdcut verify out/ --base base/ --ft ft/  # compute everything again

svdcut verify out/ --base base/ --ft ft/ --sample 20  # compute 20 tensors again

svdcut verify out/ --json | jq .failures  # list what is wrong
""",
)
def verify(options: VerifyCommand) -> None:
    """Check a result against its manifest, and against what it was made from.

    Every byte of OUT is read: any change of a file that the manifest names is
    found, any change of the manifest, and any file beside them that a loader
    could take. An edited model card is told of, and is no false claim. With BASE
    and FT, every number of the manifest and every stored tensor is computed
    again. A false claim is printed with what the manifest says and what was found;
    the exit status is then 4.
    """
    out, quiet, verbose = str(options.out), options.quiet, options.verbose
    with guard(verbose=verbose):
        with show_progress(quiet=quiet, verbose=verbose) as observe:
            outcome = carry_out_verification(options, observe=observe)
        if options.json:
            print_json(outcome.to_json())
        elif not quiet:
            _print_verdict(out, outcome, everything=verbose)
        elif not outcome.ok:
            warn("\n  ".join(_first_lines(out, outcome)))
    if not outcome.ok:
        raise SystemExit(_FAILED)


def _print_verdict(out: str, outcome: Verification, *, everything: bool) -> None:
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
    screen = open_screen()
    shown = outcome.failures if everything else outcome.failures[:_SHOWN]
    for failure in shown:
        screen.say(_describe(failure), markup=False)
    more = len(outcome.failures) - len(shown)
    if more:
        screen.print(f"... and {more} more; -v shows all.")
    if shown:
        screen.print()
    for line in _summary(out, outcome):
        screen.say(line, markup=False)


def _first_lines(out: str, outcome: Verification) -> Iterator[str]:
    """Yield in few lines what is wrong."""
    count = len(outcome.failures)
    yield f"{printable(out)}: {counted(count, 'false claim')}"
    for failure in outcome.failures[:3]:
        yield _describe(failure)


def _describe(failure: Failure) -> str:
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
