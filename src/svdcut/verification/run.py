"""Carry out a verification, without the inputs or with them."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from svdcut.adapter.reading import open_finetuned
from svdcut.choose.options import Options
from svdcut.choose.ranks import Budget, parse_rule, rule_for
from svdcut.device import num_workers, resolve_device
from svdcut.errors import SvdcutError, UsageError
from svdcut.files.checkpoint import Checkpoint
from svdcut.files.filenames import MANIFEST_NAME
from svdcut.files.tensorfile import TensorEntry
from svdcut.machine import num_cores
from svdcut.pair.pairing import Action, Pair
from svdcut.pair.plan import Plan, PlannedTensor, make_plan
from svdcut.record.manifest import Manifest, TensorFact
from svdcut.record.progress import Observer, Progress
from svdcut.streaming.memory import SPARE_BYTES, memory_needs
from svdcut.streaming.pool import Pool, Reserve
from svdcut.svd.route import Route
from svdcut.truncation.budget import Spectra
from svdcut.verification.claims import check_claims
from svdcut.verification.document import read_manifest
from svdcut.verification.findings import Checked, Failure, Verification, conclude
from svdcut.verification.folder import check_folder
from svdcut.verification.inputs import (
    SIDES,
    check_plan,
    check_published,
    check_sources,
    may_become,
)
from svdcut.verification.recomputation import Recomputation, Recomputed, check_budget
from svdcut.verification.stored import Result
from svdcut.write.tensor_writer import Staging


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a result is said to be made from, and how much of it to compute again."""

    base: Checkpoint
    open_finetuned: Callable[[Mapping[str, str]], Checkpoint]
    """Opens the other side under renames of base's prefixes, which the manifest knows."""

    sample: int | None = None
    """How many truncated tensors to compute again; None for all."""

    seed: int = 0
    """Of the choice."""

    device: str = "auto"


