"""Files that appear complete or not at all.

It knows no format.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from svdcut.errors import OutputError


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its place, and move it there when it is complete.

    Parameters
    ----------
    path : Path
        Where it shall be; what is there is replaced.
    write : callable
        Writes to the path that it is given.

    Raises
    ------
    OutputError
        If it cannot be written; then what was there is as before.
    """
    try:
        partial = path.with_name(f".{path.name[:100]}.{os.getpid()}.partial")
        try:
            partial.touch()
            mode = partial.stat().st_mode
            write(partial)
            partial.chmod(mode)  # safetensors makes files that their owner alone may read
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, ValueError) as error:  # ValueError: the path has no name, or a NUL in it
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{path}: cannot be written: {reason}") from error
