"""Take a tensor that was made again, and compare it with the stored one instead of writing it.

It reads the result as a loader does: the rows of a checkpoint, or base's rows plus what an
adapter adds.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain

import torch
from torch import Tensor

from svdcut.adapter.numbers import read_factors
from svdcut.choose.options import Options
from svdcut.files.lora_factors import LowRankEntry
from svdcut.files.tensorfile import TensorEntry, iterate_bytes, read_bytes, size_bytes
from svdcut.pair.pairing import Action, Pair
from svdcut.pair.plan import PlannedTensor
from svdcut.record.manifest import TensorFact, Truncation
from svdcut.streaming.stored_matrix import TORCH_DTYPES, MatrixSides, to_bytes
from svdcut.truncation.reconstruction import CutMatrix, Rows, merged_rows, stays_whole
from svdcut.truncation.tensor_output import AdapterTensor
from svdcut.verification.tolerances import (
    DOUBLE,
    SINGLE,
    cut_tolerance,
    product_tolerance,
)
from svdcut.write.tensor_writer import Staging

_FACTOR_ROUNDING = 4
"""How much more than here the factors of an adapter may be rounded elsewhere."""


@dataclass(frozen=True, slots=True)
class Result:
    """The tensors of a result as a loader finds them; use it as a context."""

    tensors: Mapping[str, TensorEntry]
    updates: Mapping[str, LowRankEntry] = field(default_factory=dict)
    """What an adapter adds to base's tensors."""

    own: Mapping[int, str] | None = None
    """Of an adapter: the sha256 of each tensor in its file, by its offset."""

    nowhere: Staging | None = None
    """Of an adapter: where its factors go when they are made again."""

    @property
    def is_adapter(self) -> bool:
        """Whether most tensors are base's own, by base's names."""
        return self.own is not None

    def find(self, planned: PlannedTensor) -> TensorEntry | None:
        """Return a stored tensor; None where it is missing, or of another form than planned."""
        pair, target = planned.pair, planned.target
        entry = self.tensors.get(self.name_of(pair))
        if entry is None or (pair.action is Action.TRUNCATE and entry.dtype not in TORCH_DTYPES):
            return None
        if not self.is_adapter:
            return entry if (entry.dtype, entry.shape) == (target.dtype, target.shape) else None
        shapes = (pair.finetuned.shape, pair.base.shape if pair.base else None)
        return entry if entry.shape in shapes else None

    def __enter__(self) -> Result:
        return self

    def __exit__(self, *_: object) -> None:
        if self.nowhere is not None:
            os.close(self.nowhere.descriptor)

    def name_of(self, pair: Pair) -> str:
        """Return the name that a tensor has there."""
        if pair.base is None or pair.name in self.tensors or not self.is_adapter:
            return pair.name
        return pair.base.name


@dataclass(frozen=True, slots=True)
class Distance:
    """How far a stored matrix is from the one that was made again; Frobenius norms."""

    rounding: float = 0.0
    """Of ``stored - intended``."""

    beyond: float = 0.0
    """Of the part of that which no rounding to the storage dtype explains."""

    storage: float = 0.0
    """The most that storage may round."""

    error: float = 0.0
    """Of ``update - stored update / scale``."""

    work: float = 0.0
    """What two computations of ``intended`` may differ by, of the same triplets."""

    triplets: float = 0.0
    """What they may differ by because their triplets do; infinite where nothing bounds it."""

    @staticmethod
    def of_all(parts: Sequence[Distance]) -> Distance:
        """Return the norms over all matrices of a tensor."""
        names = [item.name for item in fields(Distance)]
        return Distance(*(math.hypot(*(getattr(part, name) for part in parts)) for name in names))


