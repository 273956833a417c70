"""Entry point of ``svdcut`` and ``python -m svdcut``."""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Run the command line, and end the process."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # no traceback of an import
    from svdcut.cli.guard import Stopped, end_at_once, install

    install(end_at_once)
    from svdcut.machine import allow_many_files, tune_allocator

    tune_allocator()
    allow_many_files()
    from svdcut.cli.app import run

    try:
        run()
    except Stopped as stopped:  # while the last words were said
        end_at_once(stopped.signal_number)
    except SystemExit as end:
        if not isinstance(end.code, int):
            raise
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        # Taking torch apart would be another 0.3 s, and everything is closed by now.
        os._exit(end.code)


if __name__ == "__main__":
    main()
