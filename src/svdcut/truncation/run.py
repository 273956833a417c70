"""Truncate the updates of a whole checkpoint, tensor by tensor.

`run_truncation` carries out a plan. It chooses no tensor and parses no option.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace

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
from svdcut.truncation.sharing import share_tensors
from svdcut.truncation.team import Team
from svdcut.truncation.tensor_job import Cutter, Job, process_tensor
from svdcut.truncation.tensor_output import WrittenOutput
from svdcut.worker import ALONE, Worker
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
    worker: Worker = ALONE,
) -> list[Manifest]:
    """Carry out a plan, or the share of one worker in it.

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
    worker : Worker
        The place of this process among those that share the run.

    Returns
    -------
    list of Manifest
        One for each output; empty where another worker publishes them.

    Raises
    ------
    NonFiniteError
        If an input or a result holds NaN or infinity. Nothing is published then.
    QualityError
        If the tolerance cannot be met.
    CheckpointError, OutputError
        If reading or writing fails.
    WorkerError
        If another worker is missing.

    Notes
    -----
    Reads every weight once for the work and once for its hash, and once more with
    a budget, whose first pass takes all spectra. Memory is bounded by the largest
    tensors, not by the checkpoint.
    """
    began = time.monotonic()
    device = resolve_device(options.device, worker.local_index)
    machinery = {"torch": str(torch.__version__), "device": device_name(device)}
    identity = identify_run(plan, outputs, options, machinery)
    rules = tuple(output.rule for output in outputs)
    needs = memory_needs(plan, rules, options)
    team = Team(worker)
    team.start()
    with ExitStack() as stack:
        if not worker.is_first:
            team.wait_for_first("prepared")
        writers = [
            stack.enter_context(_writer(plan, output, identity, worker)) for output in outputs
        ]
        team.tell("prepared")
        places = [WrittenOutput(w, o.form) for w, o in zip(writers, outputs, strict=True)]
        threads = num_workers(device, worker.local_count)
        pool = stack.enter_context(Pool(threads, needs.bound, device))
        job = Job(rules, options, device, {}, Reserve(needs.reserve), cutter=cutter)
        total = sum(tensor.target.size_bytes for tensor in plan.tensors)
        own = share_tensors(plan, rules, options, worker.count)[worker.index]
        run = _Run(plan, places, hashes, pool, needs.sizes, total, observe, worker, team, own)
        try:
            records = run.carry_out(job)
            if records is None:
                return []
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


def _writer(
    plan: Plan, output: Output, identity: Mapping[str, str], worker: Worker
) -> CheckpointWriter:
    whole = output.form is Form.CHECKPOINT
    return CheckpointWriter(
        output.path,
        plan.files if whole else (),
        identity,
        stages=not whole,
        restart=output.restart and worker.attempt == 0,
        force=output.force,
        worker=worker,
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
    worker: Worker
    team: Team
    own: frozenset[int]
    """Numbers of the tensors that this worker processes."""

    observed: set[str] = field(default_factory=set)
    """Names of the tensors that were told of."""

    def carry_out(self, job: Job) -> list[dict[str, TensorFact]] | None:
        """Make the tensors.

        Returns
        -------
        list of dict, or None
            The facts of each output, by the names of tensors; None where another worker
            publishes them.
        """
        plan = self.plan
        if job.cutter is None:
            writer = self.outputs[0].writer
            budgets = allocate_budgets(
                job, plan, self.pool, self.sizes, writer, self.observe, self.own, self._gather
            )
            job = replace(job, budgets=budgets)
        done: dict[str, list[TensorFact]] = {}
        adapters = [n for n, output in enumerate(self.outputs) if output.form is Form.ADAPTER]
        if adapters:
            # What is copied is compared with base, and may have no place in an adapter: before
            # the long work.
            tensors = [plan.tensors[number] for number in sorted(self.own)]
            copied = [t.pair.name for t in tensors if t.pair.action is not Action.TRUNCATE]
            done |= self._make(job, copied)
            refuse_unholdable(plan, {name: facts[adapters[0]] for name, facts in done.items()})
        names = [tensor.pair.name for tensor in plan.tensors]
        own = [name for number, name in enumerate(names) if number in self.own]
        done |= self._make(job, [name for name in own if name not in done])
        if not self._publishes(names):
            return None
        done |= self._make(job, [name for name in names if name not in done])
        return [{name: done[name][n] for name in names} for n in range(len(self.outputs))]

    def _make(self, job: Job, names: Sequence[str]) -> dict[str, list[TensorFact]]:
        """Return the facts of some tensors of the plan, for each output."""
        wanted = frozenset(names)
        numbers = [n for n, t in enumerate(self.plan.tensors) if t.pair.name in wanted]
        tensors = [self.plan.tensors[number] for number in numbers]
        sizes = [self.sizes[number] for number in numbers]
        facts = self.pool.map(lambda number: self._tensor(job, tensors[number]), sizes)
        return {t.pair.name: found for t, found in zip(tensors, facts, strict=True)}

    def _gather(self) -> None:
        """Make the spectra known that other workers have measured."""
        if not self.worker.is_alone:
            self.outputs[0].writer.flush()
            self.team.tell("spectra")
            self.team.wait_for_all("spectra")
            self.outputs[0].writer.refresh()

    def _publishes(self, names: Sequence[str]) -> bool:
        """Whether this worker publishes the results; then all others have done their shares."""
        writers = [output.writer for output in self.outputs]
        if self.worker.is_alone:
            return True
        self.hashes.record_own(writers[0])
        for writer in writers:
            writer.flush()
        if self.worker.is_launched:
            self.team.tell("done")
            if self.worker.is_first:
                self.team.wait_for_all("done", self._observe_others)
                self._observe_others()
            return self.worker.is_first
        is_last = [writer.is_last() for writer in writers]
        return all(is_last) and all(writer.recorded() >= set(names) for writer in writers)

    def _observe_others(self) -> None:
        """Tell of the tensors that other workers have recorded since."""
        for output in self.outputs:
            output.writer.refresh()
        recorded = self.outputs[0].writer.recorded()
        for planned in self.plan.tensors:
            name = planned.pair.name
            if name in recorded and name not in self.observed:
                documents = (output.writer.find(TENSOR, name) for output in self.outputs)
                found = tuple(parse_dataclass(TensorFact, d) for d in documents if d is not None)
                self._observe(planned, found, resumed=False)

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
        if name not in self.observed:
            resumed = resumed and self.worker.is_alone  # else by another part
            self._observe(planned, tuple(facts), resumed=resumed)
        return facts

    def _observe(
        self, planned: PlannedTensor, facts: tuple[TensorFact, ...], *, resumed: bool
    ) -> None:
        name, size = planned.pair.name, planned.target.size_bytes
        self.observed.add(name)
        self.observe(Progress("truncate", name, size, self.total, facts, resumed=resumed))
