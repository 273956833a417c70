"""Turn what goes wrong into a line on stderr and an exit code."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import typer

from svdcut.cli.signals import Stopped, stopping
from svdcut.errors import Interrupted, SvdcutError, UsageError

_MAX_LINE = 1000
"""Of an error: a name in a file may have 100 million characters."""


@dataclass(frozen=True, slots=True)
class Unfinished:
    """Work that a run left behind."""

    folder: Path
    finished: int
    what: str = "tensors"


@contextmanager
def guard(
    *, verbose: bool, find_unfinished: Callable[[], Sequence[Unfinished]] = tuple
) -> Iterator[None]:
    """Run a command's body: signals stop it cleanly, errors become exit codes.

    Parameters
    ----------
    verbose : bool
        Whether an error shows its traceback.
    find_unfinished : callable
        Returns what the command leaves behind for another run to go on from.
    """
    with stopping() as end:
        try:
            yield
            sys.stdout.flush()
        except BaseException as error:
            end()
            code = _report(error, verbose=verbose, find_unfinished=find_unfinished)
            if code is None:
                raise
            raise typer.Exit(code) from error
        finally:
            end()


def _report(
    error: BaseException, *, verbose: bool, find_unfinished: Callable[[], Sequence[Unfinished]]
) -> int | None:
    """Say what went wrong, and return the exit code; None where the error is another's."""
    if isinstance(error, (Stopped, Interrupted)):
        _explain(str(error), verbose=False)
        _tell_how_to_resume(find_unfinished())
        return 128 + error.signal_number
    if isinstance(error, SvdcutError):
        _explain(str(error), verbose=verbose)
        if error.keeps_work and not isinstance(error, UsageError):
            _tell_how_to_resume(find_unfinished())
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        # The reader has what it wanted. Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if not isinstance(error, Exception) or isinstance(error, (typer.Exit, typer.Abort)):
        return None
    reason = str(error).strip() or "no further message"
    _explain(f"unexpected failure: {type(error).__name__}: {reason}", verbose=verbose)
    if not verbose:
        _say("  -v shows where; please report it.")
    _tell_how_to_resume(find_unfinished())
    return 1


def warn(text: str) -> None:
    """Say something on stderr that a user should know."""
    _say(f"svdcut: warning: {text}")


def note(text: str) -> None:
    """Say something on stderr that may help."""
    _say(f"svdcut: {printable(text)}")


def _tell_how_to_resume(unfinished: Sequence[Unfinished]) -> None:
    arguments = [argument for argument in sys.argv[1:] if argument != "--restart"]
    for work in unfinished:
        _say(f"  {work.finished} finished {work.what} are kept in {printable(str(work.folder))}.")
    if unfinished:
        _say(f"  To go on: {printable(shlex.join(['svdcut', *arguments]))}")


def _explain(text: str, *, verbose: bool) -> None:
    if verbose:
        _say("\n".join(printable(line) for line in traceback.format_exc().split("\n")))
    _say("svdcut: " + "\n".join(_shortened(printable(line)) for line in text.split("\n")))


def printable(text: str) -> str:
    """Return a text without control characters: names in files are a stranger's."""
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    """Return what a terminal shows as it is: marks that turn the line around are none."""
    code = ord(character)
    if character.isprintable():
        return character
    return (
        f"\\x{code:02x}"
        if code < 0x100
        else f"\\u{code:04x}"
        if code < 0x10000
        else f"\\U{code:08x}"
    )


def _shortened(line: str) -> str:
    half = _MAX_LINE // 2
    return line if len(line) <= _MAX_LINE else f"{line[:half]} ... {line[-half:]}"


def _say(text: str) -> None:
    typer.echo(text, err=True)
