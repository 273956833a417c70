"""The routes of the engine by name; importable without torch."""

from __future__ import annotations

from enum import Enum


class Route(str, Enum):
    """Where the decomposition starts; the routes above remain as a way out."""

    AUTO = "auto"
    EXACT = "exact"
    GRAM = "gram"
    KRYLOV = "krylov"
