"""Whether a pair of factors fits a parameter, and which way round.

As PEFT merges them (peft.tuners.lora.layer, 0.21.2). Shapes alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from svdcut.adapter.collection import Factors
from svdcut.names import is_task_head, is_vocabulary

CONV1D_MODELS = frozenset(
    {"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp", "clvp_decoder"}
)
"""Those whose layers are `transformers.pytorch_utils.Conv1D`, stored as (in, out)."""

TRANSPOSED_STACKS = frozenset({"gpt_oss", "aria", "aria_text", "openai_privacy_filter"})
"""Those whose experts have `is_transposed`, stored as (experts, in, out); transformers 5.24."""


@dataclass(frozen=True, slots=True)
class Conventions:
    """What tells the orientation of a square matrix, whose shape does not."""

    model_types: frozenset[str]
    """As base's config has them."""

    fan_in_fan_out: bool
    stacks_transposed: bool | None
    """Whether the factors take stacks for (experts, in, out); None where nothing says."""

    def transposed(self, name: str, shape: tuple[int, ...]) -> bool | None:
        """Whether a parameter is expected to be stored as (in, out)."""
        if len(shape) == 3:
            return self.stacks_transposed
        head = is_task_head(name) or is_vocabulary(name)
        return not head and (self.fan_in_fan_out or bool(self.model_types & CONV1D_MODELS))


def stacks_transposed(
    version: tuple[int, int, int] | None, model_types: frozenset[str]
) -> bool | None:
    """Return whether a version of PEFT takes a model's stacks for (experts, in, out).

    Before 0.19 it took all of them so. 0.19.0 swapped the sizes of the wrong ones.
    """
    if version is None or version < (0, 19, 0):
        return None if version is None else True
    return bool(model_types & TRANSPOSED_STACKS) == (version > (0, 19, 0))


def possible_orientations(factors: Factors, rank: int, shape: tuple[int, ...]) -> set[bool]:
    """Return how a parameter may be stored that factors of a rank are for.

    Parameters
    ----------
    factors : Factors
        The pair.
    rank : int
        Of each expert, as the config says.
    shape : tuple of int
        The parameter's.

    Returns
    -------
    set of bool
        True for (in, out), False for (out, in); both of a square one, none if it does not fit.
    """
    a, b = factors.a.shape, factors.b.shape
    experts = shape[0] if len(a) == 2 and len(shape) == 3 else 1
    if a[0] != rank * experts or b[1] != rank * experts:
        return set()
    if len(a) > 2:
        return {False} if shape == (b[0], *a[1:]) and set(b[2:]) <= {1} else set()
    if factors.embedding:
        return {True} if shape == (a[1], b[0]) else set()
    stored = shape[-2:] if len(shape) in {2, 3} else ()
    ways = {False: (b[0], a[1]), True: (a[1], b[0])}
    return {transposed for transposed, expected in ways.items() if stored == expected}
