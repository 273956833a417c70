"""Make the tensors of a result again by another route, and compare.

The truncation does the work: here are the ranks that it must cut at.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

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
from svdcut.streaming.stored_matrix import MatrixSides, matrix_sides
from svdcut.svd.certificate import VALUE_TOLERANCE, Method
from svdcut.svd.route import Route
from svdcut.truncation.reconstruction import CutMatrix
from svdcut.truncation.tensor_job import (
    Job,
    TensorOutput,
    decompose_matrix,
    process_tensor,
)
from svdcut.verification.comparison import (
    check_budget,
    compare_facts,
    compare_stored,
    differences,
)
from svdcut.verification.findings import Contradiction, Failure
from svdcut.verification.inputs import may_become
from svdcut.verification.stored import Comparison, Result
from svdcut.verification.tolerances import is_single

_EXACT_ENTRIES = 1 << 20
"""Up to this size what the Gram route made is made again by the exact one, which takes more
memory and time."""

_ANY_SHARE = Energy(0.5)
"""A rule that needs the whole spectrum: the route to a few triplets works in float32."""


@dataclass(frozen=True, slots=True)
class Sample:
    """How many truncated tensors to make again; None for all."""

    count: int | None
    seed: int

    def choose(self, numbers: Sequence[int], sizes: Sequence[int]) -> Iterator[int]:
        """Yield a sample in which large and small tensors have their even share."""
        if self.count is None or self.count >= len(numbers):
            yield from numbers
            return
        by_size = sorted(numbers, key=lambda number: (sizes[number], number))
        # A choice that must be repeatable, not one that must be secret.
        generator = random.Random(self.seed)  # noqa: S311
        for part in range(self.count):
            start, stop = (len(by_size) * edge // self.count for edge in (part, part + 1))
            yield by_size[generator.randrange(start, stop)]


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

    def run(self, sample: Sample, observe: Observer) -> tuple[int, list[Failure]]:
        """Return how many truncated tensors were made again, and every false claim.

        Parameters
        ----------
        sample : Sample
            Which to make again. What takes no decomposition is checked in any case.
        observe : callable
            Told of each tensor that is done.

        Raises
        ------
        CheckpointError
            If a side cannot be read.
        """
        needs = memory_needs(self.plan, (_ANY_SHARE,), replace(self.options, svd=Route.GRAM))
        numbers = list(self._choose(sample, needs.sizes))
        tensors = [self._tensor(self.plan.tensors[number]) for number in numbers]
        total = sum(tensor.planned.target.size_bytes for tensor in tensors)
        reserve = Reserve(needs.reserve)

        def task(index: int) -> list[Failure]:
            tensor = tensors[index]
            failures = tensor.check(Job((self.rule,), self.options, self.device, {}, reserve))
            name, size = tensor.planned.pair.name, tensor.planned.target.size_bytes
            observe(Progress("recompute", name, size, total, (tensor.fact,)))
            return failures

        with Pool(num_workers(self.device), needs.bound, self.device) as pool:
            found = pool.map(task, [needs.sizes[number] for number in numbers])
        failures = [failure for part in found for failure in part]
        count = sum(tensor.fact.truncation is not None for tensor in tensors)
        return count, [*failures, *self._check_budgets(tensors)]

    def _choose(self, sample: Sample, sizes: Sequence[int]) -> Iterator[int]:
        """Yield which tensors of the plan to make again."""
        facts = self.manifest.tensors
        costly: list[int] = []
        cheap: list[int] = []
        for number, planned in enumerate(self.plan.tensors):
            fact = facts.get(planned.pair.name)
            # Where the plan says otherwise, the claims are about another tensor.
            if fact is not None and may_become(planned.pair.action, fact):
                (cheap if fact.truncation is None else costly).append(number)
        yield from sorted([*cheap, *sample.choose(costly, sizes)])

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


def _route(pair: Pair, cut: Truncation | None) -> Route:
    """Return a route that does not iterate, and another one than made the result."""
    if cut is None or cut.svd.method != Method.GRAM.value:
        return Route.GRAM
    small = all(m * n <= _EXACT_ENTRIES for m, n in pair.matrices)
    return Route.EXACT if small else Route.GRAM


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor at work: it is cut at the ranks that are claimed, and compared."""

    result: Result
    planned: PlannedTensor
    fact: TensorFact
    """What is claimed of it."""

    rule: Rule
    opened: list[Comparison] = field(default_factory=list)
    """The last one counts: a device that fails is followed by the CPU."""

    ranges: list[tuple[int, int]] = field(default_factory=list)
    """The least and the largest rank that the rule may mean, of each matrix."""

    spectra: list[list[float]] = field(default_factory=list)
    """All singular values of each matrix."""

    @property
    def claimed_ranks(self) -> tuple[int, ...]:
        """The rank of each matrix; 0 where the update is said to be zero."""
        cut = self.fact.truncation
        return cut.ranks if cut is not None else (0,) * len(self.planned.pair.matrices)

    @property
    def is_single(self) -> bool:
        """Whether the claims may have been computed in float32."""
        cut = self.fact.truncation
        return cut is not None and is_single(cut, self.rule)

    def check(self, job: Job) -> list[Failure]:
        """Make the tensor again, and return every false claim."""
        pair, cut = self.planned.pair, self.fact.truncation
        if cut is not None and len(cut.matrices) != len(pair.matrices):
            return [Failure("matrices", len(pair.matrices), len(cut.matrices), pair.name)]
        claimed = job.options
        # A coarse claim is compared with values that are not.
        tolerance = min(claimed.tolerance, VALUE_TOLERANCE)
        options = replace(claimed, svd=_route(pair, cut), tolerance=tolerance)
        job = replace(job, options=options, cutter=self.cut)
        try:
            (again,) = process_tensor(job, self.planned, [self])
        except CheckpointError:
            raise
        except SvdcutError as error:
            return [Failure("result", error.what, self.fact.sha256, pair.name)]
        return [Failure(*found, pair.name) for found in self._compare(again, claimed)]

    def open(self, planned: PlannedTensor, options: Options) -> TensorOutput:
        """Return what takes the tensor."""
        cut, single = self.fact.truncation, self.is_single
        self.opened.append(Comparison(self.result, planned, options, cut, single=single))
        return self.opened[-1]

    def cut(self, job: Job, pair: Pair) -> Iterator[list[CutMatrix]]:
        """Yield the cut of each matrix, as a `svdcut.truncation.tensor_job.Cutter`."""
        self.ranges.clear()
        self.spectra.clear()
        for sides in matrix_sides(pair):
            yield [self._cut(job, pair, sides)]

    def _cut(self, job: Job, pair: Pair, sides: MatrixSides) -> CutMatrix:
        (asked,) = job.requests(pair, sides.number)
        full_rank = pair.full_ranks[sides.number]
        rank = min(self.claimed_ranks[sides.number], full_rank)
        requests = [replace(asked, rank=rank)]
        if not self._few_suffice(full_rank):
            whole = self.rule.known_rank(full_rank) is None and not self.rule.is_joint
            requests.append(asked if whole else replace(asked, rule=_ANY_SHARE))
        made = decompose_matrix(job, pair, sides, requests)
        ours, own = made[0], made[-1]
        values = own.result.measured.singular_values()
        values += [0.0] * (full_rank - len(values))  # those that rounding hides
        self.ranges.append(self.rule.rank_range(values, full_rank, edge=own.result.cut.edge or 0.0))
        self.spectra.append(values)
        return ours

    def _few_suffice(self, full_rank: int) -> bool:
        """Whether the leading triplets alone, by eigenvectors, are another route than was taken."""
        cut = self.fact.truncation
        iterated = cut is not None and cut.svd.method == Method.KRYLOV.value
        return iterated and self.rule.known_rank(full_rank) is not None

    def _compare(self, again: TensorFact, options: Options) -> list[Contradiction]:
        """Return the first claims that do not hold: those that follow are of another tensor."""
        fact, comparison = self.fact, self.opened[-1]
        wrong = differences(again, fact, ("action", "shape", "dtype", "file"))
        if wrong:
            return wrong
        cut, ours, single = fact.truncation, again.truncation, self.is_single
        if cut is not None and ours is not None:
            nearest = [
                min(max(rank, low), high)
                for rank, (low, high) in zip(cut.ranks, self.ranges, strict=True)
            ]
            wrong = [
                *compare_facts(cut, ours, nearest, tolerance=options.tolerance, single=single)
            ] or [*compare_stored(cut, ours, options.scale, comparison.distance, single=single)]
        elif again.sha256 != fact.sha256:
            wrong = [("result", again.sha256, fact.sha256)]
        if not wrong and comparison.differs():
            wrong = [("result", "other bytes", "those of the inputs")]
        return wrong
