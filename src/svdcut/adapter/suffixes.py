"""The shortest ends of names that tell some modules from all others.

Ends rather than names: in another class, or another version of transformers, the same
module may have another prefix.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator


def suffixes(name: str) -> Iterator[str]:
    """Yield the ends of a name from dot to dot, the shortest first, the name last.

    None begins with a number: ``mlp.2`` says more than ``2``, which may also be a module
    without tensors.
    """
    parts = name.split(".")
    for start in reversed(range(len(parts))):
        if start == 0 or not parts[start].isdigit():
            yield ".".join(parts[start:])


def shortest(wanted: Iterable[str], others: Iterable[str]) -> list[str]:
    """Return ends that together match all wanted names, and no other as far as can be.

    Parameters
    ----------
    wanted, others : iterable of str
        Names. An end matches those that equal it, or end in a dot and it.

    Returns
    -------
    list of str
        In the order of the wanted names. A wanted name that is itself an end of another
        matches that one too.
    """
    taken = {end for other in others for end in suffixes(other)}
    return list(
        dict.fromkeys(
            next((end for end in suffixes(name) if end not in taken), name) for name in wanted
        )
    )


def matches(name: str, ends: Collection[str]) -> bool:
    """Whether one of the ends matches a name."""
    return any(end in ends for end in suffixes(name))


def shortest_raw(wanted: Collection[str], others: Collection[str]) -> list[str]:
    """Return ends as `shortest` does, where also ``layernorm`` matches ``norm``.

    So PEFT matches ``modules_to_save`` (utils/other.py, _set_trainable).
    """
    found: list[str] = []
    for name in wanted:
        if not any(name.endswith(end) for end in found):
            ends = suffixes(name)
            free = (end for end in ends if not any(other.endswith(end) for other in others))
            found.append(next(free, name))
    return found


def pattern(end: str, others: Iterable[str]) -> str:
    """Return an end as a regular expression, to follow an optional prefix.

    Where it is a name, and an end of another one, it matches the name alone.
    """
    anchored = any(other.endswith(f".{end}") for other in others)
    return f"{'^' if anchored else ''}{re.escape(end)}"
