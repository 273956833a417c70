"""JSON that a stranger wrote, read within bounds.

Knows no format; says nothing of what a document means.
"""

from __future__ import annotations

import itertools
import json
import os
import reprlib
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svdcut.errors import CheckpointError
from svdcut.shown import byte_size

_MAX_DIGITS = 4000
_MAX_QUOTED = 160
_MAX_DEPTH = 100
"""Less than what Python can recurse into."""

_DAMAGED = "The file is damaged; fetch or save it again."

_quoter = reprlib.Repr()
_quoter.maxstring = _quoter.maxother = _MAX_QUOTED
_quoter.maxlevel = 2


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a document may take, at most; more is refused before it is parsed."""

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


def read_json(path: Path, bounds: Bounds, *, strict: bool = False) -> dict[str, Any]:
    """Read a JSON object.

    Parameters
    ----------
    path : Path
        The file.
    bounds : Bounds
        What it may take.
    strict : bool
        Whether to refuse an object that names a key twice, and text that is not Unicode.

    Raises
    ------
    CheckpointError
        If the file cannot be read, is out of bounds, or holds no JSON object.
    """
    value = read_value(path, bounds, strict=strict)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object", hint=_DAMAGED)
    return value


def read_value(path: Path, bounds: Bounds, *, strict: bool = False) -> object:
    """Read a JSON value of any kind; takes and raises what `read_json` does."""
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
        text = raw.decode()
        check_num_values(text, bounds.num_values)
        value = json.loads(text, parse_int=parse_int, object_pairs_hook=unique if strict else None)
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})", hint=_DAMAGED) from error
    except RecursionError:
        value = None
    if value is None or _is_deep(value):
        raise CheckpointError(f"{path}: nested deeper than {_MAX_DEPTH} levels")
    return value


def check_num_values(text: str, bound: int) -> None:
    """Refuse a document of too many values before it is parsed.

    Raises
    ------
    ValueError
        If it has more than `bound`.
    """
    # Brackets and commas within texts count too: no real document comes near the bound.
    if sum(map(text.count, "[{,")) > bound:
        raise ValueError(f"more than {bound} values")


def parse_int(text: str) -> int:
    """Return an integer, if it is not so long that it takes minutes to read.

    Raises
    ------
    ValueError
        If it is.
    """
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of these pairs.

    Raises
    ------
    ValueError
        If a key comes twice, or half a surrogate pair is in a text.
    """
    for text in itertools.chain.from_iterable(pairs):
        if isinstance(text, str):
            text.encode()  # an escape can make half a pair, which no file can hold
    return without_repeats(pairs)


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of these pairs, whatever its texts hold.

    Raises
    ------
    ValueError
        If a key comes twice.
    """
    result = dict(pairs)
    if len(result) != len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{quoted(twice)} is named twice")
    return result


def _is_deep(value: object) -> bool:
    layer = [value]
    for _ in range(_MAX_DEPTH):
        layer = [child for item in layer for child in _children(item)]
    return bool(layer)


def _children(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
