"""The routes of the engine, and which to start with; importable without torch."""

from __future__ import annotations

from enum import Enum
from typing import TypeGuard


class Route(str, Enum):
    """Route that the decomposition starts with; slower ones may follow."""

    AUTO = "auto"
    EXACT = "exact"
    GRAM = "gram"
    KRYLOV = "krylov"


_KRYLOV_MIN_SIDE = 1025
"""For narrower matrices, eigenvectors of the Gram matrix are faster (measured, CPU)."""

_KRYLOV_MAX_SHARE = 6
"""Iteration is faster up to this part of the short side as rank: 1 / 6 (measured, CPU)."""

_FEW = 3
"""Leading eigenvectors alone are faster up to this part of all: 1 / 3 (measured, CPU)."""

_GRAM_SQUARES = 5
"""Memory of the Gram route in float64 matrices of n x n, n the short side (measured)."""


def gram_bytes(short: int) -> int:
    """Return the bytes that the Gram route takes beside a matrix with this short side."""
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
    """Return whether computing only the leading triplets is faster."""
    return top is not None and (top + 1) * _FEW <= full_rank
