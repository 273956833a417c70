"""What is made of one tensor for one output: rows of a checkpoint, or factors of an adapter.

It writes what others have decomposed and cut.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from svdcut.choose.cut import Cut
from svdcut.choose.options import STORED_DTYPES, Options, StoredDtype
from svdcut.errors import NonFiniteError, SvdcutError
from svdcut.files.filenames import ADAPTER_NAME
from svdcut.files.tensorfile import Dtype, TensorEntry, read_bytes
from svdcut.pair.pairing import Action
from svdcut.pair.plan import PlannedTensor
from svdcut.streaming.stored_matrix import TORCH_DTYPES, Side, is_finite, nonfinite_error, to_bytes
from svdcut.streaming.update import MatrixSides
from svdcut.svd.measured import MeasuredValues
from svdcut.truncation.reconstruction import Rows, compose, copy_rows
from svdcut.write.staging import Range
from svdcut.write.tensor_writer import TensorSink


@dataclass(frozen=True, slots=True)
class KeptMatrix:
    """What stays of the update of one matrix."""

    sides: MatrixSides
    indices: Sequence[int]
    """Of the triplets that stay, ascending."""

    full_rank: int
    scale: float
    """The factor on the product of the factors."""

    factors: Callable[[Sequence[int]], tuple[Tensor, Tensor]]
    """Makes them of chosen triplets, as `svdcut.svd.decomposition.Decomposition.factors`."""

    is_wide: bool
    """Whether a side is stored in float64."""

    def rows(self, dtype: torch.dtype, scale: float) -> Iterator[Rows]:
        """Return the rows of the result.

        Parameters
        ----------
        dtype : torch.dtype
            Of the stored rows.
        scale : float
            Of the kept update.
        """
        if stays_whole(self.sides, len(self.indices), self.full_rank, scale):
            return copy_rows(self.sides.finetuned, dtype)
        assert self.sides.base is not None
        factors = self.factors(self.indices)
        return compose(self.sides.base, factors, self.scale * scale, dtype, is_wide=self.is_wide)


def stays_whole(sides: MatrixSides, rank: int, full_rank: int, scale: float) -> bool:
    """Whether all triplets make the fine-tuned matrix, as it is stored."""
    return rank == full_rank and scale == 1 and sides.update is None


@dataclass(frozen=True, slots=True)
class CutMatrix:
    """One matrix on its way to an output, with all that is known of it."""

    kept: KeptMatrix
    cut: Cut
    measured: MeasuredValues
    zero_fraction: float
    equal_bytes: bool
    """Both of the update; see `svdcut.streaming.update.Update`."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of a tensor."""

    dtype: Dtype
    file: str | None
    """Where it is; None where the output holds nothing of it."""

    sha256: str | None
    action: Action | None = None
    """What was done, where it is not what was planned."""


_SAME_UPDATE = 1e-6
"""What rounding to float32 may change of an update, as a share of its norm, by rank: eight
times the unit of float32. The norms of two factors exceed that of the product by its root."""


class TensorOutput(Protocol):
    """Takes one tensor, in order: either the bytes of a copy, or its matrices."""

    def wants(self, action: Action) -> bool:
        """Whether a tensor with that action is to be written at all."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes of a tensor that is copied."""

    def add(self, matrix: CutMatrix) -> float:
        """Take the next matrix; return the sum of squares of its rounding error."""

    def finish(self) -> Stored:
        """Return what became of it."""


