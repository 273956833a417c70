"""Find the names of one model in another: wrappers and moved parts change prefixes.

A search over names and shapes. It reads no weights and decides on no tensor.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from svdcut.errors import UsageError
from svdcut.files.checkpoint import Checkpoint
from svdcut.files.tensorfile import TensorEntry
from svdcut.names import is_vocabulary, tied_part

WRAPPERS = frozenset(
    {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
)
"""Parts that compiling, sharding and checkpointing put in the middle of names."""

Fits = Callable[[TensorEntry, TensorEntry], bool]
"""Whether a fine-tuned tensor can have come from one of base, by their shapes."""

_MAX_PREFIXES = 300
_MAX_RENAMES = 16
"""Real models need a handful of each; names that a stranger made up could ask for millions."""

_Tensors = dict[str, TensorEntry]


@dataclass(frozen=True, slots=True)
class Rename:
    """A prefix of base's names, and what stands there in the fine-tuned ones."""

    base: str
    finetuned: str
    tensors: int
    """Number of tensors that it matched."""


@dataclass(frozen=True, slots=True)
class Matching:
    """The tensor of base that each fine-tuned one comes from."""

    partners: Mapping[str, TensorEntry]
    """Tensors of base by the name on the fine-tuned side; none is in it twice."""

    renames: tuple[Rename, ...]
    """The one that covers most weights first; none where all names agree."""

    wrappers: tuple[str, ...]
    """Parts that were left out of the middle of names."""


def rename_tensors(
    tensors: Mapping[str, TensorEntry], renames: Mapping[str, str], source: str
) -> _Tensors:
    """Replace prefixes of names, the longest that each has.

    Parameters
    ----------
    tensors : mapping of str to TensorEntry
        The tensors, by name; the entries keep theirs.
    renames : mapping of str to str
        Prefixes, old to new.
    source : str
        The checkpoint, for errors.

    Raises
    ------
    UsageError
        If no name has such a prefix, or two names became one.
    """
    for old in renames:
        if not any(name.startswith(old) for name in tensors):
            raise UsageError(f"--map {old}=...: no tensor of {source} starts with {old!r}")
    renamed: _Tensors = {}
    for name, entry in tensors.items():
        longest = max((old for old in renames if name.startswith(old)), key=len, default="")
        new_name = renames.get(longest, "") + name[len(longest) :]
        if new_name in renamed:
            raise UsageError(f"--map gives two tensors of {source} the name {new_name!r}")
        renamed[new_name] = entry
    return renamed


def match_names(base: _Tensors, finetuned: _Tensors, fits: Fits) -> Matching:
    """Match two sets of names.

    Parameters
    ----------
    base, finetuned : dict of str to TensorEntry
        The two sides.
    fits : callable
        Whether a fine-tuned tensor and one of base may differ in shape as they do.

    Returns
    -------
    Matching
        With equal names where they cover most weights, else with the fewest renames
        of prefixes, each of which covers most of the weights that were still left.

    Notes
    -----
    A prefix ends before the first number, and one side's must hold the parts of the
    other's, in any order: ``visual.`` is found in ``model.visual.``, but ``bert.`` is
    no ``roberta.`` and layer 3 no layer 4. Weights count where the shapes agree.
    """
    theirs, wrappers = _unwrap(base)
    ours, more_wrappers = _unwrap(finetuned)
    found: dict[str, TensorEntry] = {}
    renames: list[tuple[str, str]] = []
    used: Counter[tuple[str, str]] = Counter()

    def take(rename: tuple[str, str], accept: Fits) -> None:
        for old, new in list(_pairs(rename, theirs, ours)):
            if accept(ours[new], theirs[old]):
                found[ours.pop(new).name] = theirs.pop(old)
                used[rename] += 1

    while len(renames) < _MAX_RENAMES and (rename := _heaviest(theirs, ours, _shared_weight)):
        renames.append(rename)
        take(rename, fits)
    if not renames and (rename := _heaviest(theirs, ours, lambda a, b: 1)):
        renames.append(rename)
    # What is left under the same names differs in shape, and the caller says how.
    for rename in dict.fromkeys([*renames, ("", "")]):
        take(rename, lambda a, b: True)
    return Matching(
        partners=found,
        renames=tuple(Rename(*r, used[r]) for r in renames if r != ("", "")),
        wrappers=tuple(sorted(wrappers | more_wrappers)),
    )


