"""The update that an adapter adds to one tensor of its base: two thin factors.

Headers only: it says where the factors lie and how they make the update.
"""

from __future__ import annotations

from dataclasses import dataclass

from svdcut.files.tensorfile import TensorEntry


@dataclass(frozen=True, slots=True)
class LowRankEntry:
    """The update of one tensor: `scale` times a product of two stored factors.

    With `a` (r, in) and `b` (out, r), the update is ``scale * b @ a``, or its transpose
    where the tensor is stored as (in, out). For a stack of E experts, `a` is (E * r, in),
    one expert after the other, and `b` is (out, r * E), with the expert as the fastest
    index: the update of expert `e` is ``b[:, e::E] @ a[e * r : (e + 1) * r]``.
    """

    a: TensorEntry | None
    """lora_A, or the embedding's; None for a bias, whose update is ``scale * b``."""

    b: TensorEntry
    """lora_B, or the embedding's; for a bias, a vector."""

    rank: int
    """r, of each expert."""

    scale: float
    transposed: bool = False
    """Whether the tensor is stored as (in, out)."""

    experts: int = 1
    """Number of experts in the factors."""

    first_expert: int = 0
    """First expert of the tensor; not 0 where base stores experts one by one."""

    rows: tuple[int, int] | None = None
    """Rows of the update that belong to the tensor, where the adapter joined it with another."""

    magnitude: TensorEntry | None = None
    """DoRA's norms, which the rows (or columns) of the result are scaled to."""
