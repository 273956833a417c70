"""Make one tensor of the result: read both sides, subtract, decompose, cut, store.

What is done to a tensor is decided in `svdcut.pair.pairing`, its rank in `svdcut.choose`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import torch

from svdcut.choose.cut import CutRequest, cut_matrix, stable_seed
from svdcut.choose.keep import Keep
from svdcut.choose.options import Options
from svdcut.choose.ranks import Rule, rule_for
from svdcut.errors import QualityError, SvdcutError
from svdcut.pair.pairing import Action, Pair
from svdcut.pair.plan import PlannedTensor
from svdcut.record.manifest import TensorFact, Truncation
from svdcut.streaming.pool import Reserve, or_on_cpu
from svdcut.streaming.stored_matrix import MatrixSides, matrix_sides
from svdcut.streaming.update import read_update
from svdcut.svd.decomposition import SolverError
from svdcut.truncation.reconstruction import (
    CutMatrix,
    MatrixResult,
    copied_bytes,
    describe_truncation,
    new_row_bytes,
)

T = TypeVar("T")

BudgetRanks = Mapping[tuple[Rule, str, int], int]
"""Rank of matrix `i` of a tensor under a budget rule."""


@dataclass(frozen=True, slots=True)
class Job:
    """The settings that all tensors of a run share."""

    rules: tuple[Rule, ...]
    """The rule of each output."""

    options: Options
    device: torch.device
    budgets: BudgetRanks
    reserve: Reserve = field(default_factory=Reserve)
    """Extra memory, for tensors that fall back to a more careful route."""

    keeps: tuple[Keep, ...] = ()
    """Triplets that stay in each output; empty where `options.keep` holds for all."""

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


class TensorOutput(Protocol):
    """Takes one tensor, in order: either the bytes of a copy, or its matrices."""

    def wants(self, action: Action) -> bool:
        """Whether a tensor with that action is to be written at all."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes of a tensor that is copied."""

    def add(self, matrix: CutMatrix) -> float:
        """Take the next matrix; return the sum of squares of its rounding error."""

    def finish(self, action: Action, truncation: Truncation | None = None) -> TensorFact:
        """Return the facts of what was stored."""


class Destination(Protocol):
    """One output of a run."""

    def open(self, planned: PlannedTensor, options: Options) -> TensorOutput:
        """Return a writer for a planned tensor."""


def process_tensor(
    job: Job, planned: PlannedTensor, outputs: Sequence[Destination]
) -> list[TensorFact]:
    """Make one tensor, and write it to every output.

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

    def takers() -> list[TensorOutput]:
        return [output.open(planned, job.options) for output in outputs]

    if planned.pair.action is not Action.TRUNCATE:
        return _copy(job, planned, takers())
    facts, failed = decompose_on_device(
        job, planned.pair, lambda job: _truncate(job, planned, takers())
    )
    return [_reject(fact, failed) for fact in facts]


def decompose_on_device(
    job: Job, pair: Pair, work: Callable[[Job], T]
) -> tuple[T, tuple[str, ...]]:
    """Decompose a tensor on the job's device, or on the CPU where the device fails at it.

    Parameters
    ----------
    job, pair
        Of the run, and the tensor; errors name it.
    work : callable
        Takes the job with the device to use; it may be called twice.

    Returns
    -------
    tuple of object and tuple of str
        What `work` returned, and how the device failed, if it did.
    """
    try:
        return or_on_cpu(job.device, lambda device: work(replace(job, device=device)))
    except QualityError as error:
        raise QualityError(f"tensor {pair.name!r}: {error.what}", hint=error.hint) from error
    except SolverError as error:
        raise SvdcutError(f"tensor {pair.name!r}: no SVD converged ({error})") from error


def _reject(fact: TensorFact, failed: tuple[str, ...]) -> TensorFact:
    """Add the device's failure to the routes that were rejected."""
    if fact.truncation is None or not failed:
        return fact
    svd = replace(fact.truncation.svd, rejected=failed + fact.truncation.svd.rejected)
    return replace(fact, truncation=replace(fact.truncation, svd=svd))


def _copy(job: Job, planned: PlannedTensor, takers: Sequence[TensorOutput]) -> list[TensorFact]:
    action = planned.pair.action
    wanting = [taker for taker in takers if taker.wants(action)]
    if wanting:
        for data in copied_bytes(planned, job.device):
            for taker in wanting:
                taker.write(data)
    return [taker.finish(action) for taker in takers]


def cut_tensor(job: Job, pair: Pair) -> Iterator[list[CutMatrix]]:
    """Decompose each matrix of a tensor once, and yield its cuts, one for each output."""
    for number, sides in enumerate(matrix_sides(pair)):
        yield decompose_matrix(job, pair, sides, job.requests(pair, number))


def decompose_matrix(
    job: Job, pair: Pair, sides: MatrixSides, requests: Sequence[CutRequest]
) -> list[CutMatrix]:
    """Decompose one matrix of a tensor, and cut it once for each request.

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
    zeros, equal = update.zero_fraction, update.equal_bytes
    return [
        CutMatrix(
            sides, MatrixResult(cut, measured, zeros, equal), decomposition.factors, update.is_wide
        )
        for cut in cuts
    ]


def _truncate(job: Job, planned: PlannedTensor, takers: Sequence[TensorOutput]) -> list[TensorFact]:
    pair = planned.pair
    results: list[list[MatrixResult]] = [[] for _ in takers]
    for cut_matrices in (job.cutter or cut_tensor)(job, pair):
        for found, matrix, taker in zip(results, cut_matrices, takers, strict=True):
            found.append(replace(matrix.result, rounding_square=taker.add(matrix)))
        del cut_matrices, matrix  # the next one of a stack needs their memory
    for data in new_row_bytes(planned, job.device):
        for taker in takers:
            taker.write(data)
    same_shape = pair.base is not None and pair.base.shape == pair.finetuned.shape
    if same_shape and all(result.equal_bytes for result in results[0]):
        return [taker.finish(Action.UNCHANGED) for taker in takers]
    return [
        taker.finish(Action.TRUNCATE, describe_truncation(pair, rule, job.options, found))
        for rule, found, taker in zip(job.rules_for(pair), results, takers, strict=True)
    ]