def _unwrap(tensors: Mapping[str, TensorEntry]) -> tuple[_Tensors, set[str]]:
    """Leave out wrappers in the middle of names, unless two names became one."""
    short: _Tensors = {}
    wrappers: set[str] = set()
    for name, entry in tensors.items():
        first, *parts = name.split(".")
        wrappers |= WRAPPERS.intersection(parts)
        short[".".join([first, *(part for part in parts if part not in WRAPPERS)])] = entry
    if len(short) != len(tensors):
        return dict(tensors), set()
    return short, wrappers


def _shared_weight(ours: TensorEntry, theirs: TensorEntry) -> int:
    return 1 + math.prod(ours.shape) if ours.shape == theirs.shape else 0


def _pairs(
    rename: tuple[str, str], base: Mapping[str, TensorEntry], finetuned: Mapping[str, TensorEntry]
) -> Iterator[tuple[str, str]]:
    """Yield the names of base that become names of the fine-tuned side."""
    old, new = rename
    for name in base:
        if name.startswith(old):
            renamed = new + name[len(old) :]
            if renamed in finetuned:
                yield name, renamed


def _heaviest(
    base: _Tensors, finetuned: _Tensors, weigh: Callable[[TensorEntry, TensorEntry], int]
) -> tuple[str, str] | None:
    """Return the rename that covers most; equal names, then short prefixes, win a tie."""

    def weight(rename: tuple[str, str]) -> int:
        pairs = _pairs(rename, base, finetuned)
        return sum(weigh(finetuned[new], base[old]) for old, new in pairs)

    equal = weight(("", ""))
    least = min(sum(weigh(e, e) for e in side.values()) for side in (base, finetuned))
    if equal and 2 * equal >= least:
        return "", ""
    best = min(
        (-weight(rename), rename != ("", ""), sum(map(len, rename)), rename)
        for rename in _candidates(base, finetuned)
    )
    return best[3] if best[0] < 0 else None


def _candidates(base: Iterable[str], finetuned: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield pairs of prefixes of which one holds the parts of the other."""
    yield "", ""
    ours = {prefix: Counter(prefix.split(".")) for prefix in _prefixes(finetuned)}
    for old in _prefixes(base):
        parts = Counter(old.split("."))
        for new, others in ours.items():
            if old != new and (parts <= others or others <= parts):
                yield old, new


def _prefixes(names: Iterable[str]) -> set[str]:
    """Return what names begin with, up to a dot, and before any number; the shortest of many."""
    prefixes = {""}
    for name in names:
        end = name.find(".") + 1
        while end and not name[name.rfind(".", 0, end - 1) + 1 : end - 1].isdigit():
            prefixes.add(name[:end])
            end = name.find(".", end) + 1
    return set(sorted(prefixes, key=lambda prefix: (prefix.count("."), prefix))[:_MAX_PREFIXES])


def may_descend(
    ours: TensorEntry, theirs: TensorEntry, *, sizes: tuple[int | None, int | None]
) -> bool:
    """Whether the shapes agree, or differ in the vocabulary alone, of which `sizes` are known."""
    if ours.shape == theirs.shape:
        return True
    if len(ours.shape) != len(theirs.shape) or not ours.shape or ours.shape[1:] != theirs.shape[1:]:
        return False
    return is_vocabulary(ours.name) or sizes == (ours.shape[0], theirs.shape[0])


def tied_partner(entry: TensorEntry, base: Checkpoint) -> TensorEntry | None:
    """Return the copy that base stores of a tied matrix whose other copies it leaves out."""
    part = tied_part(entry.name)
    if not base.ties_embeddings or part is None:
        return None
    # A second embedding is no copy of the first, but a head or what all parts share is.
    found = [
        (other.shape != entry.shape, place, name)
        for name, other in base.tensors.items()
        if (place := tied_part(name)) not in (None, part) and other.shape[1:] == entry.shape[1:]
    ]
    return base.tensors[min(found)[2]] if found else None
