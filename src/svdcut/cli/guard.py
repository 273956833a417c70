"""Turn errors and signals into messages on stderr and exit codes.

SIGHUP, SIGINT and SIGTERM end a process that holds nothing, and stop a run cleanly: the first
signal unwinds the run, a second one lets it go on unwinding, a third ends it at once.
"""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import signal
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from svdcut.errors import InputError, Interrupted, SvdcutError, UsageError
from svdcut.shown import printable
from svdcut.worker import launched_worker

_NUMBERS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
_Handler = Callable[[int, "FrameType | None"], None]


class Stopped(BaseException):
    """A signal asks the run to stop; no Exception, which many a library takes for its own."""

    def __init__(self, number: int) -> None:
        super().__init__("interrupted")
        self.signal_number = number


def end_at_once(number: int, _frame: FrameType | None = None) -> None:
    """End the process, which has nothing to clean up."""
    os._exit(128 + number)


def install(handler: _Handler) -> None:
    """Let a handler take the signals; not SIGHUP where nohup has it ignored."""
    for number in _NUMBERS:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


@contextmanager
def stopping() -> Iterator[Callable[[], None]]:
    """Let the first signal raise `Stopped` here.

    Yields
    ------
    callable
        To be called when the work has ended in any way: no signal raises from then on.
    """
    received: list[int] = []
    ended: list[bool] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 2:
            end_at_once(number)
        if ended:
            return
        if len(received) > 1 and launched_worker() is None:
            os.write(2, b"svdcut: stopping; one more signal ends it at once\n")
        elif len(received) == 1:
            raise Stopped(number)

    def retry(unraisable: sys.UnraisableHookArgs) -> None:
        if not isinstance(unraisable.exc_value, Stopped):
            sys.__unraisablehook__(unraisable)
            return
        # Raised within a destructor, out of which no exception comes: once more, after it.
        received.clear()
        again = os.getpid(), unraisable.exc_value.signal_number
        threading.Timer(0.01, os.kill, again).start()

    before = [signal.getsignal(number) for number in _NUMBERS], sys.unraisablehook
    sys.unraisablehook = retry
    install(handle)
    try:
        yield lambda: ended.append(True)
    finally:
        for number, handler in zip(_NUMBERS, before[0], strict=True):
            signal.signal(number, handler)
        sys.unraisablehook = before[1]


_NO_MEMORY = (
    "Cannot allocate memory",
    "can't allocate memory",
    "cannot allocate memory",
    "failed to map segment",
    "out of memory",
    "std::bad_alloc",
)
"""Messages of libraries that lack memory and raise another error than `MemoryError`."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_NO_THREAD = "can't start new thread"
_MAX_LINE = 1000
"""Characters of a line: a name in a file may have 100 million."""


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
            _check_working_folder()
            yield
            sys.stdout.flush()
        except BaseException as error:
            end()
            code = report(error, verbose=verbose, find_unfinished=find_unfinished)
            if code is None:
                raise
            raise SystemExit(code) from error
        finally:
            end()


def _check_working_folder() -> None:
    try:
        Path.cwd()
    except OSError as error:
        what = f"the working folder cannot be used: {error.strerror}"
        raise InputError(what, hint="cd to one that is there.") from error


def report(
    error: BaseException,
    *,
    verbose: bool = False,
    find_unfinished: Callable[[], Sequence[Unfinished]] = tuple,
) -> int | None:
    """Say what went wrong, and return the exit code; None where the error is another's."""
    if isinstance(error, Stopped) and launched_worker() is not None:
        return 128 + error.signal_number  # who started the workers says it once
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
        _drop_stdout()  # the reader has what it wanted
        return 0
    if not isinstance(error, Exception):
        return None
    lacking = _lacking(error)
    if lacking is not None:
        _explain(lacking, verbose=verbose)
    else:
        reason = str(error).strip() or "no further message"
        _explain(f"unexpected failure: {type(error).__name__}: {reason}", verbose=verbose)
        if not verbose:
            _say("  -v shows where; please report it.")
    _tell_how_to_resume(find_unfinished())
    return 1


def _lacking(error: Exception) -> str | None:
    """Say what the machine could not give; None where that was not what went wrong."""
    reason = (str(error).strip() or type(error).__name__).split("\n", maxsplit=1)[0]
    if isinstance(error, MemoryError) or any(sign in reason for sign in _NO_MEMORY):
        hint = "Free some, or raise the limit (ulimit -v, or that of the container)."
        return f"there is not enough memory: {reason}\n  {hint}"
    if _NO_THREAD in reason:
        hint = "Raise the limit of processes (ulimit -u) or of memory (ulimit -v)."
        return f"the system allows no more threads\n  {hint}"
    if not isinstance(error, OSError):
        return None
    if error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if error.errno in _NO_ROOM:  # errors of our own files are named by who writes them
        _drop_stdout()
        return f"stdout cannot be written to: {error.strerror}"
    return None


def _drop_stdout() -> None:
    """Let what is left for stdout go nowhere: Python would complain again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def warn(text: str) -> None:
    """Say something on stderr that a user should know."""
    said = _by_line(printable, f"svdcut: warning: {text}")
    # Of a terminal alone, and no other message: those hold commands to copy.
    _say(_by_line(_wrapped, said) if sys.stderr.isatty() else said)


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
        _say(_by_line(printable, traceback.format_exc()))
    worker = launched_worker()
    who = "svdcut" if worker is None else f"svdcut: {worker}"
    _say(f"{who}: " + _by_line(lambda line: _shortened(printable(line)), text))


def _by_line(change: Callable[[str], str], text: str) -> str:
    return "\n".join(map(change, text.split("\n")))


def _wrapped(line: str) -> str:
    return textwrap.fill(
        line,
        shutil.get_terminal_size().columns,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _shortened(line: str) -> str:
    half = _MAX_LINE // 2
    return line if len(line) <= _MAX_LINE else f"{line[:half]} ... {line[-half:]}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201