def run_verification(out: Path, inputs: Inputs | None, observe: Observer) -> Verification:
    """Check a result.

    Parameters
    ----------
    out : Path
        Its folder.
    inputs : Inputs or None
        What to check it against beside its own manifest.
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
    with Pool(num_cores(), SPARE_BYTES) as pool:
        total = sum(fact.size for fact in manifest.files.values())
        entries, found = check_folder(out, manifest, pool, _teller("result", total, observe))
        failures += found
        checked = Checked(
            files=1 + len(manifest.files),
            tensors=len(entries),
            truncated=sum(fact.truncation is not None for fact in manifest.tensors.values()),
        )
        try:
            options = Options.from_json(manifest.options)
            rule = parse_rule(manifest.options["rank"])
            finetuned = inputs.open_finetuned(options.map) if inputs else None
        except UsageError as error:
            failures.append(_no_plan(error))
            return conclude(checked, failures)
        failures += check_claims(manifest, options, rule)
        if inputs is None or finetuned is None:
            return conclude(checked, failures)
        files = (*inputs.base.files, *finetuned.files)
        tell = _teller("inputs", sum(file.size_bytes for file in files), observe)
        failures += check_sources(inputs.base, finetuned, manifest, pool, tell)
    checked = replace(checked, input_files=len(files))
    if not any(failure.claim == SIDES for failure in failures):
        try:
            plan = make_plan(inputs.base, finetuned, options)
            result = _open_result(out, manifest, inputs.base, entries, options)
        except SvdcutError as error:
            failures.append(_no_plan(error))
            return conclude(checked, failures)
        failures += [*check_plan(plan, manifest), *check_published(plan, manifest, options)]
        again = _Again(plan, manifest, Recomputation(rule, options, device, result), inputs)
        try:
            failures += again.run(observe)
        finally:
            result.close()
        checked = replace(checked, recomputed=again.num_truncated)
    return conclude(checked, failures)


def _no_plan(error: SvdcutError) -> Failure:
    return Failure("options", error.what, "options that make a plan", file=MANIFEST_NAME)


def _teller(stage: str, total: int, observe: Observer) -> Callable[[str, int], None]:
    return lambda name, size: observe(Progress(stage, name, size, total))


def _open_result(
    out: Path,
    manifest: Manifest,
    base: Checkpoint,
    entries: Mapping[str, TensorEntry],
    options: Options,
) -> Result:
    """Open a result as a loader does."""
    if manifest.adapter is None:
        return Result(entries)
    loaded = open_finetuned(out, base, renames=options.map)
    hashes = {
        entries[name].offset: fact.sha256
        for name, fact in manifest.adapter.tensors.items()
        if name in entries
    }
    nowhere = Staging(Path(os.devnull), lambda *_: None, lambda *_: None)
    return Result(loaded.tensors, loaded.updates, hashes, nowhere)


class _Again:
    """The tensors to compute again.

    Parameters
    ----------
    plan : Plan
        Of the inputs.
    manifest : Manifest
        Of the result.
    work : Recomputation
        Does the work.
    inputs : Inputs
        How many to compute.
    """

    def __init__(self, plan: Plan, manifest: Manifest, work: Recomputation, inputs: Inputs) -> None:
        self._plan = plan
        self._facts = manifest.tensors
        self._work = work
        self._inputs = inputs
        needs = memory_needs(plan, (work.rule,), replace(work.options, svd=Route.GRAM))
        self._needs = needs
        self._tasks = list(self._choose())

    @property
    def num_truncated(self) -> int:
        """How many of them are truncated."""
        return sum(fact.truncation is not None for _, _, fact in self._tasks)

    def run(self, observe: Observer) -> list[Failure]:
        """Compute them, and return every false claim."""
        tasks, needs = self._tasks, self._needs
        total = sum(planned.target.size_bytes for _, planned, _ in tasks)
        reserve = Reserve(needs.reserve)

        def task(number: int) -> Recomputed:
            _, planned, fact = tasks[number]
            done = self._work.run(planned, fact, reserve)
            size = planned.target.size_bytes
            observe(Progress("recompute", planned.pair.name, size, total, (fact,)))
            return done

        device = self._work.device
        with Pool(num_workers(device), needs.bound, device) as pool:
            found = pool.map(task, [size for size, _, _ in tasks])
        names = [planned.pair.name for _, planned, _ in tasks]
        failures = [failure for done in found for failure in done.failures]
        spectra = {name: done.spectra for name, done in zip(names, found, strict=True)}
        failures += self._check_budgets({n: s for n, s in spectra.items() if s})
        return failures

    def _choose(self) -> Iterator[tuple[int, PlannedTensor, TensorFact]]:
        """Yield size at work, plan and claims of all that takes no SVD, and of a sample."""
        tasks = [
            (size, planned, self._facts[planned.pair.name])
            for size, planned in zip(self._needs.sizes, self._plan.tensors, strict=True)
            # Where the plan says otherwise, the claims are none of this tensor.
            if planned.pair.name in self._facts
            and may_become(planned.pair.action, self._facts[planned.pair.name])
        ]
        costly = [i for i, (_, _, fact) in enumerate(tasks) if fact.truncation is not None]
        left_out = set(costly) - set(self._sample(costly, [task[0] for task in tasks]))
        return (task for i, task in enumerate(tasks) if i not in left_out)

    def _sample(self, numbers: Sequence[int], sizes: Sequence[int]) -> Iterator[int]:
        """Yield a sample in which large and small tensors have their even share."""
        count = self._inputs.sample
        if count is None or count >= len(numbers):
            yield from numbers
            return
        by_size = sorted(numbers, key=lambda number: (sizes[number], number))
        # A choice that must be repeatable, not one that must be secret.
        generator = random.Random(self._inputs.seed)  # noqa: S311
        for part in range(count):
            start, stop = (len(by_size) * edge // count for edge in (part, part + 1))
            yield by_size[generator.randrange(start, stop)]

    def _check_budgets(self, spectra: Mapping[str, Spectra]) -> Iterator[Failure]:
        under: dict[Budget, list[Pair]] = {}
        for planned in self._plan.tensors:
            pair = planned.pair
            rule = rule_for(pair.name, self._work.rule, self._work.options.rank_for)
            if isinstance(rule, Budget) and pair.action is Action.TRUNCATE:
                under.setdefault(rule, []).append(pair)
        ranks = {
            name: fact.truncation.ranks if fact.truncation else (0,) * len(spectra[name])
            for name, fact in self._facts.items()
            if name in spectra
        }
        for rule, pairs in under.items():
            yield from check_budget(rule, pairs, spectra, ranks)
