"""How an adapter holds the tensors that are not low-rank: which modules PEFT saves whole.

Source: peft 0.21.2, utils/other.py (ModulesToSaveWrapper) and tuners/tuners_utils.py.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Set
from dataclasses import dataclass

from svdcut.adapter.model import Cut, Model, Whole, is_within, module_of, parents
from svdcut.adapter.suffixes import shortest_raw, suffixes
from svdcut.names import is_in_numbered_layer, tied_part

_TIED_HEADS = re.compile(r"(^|\.)(cls(\.predictions)?|lm_head|predictions|generator_lm_head)$")
"""Modules of heads whose matrix is the embedding's and so in no file."""

_HEADLESS = re.compile(
    r"For\w*Classification$|ForQuestionAnswering$|ForMultipleChoice$|"
    r"(?<!LMHead)(?<!Heads)Model$"
)
"""Classes that have no head for tokens, whatever their config says of tying it."""


@dataclass(frozen=True, slots=True)
class Holding:
    """What holds the tensors that are not low-rank."""

    modules: tuple[str, ...]
    """Saved whole, with all of their tensors: ``modules_to_save``."""

    loose: tuple[str, ...]
    """Tensors that PEFT loads under their own names: biases, and tied embeddings."""


def is_tied(name: str, model: Model) -> bool:
    """Whether a matrix is in memory also another one, as an embedding that is the head.

    What encoder and decoder share is the embedding of both. A table of all tokens that
    is not tied may be taken for one: it is held all the same.
    """
    part = tied_part(name)
    if part == 0:
        return True
    if not model.ties_embeddings or _HEADLESS.search(model.architecture):
        return False
    shape = model.shapes[name]
    is_table = len(shape) == 2 and shape[0] == model.vocab_size
    return part is not None or (is_table and not is_in_numbered_layer(name))


def hold(cuts: Iterable[Cut], wholes: Collection[Whole], model: Model) -> Holding:
    """Choose what holds the tensors that are not low-rank.

    Parameters
    ----------
    cuts : iterable of Cut
        Of them, the tied embeddings are held here.
    wholes : collection of Whole
        Tensors that changed.
    model : Model
        Whose they are.
    """
    tied = [cut.name for cut in cuts if is_tied(cut.name, model)]
    tied += [whole.name for whole in wholes if is_tied(whole.name, model)]
    new = {model.memory[whole.name] for whole in wholes if whole.base_shape is None}
    free = [whole.name for whole in wholes if whole.name not in tied]
    owners = {
        _topmost_new(model.memory[name], new, model)
        for name in free
        if not _is_bias(name) or model.memory[name] in new
    }
    modules = _close(owners - {""}, model)
    saved = set(modules)
    loose = [*tied, *(name for name in free if _is_bias(name))]
    return Holding(modules, tuple(n for n in loose if not _held(model.memory[n], saved)))


def _is_bias(name: str) -> bool:
    """Whether PEFT takes it for a bias: ``bias="all"`` holds names that end so."""
    return name.endswith(".bias")


def _held(name: str, modules: Set[str]) -> bool:
    """Whether a tensor or module is within one of the modules."""
    return not modules.isdisjoint(parents(name))


def _topmost_new(name: str, new: Collection[str], model: Model) -> str:
    """Return the outermost module all of whose tensors are new, or else the owner."""
    owner = module_of(name)
    if name not in new:
        return owner
    # What a number follows is a list of modules, which PEFT cannot save.
    for end in reversed([end for end in suffixes(name) if end != name]):
        module = name.removesuffix(f".{end}")
        within = [other for other in model.memory.values() if is_within(other, module)]
        if all(other in new for other in within) and not _shares_matrix(module, model):
            return module
    # A bias of a tied head is held by itself.
    return "" if _is_bias(name) and _shares_matrix(owner, model) else owner


def _shares_matrix(module: str, model: Model) -> bool:
    """Whether it holds a matrix that is the embedding's, and so in no file."""
    return model.ties_embeddings and bool(_TIED_HEADS.search(module))


def _close(owners: Collection[str], model: Model) -> tuple[str, ...]:
    """Leave out what is within another, and add what no name can tell from one of them."""
    wanted = set(owners)
    while True:
        outer = [m for m in model.modules if m in wanted and not _held(m, wanted)]
        others = [m for m in model.modules if m not in outer]
        ends = shortest_raw(outer, others)
        more = {m for m in others if any(m.endswith(end) for end in ends)}
        if more <= wanted:
            return tuple(outer)
        wanted |= more
