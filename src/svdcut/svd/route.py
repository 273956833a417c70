"""The routes of the engine, and which to start with; importable without torch."""

from __future__ import annotations

from enum import Enum
from typing import TypeGuard


class Route(str, Enum):
    """Where the decomposition starts; the routes above remain as a way out."""

    AUTO = "auto"
    EXACT = "exact"
    GRAM = "gram"
    KRYLOV = "krylov"


_KRYLOV_MIN_SIDE = 1025
"""Narrower matrices: eigenvectors of the Gram matrix are faster (measured, CPU)."""

_KRYLOV_MAX_SHARE = 6
"""Iteration pays while the rank is below this part of the short side (measured, CPU)."""

_FEW = 3
"""Leading eigenvectors alone pay while they are at most this part of all (measured, CPU)."""

_GRAM_SQUARES = 5
"""Matrices of the short side squared, in float64, that the Gram route takes (measured)."""


def gram_bytes(short: int) -> int:
    """Return the bytes that the Gram route takes beside a matrix, by its short side."""
    return _GRAM_SQUARES * 8 * short**2


def choose_route(full_rank: int, top: int | None) -> Route:
    """Return the route that is likely the fastest.

    Parameters
    ----------
    full_rank : int
        Short side of the matrix.
    top : int or None
        How many leading triplets are needed; None for all.
    """
    if top is None or full_rank < _KRYLOV_MIN_SIDE or top * _KRYLOV_MAX_SHARE > full_rank:
        return Route.GRAM
    return Route.KRYLOV


def is_few(top: int | None, full_rank: int) -> TypeGuard[int]:
    """Whether computing only the leading triplets pays."""
    return top is not None and (top + 1) * _FEW <= full_rank
