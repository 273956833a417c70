"""Carry out a verification, without the inputs or with them."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from svdcut.choose.options import Options
from svdcut.choose.ranks import Budget, Rule, parse_rule, parse_rules, rule_for
from svdcut.device import num_workers, resolve_device
from svdcut.errors import SvdcutError, UsageError
from svdcut.files.checkpoint import Checkpoint
from svdcut.files.filenames import MANIFEST_NAME
from svdcut.files.tensorfile import TensorEntry
from svdcut.machine import num_cores
from svdcut.pair.pairing import Action
from svdcut.pair.plan import Plan, PlannedTensor, make_plan
from svdcut.record.manifest import Manifest, TensorFact
from svdcut.record.progress import Observer, Progress
from svdcut.streaming.memory import SPARE_BYTES, dense_bytes
from svdcut.streaming.pool import Pool
from svdcut.truncation.tensor_job import Job
from svdcut.verification.adapters import check_adapter
from svdcut.verification.budget import Share, check_budget
from svdcut.verification.claims import check_claims
from svdcut.verification.document import read_manifest
from svdcut.verification.files import Folder, check_folder
from svdcut.verification.findings import Checked, Failure, Verification, conclude
from svdcut.verification.inputs import (
    SIDES,
    agrees,
    check_plan,
    check_published,
    check_sources,
    total_bytes,
)
from svdcut.verification.recomputation import Discard, Recomputed, is_cheap, recompute_tensor

_MAX_RULES = 64
"""Of a run that is repeated as a whole; each costs a result."""

Resolve = Callable[[Mapping[str, Any]], Options]


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a result is said to be made from, and how much of it to compute again."""

    base: Checkpoint
    open_finetuned: Callable[[Mapping[str, str]], Checkpoint]
    """Opens the other side under renames of base's prefixes, which the manifest knows."""

    sample: int | None = None
    """How many truncated tensors; None for all."""

    seed: int = 0
    """Of the choice."""

    device: str = "auto"


def run_verification(
    out: Path, inputs: Inputs | None, resolve: Resolve, observe: Observer
) -> Verification:
    """Check a result.

    Parameters
    ----------
    out : Path
        Its folder.
    inputs : Inputs or None
        What to check it against beside its own manifest.
    resolve : callable
        Makes `Options` of those of a manifest.
    observe : callable
        Told of each tensor and file that is done, by the thread that did it.

    Returns
    -------
    Verification
        Every claim that does not hold.

    Raises
    ------
    CheckpointError
        If there is no manifest, or an input cannot be read.
    UsageError
        If there is no such device.

    Notes
    -----
    Reads every byte of the result once, and with inputs every byte of these twice.
    Memory is bounded as that of a truncation.
    """
    device = resolve_device(inputs.device if inputs else "cpu")
    manifest, failures = read_manifest(out)
    if manifest is None:
        return conclude(Checked(files=1), failures)
    finetuned = None
    if inputs is not None:
        try:
            finetuned = inputs.open_finetuned(dict(manifest.options["map"]))
        except UsageError as error:
            failures.append(_wrong_options(error, manifest))
            inputs = None
    truncated = [name for name, fact in manifest.tensors.items() if fact.truncation]
    with Pool(num_cores(), SPARE_BYTES) as pool:
        folder = _check_folder(out, manifest, pool, observe)
        failures += folder.failures
        checked = Checked(
            files=1 + len(manifest.files), tensors=len(folder.entries), truncated=len(truncated)
        )
        try:
            options = resolve(manifest.options)
            rule = parse_rule(manifest.options["rank"])
        except SvdcutError as error:
            failures.append(_wrong_options(error, manifest))
            return conclude(checked, failures)
        failures += check_claims(manifest, options, rule)
        if inputs is None or finetuned is None:
            return conclude(checked, failures)
        total = total_bytes(inputs.base, finetuned)
        tell = _teller("inputs", total, observe)
        failures += check_sources(inputs.base, finetuned, manifest, pool, tell)
    checked = replace(checked, input_files=len(inputs.base.files) + len(finetuned.files))
    swapped = any(failure.claim == SIDES for failure in failures)
    plan = None if swapped else _plan(inputs.base, finetuned, options, failures)
    if plan is None:
        return conclude(checked, failures)
    failures += check_plan(plan, manifest)
    rules = _rules_of_run(manifest.command, rule)
    if manifest.adapter is not None:
        counts, found = (0, 0), list[Failure]()
        # Others say enough, and what is no adapter cannot be compared.
        if all(failure.is_note for failure in failures):
            place = rules.index(rule)
            counts, found = check_adapter(out, manifest, plan, options, rules, place, observe)
        return conclude(_count(checked, *counts), failures + found)
    failures += check_published(plan, manifest, options)
    job = Job(rules, options, device, _claimed_ranks(plan, manifest, options, rule))
    work = _Work(job, rules.index(rule), plan, manifest, folder.entries, inputs)
    counts, found = work.carry_out(observe)
    return conclude(_count(checked, *counts), failures + found)


