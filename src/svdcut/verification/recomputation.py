"""Make the tensors of a result again by another route, and compare.

The truncation does the work: here are the ranks that it must cut at, and what takes its results
instead of a file.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from svdcut.choose.options import Options
from svdcut.choose.ranks import Budget, Energy, Rule, rule_for
from svdcut.device import num_workers
from svdcut.errors import CheckpointError, SvdcutError
from svdcut.pair.pairing import Action, Pair
from svdcut.pair.plan import Plan, PlannedTensor
from svdcut.record.manifest import Manifest, TensorFact, Truncation
from svdcut.record.progress import Observer, Progress
from svdcut.streaming.memory import memory_needs
from svdcut.streaming.pool import Pool, Reserve
from svdcut.streaming.stored_matrix import TORCH_DTYPES, MatrixSides, matrix_sides, to_bytes
from svdcut.svd.certificate import VALUE_TOLERANCE, Method
from svdcut.svd.route import Route
from svdcut.truncation.reconstruction import CutMatrix
from svdcut.truncation.tensor_job import Job, decompose_matrix, process_tensor
from svdcut.truncation.tensor_output import AdapterTensor
from svdcut.verification.findings import Contradiction, Failure, differences
from svdcut.verification.options import VerifyOptions
from svdcut.verification.stored import Result, measure, new_rows_hash
from svdcut.verification.tolerances import (
    Distance,
    check_budget,
    compare_facts,
    compare_stored,
    is_single,
)

_EXACT_ENTRIES = 1 << 20
"""Up to this size what the Gram route made is made again by the exact one, which takes more
memory and time."""

_ANY_SHARE = Energy(0.5)
"""A rule that needs the whole spectrum: the route to a few triplets works in float32."""

_FACTOR_ROUNDING = 4
"""How much more than here the factors of an adapter may be rounded elsewhere."""


@dataclass(frozen=True, slots=True)
class Recomputation:
    """The second run."""

    plan: Plan
    manifest: Manifest
    rule: Rule
    options: Options
    """As the manifest has them."""

    result: Result
    device: torch.device

    def run(self, asked: VerifyOptions, observe: Observer) -> tuple[int, list[Failure]]:
        """Return how many truncated tensors were made again, and every false claim.

        Parameters
        ----------
        asked : VerifyOptions
            For the sample. What takes no decomposition is checked in any case.
        observe : callable
            Called after each tensor.

        Raises
        ------
        CheckpointError
            If a side cannot be read.
        """
        needs = memory_needs(self.plan, (_ANY_SHARE,), replace(self.options, svd=Route.GRAM))
        numbers = self._choose(asked, needs.sizes)
        tensors = [self._tensor(self.plan.tensors[number]) for number in numbers]
        total = sum(tensor.planned.target.size_bytes for tensor in tensors)
        job = Job((self.rule,), self.options, self.device, {}, Reserve(needs.reserve))

        def task(index: int) -> list[Failure]:
            tensor = tensors[index]
            failures = tensor.check(job)
            name, size = tensor.planned.pair.name, tensor.planned.target.size_bytes
            observe(Progress("recompute", name, size, total, (tensor.fact,)))
            return failures

        with Pool(num_workers(self.device), needs.bound, self.device) as pool:
            found = pool.map(task, [needs.sizes[number] for number in numbers])
        failures = [failure for part in found for failure in part]
        count = sum(tensor.fact.truncation is not None for tensor in tensors)
        return count, [*failures, *self._check_budgets(tensors)]

    def _choose(self, asked: VerifyOptions, sizes: Sequence[int]) -> list[int]:
        """Return which tensors of the plan to make again."""
        facts = self.manifest.tensors
        costly: list[int] = []
        cheap: list[int] = []
        for number, planned in enumerate(self.plan.tensors):
            fact = facts.get(planned.pair.name)
            # Where the plan says otherwise, the claims are about another tensor.
            if fact is not None and may_become(planned.pair.action, fact):
                (cheap if fact.truncation is None else costly).append(number)
        costly.sort(key=lambda number: (sizes[number], number))
        return sorted([*cheap, *_sample(costly, asked.sample, asked.seed)])

    def _tensor(self, planned: PlannedTensor) -> _Tensor:
        name = planned.pair.name
        rule = rule_for(name, self.rule, self.options.rank_for)
        return _Tensor(self.result, planned, self.manifest.tensors[name], rule)

    def _check_budgets(self, tensors: Sequence[_Tensor]) -> Iterator[Failure]:
        """Check each budget whose tensors were all made again."""
        made = {tensor.planned.pair.name: tensor for tensor in tensors if tensor.spectra}
        spectra = {name: tensor.spectra for name, tensor in made.items()}
        ranks = {name: tensor.claimed_ranks for name, tensor in made.items()}
        under: dict[Rule, list[Pair]] = {}
        for pair in (planned.pair for planned in self.plan.tensors):
            if pair.action is Action.TRUNCATE:
                rule = rule_for(pair.name, self.rule, self.options.rank_for)
                under.setdefault(rule, []).append(pair)
        for rule, pairs in under.items():
            if isinstance(rule, Budget) and all(pair.name in made for pair in pairs):
                yield from check_budget(rule, pairs, spectra, ranks)


def may_become(planned: Action, fact: TensorFact) -> bool:
    """Return whether the claimed action can follow from the planned one."""
    # Whether both sides hold the same bytes is not in their headers. An adapter asks it of
    # what is copied too.
    compared = (Action.TRUNCATE, Action.COPY_FINETUNED) if fact.file is None else (Action.TRUNCATE,)
    unchanged = planned in compared and fact.action == Action.UNCHANGED.value
    return unchanged or planned.value == fact.action


def _sample(by_size: Sequence[int], count: int | None, seed: int) -> Iterator[int]:
    """Yield so many numbers, of which large and small tensors have their even share."""
    if count is None or count >= len(by_size):
        yield from by_size
        return
    # A choice that must be repeatable, not one that must be secret.
    generator = random.Random(seed)  # noqa: S311
    for part in range(count):
        start, stop = (len(by_size) * edge // count for edge in (part, part + 1))
        yield by_size[generator.randrange(start, stop)]


def _route(pair: Pair, cut: Truncation | None) -> Route:
    """Return a route that does not iterate, and another one than made the result."""
    if cut is None or cut.svd.method != Method.GRAM.value:
        return Route.GRAM
    small = all(m * n <= _EXACT_ENTRIES for m, n in pair.matrices)
    return Route.EXACT if small else Route.GRAM


class _Tensor:
    """A tensor that is cut at the claimed ranks, and compared instead of written.

    It is a `Destination` and its `TensorOutput`, and yields the cuts.

    Parameters
    ----------
    result : Result
        The stored tensors.
    planned : PlannedTensor
        The tensor in the plan.
    fact : TensorFact
        The claims about it.
    rule : Rule
        Its rank rule.
    """

    def __init__(
        self, result: Result, planned: PlannedTensor, fact: TensorFact, rule: Rule
    ) -> None:
        self.planned, self.fact, self.rule = planned, fact, rule
        self._result = result
        self._entry, self._update = result.find(planned)
        self._single = fact.truncation is not None and is_single(fact.truncation, rule)
        self.spectra: list[list[float]] = []
        """All singular values of each matrix."""

    @property
    def claimed_ranks(self) -> tuple[int, ...]:
        """The rank of each matrix; 0 where the update is said to be zero."""
        cut = self.fact.truncation
        return cut.ranks if cut is not None else (0,) * len(self.planned.pair.matrices)

    def check(self, job: Job) -> list[Failure]:
        """Make the tensor again, and return every false claim."""
        pair, cut = self.planned.pair, self.fact.truncation
        if cut is not None and len(cut.matrices) != len(pair.matrices):
            return [Failure("matrices", len(pair.matrices), len(cut.matrices), pair.name)]
        claimed = job.options
        # A coarse claim is compared with values that are not.
        tolerance = min(claimed.tolerance, VALUE_TOLERANCE)
        options = replace(claimed, svd=_route(pair, cut), tolerance=tolerance)
        try:
            (again,) = process_tensor(
                replace(job, options=options, cutter=self._cut), self.planned, [self]
            )
        except CheckpointError:
            raise
        except SvdcutError as error:
            return [Failure("result", error.what, self.fact.sha256, pair.name)]
        return [Failure(*found, pair.name) for found in self._compare(again, claimed)]

    def open(self, planned: PlannedTensor, options: Options) -> _Tensor:
        """Begin; a second time where a device failed, and the CPU follows."""
        nowhere = self._result.nowhere
        self._factors = None if nowhere is None else AdapterTensor(nowhere, planned, options)
        self._scale = options.scale
        self._copied = hashlib.sha256()
        self._parts: list[Distance] = []
        self._ranges: list[tuple[int, int]] = []  # least and largest rank that the rule may mean
        self.spectra.clear()
        return self

    def _cut(self, job: Job, pair: Pair) -> Iterator[list[CutMatrix]]:
        """Yield the cut of each matrix, as a `svdcut.truncation.tensor_job.Cutter`."""
        for sides in matrix_sides(pair):
            yield [self._cut_matrix(job, pair, sides)]

    def _cut_matrix(self, job: Job, pair: Pair, sides: MatrixSides) -> CutMatrix:
        (asked,) = job.requests(pair, sides.number)
        full_rank = pair.full_ranks[sides.number]
        rank = min(self.claimed_ranks[sides.number], full_rank)
        requests = [replace(asked, rank=rank)]
        if not self._few_suffice(full_rank):
            whole = self.rule.known_rank(full_rank) is None and not self.rule.is_joint
            requests.append(asked if whole else replace(asked, rule=_ANY_SHARE))
        made = decompose_matrix(job, pair, sides, requests)
        own = made[-1].result
        values = own.measured.singular_values()
        values += [0.0] * (full_rank - len(values))  # those that rounding hides
        self._ranges.append(self.rule.rank_range(values, full_rank, edge=own.cut.edge or 0.0))
        self.spectra.append(values)
        return made[0]

    def _few_suffice(self, full_rank: int) -> bool:
        """Return True where the result was iterated: eigenvectors then are another route."""
        cut = self.fact.truncation
        iterated = cut is not None and cut.svd.method == Method.KRYLOV.value
        return iterated and self.rule.known_rank(full_rank) is not None

    def wants(self, action: Action) -> bool:
        """Return whether a side has bytes of the tensor."""
        return action is not Action.DROP

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes of a copy."""
        self._copied.update(data)
        if self._factors is not None and self._factors.wants(self.planned.pair.action):
            self._factors.write(data)

    def add(self, matrix: CutMatrix) -> float:
        """Compare a matrix; return the sum of squares of its rounding error."""
        made = self._factors.add(matrix) if self._factors is not None else 0.0
        cut = self.fact.truncation
        if cut is None:
            for rows in matrix.rows(TORCH_DTYPES[self.planned.target.dtype], 1.0):
                self._copied.update(to_bytes(rows.stored))
        if cut is None or self._entry is None:
            return made
        sides = matrix.sides
        theirs = replace(sides.finetuned, tensor=self._entry)
        stored = replace(sides, finetuned=theirs, update=self._update, new_rows=0)
        excess = max(cut.svd.excess_bound, matrix.result.cut.bounds.excess)
        rounding, found = measure(matrix, stored, self._scale, excess, single=self._single)
        if self._factors is not None:
            storage = math.hypot(found.storage, _FACTOR_ROUNDING * math.sqrt(made))
            found = replace(found, storage=storage, beyond=max(found.beyond - storage, 0.0))
        self._parts.append(found)
        # An adapter that stores the matrix whole rounds that too: no claim is about it.
        whole = self._factors is not None and self._update is None
        return made if whole else rounding**2

    def finish(self, action: Action, truncation: Truncation | None = None) -> TensorFact:
        """Return what a run would have written."""
        if self._factors is not None:
            return self._factors.finish(action, truncation)
        target, copied = self.planned.target, self._copied.hexdigest()
        file, dtype = target.path.name, target.dtype.value
        return TensorFact(action.value, target.shape, dtype, file, copied, truncation)

    def _compare(self, again: TensorFact, options: Options) -> list[Contradiction]:
        """Return the first claims that do not hold: those that follow are of another tensor."""
        fact = self.fact
        wrong = list(differences(again, fact, "action", "shape", "dtype", "file"))
        if wrong:
            return wrong
        cut, ours, single = fact.truncation, again.truncation, self._single
        if cut is not None and ours is not None:
            ranges = zip(cut.ranks, self._ranges, strict=True)
            nearest = [min(max(rank, low), high) for rank, (low, high) in ranges]
            distance = Distance.join(self._parts)
            wrong = [*compare_facts(cut, ours, nearest, options.tolerance, single=single)] or [
                *compare_stored(cut, ours, options.scale, distance, single=single)
            ]
        elif again.sha256 != fact.sha256:
            wrong = [("result", again.sha256, fact.sha256)]
        if not wrong and self._copy_differs(cut):
            wrong = [("result", "other bytes", "those of the inputs")]
        return wrong

    def _copy_differs(self, cut: Truncation | None) -> bool:
        """Return whether bytes that are copied are stored otherwise."""
        pair, entry, copied = self.planned.pair, self._entry, self._copied.hexdigest()
        if cut is None:
            return not self._result.holds_copy(pair, entry, self._update, copied)
        return entry is None or (pair.new_rows > 0 and copied != new_rows_hash(pair, entry))
