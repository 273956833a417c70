"""Truncate the updates of a whole checkpoint, tensor by tensor.

`run_truncation` carries out a plan. It chooses no tensor and parses no option.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from typing import Any

import torch

from svdcut import __version__
from svdcut.choose.options import Options
from svdcut.device import device_name, num_workers, resolve_device
from svdcut.errors import CheckpointError
from svdcut.pair.pairing import Action
from svdcut.pair.plan import Form, Output, Plan, PlannedTensor
from svdcut.record.manifest import Manifest, MatchingFact, TensorFact, parse_fact
from svdcut.record.progress import Observer, Progress
from svdcut.record.provenance import InputHashes, identify_run, refuse_changed
from svdcut.record.publication import publish
from svdcut.streaming.memory import memory_needs
from svdcut.streaming.pool import Pool, Reserve
from svdcut.truncation.adapter_plan import refuse_unholdable
from svdcut.truncation.adapter_publication import publish_adapter
from svdcut.truncation.budget import allocate_budgets
from svdcut.truncation.report import sum_totals
from svdcut.truncation.tensor_job import Cutter, Job, process_tensor
from svdcut.truncation.tensor_output import AdapterTensor, CheckpointTensor, TensorOutput
from svdcut.write.writer import TENSOR, CheckpointWriter


def run_truncation(
    plan: Plan,
    outputs: Sequence[Output],
    options: Options,
    hashes: InputHashes,
    *,
    command: Sequence[str] = (),
    observe: Observer = lambda progress: None,
    cutter: Cutter | None = None,
) -> list[Manifest]:
    """Carry out a plan.

    Parameters
    ----------
    plan : Plan
        What to write.
    outputs : sequence of Output
        Where to write it; all are made from one decomposition of each matrix.
    options : Options
        As the plan was made with.
    hashes : InputHashes
        Of the same two sides, at work.
    command : sequence of str
        For the manifest.
    observe : callable
        Told of each tensor that is done, by the thread that did it.
    cutter : callable, optional
        Yields the cuts of a tensor, where it was decomposed before.

    Returns
    -------
    list of Manifest
        One for each output.

    Raises
    ------
    NonFiniteError
        If an input or a result holds NaN or infinity. Nothing is published then.
    QualityError
        If the tolerance cannot be met.
    CheckpointError, OutputError
        If reading or writing fails.

    Notes
    -----
    Reads every weight once for the work and once for its hash, and once more with
    a budget, whose first pass takes all spectra. Memory is bounded by the largest
    tensors, not by the checkpoint.
    """
    began = time.monotonic()
    device = resolve_device(options.device)
    identity = identify_run(
        plan,
        outputs,
        options,
        {"torch": str(torch.__version__), "device": device_name(device)},
    )
    rules = tuple(output.rule for output in outputs)
    needs = memory_needs(plan, rules, options)
    with ExitStack() as stack:
        writers = [
            stack.enter_context(
                CheckpointWriter(
                    output.path,
                    plan.files if output.form is Form.CHECKPOINT else (),
                    identity,
                    spools=output.form is Form.ADAPTER,
                    restart=output.restart,
                    force=output.force,
                )
            )
            for output in outputs
        ]
        places = [_PLACES[o.form](w) for o, w in zip(outputs, writers, strict=True)]
        pool = stack.enter_context(Pool(num_workers(device), needs.bound, device))
        hashed_sources = stack.enter_context(hashes.recorded(writers[0]))
        job = Job(rules, options, device, {}, Reserve(needs.reserve), cutter=cutter)
        if cutter is None:
            budgets = allocate_budgets(job, plan, pool, needs.sizes, writers[0], observe)
            job = replace(job, budgets=budgets)
        total = sum(tensor.target.size_bytes for tensor in plan.tensors)

        def task(number: int) -> list[TensorFact]:
            planned = plan.tensors[number]
            name, size = planned.pair.name, planned.target.size_bytes
            found = _finished(planned, places)
            if found is not None:
                observe(Progress("truncate", name, size, total, tuple(found), resumed=True))
                return found
            found = process_tensor(job, planned, places)
            for writer, fact in zip(writers, found, strict=True):
                writer.record(TENSOR, name, asdict(fact))
            observe(Progress("truncate", name, size, total, tuple(found)))
            return found

        try:
            records = _run(plan, outputs, pool, task, needs.sizes)
            sources = hashed_sources()
        except CheckpointError:
            # A file that changed is the cause of what was found wrong in it.
            refuse_changed(plan)
            raise
        refuse_changed(plan)
        manifests = []
        for number, output in enumerate(outputs):
            facts = [record[number] for record in records]
            names = [planned.pair.name for planned in plan.tensors]
            manifest = Manifest(
                svdcut_version=__version__,
                torch_version=str(torch.__version__),
                created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
                device=device_name(device),
                command=tuple(command),
                base=sources[0],
                finetuned=sources[1],
                options=options.to_json(output.rule),
                totals=sum_totals(plan, facts, time.monotonic() - began),
                tensors=dict(zip(names, facts, strict=True)),
                base_only=plan.pairing.base_only,
                matching=MatchingFact(
                    plan.pairing.matching.renames,
                    plan.pairing.matching.wrappers,
                    plan.pairing.unmatched,
                ),
            )
            finish = publish if output.form is Form.CHECKPOINT else publish_adapter
            manifests.append(finish(writers[number], plan, manifest, options))
        for writer in writers:
            writer.commit()
    return manifests


def _run(
    plan: Plan,
    outputs: Sequence[Output],
    pool: Pool,
    task: Callable[[int], list[TensorFact]],
    sizes: Sequence[int],
) -> list[list[TensorFact]]:
    """Return the facts of all tensors, for each output."""
    copied = [n for n, t in enumerate(plan.tensors) if t.pair.action is not Action.TRUNCATE]
    done: dict[int, list[TensorFact]] = {}

    def run(numbers: Sequence[int]) -> None:
        found = pool.map(lambda n: task(numbers[n]), [sizes[number] for number in numbers])
        done.update(zip(numbers, found, strict=True))

    adapters = [n for n, output in enumerate(outputs) if output.form is Form.ADAPTER]
    if adapters:
        # What is copied is compared with base, and may have no place in an adapter: before
        # the long work.
        run(copied)
        names = {number: plan.tensors[number].pair.name for number in copied}
        refuse_unholdable(plan, {names[n]: facts[adapters[0]] for n, facts in done.items()})
    run([number for number in range(len(plan.tensors)) if number not in done])
    return [done[number] for number in range(len(plan.tensors))]


@dataclass(frozen=True, slots=True)
class _CheckpointPlace:
    """Where the tensors of a checkpoint go."""

    writer: CheckpointWriter

    def open(self, planned: PlannedTensor, options: Options) -> TensorOutput:
        return CheckpointTensor(self.writer.sink(planned.target), planned, options.scale)

    def finished(self, planned: PlannedTensor) -> Mapping[str, Any] | None:
        return self.writer.finished(planned.target)


@dataclass(frozen=True, slots=True)
class _AdapterPlace:
    """Where the tensors of an adapter wait for their ranks to be known."""

    writer: CheckpointWriter

    def open(self, planned: PlannedTensor, options: Options) -> TensorOutput:
        return AdapterTensor(self.writer, planned, options)

    def finished(self, planned: PlannedTensor) -> Mapping[str, Any] | None:
        return self.writer.finished_parts(planned.pair.name)


_Place = _CheckpointPlace | _AdapterPlace
_PLACES: Mapping[Form, type[_Place]] = {
    Form.CHECKPOINT: _CheckpointPlace,
    Form.ADAPTER: _AdapterPlace,
}


def _finished(planned: PlannedTensor, places: Sequence[_Place]) -> list[TensorFact] | None:
    """Return what an earlier run made of a tensor, if it did so for all outputs."""
    found = []
    for place in places:
        document = place.finished(planned)
        if document is None:
            return None
        found.append(parse_fact(TensorFact, document))
    return found
