"""Make every tensor of a result again by another route, and compare.

The truncation does the work: here are the ranks that it must cut at, and what is said of
the facts that it returns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import torch

from svdcut.choose.budget import allocate_budget
from svdcut.choose.keep import Keep
from svdcut.choose.options import Options
from svdcut.choose.ranks import Budget, Energy, Rule, rule_for
from svdcut.errors import CheckpointError, SvdcutError
from svdcut.pair.pairing import Pair
from svdcut.pair.plan import PlannedTensor
from svdcut.record.manifest import MatrixFact, TensorFact, Truncation
from svdcut.streaming.pool import Reserve
from svdcut.streaming.stored_matrix import MatrixSides, matrix_sides
from svdcut.svd.measured import Method
from svdcut.svd.route import Route
from svdcut.truncation.budget import Spectra, merge_copies
from svdcut.truncation.tensor_job import (
    CutMatrix,
    Job,
    TensorOutput,
    decompose_matrix,
    process_tensor,
)
from svdcut.verification.findings import Contradiction, Failure
from svdcut.verification.stored import Comparison, Distance, Result
from svdcut.verification.tolerances import (
    NORM,
    SHARE,
    SINGLE,
    energy_rounding,
    energy_tolerance,
    is_close,
    is_single,
    norm_tolerance,
    value_tolerance,
)

_EXACT_ENTRIES = 1 << 20
"""Up to this size what the Gram route made is made again by the exact one, which takes more
memory and time."""

_ANY_SHARE = Energy(0.5)
"""A rule that needs the whole spectrum: the route to a few triplets works in float32."""

_SLACK = 1 + 1e-6
"""Of sums of squares that were taken over blocks."""


@dataclass(frozen=True, slots=True)
class Recomputed:
    """What became of one tensor."""

    failures: tuple[Failure, ...]
    spectra: tuple[tuple[float, ...], ...] = ()
    """All singular values of each matrix, where the rule is a budget."""


@dataclass(frozen=True, slots=True)
class Recomputation:
    """What all tensors have in common."""

    rule: Rule
    options: Options
    """As the manifest has them."""

    device: torch.device
    result: Result

    def run(self, planned: PlannedTensor, fact: TensorFact, reserve: Reserve) -> Recomputed:
        """Make a tensor again, and compare it with what is claimed and what is stored.

        Parameters
        ----------
        planned : PlannedTensor
            Where it comes from.
        fact : TensorFact
            What is claimed of it.
        reserve : Reserve
            Memory for a more careful route.

        Raises
        ------
        CheckpointError
            If a side cannot be read.
        """
        name, cut = planned.pair.name, fact.truncation
        work = _Tensor(
            self.result,
            planned,
            self.options,
            cut,
            rule_for(name, self.rule, self.options.rank_for),
        )
        if cut is not None and len(cut.matrices) != len(planned.pair.matrices):
            found = Failure("matrices", len(planned.pair.matrices), len(cut.matrices), name)
            return Recomputed((found,))
        job = Job(
            (self.rule,),
            replace(self.options, svd=_route(planned.pair, cut)),
            self.device,
            {},
            reserve,
            cutter=work.cut,
        )
        try:
            (again,) = process_tensor(job, planned, [work])
        except CheckpointError:
            raise
        except SvdcutError as error:
            return Recomputed((Failure("result", error.what, fact.sha256, name),))
        failures = tuple(Failure(*found, name) for found in work.compare(again, fact))
        return Recomputed(failures, tuple(work.spectra))


def _route(pair: Pair, cut: Truncation | None) -> Route:
    """Return a route that does not iterate, and another one than made the result."""
    if cut is None or cut.svd.method != Method.GRAM.value:
        return Route.GRAM
    small = all(m * n <= _EXACT_ENTRIES for m, n in pair.matrices)
    return Route.EXACT if small else Route.GRAM


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor at work: it cuts at the ranks that are claimed, and compares."""

    result: Result
    planned: PlannedTensor
    options: Options
    claimed: Truncation | None
    rule: Rule
    opened: list[Comparison] = field(default_factory=list)
    """The last one counts: a device that fails is followed by the CPU."""

    ranks: list[tuple[int, int]] = field(default_factory=list)
    """The least and the largest rank that the rule may mean, of each matrix."""

    spectra: list[tuple[float, ...]] = field(default_factory=list)

    @property
    def is_single(self) -> bool:
        """Whether the claims may have been computed in float32."""
        return self.claimed is not None and is_single(self.claimed, self.rule)

    def open(self, planned: PlannedTensor, options: Options) -> TensorOutput:
        """Return what takes the tensor."""
        claimed, single = self.claimed, self.is_single
        self.opened.append(Comparison(self.result, planned, options, claimed, single=single))
        return self.opened[-1]

    def cut(self, job: Job, pair: Pair) -> Iterator[list[CutMatrix]]:
        """Yield the cut of each matrix, as a `svdcut.truncation.tensor_job.Cutter`."""
        self.ranks.clear()
        self.spectra.clear()
        for sides in matrix_sides(pair):
            yield [self._cut(job, pair, sides)]

    def _cut(self, job: Job, pair: Pair, sides: MatrixSides) -> CutMatrix:
        (asked,) = job.requests(pair, sides.number)
        full_rank = pair.full_ranks[sides.number]
        rank = min(self.claimed.ranks[sides.number], full_rank) if self.claimed else 0
        whole = self.rule.known_rank(full_rank) is None and not self.rule.is_joint
        free = asked if whole else replace(asked, rule=_ANY_SHARE)
        ours, own = decompose_matrix(job, pair, sides, [replace(asked, rank=rank), free])
        values = tuple(own.result.measured.singular_values()) or (0.0,) * full_rank
        self.ranks.append(self.rule.rank_range(values, full_rank, edge=own.result.cut.edge or 0.0))
        if self.rule.is_joint:
            self.spectra.append(values)
        return ours

    def compare(self, again: TensorFact, fact: TensorFact) -> Iterator[Contradiction]:
        """Yield every claim that does not hold."""
        wrong = _differences(again, fact, ("action", "shape", "dtype", "file"))
        cut, ours = fact.truncation, again.truncation
        if cut is not None and ours is not None and not wrong:
            ranks = [
                min(max(k, low), high) for k, (low, high) in zip(cut.ranks, self.ranks, strict=True)
            ]
            wrong += compare_facts(cut, ours, ranks, single=self.is_single)
            if not wrong:
                scale, distance = self.options.scale, self.opened[-1].distance
                wrong += compare_stored(cut, ours, scale, distance, single=self.is_single)
        elif not wrong and again.sha256 != fact.sha256:
            wrong.append(("result", again.sha256, fact.sha256))
        if not wrong and self.opened[-1].differs():
            wrong.append(("result", "other bytes", "those of the inputs"))
        yield from wrong