def _plan(
    base: Checkpoint, finetuned: Checkpoint, options: Options, failures: list[Failure]
) -> Plan | None:
    """Return what the options make of the headers, or None and why there is no such plan."""
    try:
        return make_plan(base, finetuned, options)
    except SvdcutError as error:
        failures.append(Failure("options", error.what, "a plan of these", file=MANIFEST_NAME))
        return None


def _count(checked: Checked, reproduced: int, bounded: int) -> Checked:
    recomputed = reproduced + bounded
    return replace(checked, recomputed=recomputed, reproduced=reproduced, bounded=bounded)


def _wrong_options(error: SvdcutError, manifest: Manifest) -> Failure:
    return Failure("options", error.what, manifest.options, file=MANIFEST_NAME)


def _teller(stage: str, total: int, observe: Observer) -> Callable[[str, int], None]:
    return lambda name, size: observe(Progress(stage, name, size, total))


def _check_folder(out: Path, manifest: Manifest, pool: Pool, observe: Observer) -> Folder:
    total = sum(fact.size for fact in manifest.files.values())
    return check_folder(out, manifest, pool, _teller("result", total, observe))


def _rules_of_run(command: Sequence[str], rule: Rule) -> tuple[Rule, ...]:
    """Return the rules of all results that were made together with one.

    A wrong answer does no harm: the bytes are then not reproduced, but bounded.
    """
    text = str(rule)
    for word, after in zip_longest(command, command[1:]):
        if word in ("-k", "--rank"):
            text = after or ""
        elif word.startswith(("-k", "--rank=")):
            text = word.removeprefix("--rank=").removeprefix("-k")
    try:
        rules = parse_rules(text)
    except UsageError:
        return (rule,)
    others = [other for other in rules if other != rule]
    # The ranks that another budget gave are in no manifest but its own.
    known = (
        rule in rules and len(rules) <= _MAX_RULES and not any(other.is_joint for other in others)
    )
    return rules if known else (rule,)


def _claimed_ranks(
    plan: Plan, manifest: Manifest, options: Options, rule: Rule
) -> dict[tuple[Rule, str, int], int]:
    """Return the ranks that budgets are said to have given."""
    ranks = {}
    for planned in plan.tensors:
        pair = planned.pair
        fact = manifest.tensors.get(pair.name)
        own = rule_for(pair.name, rule, options.rank_for)
        if own.is_joint and fact is not None and pair.action is Action.TRUNCATE:
            claimed = fact.truncation.ranks if fact.truncation else ()
            for number, shape in enumerate(pair.matrices):
                rank = claimed[number] if number < len(claimed) else 0
                ranks[own, pair.name, number] = min(rank, *shape)
    return ranks