class Comparison:
    """A tensor of the result that is compared, as a `TensorOutput`.

    Parameters
    ----------
    result : Result
        What is stored.
    planned : PlannedTensor
        What it is.
    options : Options
        Of the manifest.
    claimed : Truncation or None
        What the manifest says of it.
    single : bool
        Whether it may have been made in float32.
    """

    def __init__(
        self,
        result: Result,
        planned: PlannedTensor,
        options: Options,
        claimed: Truncation | None,
        *,
        single: bool,
    ) -> None:
        self._single = single
        self._result = result
        self._planned = planned
        self._options = options
        self._claimed = claimed
        self._entry = result.find(planned)
        self._update = result.updates.get(result.name_of(planned.pair))
        nowhere = result.nowhere
        self._factors = None if nowhere is None else AdapterTensor(nowhere, planned, options)
        self._copied = hashlib.sha256()
        self._parts: list[Distance] = []

    @property
    def distance(self) -> Distance:
        """How far all matrices are from the stored ones."""
        return Distance.of_all(self._parts)

    def wants(self, action: Action) -> bool:
        """Whether the fine-tuned side or base has bytes of it."""
        return action is not Action.DROP

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes of a copy."""
        self._copied.update(data)
        if self._factors is not None and self._factors.wants(self._planned.pair.action):
            self._factors.write(data)

    def add(self, matrix: CutMatrix) -> float:
        """Compare a matrix; return the sum of squares of its rounding error."""
        made = self._factors.add(matrix) if self._factors is not None else 0.0
        if self._claimed is None:
            for rows in matrix.rows(TORCH_DTYPES[self._planned.target.dtype], 1.0):
                self._copied.update(to_bytes(rows.stored))
        if self._claimed is None or self._entry is None:
            return made
        sides = matrix.sides
        theirs = replace(sides.finetuned, tensor=self._entry)
        stored = replace(sides, finetuned=theirs, update=self._update, new_rows=0)
        excess = self._claimed.svd.excess_bound
        found = measure(matrix, stored, self._options.scale, excess, single=self._single)
        if self._factors is not None:
            storage = math.hypot(found.storage, _FACTOR_ROUNDING * math.sqrt(made))
            found = replace(found, storage=storage, beyond=max(found.beyond - storage, 0.0))
        self._parts.append(found)
        # An adapter that stores the matrix whole rounds that too: no claim is about it.
        whole = self._factors is not None and self._update is None
        return made if whole else found.rounding**2

    def finish(self, action: Action, truncation: Truncation | None = None) -> TensorFact:
        """Return what a run would have written."""
        if self._factors is not None:
            return self._factors.finish(action, truncation)
        target, copied = self._planned.target, self._copied.hexdigest()
        file, dtype = target.path.name, target.dtype.value
        return TensorFact(action.value, target.shape, dtype, file, copied, truncation)

    def differs(self) -> bool:
        """Whether bytes that are copied are stored otherwise."""
        pair, entry, own = self._planned.pair, self._entry, self._result.own
        copied = self._copied.hexdigest()
        if self._claimed is not None:
            return entry is None or (pair.new_rows > 0 and copied != self._new_rows(entry))
        if own is None:
            return False  # the manifest's hash is compared
        if entry is None or pair.base is None:
            return copied not in own.values()
        if not self.wants(pair.action):
            copied = _hash(pair.base)
        of_base = (entry.path, entry.offset) == (pair.base.path, pair.base.offset)
        stored = _hash(pair.base) if of_base else own.get(entry.offset)
        return stored != copied or self._adds_something()

    def _adds_something(self) -> bool:
        """Whether an adapter changes the tensor: its factors may be zeros beside others."""
        if self._update is None:
            return False
        count, cpu = len(self._planned.pair.matrices), torch.device("cpu")
        factors = (read_factors(self._update, number, cpu) for number in range(count))
        return any(bool(left.any() and right.any()) for left, right in factors)

    def _new_rows(self, entry: TensorEntry) -> str:
        """Return the hash of the rows that base lacks."""
        pair = self._planned.pair
        ((_, columns),) = pair.matrices
        first = size_bytes(entry.dtype, (pair.shared_rows, columns))
        return hashlib.sha256(read_bytes(entry, first)).hexdigest()


def _hash(entry: TensorEntry) -> str:
    digest = hashlib.sha256()
    for piece in iterate_bytes(entry):
        digest.update(piece)
    return digest.hexdigest()


def measure(
    matrix: CutMatrix, stored: MatrixSides, scale: float, excess: float, *, single: bool
) -> Distance:
    """Measure the distance of a stored matrix from the one that was made again.

    Parameters
    ----------
    matrix : CutMatrix
        As it was made again.
    stored : MatrixSides
        Base, and what is stored in place of the fine-tuned side.
    scale : float
        Of the kept update.
    excess : float
        Relative excess error of the stored cut, at most.
    single : bool
        Whether it may have been made in float32.
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
        excess = max(excess, cut.bounds.excess)
        triplets = cut_tolerance(measured, cut.indices, excess) * abs(scale)
        norm, factors = cut.kept_norm * abs(scale), SINGLE if single else DOUBLE
        unit = SINGLE if first.intended.dtype == torch.float32 else DOUBLE
        work = product_tolerance(rank, max(shape) + rank, factors, norm)
        work += product_tolerance(rank, rank, unit, norm) + 2 * unit * whole
    return Distance(rounding, beyond, storage, error, work, triplets)


def _compare_rows(
    ours: Rows, theirs: Rows, finetuned: Tensor, base: Tensor, scale: float
) -> tuple[Tensor, ...]:
    """Return the differences, by entry, whose norms make a `Distance`."""
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