def compare_facts(
    cut: Truncation, again: Truncation, ranks: Sequence[int], *, single: bool
) -> Iterator[Contradiction]:
    """Yield the numbers of a tensor that are not those of a second computation.

    Parameters
    ----------
    cut : Truncation
        What is claimed.
    again : Truncation
        What was found at the claimed ranks.
    ranks : sequence of int
        The ranks next to the claimed ones that the rule may mean.
    single : bool
        Whether the claims may have been computed in float32.
    """
    wrong = _differences(again, cut, ("rule", "keep", "rows", "full_rank"))
    for found in (ranks, again.ranks):
        wrong += [("rank", a, b) for a, b in zip(found, cut.ranks, strict=True) if a != b]
    if wrong:
        yield wrong[0]  # the other numbers are those of another cut
        return
    for ours, theirs in zip(again.matrices, cut.matrices, strict=True):
        yield from _compare_values(ours, theirs, again)
    yield from _compare_norms(cut, again, single=single)


def _differences(found: object, said: object, claims: Sequence[str]) -> list[Contradiction]:
    pairs = [(claim, getattr(found, claim), getattr(said, claim)) for claim in claims]
    return [pair for pair in pairs if pair[1] != pair[2]]


def _compare_values(
    ours: MatrixFact, theirs: MatrixFact, again: Truncation
) -> Iterator[Contradiction]:
    norm, size, keep = again.update_norm, again.full_rank, Keep(again.keep)
    for item in fields(MatrixFact):
        found, said = getattr(ours, item.name), getattr(theirs, item.name)
        if found is None or said is None:
            agree = found is said
        else:
            first = found if item.name == "noise_edge" else ours.sigma_first
            agree = abs(found - said) <= value_tolerance(found, first, norm, size, keep)
        if not agree:
            yield item.name, found, said


