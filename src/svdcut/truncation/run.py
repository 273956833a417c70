"""Truncate the updates of a whole checkpoint, tensor by tensor.

`run_truncation` carries out a plan. It chooses no tensor and parses no option.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace

import torch

from svdcut.choose.options import Options
from svdcut.device import device_name, num_workers, resolve_device
from svdcut.errors import CheckpointError
from svdcut.files.jsonfile import parse_dataclass
from svdcut.pair.pairing import Action
from svdcut.pair.plan import Form, Output, Plan, PlannedTensor
from svdcut.record.manifest import Manifest, TensorFact
from svdcut.record.progress import Observer, Progress
from svdcut.record.provenance import InputHashes, identify_run, refuse_changed
from svdcut.record.publication import publish
from svdcut.record.summary import describe_run
from svdcut.streaming.memory import memory_needs
from svdcut.streaming.pool import Pool, Reserve
from svdcut.truncation.adapter_plan import refuse_unholdable
from svdcut.truncation.adapter_publication import publish_adapter
from svdcut.truncation.budget import allocate_budgets
from svdcut.truncation.tensor_job import Cutter, Job, process_tensor
from svdcut.truncation.tensor_output import WrittenOutput
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
    machinery = {"torch": str(torch.__version__), "device": device_name(device)}
    identity = identify_run(plan, outputs, options, machinery)
    rules = tuple(output.rule for output in outputs)
    needs = memory_needs(plan, rules, options)
    with ExitStack() as stack:
        writers = [stack.enter_context(_writer(plan, output, identity)) for output in outputs]
        places = [WrittenOutput(w, o.form) for w, o in zip(writers, outputs, strict=True)]
        pool = stack.enter_context(Pool(num_workers(device), needs.bound, device))
        job = Job(rules, options, device, {}, Reserve(needs.reserve), cutter=cutter)
        total = sum(tensor.target.size_bytes for tensor in plan.tensors)
        run = _Run(plan, places, hashes, pool, needs.sizes, total, observe)
        try:
            records = run.carry_out(job)
            sources = hashes.sources(writers[0])
        except CheckpointError:
            # A file that changed is the cause of what was found wrong in it.
            refuse_changed(plan)
            raise
        refuse_changed(plan)
        manifests = []
        for output, writer, facts in zip(outputs, writers, records, strict=True):
            seconds = time.monotonic() - began
            manifest = describe_run(plan, options, output.rule, facts, sources, machinery, seconds)
            manifest = replace(manifest, command=tuple(command))
            complete = publish if output.form is Form.CHECKPOINT else publish_adapter
            manifests.append(complete(writer, plan, manifest, options))
        for writer in writers:
            writer.commit()
    return manifests


def _writer(plan: Plan, output: Output, identity: Mapping[str, str]) -> CheckpointWriter:
    whole = output.form is Form.CHECKPOINT
    return CheckpointWriter(
        output.path,
        plan.files if whole else (),
        identity,
        stages=not whole,
        restart=output.restart,
        force=output.force,
    )


@dataclass(frozen=True, slots=True)
class _Run:
    """The tensors of a plan at work."""

    plan: Plan
    outputs: Sequence[WrittenOutput]
    hashes: InputHashes
    pool: Pool
    sizes: Sequence[int]
    """Memory that each tensor takes at work, in bytes."""

    total: int
    """Bytes of all tensors."""

    observe: Observer

    def carry_out(self, job: Job) -> list[dict[str, TensorFact]]:
        """Make every tensor; return the facts of each output, by the names of tensors."""
        plan = self.plan
        if job.cutter is None:
            budgets = allocate_budgets(
                job, plan, self.pool, self.sizes, self.outputs[0].writer, self.observe
            )
            job = replace(job, budgets=budgets)
        done: dict[str, list[TensorFact]] = {}
        adapters = [n for n, output in enumerate(self.outputs) if output.form is Form.ADAPTER]
        if adapters:
            # What is copied is compared with base, and may have no place in an adapter: before
            # the long work.
            copied = [t.pair.action is not Action.TRUNCATE for t in plan.tensors]
            done |= self._make(job, [n for n, is_copied in enumerate(copied) if is_copied])
            refuse_unholdable(plan, {name: facts[adapters[0]] for name, facts in done.items()})
        names = [tensor.pair.name for tensor in plan.tensors]
        done |= self._make(job, [n for n, name in enumerate(names) if name not in done])
        return [{name: done[name][n] for name in names} for n in range(len(self.outputs))]

    def _make(self, job: Job, numbers: Sequence[int]) -> dict[str, list[TensorFact]]:
        """Return the facts of some tensors of the plan, for each output."""
        tensors = [self.plan.tensors[number] for number in numbers]
        sizes = [self.sizes[number] for number in numbers]
        facts = self.pool.map(lambda number: self._tensor(job, tensors[number]), sizes)
        return {t.pair.name: found for t, found in zip(tensors, facts, strict=True)}

    def _tensor(self, job: Job, planned: PlannedTensor) -> list[TensorFact]:
        name = planned.pair.name
        documents = [output.finished(planned) for output in self.outputs]
        resumed = None not in documents
        if resumed:
            facts = [parse_dataclass(TensorFact, document) for document in documents]
        else:
            facts = process_tensor(job, planned, self.outputs)
            for output, fact in zip(self.outputs, facts, strict=True):
                output.writer.record(TENSOR, name, asdict(fact))
        self.hashes.record_known(self.outputs[0].writer)
        size, found = planned.target.size_bytes, tuple(facts)
        self.observe(Progress("truncate", name, size, self.total, found, resumed=resumed))
        return facts
