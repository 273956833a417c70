"""The update of a tensor as an adapter stores it: two thin factors.

Where they lie and how they make the update; it reads none of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from svdcut.files.tensorfile import TensorEntry


@dataclass(frozen=True, slots=True)
class LowRankEntry:
    """The update of one tensor: `scale` times a product of two stored factors.

    With `a` (r, in) and `b` (out, r), the update is ``scale * b @ a``, or the transpose
    of it where the tensor is stored as (in, out). Of a stack of E experts, `a` is
    (E * r, in) with the experts one after the other, and `b` is (out, r * E) with
    the experts innermost: that of expert `e` is ``b[:, e::E] @ a[e * r : (e + 1) * r]``.
    """

    a: TensorEntry
    """lora_A, or the embedding's."""

    b: TensorEntry
    """lora_B, or the embedding's."""

    rank: int
    """r, of each expert."""

    scale: float
    transposed: bool = False
    """Whether the tensor is stored as (in, out)."""

    experts: int = 1
    """How many are in the factors."""

    first_expert: int = 0
    """Which of them is the tensor's first matrix: other than 0 where base stores each by itself."""

    rows: tuple[int, int] | None = None
    """Which rows of the update are the tensor's, where the adapter joined it with another."""

    magnitude: TensorEntry | None = None
    """Of DoRA: the norm that each row (or column) of the result is scaled to."""


@dataclass(frozen=True, slots=True)
class ShiftEntry:
    """The update of a bias: `scale` times a stored vector."""

    vector: TensorEntry
    scale: float


UpdateEntry = LowRankEntry | ShiftEntry
