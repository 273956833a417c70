"""Select the triplets that stay, once their number is known.

Pure arithmetic; it imports no torch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from enum import Enum


class Keep(str, Enum):
    """The end of the spectrum that stays."""

    TOP = "top"
    BOTTOM = "bottom"
    RANDOM = "random"


def first_left_out(indices: Sequence[int]) -> int:
    """Return the index of the largest value that is not chosen; their number where none is.

    Parameters
    ----------
    indices : sequence of int
        Ascending.
    """
    return next((i for i, index in enumerate(indices) if index != i), len(indices))


def choose_indices(keep: Keep, rank: int, full_rank: int, *, seed: int) -> Sequence[int]:
    """Return which triplets stay, ascending.

    Parameters
    ----------
    keep : Keep
        The leading ones, the last ones, or a random set.
    rank : int
        How many.
    full_rank : int
        Of how many.
    seed : int
        Of the random set.
    """
    if keep is Keep.TOP:
        return range(rank)
    if keep is Keep.BOTTOM:
        return range(full_rank - rank, full_rank)
    # A control, not a secret: any reproducible generator will do.
    return sorted(random.Random(seed).sample(range(full_rank), rank))  # noqa: S311
