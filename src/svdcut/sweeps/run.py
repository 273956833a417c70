"""Carry out a sweep: both ends, then every cut, each on disk as soon as it is measured."""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from dataclasses import replace
from functools import cache

from svdcut.evaluation.dataset import Dataset
from svdcut.evaluation.metrics import Evaluation
from svdcut.pair.plan import Plan
from svdcut.record.progress import Observer, Progress
from svdcut.record.provenance import InputHashes, refuse_changed
from svdcut.sweeps.choice import choose, explain
from svdcut.sweeps.command import CHECKPOINT_NAME, CommandBench
from svdcut.sweeps.decompose import decompose_update, identify_work
from svdcut.sweeps.decomposition import Decomposition
from svdcut.sweeps.in_memory import InMemoryBench, open_in_memory
from svdcut.sweeps.options import SweepRequest
from svdcut.sweeps.result import BASE, Measured, Row, RowLog, Sweep, Variant, open_rows
from svdcut.truncation.preflight import check_checkpoint, check_factors

DECOMPOSITION_NAME = "decomposition"


_QUESTION = ("prompt", "labels", "normalize", "chat_template", "batch_size", "seed")
"""Options that an evaluation on data depends on."""


def run_sweep(request: SweepRequest, observe: Observer = lambda progress: None) -> Sweep:
    """Evaluate the fine-tuned side, base, and every cut; choose a rank.

    Parameters
    ----------
    request : SweepRequest
        What to do.
    observe : callable
        Called after each tensor that is merged or decomposed, and each batch.

    Raises
    ------
    OutputExistsError
        If the folder holds rows of other inputs, options or data.
    OutputError
        If the disk has no room for the factors, or for a checkpoint to evaluate.
    SvdcutError
        As the decomposition and the evaluation do; finished rows stay.

    Notes
    -----
    One decomposition; one evaluation for each end, and for each cut that keeps other triplets
    than those before it. The model is loaded only if a row is missing.
    """
    identity = {
        **identify_work(request.plan, request.shape),
        **_identify_sidecars(request.plan),
        **_identify_evaluation(request),
    }
    options = request.options
    with (
        open_rows(options.out, identity, restart=options.restart) as log,
        ExitStack() as until_end,
    ):
        finetuned, base, rows = _Run(request, log, until_end, observe).measure()
    refuse_changed(request.plan)
    choice = choose(rows, finetuned, options.tolerance)
    return Sweep(
        base=base,
        finetuned=finetuned,
        rows=tuple(rows),
        tolerance=options.tolerance,
        chosen=choice.by_accuracy,
        chosen_with_groups=choice.by_gap,
        answer=tuple(explain(rows, finetuned, options.tolerance, choice)),
    )


def _identify_sidecars(plan: Plan) -> dict[str, str]:
    """Return the small files of the model in words: config, tokenizer, code."""
    found = {}
    for name, path in plan.finetuned.sidecars().items():
        status = path.stat()
        found[f"{name} of the model"] = f"{status.st_size} bytes, {status.st_mtime_ns}"
    return found


def _identify_evaluation(request: SweepRequest) -> dict[str, str]:
    """Return what an evaluation depends on, in words; the code of a function stays unknown."""
    options = request.options
    if options.eval_command is not None:
        return {"--eval-command": options.eval_command}
    if request.dataset is not None:
        asked = {
            f"evaluation --{name.replace('_', '-')}": str(getattr(options, name))
            for name in _QUESTION
        }
        return {"DATA": _digest(request.dataset), **asked}
    function = options.evaluate
    return {
        "the evaluating function": getattr(function, "__qualname__", type(function).__qualname__)
    }


def _digest(dataset: Dataset) -> str:
    names = ("texts", "pairs", "labels", "groups", "aligned", "rows")
    columns = [getattr(dataset, name) for name in names]
    return "sha256 " + hashlib.sha256(json.dumps(columns).encode()).hexdigest()


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
        """Return the evaluations of the fine-tuned side and of base, and the requested rows."""
        if self._missing:
            self._check_room()
        finetuned = self._log.finetuned()
        if finetuned is None:
            finetuned = self._bench().finetuned()
            self._log.add_finetuned(finetuned)
        rows = {variant: self._row(variant, finetuned) for variant in self._wanted}
        return finetuned, rows[BASE].evaluation, [rows[v] for v in self._request.variants]

    def _check_room(self) -> None:
        """Refuse a disk without room for factors and checkpoint, before any work."""
        request = self._request
        rules = [variant.rule for variant in self._wanted]
        factors = request.options.out / DECOMPOSITION_NAME
        check_factors(request.plan, rules, request.shape, factors).refuse()
        if request.options.eval_command is not None:
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

    def _open_bench(self) -> InMemoryBench | CommandBench:
        request = self._request
        if request.options.eval_command is None:
            return open_in_memory(request, self._observe_batch)
        hashes = self._until_end.enter_context(InputHashes(request.plan))
        return CommandBench(request, hashes, self._observe_batch)

    def _observe_batch(self, batch: Progress) -> None:
        """Pass on a batch as a part of all evaluations of the sweep."""
        if batch.stage == "evaluate":
            batch = replace(batch, stage="sweep", total=batch.total * self._num_evaluations)
        self._observe(batch)
