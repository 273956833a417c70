"""Decide how an adapter holds each changed tensor, or why it cannot.

Factors for truncated matrices; for the rest, modules that PEFT saves whole, and tensors
that it loads under their own names. Known from names, shapes and config alone. Source:
peft 0.21.2, utils/other.py (ModulesToSaveWrapper) and tuners/tuners_utils.py.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass

from svdcut.adapter.memory import Shape
from svdcut.adapter.places import (
    Change,
    Kind,
    Model,
    Place,
    find_places,
    is_within,
    kind_of,
    module_of,
    parents,
)
from svdcut.adapter.targets import shortest_raw, suffixes
from svdcut.names import is_bias, is_in_numbered_layer, tied_part

_TIED_HEADS = re.compile(r"(^|\.)(cls(\.predictions)?|lm_head|predictions|generator_lm_head)$")
"""Modules of heads whose matrix is the embedding's and so in no file."""

_HEADLESS = re.compile(
    r"For\w*Classification$|ForQuestionAnswering$|ForMultipleChoice$|"
    r"(?<!LMHead)(?<!Heads)Model$"
)
"""Classes that have no head for tokens, whatever their config says of tying it."""

_MAMBA_TYPES = frozenset({"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"})
_MAMBA = re.compile(r"\.(out_proj|conv1d)\.weight$")
"""Refused by peft 0.21.2, tuners/tuners_utils.py, _check_lora_target_modules_mamba."""

_WHISPER = re.compile(r"encoder\.(conv\d|embed_positions)\.weight$")
_NOT_CONVOLVED = re.compile(r"depthwise|dw_?conv|conv_?transpose|deconv|pos_conv|conv1d\.weight$")
_EXPERT = re.compile(r"(^|\.)experts\.\d+\.")
_KNOWN_ORDER = ("gate_up_proj", "up_proj", "down_proj")
"""The order in which transformers' modules of experts own their stacks."""


@dataclass(frozen=True, slots=True)
class Holding:
    """Where the tensors go that are not low-rank."""

    modules: tuple[str, ...]
    """Saved whole, with all of their tensors: ``modules_to_save``."""

    loose: tuple[str, ...]
    """Tensors that PEFT loads under their own names: biases, and tied embeddings."""


def is_tied(name: str, model: Model) -> bool:
    """Whether a matrix is another one in memory too, as an embedding that is the head.

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


def low_rank(changes: Iterable[Change], model: Model) -> list[Change]:
    """Return the changes that factors hold."""
    return [c for c in changes if c.is_cut and not c.is_empty and not is_tied(c.name, model)]


def hold(changes: Iterable[Change], model: Model) -> Holding:
    """Choose what holds the tensors that are not low-rank.

    Parameters
    ----------
    changes : iterable of Change
        All of them, or some.
    model : Model
        Whose they are.
    """
    kept = sorted((c for c in changes if not c.is_empty), key=lambda change: not change.is_cut)
    tied = [change.name for change in kept if is_tied(change.name, model)]
    free = [change for change in kept if not change.is_cut and change.name not in tied]
    new = {model.memory[c.name] for c in kept if not c.is_cut and c.base_shape is None}
    owners = {
        _topmost_new(model.memory[change.name], new, model)
        for change in free
        if not _is_plain_bias(change.name) or model.memory[change.name] in new
    }
    modules = _close(owners - {""}, model)
    loose = [*tied, *(change.name for change in free if _is_plain_bias(change.name))]
    saved = set(modules)
    return Holding(modules, tuple(n for n in loose if not _is_in(model.memory[n], saved)))


def _is_plain_bias(name: str) -> bool:
    """Whether PEFT takes it for a bias: ``bias="all"`` holds names that end so."""
    return name.endswith(".bias")


def _is_in(name: str, modules: Set[str]) -> bool:
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
    return "" if _is_plain_bias(name) and _shares_matrix(owner, model) else owner


def _shares_matrix(module: str, model: Model) -> bool:
    """Whether it holds a matrix that is the embedding's, and so in no file."""
    return model.ties_embeddings and bool(_TIED_HEADS.search(module))


def _close(owners: Collection[str], model: Model) -> tuple[str, ...]:
    """Leave out what is within another, and add what no name can tell from one of them."""
    wanted = set(owners)
    while True:
        outer = [m for m in model.modules if m in wanted and not _is_in(m, wanted)]
        others = [m for m in model.modules if m not in outer]
        ends = shortest_raw(outer, others)
        more = {m for m in others if any(m.endswith(end) for end in ends)}
        if more <= wanted:
            return tuple(outer)
        wanted |= more


_Test = Callable[[Change, str, Model], bool]
"""Asked of a change, and of the name and model in memory."""


def _in_torch_attention(change: Change, _name: str, model: Model) -> bool:
    attention = change.name.removesuffix("out_proj.weight").removesuffix("in_proj_weight")
    return f"{attention}in_proj_weight" in model.shapes


