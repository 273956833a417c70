"""Store a tensor in one output: as rows of a checkpoint, or as factors of an adapter.

It decomposes nothing.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from svdcut.choose.cut import Cut
from svdcut.choose.options import STORED_DTYPES, Options, StoredDtype
from svdcut.errors import NonFiniteError, SvdcutError
from svdcut.files.filenames import ADAPTER_NAME
from svdcut.files.tensorfile import Dtype, read_bytes
from svdcut.pair.pairing import Action
from svdcut.pair.plan import Form, PlannedTensor
from svdcut.record.manifest import TensorFact, Truncation
from svdcut.streaming.stored_matrix import TORCH_DTYPES, is_finite, to_bytes
from svdcut.truncation.reconstruction import CutMatrix, measure_rounding
from svdcut.write.tensor_writer import Range, Staging, TensorWriter
from svdcut.write.writer import CheckpointWriter

_SAME_UPDATE = 1e-6
"""Largest relative change of an update by rounding its factors to float32, times the square
root of the rank: eight units of roundoff."""


@dataclass(frozen=True, slots=True)
class WrittenOutput:
    """One output of a run: a checkpoint, or an adapter that is staged until all ranks are known."""

    writer: CheckpointWriter
    form: Form

    def open(self, planned: PlannedTensor, options: Options) -> CheckpointTensor | AdapterTensor:
        """Return a writer for a planned tensor."""
        if self.form is Form.ADAPTER:
            return AdapterTensor(self.writer.staging, planned, options)
        return CheckpointTensor(self.writer.open(planned.target), planned, options.scale)

    def finished(self, planned: PlannedTensor) -> Mapping[str, Any] | None:
        """Return what an earlier run recorded of a tensor, if its bytes are there."""
        if self.form is Form.ADAPTER:
            return self.writer.finished_parts(planned.pair.name)
        return self.writer.finished(planned.target)


class CheckpointTensor:
    """A tensor of a checkpoint: ``base + truncated update``, in rows.

    Parameters
    ----------
    writer : TensorWriter
        Takes its bytes.
    planned : PlannedTensor
        What it is.
    scale : float
        Of the kept update.
    """

    def __init__(self, writer: TensorWriter, planned: PlannedTensor, scale: float) -> None:
        self._writer = writer
        self._planned = planned
        self._scale = scale

    def wants(self, action: Action) -> bool:  # noqa: ARG002
        """Whether it is to be written: always true."""
        return True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes."""
        self._writer.write(data)

    def add(self, matrix: CutMatrix) -> float:
        """Write a matrix."""
        total = 0.0
        dtype = TORCH_DTYPES[self._planned.target.dtype]
        for block in matrix.rows(dtype, self._scale):
            total += measure_rounding(self._planned, matrix.sides, block)
            self._writer.write(to_bytes(block.stored))
        return total

    def finish(self, action: Action, truncation: Truncation | None = None) -> TensorFact:
        """Return the facts of what was stored."""
        target, sha256 = self._planned.target, self._writer.finish()
        file, dtype = target.path.name, target.dtype.value
        return TensorFact(action.value, target.shape, dtype, file, sha256, truncation)


class AdapterTensor:
    """A tensor of an adapter: the factors of its update, or the whole of it.

    What is as in base is left out. The factors share the singular values evenly, a
    square root each, in the order of the values.

    Parameters
    ----------
    staging : Staging
        Takes the bytes; the adapter's file is laid out when all ranks are known.
    planned : PlannedTensor
        What it is.
    options : Options
        For the scale of the kept update and the dtype of the factors.
    """

    def __init__(self, staging: Staging, planned: PlannedTensor, options: Options) -> None:
        self._staging = staging
        self._planned = planned
        self._scale = options.scale
        self._dtype = factor_dtype(options.dtype)
        self._places: list[Range] = []
        self._digest = hashlib.sha256()
        self._read = 0
        self._differs = planned.pair.base is None
        self._copied = False

    def wants(self, action: Action) -> bool:
        """Whether it may differ from base."""
        return action in (Action.TRUNCATE, Action.COPY_FINETUNED)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes of a copy, and compare them with base's."""
        self._copied = True
        base = self._planned.pair.base
        view = memoryview(data).cast("B")
        if not self._differs and base is not None:
            target, end = self._planned.target, self._read + len(view)
            alike = (target.dtype, target.shape) == (base.dtype, base.shape)
            self._differs = not alike or view != read_bytes(base, self._read, end)
        self._read += len(view)
        self._digest.update(view)
        if self._planned.pair.update is not None:  # else it can be read again
            self._places.append(self._staging.append(view))

    def add(self, matrix: CutMatrix) -> float:
        """Keep the factors of a matrix."""
        cut = matrix.result.cut
        if not cut.rank:
            return 0.0
        left, right = matrix.factors(cut.indices)
        intended = balance(left, right, matrix.result.measured.scale * self._scale)
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
            self._places.append(self._staging.append(data))
        square = product_difference(intended, (stored[0], stored[1]))
        self._refuse_other_update(math.sqrt(square), cut)
        return square

    def _refuse_other_update(self, error: float, cut: Cut) -> None:
        """Raise if the product of the factors is not the update of the cut."""
        allowed = _SAME_UPDATE * math.sqrt(cut.rank) * abs(self._scale) * cut.kept_norm
        if self._dtype is Dtype.F32 and error > allowed:
            raise SvdcutError(
                f"tensor {self._planned.pair.name!r}: the product of the factors is {error:.2g} "
                f"away from the truncated update, where rounding explains {allowed:.2g}",
                hint="This is a fault of svdcut; please report it.",
            )

    def finish(self, action: Action, truncation: Truncation | None = None) -> TensorFact:
        """Return the facts of what was stored."""
        own = self._planned.pair.finetuned.dtype if self._copied else self._dtype
        file = sha256 = None
        if self._copied and not self._differs:
            action = Action.UNCHANGED
        elif self._places or self._copied:
            self._staging.record_parts(self._planned.pair.name, self._places)
            file, sha256 = ADAPTER_NAME, self._digest.hexdigest()
        shape = self._planned.target.shape
        return TensorFact(action.value, shape, own.value, file, sha256, truncation)


def factor_dtype(wanted: StoredDtype) -> Dtype:
    """Return the dtype of factors: float32 by default."""
    return STORED_DTYPES.get(wanted, Dtype.F32)


def balance(left: Tensor, right: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Scale a product by splitting the size of each term evenly between its factors.

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
