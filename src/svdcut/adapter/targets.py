"""The names and patterns by which PEFT finds modules: ends of names, as short as can be.

Ends rather than names: in another class, or another version of transformers, the same
module may have another prefix. Source: peft 0.21.2, tuners/tuners_utils.py, utils/other.py.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping


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


def shortest_raw(wanted: Collection[str], others: Collection[str]) -> list[str]:
    """Return ends as `shortest` does, where ``norm`` matches ``layernorm`` too.

    So PEFT matches ``modules_to_save`` (utils/other.py, _set_trainable).
    """
    found: list[str] = []
    for name in wanted:
        if not any(name.endswith(end) for end in found):
            ends = suffixes(name)
            free = (end for end in ends if not any(other.endswith(end) for other in others))
            found.append(next(free, name))
    return found


def target_modules(wanted: Collection[str], modules: Iterable[str]) -> list[str] | str:
    """Return ends of names, or one regular expression where a name is an end of another."""
    others = [module for module in modules if module not in wanted]
    ends = shortest(wanted, others)
    if not any(end in ends for other in others for end in suffixes(other)):
        return ends
    return rf"(?:.*\.)?(?:{'|'.join(_patterns(ends, others))})"


def rank_patterns(
    modules: Mapping[str, int], parameters: Mapping[str, int], common: int
) -> dict[str, int]:
    """Return the ranks that differ from the common one, by regular expression.

    The first that matches a name counts. PEFT looks up modules and parameters alike, but
    warns of a pattern that matches no module (tuners_utils.py, inject_adapter): those of
    parameters match also a module that an earlier one has settled.

    Parameters
    ----------
    modules, parameters : mapping of str to int
        The ranks of targets, by name.
    common : int
        The config's `r`.
    """
    ranks = {**modules, **parameters}
    found: dict[str, int] = {}

    def keys(names: Collection[str], rank: int) -> list[str]:
        others = [name for name, other in ranks.items() if other != rank]
        return _patterns(shortest(names, others), others)

    def of_rank(targets: Mapping[str, int], rank: int) -> list[str]:
        return [name for name, other in targets.items() if other == rank]

    sizes = sorted(set(ranks.values()) - {common}, reverse=True)
    if any(rank != common for rank in parameters.values()):
        first, rank = next(iter(modules.items()))
        found |= dict.fromkeys(keys([first], rank), rank)
    for rank in sizes:
        found |= dict.fromkeys(keys(of_rank(modules, rank), rank), rank)
    for rank in sizes:
        settled = next(iter(found))
        found |= {f"{key}|{settled}": rank for key in keys(of_rank(parameters, rank), rank)}
    return found


def _patterns(ends: Iterable[str], others: Collection[str]) -> list[str]:
    """Return ends as regular expressions, to follow an optional prefix.

    One that is a name, and an end of another one, matches the name alone.
    """
    return [
        f"{'^' if any(other.endswith(f'.{end}') for other in others) else ''}{re.escape(end)}"
        for end in ends
    ]
