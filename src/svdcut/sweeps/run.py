"""Carry out a sweep: both ends, then every cut, each on disk as soon as it is done."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache

from svdcut.evaluation.metrics import Evaluation
from svdcut.pair.plan import Plan
from svdcut.record.progress import Observer, Progress
from svdcut.record.provenance import refuse_changed
from svdcut.sweeps.choice import choose, explain
from svdcut.sweeps.command import CHECKPOINT_NAME
from svdcut.sweeps.decompose import decompose_update, identify_work
from svdcut.sweeps.decomposition import Decomposition
from svdcut.sweeps.request import Bench, Measured, SweepRequest
from svdcut.sweeps.result import BASE, Row, Sweep, Variant
from svdcut.sweeps.rows import RowLog, open_rows
from svdcut.truncation.preflight import check_checkpoint, check_factors

DECOMPOSITION_NAME = "decomposition"


def run_sweep(request: SweepRequest, observe: Observer = lambda progress: None) -> Sweep:
    """Evaluate the fine-tuned side, base, and every cut; choose a rank.

    Parameters
    ----------
    request : SweepRequest
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
    identity = {
        **identify_work(request.plan, request.shape),
        **_identify_sidecars(request.plan),
        **request.evaluator.identity(),
    }
    with (
        open_rows(request.options.out, identity, restart=request.options.restart) as log,
        ExitStack() as until_end,
    ):
        finetuned, base, rows = _Run(request, log, until_end, observe).measure()
    refuse_changed(request.plan)
    return conclude(base, finetuned, rows, request.options.tolerance)


def conclude(
    base: Evaluation, finetuned: Evaluation, rows: Sequence[Row], tolerance: float
) -> Sweep:
    """Choose a rank of measured rows, and say why."""
    choice = choose(rows, finetuned, tolerance)
    answer = tuple(explain(rows, finetuned, tolerance, choice))
    return Sweep(base, finetuned, tuple(rows), tolerance, choice.by_accuracy, choice.by_gap, answer)


def _identify_sidecars(plan: Plan) -> dict[str, str]:
    """Return the small files of the model in words: config, tokenizer, code."""
    found = {}
    for name, path in plan.finetuned.sidecars().items():
        status = path.stat()
        found[f"{name} of the model"] = f"{status.st_size} bytes, {status.st_mtime_ns}"
    return found


class _Run:
    """A sweep at work."""

    def __init__(
        self, request: SweepRequest, log: RowLog, until_end: ExitStack, observe: Observer
    ) -> None:
        self._request = request
        self._log = log
        self._until_end = until_end
        self._observe = observe
        self._wanted = tuple(dict.fromkeys((BASE, *request.variants)))
        self._missing = [variant for variant in self._wanted if log.find(variant) is None]
        self._num_evaluations = len(self._missing) + (log.finetuned() is None)
        self._decompose = cache(self._decompose_once)
        self._bench = cache(self._open_bench)
        self._known: dict[object, Measured] = {}

    def measure(self) -> tuple[Evaluation, Evaluation, list[Row]]:
        """Return the fine-tuned end, base, and the rows that were asked for."""
        if self._missing:
            self._check_room()
        finetuned = self._log.finetuned()
        if finetuned is None:
            finetuned = self._bench().finetuned()
            self._log.add_finetuned(finetuned)
        rows = {variant: self._row(variant, finetuned) for variant in self._wanted}
        return finetuned, rows[BASE].evaluation, [rows[v] for v in self._request.variants]

    def _check_room(self) -> None:
        """Refuse a disk that has no room for what is to be written, before any work."""
        request = self._request
        rules = [variant.rule for variant in self._wanted]
        factors = request.options.out / DECOMPOSITION_NAME
        check_factors(request.plan, rules, request.shape, factors).refuse()
        if request.evaluator.writes_checkpoints:
            check_checkpoint(request.plan, request.options.out / CHECKPOINT_NAME).refuse()

    def _row(self, variant: Variant, finetuned: Evaluation) -> Row:
        found = self._log.find(variant)
        if found is None:
            bench, decomposed = self._bench(), self._decompose()
            kept = decomposed.kept(variant)
            signature = kept.signature(variant.keep)
            if decomposed.is_finetuned(variant):
                self._known[signature] = Measured(finetuned, 0.0)
            elif signature not in self._known:
                self._known[signature] = bench.evaluate(decomposed, variant)
            known = self._known[signature]
            found = Row(
                variant=variant,
                rank=sum(kept.ranks),
                full_rank=kept.full_rank,
                energy_retained=kept.energy_retained,
                rounding_share=known.rounding_error / kept.tail_norm if kept.tail_norm else None,
                evaluation=known.evaluation,
            )
            self._log.add(found)
        return found

    def _decompose_once(self) -> Decomposition:
        request = self._request
        return decompose_update(
            request.plan,
            self._wanted,
            request.shape,
            request.options.out / DECOMPOSITION_NAME,
            restart=request.options.restart,
            observe=self._observe,
        )

    def _open_bench(self) -> Bench:
        request = self._request
        return request.evaluator.open(request, self._until_end, self._observe_batch)

    def _observe_batch(self, batch: Progress) -> None:
        """Pass a batch on as part of all evaluations that there are to be."""
        if batch.stage == "evaluate":
            batch = replace(batch, stage="sweep", total=batch.total * self._num_evaluations)
        self._observe(batch)
