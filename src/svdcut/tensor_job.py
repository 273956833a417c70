"""Write one tensor of the result to every output.

It decides on no rank and on no action: `cut` and `pairing` do.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch

from svdcut.cut import Cut, CutRequest, cut_matrix, stable_seed
from svdcut.errors import NonFiniteError, QualityError, SvdcutError
from svdcut.manifest import TensorFact, Truncation
from svdcut.options import Options
from svdcut.pairing import Action, Pair
from svdcut.plan import PlannedTensor
from svdcut.pool import or_on_cpu
from svdcut.ranks import Rule, RuleKind, rule_for
from svdcut.report import MatrixResult, describe_truncation
from svdcut.sink import TensorSink
from svdcut.svd.decomposition import Decomposition, SolverError
from svdcut.tensorfile import Dtype, TensorEntry, iterate_bytes, read_bytes, size_bytes
from svdcut.update import (
    TORCH_DTYPES,
    MatrixEntry,
    Rows,
    Side,
    Update,
    compose,
    copy_rows,
    is_finite,
    matrix_entries,
    nonfinite_error,
    read_update,
    write_values,
)

BudgetRanks = Mapping[tuple[Rule, str, int], int]
"""Rank of matrix `i` of a tensor under a budget rule."""


@dataclass(frozen=True, slots=True)
class Job:
    """What every tensor of a run has in common."""

    rules: tuple[Rule, ...]
    """The rule of each output."""

    options: Options
    device: torch.device
    budgets: BudgetRanks
    careful: threading.Lock = field(default_factory=threading.Lock)
    """Held by the one tensor that takes more memory than planned, for a more careful route."""

    def rules_for(self, pair: Pair) -> list[Rule]:
        """Return the rule of a tensor in each output."""
        return [rule_for(pair.name, rule, self.options.rank_for) for rule in self.rules]

    def requests(self, pair: Pair, number: int) -> list[CutRequest]:
        """Return what to keep of matrix `number` of a tensor, for each output."""
        seed = stable_seed(pair.seed_name, number, self.options.seed)
        return [
            CutRequest(rule, self.options.keep, seed, self.budgets.get((rule, pair.name, number)))
            for rule in self.rules_for(pair)
        ]


class Destination(Protocol):
    """Where the tensors of one output go."""

    def sink(self, entry: TensorEntry) -> TensorSink:
        """Return where the bytes of a planned tensor go."""


def process_tensor(
    job: Job, planned: PlannedTensor, outputs: Sequence[Destination]
) -> list[TensorFact]:
    """Write one tensor.

    Parameters
    ----------
    job : Job
        Of the run.
    planned : PlannedTensor
        Where it comes from.
    outputs : sequence of Destination
        Where it goes.

    Returns
    -------
    list of TensorFact
        What was written, one for each output.

    Raises
    ------
    NonFiniteError
        If a side or the result holds NaN or infinity.
    QualityError
        If the tolerance cannot be met.
    SvdcutError
        If no decomposition converges.
    """
    pair = planned.pair

    def sinks() -> list[TensorSink]:
        return [output.sink(planned.target) for output in outputs]

    if pair.action is Action.TRUNCATE:
        try:
            facts, failed = or_on_cpu(
                job.device,
                lambda device: _truncate(replace(job, device=device), planned, sinks()),
            )
        except QualityError as error:
            raise QualityError(f"tensor {pair.name!r}: {error.what}", hint=error.hint) from error
        except SolverError as error:
            raise SvdcutError(f"tensor {pair.name!r}: no SVD converged ({error})") from error
        return [_reject(fact, failed) for fact in facts]
    return _copy(planned, sinks())


def _reject(fact: TensorFact, failed: tuple[str, ...]) -> TensorFact:
    """Add what the device failed at to what was tried in vain."""
    if fact.truncation is None or not failed:
        return fact
    svd = replace(fact.truncation.svd, rejected=failed + fact.truncation.svd.rejected)
    return replace(fact, truncation=replace(fact.truncation, svd=svd))


def _copy(planned: PlannedTensor, sinks: Sequence[TensorSink]) -> list[TensorFact]:
    pair = planned.pair
    from_base = pair.action is Action.COPY_BASE
    source, side = (pair.base, Side.BASE) if from_base else (pair.finetuned, Side.FINETUNED)
    assert source is not None
    for data in iterate_bytes(source):
        _refuse_nonfinite_bytes(source, data, side)
        for sink in sinks:
            sink.write(data)
    return [_fact(planned, pair.action, sink.finish()) for sink in sinks]


def _fact(
    planned: PlannedTensor, action: Action, sha256: str, truncation: Truncation | None = None
) -> TensorFact:
    target = planned.target
    return TensorFact(
        action.value, target.shape, target.dtype.value, target.path.name, sha256, truncation
    )


def _refuse_nonfinite_bytes(entry: TensorEntry, data: bytearray, side: Side) -> None:
    # A complex number is two float32. Only looked at: the bytes themselves are written.
    dtype = torch.float32 if entry.dtype is Dtype.C64 else TORCH_DTYPES.get(entry.dtype)
    if dtype is None or not data:
        return
    if not is_finite(torch.frombuffer(data, dtype=dtype)):
        raise nonfinite_error(entry, side)


def _truncate(job: Job, planned: PlannedTensor, sinks: Sequence[TensorSink]) -> list[TensorFact]:
    pair = planned.pair
    assert pair.base is not None
    results: list[list[MatrixResult]] = [[] for _ in sinks]
    equal = pair.base.shape == pair.finetuned.shape
    noise = any(rule.kind is RuleKind.NOISE for rule in job.rules_for(pair))
    for number, (base, finetuned) in enumerate(matrix_entries(pair)):
        update = read_update(base, finetuned, job.device, measure_rounding=noise)
        equal = equal and update.equal_bytes
        with ExitStack() as stack:
            decomposition, cuts = cut_matrix(
                update.matrix,
                job.requests(pair, number),
                storage=update.storage,
                route=job.options.svd,
                tolerance=job.options.tolerance,
                seed=stable_seed(pair.seed_name, number),
                escalate=lambda: stack.enter_context(job.careful),
            )
        for found, cut, sink in zip(results, cuts, sinks, strict=True):
            rows = _rows(job, planned, finetuned, update, decomposition, cut)
            square = _write_rows(planned, rows, sink)
            found.append(
                MatrixResult(
                    cut=cut,
                    method=decomposition.method.value,
                    proof=decomposition.proof.value,
                    rejected=decomposition.rejected,
                    rounding_square=square,
                    zero_fraction=update.zero_fraction,
                )
            )
    records = []
    for rule, found, sink in zip(job.rules_for(pair), results, sinks, strict=True):
        _write_new_rows(planned, sink)
        if equal:
            records.append(_fact(planned, Action.UNCHANGED, sink.finish()))
        else:
            truncation = describe_truncation(pair, rule, job.options, found)
            records.append(_fact(planned, Action.TRUNCATE, sink.finish(), truncation))
    return records


def _rows(
    job: Job,
    planned: PlannedTensor,
    finetuned: MatrixEntry,
    update: Update,
    decomposition: Decomposition,
    cut: Cut,
) -> Iterator[Rows]:
    dtype = TORCH_DTYPES[planned.target.dtype]
    if cut.rank == decomposition.full_rank and job.options.scale == 1:
        # All triplets make the fine-tuned matrix, and its own numbers are exact.
        return copy_rows(finetuned, dtype)
    factor = decomposition.scale * job.options.scale
    return compose(update, decomposition.factors(list(cut.indices)), factor, dtype)


def _write_rows(planned: PlannedTensor, rows: Iterator[Rows], sink: TensorSink) -> float:
    """Write a matrix; return the sum of squares of its rounding error."""
    total = 0.0
    for block in rows:
        # Exact, in the dtype that holds both: the numbers are next to each other.
        error = torch.sub(block.stored, block.intended)
        square = float(torch.linalg.vector_norm(error, dtype=torch.float64)) ** 2
        if not math.isfinite(square):
            _refuse_overflow(planned, block.stored)
        total += square
        write_values(sink, block.stored)
    return total


def _write_new_rows(planned: PlannedTensor, sink: TensorSink) -> None:
    """Write the rows that base lacks, from the fine-tuned side."""
    pair = planned.pair
    if pair.stacked or pair.finetuned.shape[0] == pair.shared_rows:
        return
    rows, columns = pair.finetuned.shape[0], pair.matrices[0][1]
    start = size_bytes(pair.finetuned.dtype, (pair.shared_rows, columns))
    stop = size_bytes(pair.finetuned.dtype, (rows, columns))
    data = read_bytes(pair.finetuned, start, stop)
    _refuse_nonfinite_bytes(pair.finetuned, data, Side.FINETUNED)
    values = torch.frombuffer(data, dtype=TORCH_DTYPES[pair.finetuned.dtype])
    stored = values.to(TORCH_DTYPES[planned.target.dtype])
    _refuse_overflow(planned, stored)
    write_values(sink, stored)


def _refuse_overflow(planned: PlannedTensor, stored: torch.Tensor) -> None:
    if not is_finite(stored):
        raise NonFiniteError(
            f"tensor {planned.pair.name!r}: the result overflows {planned.target.dtype.value}",
            hint="Store it in another --dtype, or use a smaller --scale.",
        )
