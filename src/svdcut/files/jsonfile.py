"""JSON that a stranger wrote, read within bounds.

Knows no format; says nothing of what a document means.
"""

from __future__ import annotations

import os
import reprlib
import stat
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from svdcut.errors import CheckpointError
from svdcut.shown import byte_size

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")

_MAX_QUOTED = 160

_DAMAGED = "The file is damaged; fetch or save it again."

_quoter = reprlib.Repr()
_quoter.maxstring = _quoter.maxother = _MAX_QUOTED
_quoter.maxlevel = 2


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of a document; a larger one is refused before it is parsed."""

    num_bytes: int
    num_values: int
    """A value takes 60 bytes or so, whatever the text: ``[[],[],[]]`` grows 25-fold."""


def quoted(value: object) -> str:
    """Return the `repr` of a value, shortened where it is long."""
    return _quoter.repr(value)


def check_regular(path: Path) -> None:
    """Refuse what is no regular file: to open a pipe would wait for ever.

    So do some files of the system that call themselves regular, as /proc/kmsg.

    Raises
    ------
    OSError
        If it is none, or cannot be asked.
    """
    of_system = os.path.realpath(path).startswith(("/proc/", "/sys/"))
    if of_system or not stat.S_ISREG(path.stat().st_mode):
        raise OSError(None, "not a regular file")


def read_json(path: Path, bounds: Bounds) -> dict[str, Any]:
    """Read a JSON object.

    Parameters
    ----------
    path : Path
        The file.
    bounds : Bounds
        What it may take.

    Raises
    ------
    CheckpointError
        If the file cannot be read, is out of bounds, or holds no JSON object.
    """
    value = read_value(path, bounds)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object", hint=_DAMAGED)
    return value


def read_value(path: Path, bounds: Bounds) -> object:
    """Read a JSON value of any kind; takes and raises what `read_json` does."""
    # Imported here: --help reads no files.
    from pydantic_core import from_json

    try:
        check_regular(path)
        with path.open("rb") as file:
            raw = file.read(bounds.num_bytes + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if len(raw) > bounds.num_bytes:
        size = byte_size(bounds.num_bytes)
        raise CheckpointError(f"{path}: larger than {size}, which no real one is")
    try:
        check_num_values(raw, bounds.num_values)
        # It refuses what is nested so deep that Python could not follow, and long integers.
        return from_json(raw)
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})", hint=_DAMAGED) from error


def check_num_values(text: str | bytes, bound: int) -> None:
    """Refuse a document of too many values before it is parsed.

    Raises
    ------
    ValueError
        If it has more than `bound`.
    """
    # Brackets and commas within texts count too: no real document comes near the bound.
    count = text.count if isinstance(text, bytes) else lambda mark: text.count(mark.decode())
    if sum(map(count, (b"[", b"{", b","))) > bound:
        raise ValueError(f"more than {bound} values")


def parse_dataclass(kind: type[T], value: object) -> T:
    """Return a dataclass made of a JSON value; further keys are ignored.

    Raises
    ------
    ValueError
        If it cannot be made. The text names a field, what is expected, and what was found.
    """
    from pydantic import ValidationError

    try:
        made: T = _adapter(kind).validate_python(value)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        found = "" if first["type"] == "missing" else f", found {quoted(first['input'])}"
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{place}: {first['msg']}{found}") from error
    return made


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:  # noqa: ANN401 - of the cache
    """Return the parser of a dataclass; it takes longer to make than to use."""
    # Imported here: it is slow to import, and most commands parse no such thing.
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
