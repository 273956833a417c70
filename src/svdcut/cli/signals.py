"""What SIGHUP, SIGINT and SIGTERM do: end a process that holds nothing, stop a run cleanly.

A first signal unwinds the run, a second one lets it go on unwinding, a third ends it at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

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
