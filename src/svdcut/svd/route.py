"""The routes of the engine, and which to start with; importable without torch."""

from __future__ import annotations

from enum import Enum


class Route(str, Enum):
    """Where the decomposition starts; the routes above remain as a way out."""

    AUTO = "auto"
    EXACT = "exact"
    GRAM = "gram"
    KRYLOV = "krylov"


_KRYLOV_MIN_SIDE = 384
"""Shorter matrices are decomposed whole sooner than iterated on (measured, CPU)."""

_KRYLOV_MAX_SHARE = 6
"""Krylov pays while the rank is below this part of the short side (measured, CPU)."""


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