class CheckpointTensor:
    """A tensor of a checkpoint: ``base + truncated update``, in rows.

    Parameters
    ----------
    sink : TensorSink
        Where its bytes go.
    planned : PlannedTensor
        What it is.
    scale : float
        Of the kept update.
    """

    def __init__(self, sink: TensorSink, planned: PlannedTensor, scale: float) -> None:
        self._sink = sink
        self._planned = planned
        self._scale = scale

    def wants(self, action: Action) -> bool:  # noqa: ARG002
        """Whether it is to be written: always."""
        return True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes."""
        self._sink.write(data)

    def add(self, matrix: CutMatrix) -> float:
        """Write a matrix."""
        total = 0.0
        dtype = TORCH_DTYPES[self._planned.target.dtype]
        for block in matrix.kept.rows(dtype, self._scale):
            total += measure_rounding(self._planned, matrix.kept.sides, block)
            self._sink.write(to_bytes(block.stored))
        return total

    def finish(self) -> Stored:
        """Return where it is."""
        target = self._planned.target
        return Stored(target.dtype, target.path.name, self._sink.finish())


class PartKeeper(Protocol):
    """Where bytes wait that have no place yet: see `svdcut.write.writer.CheckpointWriter`."""

    def keep(self, data: bytes | bytearray | memoryview) -> Range:
        """Put bytes aside, and return where they lie."""

    def keep_parts(self, name: str, places: list[Range]) -> None:
        """Record where the parts of a tensor lie."""


class AdapterTensor:
    """A tensor of an adapter: the factors of its update, or the whole of it.

    What is as in base is left out. The factors share the singular values evenly, a
    square root each, in the order of the values.

    Parameters
    ----------
    keeper : PartKeeper
        Takes the bytes; the adapter's file is laid out when all ranks are known.
    planned : PlannedTensor
        What it is.
    options : Options
        For the scale of the kept update and the dtype of the factors.
    """

    def __init__(self, keeper: PartKeeper, planned: PlannedTensor, options: Options) -> None:
        self._keeper = keeper
        self._planned = planned
        self._scale = options.scale
        self._dtype = factor_dtype(options.dtype)
        self._places: list[Range] = []
        self._digest = hashlib.sha256()
        self._read = 0
        self._differs = planned.pair.base is None
        self._copied = False

    def wants(self, action: Action) -> bool:
        """Whether base does not have it so already."""
        return action in (Action.TRUNCATE, Action.COPY_FINETUNED)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes of a copy, and compare them with base's."""
        self._copied = True
        base = self._planned.pair.base
        view = memoryview(data).cast("B")
        if not self._differs and base is not None:
            same = _alike(self._planned.target, base) and view == read_bytes(
                base, self._read, self._read + len(view)
            )
            self._differs = not same
        self._read += len(view)
        self._digest.update(view)
        if self._planned.pair.update is not None:  # else it can be read again
            self._places.append(self._keeper.keep(view))

    def add(self, matrix: CutMatrix) -> float:
        """Keep the factors of a matrix."""
        cut = matrix.cut
        if not cut.rank:
            return 0.0
        left, right = matrix.kept.factors(cut.indices)
        intended = balance(left, right, matrix.kept.scale * self._scale)
        stored = [factor.to(TORCH_DTYPES[self._dtype]) for factor in intended]
        for factor in stored:
            if not is_finite(factor):
                name = self._planned.pair.name
                raise NonFiniteError(
                    f"tensor {name!r}: a factor overflows {self._dtype.value}",
                    hint="Store the factors in another --dtype, or use a smaller --scale.",
                )
            data = to_bytes(factor)
            self._digest.update(data)
            self._places.append(self._keeper.keep(data))
        square = product_difference(intended, (stored[0], stored[1]))
        self._refuse_other_update(math.sqrt(square), cut)
        return square

    def _refuse_other_update(self, error: float, cut: Cut) -> None:
        """Raise if the factors are not the update that a checkpoint would get of the same cut."""
        allowed = _SAME_UPDATE * math.sqrt(cut.rank) * abs(self._scale) * cut.kept_norm
        if self._dtype is Dtype.F32 and error > allowed:
            raise SvdcutError(
                f"tensor {self._planned.pair.name!r}: the product of the factors is {error:.2g} "
                f"away from the truncated update, where rounding explains {allowed:.2g}",
                hint="This is a fault of svdcut; please report it.",
            )

    def finish(self) -> Stored:
        """Return where it will be."""
        own = self._planned.pair.finetuned.dtype if self._copied else self._dtype
        if self._copied and not self._differs:
            return Stored(own, None, None, Action.UNCHANGED)
        if not (self._places or self._copied):
            return Stored(own, None, None)
        self._keeper.keep_parts(self._planned.pair.name, self._places)
        return Stored(own, ADAPTER_NAME, self._digest.hexdigest())


def factor_dtype(wanted: StoredDtype) -> Dtype:
    """Return how factors are stored: in float32 where nothing else is asked."""
    return STORED_DTYPES.get(wanted, Dtype.F32)


def _alike(ours: TensorEntry, theirs: TensorEntry) -> bool:
    return (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)


def balance(left: Tensor, right: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Share the size of each term of a product evenly between its factors.

    Parameters
    ----------
    left : Tensor of shape (m, k)
    right : Tensor of shape (k, n)
    scale : float
        Of the product.

    Returns
    -------
    tuple of Tensor
        In float64, with ``left @ right`` that times `scale`; where the terms are
        triplets, each factor has the square root of the singular values.
    """
    left, right = left.double(), right.double()
    ours, theirs = left.norm(dim=0), right.norm(dim=1)
    root = (ours * theirs * abs(scale)).sqrt()
    zero = torch.zeros((), dtype=torch.float64, device=left.device)
    left_factor = torch.where(ours > 0, root / ours, zero).mul_(math.copysign(1.0, scale))
    right_factor = torch.where(theirs > 0, root / theirs, zero)
    return left * left_factor, right * right_factor.unsqueeze(1)


def product_difference(intended: tuple[Tensor, Tensor], stored: tuple[Tensor, Tensor]) -> float:
    """Return the squared norm of the difference of two products of thin factors.

    Parameters
    ----------
    intended, stored : tuple of Tensor
        `left` (m, k) and `right` (k, n), nearly alike.

    Notes
    -----
    From ``dl @ stored + intended @ dr``, whose terms are as small as the result: the
    products themselves would cancel. O((m + n) k^2).
    """
    left, right = intended
    ours, theirs = (factor.double() for factor in stored)
    columns = torch.cat([ours - left, left], dim=1)
    rows = torch.cat([theirs, theirs - right])
    return float(((columns.T @ columns) * (rows @ rows.T)).sum().clamp_min(0))


def measure_rounding(planned: PlannedTensor, sides: MatrixSides, rows: Rows) -> float:
    """Return the sum of squares of ``stored - intended``; refuse rows that overflow."""
    # Exact, in the dtype that holds both: the numbers are next to each other.
    error = torch.sub(rows.stored, rows.intended)
    square = float(torch.linalg.vector_norm(error, dtype=torch.float64)) ** 2
    if not math.isfinite(square):
        refuse_overflow(planned, sides, rows.stored)
    return square


def refuse_overflow(planned: PlannedTensor, sides: MatrixSides | None, stored: Tensor) -> None:
    """Raise if a stored block holds what is no number, and say whose it is."""
    if is_finite(stored):
        return
    if sides is not None and sides.base is not None:
        for _, values in sides.base.blocks(torch.device("cpu")):
            if not is_finite(values):
                raise nonfinite_error(sides.base.tensor, Side.BASE)
    raise NonFiniteError(
        f"tensor {planned.pair.name!r}: the result overflows {planned.target.dtype.value}",
        hint="Store it in another --dtype, or use a smaller --scale.",
    )
