"""Carry out a sweep: both ends, then every cut, each on disk as soon as it is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from svdcut.choose.options import Options
from svdcut.evaluation.metrics import Evaluation
from svdcut.files.checkpoint import Checkpoint
from svdcut.pair.plan import Plan
from svdcut.record.progress import Observer, Progress
from svdcut.record.provenance import InputHashes, refuse_changed
from svdcut.sweeps.bench import Bench, Evaluator, Measured, Setting
from svdcut.sweeps.choice import choose, explain
from svdcut.sweeps.command import CHECKPOINT_NAME
from svdcut.sweeps.decompose import decompose_update, identify_work
from svdcut.sweeps.facts import BASE, Row, Sweep, Variant
from svdcut.sweeps.rowlog import RowLog
from svdcut.sweeps.stored import Decomposed
from svdcut.truncation.merging import loadable
from svdcut.truncation.preflight import check_checkpoint, check_factors

DECOMPOSITION_NAME = "decomposition"


@dataclass(frozen=True, slots=True)
class Task:
    """A sweep to be carried out."""

    plan: Plan
    options: Options
    variants: tuple[Variant, ...]
    evaluator: Evaluator
    folder: Path
    tolerance: float
    restart: bool = False
    quiet: bool = False


def run_sweep(task: Task, observe: Observer = lambda progress: None) -> Sweep:
    """Evaluate the fine-tuned side, base, and every cut; choose a rank.

    Parameters
    ----------
    task : Task
        What to do.
    observe : callable
        Told of each tensor that is merged or decomposed, and of each batch that is evaluated.

    Returns
    -------
    Sweep
        All rows and the choice.

    Raises
    ------
    OutputExistsError
        If the folder holds rows of other inputs, options or data.
    OutputError
        If the disk has no room for the factors, or for a checkpoint where one is written.
    SvdcutError
        As the decomposition and the evaluator do; rows that are done stay.

    Notes
    -----
    One decomposition, and one evaluation for each end and each cut that keeps other triplets
    than those before it. The model is loaded only if a row is missing.
    """
    identity = {**identify_work(task.plan, task.options), **_sidecars(task.plan)}
    with (
        RowLog(task.folder, {**identity, **task.evaluator.identity()}, restart=task.restart) as log,
        ExitStack() as until_end,
    ):
        finetuned, base, rows = _Run(task, log, until_end, observe).measure()
    refuse_changed(task.plan)
    return conclude(base, finetuned, rows, task.tolerance)


def conclude(
    base: Evaluation, finetuned: Evaluation, rows: Sequence[Row], tolerance: float
) -> Sweep:
    """Choose a rank of measured rows, and say why."""
    choice = choose(rows, finetuned, tolerance)
    answer = tuple(explain(rows, finetuned, tolerance, choice))
    return Sweep(base, finetuned, tuple(rows), tolerance, choice.by_accuracy, choice.by_gap, answer)


def _sidecars(plan: Plan) -> Mapping[str, str]:
    """Return the small files of the model in words: config, tokenizer, code."""
    found = {}
    for name, path in plan.finetuned.sidecars().items():
        status = path.stat()
        found[f"{name} of the model"] = f"{status.st_size} bytes, {status.st_mtime_ns}"
    return found


class _Run:
    """A sweep at work."""

    def __init__(self, task: Task, log: RowLog, until_end: ExitStack, observe: Observer) -> None:
        self._task = task
        self._log = log
        self._until_end = until_end
        self._observe = observe
        self._wanted = tuple(dict.fromkeys((BASE, *task.variants)))
        self._missing = sum(log.find(variant) is None for variant in self._wanted)
        self._missing += log.finetuned() is None
        self._decompose = cache(self._decompose_once)
        self._bench = cache(self._open_bench)
        self._known: dict[object, Measured] = {}

    def measure(self) -> tuple[Evaluation, Evaluation, list[Row]]:
        """Return the fine-tuned end, base, and the rows that were asked for."""
        if any(self._log.find(variant) is None for variant in self._wanted):
            self._check_room()
        finetuned = self._log.finetuned()
        if finetuned is None:
            finetuned = self._bench().finetuned()
            self._log.add_finetuned(finetuned)
        rows = {variant: self._row(variant, finetuned) for variant in self._wanted}
        return finetuned, rows[BASE].evaluation, [rows[v] for v in self._task.variants]

    def _check_room(self) -> None:
        """Refuse a disk that has no room for what is to be written, before any work."""
        task = self._task
        factors = task.folder / DECOMPOSITION_NAME
        if task.restart or not factors.exists():  # else it may serve
            cuts = [(variant.rule, variant.keep) for variant in self._wanted]
            check_factors(task.plan, cuts, task.options, factors).refuse()
        if task.evaluator.writes_checkpoints:
            check_checkpoint(task.plan, task.folder / CHECKPOINT_NAME).refuse()

    def _row(self, variant: Variant, finetuned: Evaluation) -> Row:
        found = self._log.find(variant)
        if found is None:
            bench, decomposed = self._bench(), self._decompose()
            signature = decomposed.signature(variant)
            if decomposed.is_finetuned(variant):
                self._known[signature] = Measured(finetuned, 0.0)
            elif signature not in self._known:
                self._known[signature] = bench.evaluate(decomposed, variant)
            known = self._known[signature]
            share = decomposed.rounding_share(variant, known.rounding_error)
            found = Row(variant, decomposed.cost(variant), known.evaluation, share)
            self._log.add(found)
        return found

    def _decompose_once(self) -> Decomposed:
        task = self._task
        return decompose_update(
            task.plan,
            self._wanted,
            task.options,
            task.folder / DECOMPOSITION_NAME,
            restart=task.restart,
            observe=self._observe,
        )

    def _open_bench(self) -> Bench:
        task = self._task
        return task.evaluator.open(
            Setting(
                plan=task.plan,
                options=task.options,
                folder=task.folder,
                loadable=self._loadable,
                until_end=self._until_end,
                quiet=task.quiet,
                observe=self._observe_batch,
            )
        )

    def _loadable(self, hashes: InputHashes | None) -> AbstractContextManager[Checkpoint]:
        task, plan = self._task, self._task.plan
        return loadable(
            plan.base,
            plan.finetuned,
            task.options,
            within=task.folder,
            hashes=hashes,
            observe=self._observe,
        )

    def _observe_batch(self, batch: Progress) -> None:
        """Pass a batch on as part of all evaluations that there are to be."""
        if batch.stage == "evaluate":
            batch = replace(batch, stage="sweep", total=batch.total * self._missing)
        self._observe(batch)