def _compare_norms(cut: Truncation, again: Truncation, *, single: bool) -> Iterator[Contradiction]:
    norm, energy = again.update_norm, energy_tolerance(cut, again, single=single)
    if not is_close(norm, cut.update_norm, norm_tolerance(single=single)):
        yield "update_norm", norm, cut.update_norm
        return
    tail, said = ((side.tail_norm / norm) ** 2 if norm else side.tail_norm for side in (again, cut))
    if not abs(tail - said) <= energy + 2 * NORM * tail:
        yield "tail_norm", again.tail_norm, cut.tail_norm
    if not abs(again.energy_retained - cut.energy_retained) <= energy + 2 * NORM:
        yield "energy_retained", again.energy_retained, cut.energy_retained
    if not is_close(again.zero_fraction, cut.zero_fraction, 0, SHARE):
        yield "zero_fraction", again.zero_fraction, cut.zero_fraction


def compare_stored(
    cut: Truncation, again: Truncation, scale: float, distance: Distance, *, single: bool
) -> Iterator[Contradiction]:
    """Yield what the stored numbers of a tensor contradict.

    Parameters
    ----------
    cut : Truncation
        What is claimed.
    again : Truncation
        What was found.
    scale : float
        Of the kept update.
    distance : Distance
        Of what is stored from what was made again.
    single : bool
        Whether the claims may have been computed in float32.
    """
    allowed = distance.work + distance.triplets
    if not distance.beyond <= allowed * _SLACK:
        yield (
            "result",
            f"norm {distance.beyond:.3g} away, beyond rounding",
            f"at most {allowed:.3g}",
        )
    most = min(allowed, distance.storage + distance.work)
    if not abs(again.rounding_error - cut.rounding_error) <= most + NORM * again.rounding_error:
        yield "rounding_error", again.rounding_error, cut.rounding_error
    if not scale:
        return
    norm, tail = again.update_norm, again.tail_norm
    slack = energy_tolerance(cut, again, single=single) * norm**2
    low, high = (math.sqrt(max(tail**2 + sign * slack, 0.0)) for sign in (-1, 1))
    # The update itself is rounded to float32.
    off = ((distance.storage + distance.work) / abs(scale) + SINGLE * norm) * _SLACK
    if not low - off <= distance.error <= high + off:
        yield "error", distance.error, f"{tail:.6g}, within {off:.2g}"


def check_budget(
    rule: Budget,
    pairs: Sequence[Pair],
    spectra: Mapping[str, Spectra],
    claimed: Mapping[str, Sequence[int]],
) -> Iterator[Failure]:
    """Yield the tensors whose ranks show that a budget was not spent best.

    Parameters
    ----------
    rule : Budget
        The rule.
    pairs : sequence of Pair
        All tensors under it.
    spectra : mapping
        Of as many of them as were computed, by name.
    claimed : mapping
        The ranks that are claimed of each tensor.

    Notes
    -----
    What counts is the energy that is kept: another computation may order triplets of almost
    equal energy otherwise.
    """
    known = [(pair, spectra[pair.name]) for pair in pairs if pair.name in spectra]
    owners, copies = merge_copies(known)
    for copy, owner in copies:
        if claimed[copy.name] != claimed[owner.name]:
            yield Failure("rank", claimed[owner.name], claimed[copy.name], copy.name)
    values = {(pair.name, i): s for pair, matrices in owners for i, s in enumerate(matrices)}
    shapes = {(pair.name, i): m for pair, _ in owners for i, m in enumerate(pair.matrices)}
    said = {(name, i): claimed[name][i] for name, i in values}
    full = sum(sum(shapes[key]) * len(s) for key, s in values.items())
    spent = sum(sum(shapes[key]) * rank for key, rank in said.items())
    share = rule.share
    if len(known) < len(pairs) and full:
        # Those that are known share what they got among themselves.
        share = min(share, spent / full * (1 + SHARE))
    best = allocate_budget(values, shapes, share)
    off = math.fsum(2 * energy_rounding(len(s)) * _energy(s, len(s)) for s in values.values())
    kept, most = (
        math.fsum(_energy(s, ranks[key]) for key, s in values.items()) for ranks in (said, best)
    )
    if spent > share * full * (1 + SHARE) or kept < most - off:
        for key, rank in best.items():
            if rank != said[key]:
                yield Failure("rank", rank, said[key], key[0])


def _energy(s: Sequence[float], rank: int) -> float:
    return math.fsum(value * value for value in s[:rank])
