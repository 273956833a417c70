"""The first pass of a joint rule: measure all spectra, then allocate the ranks.

It writes records of the spectra and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch

from svdcut.choose.ranks import Rule
from svdcut.pair.pairing import Action, Pair
from svdcut.pair.plan import Plan
from svdcut.record.progress import Observer, Progress
from svdcut.streaming.pool import Pool, or_on_cpu
from svdcut.streaming.stored_matrix import MatrixSides, matrix_sides
from svdcut.streaming.update import read_update
from svdcut.svd.values import singular_values
from svdcut.truncation.tensor_job import BudgetRanks, Job
from svdcut.write.journal import Journal
from svdcut.write.writer import CheckpointWriter

Spectra = Sequence[Sequence[float]]
"""All singular values of each matrix of a tensor."""

_SPECTRA = "spectra"
"""Kind of a record of a tensor's singular values."""


def allocate_budgets(
    job: Job,
    plan: Plan,
    pool: Pool,
    sizes: Sequence[int],
    writer: CheckpointWriter | Journal,
    observe: Observer,
    own: frozenset[int] | None = None,
    gather: Callable[[], None] = lambda: None,
) -> BudgetRanks:
    """Measure the spectra of all tensors under a joint rule, and allocate their ranks.

    Parameters
    ----------
    job, plan
        Of the run.
    pool : Pool
        Does the work.
    sizes : sequence of int
        Memory that each tensor of the plan takes at work, in bytes.
    writer : CheckpointWriter or Journal
        Remembers the spectra, in case the run ends here.
    observe : callable
        Told of each tensor that is done.
    own : frozenset of int, optional
        Numbers of the tensors to measure first, where other workers measure the rest.
    gather : callable
        Called after these; makes the spectra of others known to `writer`.

    Returns
    -------
    mapping
        The rank of each matrix under a budget; empty where no rule is one.
    """
    rules = [
        {rule for rule in job.rules_for(tensor.pair) if rule.is_joint}
        if tensor.pair.action is Action.TRUNCATE
        else set()
        for tensor in plan.tensors
    ]
    needed = [number for number, group in enumerate(rules) if group]
    total = sum(plan.tensors[number].target.size_bytes for number in needed)

    def task(number: int) -> list[list[float]]:
        planned = plan.tensors[number]
        name = planned.pair.name
        kept = writer.find(_SPECTRA, name)
        resumed = kept is not None
        if resumed:
            spectra = cast("list[list[float]]", kept)
        else:
            spectra, _ = or_on_cpu(job.device, lambda device: _spectra(planned.pair, device))
            writer.record(_SPECTRA, name, spectra)
        observe(Progress("spectra", name, planned.target.size_bytes, total, resumed=resumed))
        return spectra

    def measure(numbers: Sequence[int]) -> dict[int, list[list[float]]]:
        found = pool.map(lambda i: task(numbers[i]), [sizes[number] for number in numbers])
        return dict(zip(numbers, found, strict=True))

    spectra = measure([number for number in needed if own is None or number in own])
    gather()
    # Those of workers that have not come yet, too.
    spectra |= measure([number for number in needed if number not in spectra])
    ranks: dict[tuple[Rule, str, int], int] = {}
    for rule in set().union(*rules):
        pairs = [
            (plan.tensors[number].pair, spectra[number])
            for number in needed
            if rule in rules[number]
        ]
        ranks |= {(rule, *key): rank for key, rank in _spend(rule, pairs).items()}
    return ranks


def _spend(rule: Rule, pairs: Sequence[tuple[Pair, Spectra]]) -> dict[tuple[str, int], int]:
    """Allocate ranks; copies of a tied matrix count once, and get the same rank."""
    owners, copies = merge_copies(pairs)
    ranks = rule.allocate(
        {(pair.name, i): s for pair, values in owners for i, s in enumerate(values)},
        {(pair.name, i): m for pair, _ in owners for i, m in enumerate(pair.matrices)},
    )
    return ranks | {(copy.name, 0): ranks[owner.name, 0] for copy, owner in copies}


def merge_copies(
    pairs: Sequence[tuple[Pair, Spectra]],
) -> tuple[list[tuple[Pair, Spectra]], list[tuple[Pair, Pair]]]:
    """Return the matrices that a budget pays for, and the copies of them, each with its owner."""
    first: dict[str, tuple[Pair, Spectra]] = {}
    owners: list[tuple[Pair, Spectra]] = []
    copies: list[tuple[Pair, Pair]] = []
    for pair, values in pairs:
        owner, spectra = first.setdefault(pair.seed_name, (pair, values))
        if owner is not pair and spectra == values:
            copies.append((pair, owner))
        else:
            owners.append((pair, values))
    return owners, copies


def _spectra(pair: Pair, device: torch.device) -> list[list[float]]:
    return [_spectrum(sides, device) for sides in matrix_sides(pair)]


def _spectrum(sides: MatrixSides, device: torch.device) -> list[float]:
    update = read_update(sides, device, measure_rounding=False)
    # Small values need not be exact here: they only rank the triplets.
    return singular_values(update.matrix, tolerance=math.inf).singular_values