_BOTH: tuple[tuple[_Test, str], ...] = (
    (
        lambda change, name, model: not module_of(name),
        "belongs to no module but the model itself, and PEFT holds parts of modules alone",
    ),
    (
        lambda change, name, model: (
            "parametrizations" in name or name.endswith(("weight_v", "weight_g"))
        ),
        "is a part of a weight that the model computes, which PEFT cannot change",
    ),
)
_CUT: tuple[tuple[_Test, str], ...] = (
    *_BOTH,
    (
        lambda change, name, model: (
            bool(_MAMBA_TYPES.intersection(model.types)) and bool(_MAMBA.search(name))
        ),
        "is used by the kernels of the model past PEFT, which refuses it",
    ),
    (
        lambda change, name, model: "whisper" in model.types and bool(_WHISPER.search(name)),
        "is in a module whose attributes the model reads, which PEFT's wrapper has not",
    ),
    (
        _in_torch_attention,
        "is in an attention of torch's own, which reads weights past PEFT's wrappers",
    ),
    (
        lambda change, name, model: (
            kind_of(name, model) is Kind.CONVOLUTION and bool(_NOT_CONVOLVED.search(name))
        ),
        "is a convolution by groups or a transposed one, which PEFT cannot merge",
    ),
    (
        lambda change, name, model: (
            kind_of(name, model) is Kind.PARAMETER and len(change.shape) > 2
        ),
        "has {dimensions} dimensions and is no weight of a convolution",
    ),
)
"""Why a truncated matrix cannot be held, whatever else there is; a clause after its name."""

_WHOLE: tuple[tuple[_Test, str], ...] = (
    (lambda change, name, model: not change.is_float, "holds integers, and PEFT saves none"),
    *_BOTH,
    (
        lambda change, name, model: name in model.stacks,
        "is a part of the stack that transformers makes of all experts",
    ),
    (
        lambda change, name, model: (
            is_bias(name) and (len(change.shape) > 1 or bool(_EXPERT.search(name)))
        ),
        "holds a bias of each expert, and PEFT has biases of plain modules alone",
    ),
)
"""Reasons why a tensor cannot be stored whole."""


def find_unholdable(changes: Sequence[Change], model: Model) -> list[tuple[str, str]]:
    """Return the tensors that an adapter cannot hold.

    Parameters
    ----------
    changes : sequence of Change
        Tensors that changed, or may have.
    model : Model
        The fine-tuned model.

    Returns
    -------
    list of (str, str)
        Name and reason, a clause that follows the name. For a tensor that is stored whole
        the reason counts only if it did change.
    """
    kept = sorted((c for c in changes if not c.is_empty), key=lambda change: not change.is_cut)
    alone = {c.name: reason for c in kept if (reason := _reason_alone(c, model))}
    wholes = [c for c in kept if not c.is_cut and c.name not in alone]
    places = find_places(low_rank(kept, model), model)
    return [
        *alone.items(),
        *_places_in_conflict(places),
        *_wholes_in_conflict(wholes, places, model),
    ]


def _reason_alone(change: Change, model: Model) -> str | None:
    """Return why a tensor cannot be held whatever the others are."""
    if change.base_shape not in (None, change.shape):
        return _other_shape(change.shape, change.base_shape)
    if change.is_cut and is_tied(change.name, model):  # and so stored whole
        return None
    name = model.memory[change.name]
    table = _CUT if change.is_cut else _WHOLE
    words = next((words for holds, words in table if holds(change, name, model)), None)
    return words and words.format(dimensions=len(change.shape))


def _other_shape(shape: Shape, base_shape: Shape | None) -> str:
    return (
        f"has shape {list(shape)}, base's {list(base_shape or ())}: an adapter changes weights "
        "and adds none"
    )


def _places_in_conflict(places: Collection[Place]) -> Iterator[tuple[str, str]]:
    """Yield what cannot be cut together.

    PEFT wraps the module that owns a parameter, merges nothing within it, and tells two
    parameters of one module apart by their order alone.
    """
    parameters = [place for place in places if place.kind.is_parameter]
    owned = Counter(place.module for place in parameters)
    inner = {module: place.tensor for place in places for module in parents(place.module)}
    for place in parameters:
        if place.module in inner:
            yield place.tensor, _beside(place.module, inner[place.module], "is cut too")
        if owned[place.module] > 1 and place.name.rpartition(".")[2] not in _KNOWN_ORDER:
            yield place.tensor, f"is one of several matrices of {place.module}, which PEFT mixes up"


def _beside(module: str, other: str, what: str) -> str:
    return f"belongs to {module}, as does {other}, which {what}: PEFT holds but one of them"


def _wholes_in_conflict(
    wholes: Sequence[Change], places: Collection[Place], model: Model
) -> Iterator[tuple[str, str]]:
    """Yield what cannot be saved: PEFT saves a module with all that is in it."""
    left = list(wholes)
    # Each by itself first: one that cannot be saved must not stand in the way of others.
    for group in [*([whole] for whole in wholes), left]:
        holding = hold(group, model)
        for whole in list(group):
            if whole.name not in holding.loose:
                name = model.memory[whole.name]
                module = next((m for m in holding.modules if is_within(name, m)), "")
                if reason := _module_conflict(module, places, model):
                    left.remove(whole)
                    yield whole.name, reason


def _module_conflict(module: str, places: Collection[Place], model: Model) -> str | None:
    if not module:
        return "belongs to a head whose matrix is the embedding's, and PEFT saves it with that"
    for place in places:
        within = is_within(place.module, module)
        around = place.kind.is_parameter and is_within(module, place.module)
        if within or around:
            return _beside(module, place.tensor, "is cut")
    stack = next((stack for stack in sorted(model.stacks) if is_within(stack, module)), None)
    return _beside(module, stack, "is in no file as it is") if stack else None
