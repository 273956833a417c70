"""Write one tensor of the result to every output.

It decides on no rank and on no action: `cut` and `pairing` do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch

from svdcut.choose.cut import CutRequest, cut_matrix, stable_seed
from svdcut.choose.keep import Keep
from svdcut.choose.options import Options
from svdcut.choose.ranks import Rule, rule_for
from svdcut.errors import QualityError, SvdcutError
from svdcut.files.tensorfile import Dtype, TensorEntry, iterate_bytes
from svdcut.pair.pairing import Action, Pair
from svdcut.pair.plan import PlannedTensor
from svdcut.record.manifest import TensorFact, Truncation
from svdcut.streaming.pool import Reserve, or_on_cpu
from svdcut.streaming.stored_matrix import TORCH_DTYPES, Side, is_finite, nonfinite_error, to_bytes
from svdcut.streaming.update import MatrixSides, matrix_sides, read_update
from svdcut.svd.decomposition import SolverError
from svdcut.truncation.reconstruction import merged_rows
from svdcut.truncation.report import MatrixResult, describe_truncation
from svdcut.truncation.tensor_output import (
    CutMatrix,
    KeptMatrix,
    Stored,
    TensorOutput,
    refuse_overflow,
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
    reserve: Reserve = field(default_factory=Reserve)
    """For tensors that take more memory than planned, by a more careful route."""

    keeps: tuple[Keep, ...] = ()
    """Which triplets stay in each output; none where it is the same in all, as `options` say."""

    cutter: Cutter | None = None
    """Yields the cuts of a tensor that was decomposed before; None to decompose now."""

    def rules_for(self, pair: Pair) -> list[Rule]:
        """Return the rule of a tensor in each output."""
        return [rule_for(pair.name, rule, self.options.rank_for) for rule in self.rules]

    def requests(self, pair: Pair, number: int) -> list[CutRequest]:
        """Return what to keep of matrix `number` of a tensor, for each output."""
        seed = stable_seed(pair.seed_name, number, self.options.seed)
        keeps = self.keeps or (self.options.keep,) * len(self.rules)
        return [
            CutRequest(rule, keep, seed, self.budgets.get((rule, pair.name, number)))
            for rule, keep in zip(self.rules_for(pair), keeps, strict=True)
        ]


Cutter = Callable[[Job, Pair], Iterator[list[CutMatrix]]]
"""Yields the cuts of each matrix of a tensor, one for each output."""


class Destination(Protocol):
    """Where the tensors of one output go."""

    def open(self, planned: PlannedTensor, options: Options) -> TensorOutput:
        """Return what takes a planned tensor."""


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

    def takers() -> list[TensorOutput]:
        return [output.open(planned, job.options) for output in outputs]

    if pair.action is Action.TRUNCATE:
        with naming(pair):
            facts, failed = or_on_cpu(
                job.device,
                lambda device: _truncate(replace(job, device=device), planned, takers()),
            )
        return [_reject(fact, failed) for fact in facts]
    return _copy(job, planned, takers())


@contextmanager
def naming(pair: Pair) -> Iterator[None]:
    """Add the name of a tensor to what its decomposition raises."""
    try:
        yield
    except QualityError as error:
        raise QualityError(f"tensor {pair.name!r}: {error.what}", hint=error.hint) from error
    except SolverError as error:
        raise SvdcutError(f"tensor {pair.name!r}: no SVD converged ({error})") from error


def _reject(fact: TensorFact, failed: tuple[str, ...]) -> TensorFact:
    """Add what the device failed at to what was tried in vain."""
    if fact.truncation is None or not failed:
        return fact
    svd = replace(fact.truncation.svd, rejected=failed + fact.truncation.svd.rejected)
    return replace(fact, truncation=replace(fact.truncation, svd=svd))


def _copy(job: Job, planned: PlannedTensor, takers: Sequence[TensorOutput]) -> list[TensorFact]:
    action = planned.pair.action
    wanting = [taker for taker in takers if taker.wants(action)]
    if wanting:
        for data in _copied_bytes(planned, job.device):
            for taker in wanting:
                taker.write(data)
    return [_fact(planned, action, taker.finish()) for taker in takers]


def _copied_bytes(planned: PlannedTensor, device: torch.device) -> Iterator[bytearray | memoryview]:
    pair = planned.pair
    from_base = pair.action is Action.COPY_BASE
    source = pair.base if from_base else pair.finetuned
    assert source is not None
    if from_base or (pair.update is None and source.dtype is planned.target.dtype):
        side = Side.BASE if source == pair.base else Side.FINETUNED
        for data in iterate_bytes(source):
            _refuse_nonfinite_bytes(source, data, side)
            yield data
    else:
        for sides in matrix_sides(pair):
            for rows in merged_rows(sides, device, TORCH_DTYPES[planned.target.dtype]):
                refuse_overflow(planned, sides, rows.stored)
                yield to_bytes(rows.stored)


def _fact(
    planned: PlannedTensor, action: Action, stored: Stored, truncation: Truncation | None = None
) -> TensorFact:
    action = stored.action or action
    return TensorFact(
        action.value,
        planned.target.shape,
        stored.dtype.value,
        stored.file,
        stored.sha256,
        truncation,
    )


def _refuse_nonfinite_bytes(entry: TensorEntry, data: bytearray, side: Side) -> None:
    # A complex number is two float32. Only looked at: the bytes themselves are written.
    dtype = torch.float32 if entry.dtype is Dtype.C64 else TORCH_DTYPES.get(entry.dtype)
    if dtype is None or not data:
        return
    if not is_finite(torch.frombuffer(data, dtype=dtype)):
        raise nonfinite_error(entry, side)


def cut_tensor(job: Job, pair: Pair) -> Iterator[list[CutMatrix]]:
    """Decompose each matrix of a tensor once, and yield its cuts, one for each output."""
    for number, sides in enumerate(matrix_sides(pair)):
        yield decompose_matrix(job, pair, sides, job.requests(pair, number))


def decompose_matrix(
    job: Job, pair: Pair, sides: MatrixSides, requests: Sequence[CutRequest]
) -> list[CutMatrix]:
    """Decompose one matrix of a tensor, and cut it as often as asked.

    Parameters
    ----------
    job : Job
        Of the run.
    pair : Pair
        The tensor.
    sides : MatrixSides
        The matrix.
    requests : sequence of CutRequest
        What to keep of it.

    Raises
    ------
    NonFiniteError, QualityError, SolverError
        As `process_tensor` does.
    """
    noise = any(request.rule.needs_edge for request in requests)
    update = read_update(sides, job.device, measure_rounding=noise)
    with job.reserve.lend() as escalate:
        decomposition, cuts = cut_matrix(
            update.matrix,
            requests,
            storage=update.storage,
            route=job.options.svd,
            tolerance=job.options.tolerance,
            seed=stable_seed(pair.seed_name, sides.number),
            escalate=escalate,
        )
    measured = decomposition.measured()
    return [
        CutMatrix(
            kept=KeptMatrix(
                sides=sides,
                indices=cut.indices,
                full_rank=measured.full_rank,
                scale=measured.scale,
                factors=decomposition.factors,
                is_wide=update.is_wide,
            ),
            cut=cut,
            measured=measured,
            zero_fraction=update.zero_fraction,
            equal_bytes=update.equal_bytes,
        )
        for cut in cuts
    ]


def _truncate(job: Job, planned: PlannedTensor, takers: Sequence[TensorOutput]) -> list[TensorFact]:
    pair = planned.pair
    assert pair.base is not None
    results: list[list[MatrixResult]] = [[] for _ in takers]
    equal = pair.base.shape == pair.finetuned.shape
    for cut_matrices in (job.cutter or cut_tensor)(job, pair):
        equal = equal and cut_matrices[0].equal_bytes
        for found, matrix, taker in zip(results, cut_matrices, takers, strict=True):
            square = taker.add(matrix)
            found.append(MatrixResult(matrix.cut, matrix.measured, square, matrix.zero_fraction))
        del cut_matrices, matrix  # the next one of a stack needs their memory
    records = []
    for rule, found, taker in zip(job.rules_for(pair), results, takers, strict=True):
        for data in _new_rows(planned, job.device):
            taker.write(data)
        if equal:
            records.append(_fact(planned, Action.UNCHANGED, taker.finish()))
        else:
            truncation = describe_truncation(pair, rule, job.options, found)
            records.append(_fact(planned, Action.TRUNCATE, taker.finish(), truncation))
    return records


def _new_rows(planned: PlannedTensor, device: torch.device) -> Iterator[memoryview]:
    """Yield the rows that base lacks, from the fine-tuned side."""
    pair = planned.pair
    if not pair.new_rows:
        return
    (sides,) = matrix_sides(pair)
    for rows in merged_rows(sides, device, TORCH_DTYPES[planned.target.dtype], new=True):
        if not is_finite(rows.intended):
            raise nonfinite_error(pair.finetuned, Side.FINETUNED)
        refuse_overflow(planned, None, rows.stored)
        yield to_bytes(rows.stored)