@dataclass(frozen=True, slots=True)
class _Work:
    """The tensors to compute again."""

    job: Job
    output: int
    """Which of the job's rules is the result's."""

    plan: Plan
    manifest: Manifest
    entries: Mapping[str, TensorEntry]
    inputs: Inputs

    def carry_out(self, observe: Observer) -> tuple[tuple[int, int], list[Failure]]:
        """Return how many truncated tensors were reproduced and bounded, and what failed."""
        tasks = self._choose()
        total = sum(planned.target.size_bytes for planned, _ in tasks)
        sizes = [dense_bytes(planned.pair) for planned, _ in tasks]
        descriptor = os.open(os.devnull, os.O_WRONLY)

        def task(number: int) -> Recomputed:
            planned, fact = tasks[number]
            name, size = planned.pair.name, planned.target.size_bytes
            stored = self._stored(planned, fact)
            done = recompute_tensor(
                self.job, self.output, planned, fact, stored, Discard(descriptor)
            )
            observe(Progress("recompute", name, size, total, (fact,)))
            return done

        device = self.job.device
        try:
            with Pool(num_workers(device), max(sizes, default=0) + SPARE_BYTES, device) as pool:
                results = pool.map(task, sizes)
        finally:
            os.close(descriptor)
        cuts = [r for r, (_, fact) in zip(results, tasks, strict=True) if fact.truncation]
        reproduced = sum(result.reproduced for result in cuts)
        failures = [failure for result in results for failure in result.failures]
        spectra = {
            (planned.pair.name, number): spectrum.values
            for result, (planned, _) in zip(results, tasks, strict=True)
            for number, spectrum in enumerate(result.spectra)
        }
        failures += self._check_budgets(spectra)
        return (reproduced, len(cuts) - reproduced), failures

    def _choose(self) -> list[tuple[PlannedTensor, TensorFact]]:
        """Return the tensors to compute: all that take no SVD, and the sample."""
        tasks = []
        for planned in self.plan.tensors:
            fact = self.manifest.tensors.get(planned.pair.name)
            # Where the plan says otherwise, the claims are none of this tensor.
            if fact is not None and agrees(planned.pair.action, fact):
                tasks.append((planned, fact))
        costly = [i for i, (planned, fact) in enumerate(tasks) if not is_cheap(planned, fact)]
        chosen = self._sample(costly, [planned.target.size_bytes for planned, _ in tasks])
        left_out = set(costly).difference(chosen)
        return [task for i, task in enumerate(tasks) if i not in left_out]

    def _sample(self, numbers: Sequence[int], sizes: Sequence[int]) -> Iterator[int]:
        """Yield a sample in which large and small tensors have their even share."""
        count = self.inputs.sample
        if count is None or count >= len(numbers):
            yield from numbers
            return
        by_size = sorted(numbers, key=lambda number: (sizes[number], number))
        # A choice that must be repeatable, not one that must be secret.
        generator = random.Random(self.inputs.seed)  # noqa: S311
        for part in range(count):
            start, stop = (len(by_size) * edge // count for edge in (part, part + 1))
            yield by_size[generator.randrange(start, stop)]

    def _stored(self, planned: PlannedTensor, fact: TensorFact) -> TensorEntry | None:
        entry, target = self.entries.get(planned.pair.name), planned.target
        if entry is None or (entry.dtype, entry.shape) != (target.dtype, target.shape):
            return None
        return entry if fact.dtype == target.dtype.value else None

    def _check_budgets(
        self, spectra: Mapping[tuple[str, int], tuple[float, ...]]
    ) -> Iterator[Failure]:
        sizes = {
            (planned.pair.name, number): size
            for planned in self.plan.tensors
            for number, size in enumerate(_sizes(planned))
        }
        owners = {planned.pair.name: planned.pair.seed_name for planned in self.plan.tensors}
        rules = {rule for rule, _, _ in self.job.budgets if isinstance(rule, Budget)}
        for rule in rules:
            shares = [
                Share(name, owners[name], *sizes[name, i], rank, self._values(name, i, spectra))
                for (own, name, i), rank in self.job.budgets.items()
                if own == rule
            ]
            yield from check_budget(rule, shares)

    def _values(
        self, name: str, number: int, spectra: Mapping[tuple[str, int], tuple[float, ...]]
    ) -> tuple[float, ...] | None:
        """Return the singular values of a matrix, if they are known."""
        if self.manifest.tensors[name].truncation is None:
            return ()
        return spectra.get((name, number))


def _sizes(planned: PlannedTensor) -> list[tuple[tuple[int, int], int]]:
    """Return shape and full rank of each matrix that is truncated."""
    pair = planned.pair
    if pair.action is not Action.TRUNCATE:
        return []
    return list(zip(pair.matrices, pair.full_ranks, strict=True))
