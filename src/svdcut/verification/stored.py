"""Read a result as a loader does, and measure how far its matrices are from those made again.

The rows of a checkpoint, or base's rows plus what an adapter adds.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor

from svdcut.adapter.numbers import read_factors
from svdcut.files.lora_factors import LowRankEntry
from svdcut.files.tensorfile import TensorEntry, iterate_bytes, read_bytes, size_bytes
from svdcut.pair.pairing import Action, Pair
from svdcut.pair.plan import PlannedTensor
from svdcut.streaming.stored_matrix import TORCH_DTYPES, MatrixSides
from svdcut.truncation.reconstruction import CutMatrix, Rows, merged_rows, stays_whole
from svdcut.verification.tolerances import (
    DOUBLE,
    SINGLE,
    Distance,
    cut_tolerance,
    product_tolerance,
)
from svdcut.write.tensor_writer import Staging


@dataclass(frozen=True, slots=True)
class Result:
    """The tensors of a result as a loader finds them; use it as a context."""

    tensors: Mapping[str, TensorEntry]
    updates: Mapping[str, LowRankEntry] = field(default_factory=dict)
    """The updates of base's tensors in an adapter."""

    own: Mapping[int, str] | None = None
    """The sha256 of each tensor in an adapter's file, by its offset; None for a checkpoint."""

    nowhere: Staging | None = None
    """Takes the factors of an adapter when they are made again."""

    def __enter__(self) -> Result:
        return self

    def __exit__(self, *_: object) -> None:
        if self.nowhere is not None:
            os.close(self.nowhere.descriptor)

    def find(self, planned: PlannedTensor) -> tuple[TensorEntry | None, LowRankEntry | None]:
        """Return a stored tensor, and what an adapter adds to it.

        The tensor is None where it is missing, or of another form than planned.
        """
        pair, target, name = planned.pair, planned.target, planned.pair.name
        if self.own is not None and pair.base is not None and name not in self.tensors:
            name = pair.base.name
        entry, update = self.tensors.get(name), self.updates.get(name)
        if entry is None or (pair.action is Action.TRUNCATE and entry.dtype not in TORCH_DTYPES):
            fits = False
        elif self.own is None:
            fits = (entry.dtype, entry.shape) == (target.dtype, target.shape)
        else:
            fits = entry.shape in (pair.finetuned.shape, pair.base.shape if pair.base else None)
        return entry if fits else None, update

    def holds_copy(
        self, pair: Pair, entry: TensorEntry | None, update: LowRankEntry | None, sha256: str
    ) -> bool:
        """Return whether a loader finds a copy with this hash."""
        if self.own is None:
            return True  # the manifest's hash is compared
        if entry is None or pair.base is None:
            return sha256 in self.own.values()
        of_base = (entry.path, entry.offset) == (pair.base.path, pair.base.offset)
        stored = _hash(iterate_bytes(pair.base)) if of_base else self.own.get(entry.offset)
        wanted = _hash(iterate_bytes(pair.base)) if pair.action is Action.DROP else sha256
        return stored == wanted and not (update and _is_nonzero(update, len(pair.matrices)))


def _is_nonzero(update: LowRankEntry, count: int) -> bool:
    """Return whether an adapter changes a tensor: its factors may be zeros beside others."""
    factors = (read_factors(update, number, torch.device("cpu")) for number in range(count))
    return any(bool(left.any() and right.any()) for left, right in factors)


def new_rows_hash(pair: Pair, entry: TensorEntry) -> str:
    """Return the hash of the rows that base lacks."""
    ((_, columns),) = pair.matrices
    return _hash([read_bytes(entry, size_bytes(entry.dtype, (pair.shared_rows, columns)))])


def _hash(pieces: Iterable[bytearray]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def measure(
    matrix: CutMatrix, stored: MatrixSides, scale: float, excess: float, *, single: bool
) -> tuple[float, Distance]:
    """Return the norm of ``stored - intended``, and the distances of the stored matrix.

    Parameters
    ----------
    matrix : CutMatrix
        As it was made again.
    stored : MatrixSides
        Base, and what is stored in place of the fine-tuned side.
    scale : float
        The factor of the kept update.
    excess : float
        Bound on the relative excess error of either cut.
    single : bool
        True if the stored matrix may have been made in float32.
    """
    cut, measured = matrix.result.cut, matrix.result.measured
    base, shape = matrix.sides.base, stored.finetuned.shape
    assert base is not None
    low_rank = stored.update is not None
    dtype = torch.float64 if low_rank else TORCH_DTYPES[stored.finetuned.tensor.dtype]
    intended = matrix.rows(dtype, scale)
    first = next(intended)
    device = first.stored.device
    blocks = zip(
        chain((first,), intended),
        merged_rows(stored, device, dtype),
        merged_rows(matrix.sides, device, dtype),
        base.blocks(device),
        strict=True,
    )
    squares = [0.0] * 5
    for ours, theirs, finetuned, (_, before) in blocks:
        parts = _compare_rows(ours, theirs, finetuned.intended[: len(before)], before, scale)
        for i, part in enumerate(parts):
            squares[i] += float(part.square().sum())
    rounding, beyond, storage, error, whole = map(math.sqrt, squares)
    rank = cut.rank
    work = triplets = 0.0
    if rank and (low_rank or not stays_whole(matrix.sides, rank, measured.full_rank, scale)):
        triplets = cut_tolerance(measured, cut.indices, excess) * abs(scale)
        norm, factors = cut.kept_norm * abs(scale), SINGLE if single else DOUBLE
        unit = SINGLE if first.intended.dtype == torch.float32 else DOUBLE
        work = product_tolerance(rank, max(shape) + rank, factors, norm)
        work += product_tolerance(rank, rank, unit, norm) + 2 * unit * whole
    return rounding, Distance(beyond, storage, error, work, triplets)


def _compare_rows(
    ours: Rows, theirs: Rows, finetuned: Tensor, base: Tensor, scale: float
) -> tuple[Tensor, ...]:
    """Return the differences, by entry, whose norms `measure` takes."""
    stored, intended, before = (x.double() for x in (theirs.intended, ours.intended, base))
    difference = (stored - intended).abs_()
    same = torch.equal(ours.stored.view(torch.uint8), theirs.stored.view(torch.uint8))
    storage = difference if same else half_ulp(stored, theirs.stored.dtype)
    beyond = (difference - storage).clamp_min_(0)
    error = torch.zeros(())
    if scale:
        error = (finetuned.double() - before).sub_(stored.sub_(before).div_(scale))
    return difference, beyond, storage, error, intended


def half_ulp(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the largest error of a rounding of float64 that gives each value."""
    info = torch.finfo(dtype)
    # frexp puts the significand below 1, finfo the unit of 1 itself: hence the halves.
    units = torch.exp2(torch.frexp(values)[1].double() - 1) * info.eps
    units[values == 0] = 0
    half = units.clamp_min_(info.smallest_normal * info.eps) / 2
    if dtype.itemsize == 2:
        # torch rounds float64 to float32 on the way.
        half += values.abs() * SINGLE + 2.0**-149
    return half
