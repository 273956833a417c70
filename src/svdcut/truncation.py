"""Truncate the updates of a whole checkpoint, tensor by tensor.

`run_truncation` carries out a plan. It chooses no tensor and parses no option.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timezone

import torch

from svdcut._version import __version__
from svdcut.budget import allocate_budgets
from svdcut.device import device_name, num_workers, resolve_device
from svdcut.errors import CheckpointError
from svdcut.manifest import Manifest, MatchingFact, TensorFact
from svdcut.memory import memory_needs
from svdcut.options import Options
from svdcut.plan import Output, Plan, PlannedTensor
from svdcut.pool import Pool
from svdcut.progress import Observer, Progress
from svdcut.provenance import InputHashes, identify_run, refuse_changed
from svdcut.publication import publish
from svdcut.report import sum_totals
from svdcut.tensor_job import Job, process_tensor
from svdcut.writer import TENSOR, CheckpointWriter


def run_truncation(
    plan: Plan,
    outputs: Sequence[Output],
    options: Options,
    hashes: InputHashes,
    *,
    command: Sequence[str] = (),
    observe: Observer = lambda progress: None,
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
        Of the same plan, at work.
    command : sequence of str
        For the manifest.
    observe : callable
        Told of each tensor that is done, by the thread that did it.

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
    torch.backends.cuda.matmul.allow_tf32 = False
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
                    plan.files,
                    identity,
                    restart=output.restart,
                    force=output.force,
                )
            )
            for output in outputs
        ]
        pool = stack.enter_context(Pool(num_workers(device), needs.bound, device))
        recorder = stack.enter_context(ThreadPoolExecutor(1))
        stack.callback(hashes.cancel)
        recording = recorder.submit(hashes.sources, writers[0])
        job = Job(rules, options, device, {})
        job = replace(
            job, budgets=allocate_budgets(job, plan, pool, needs.sizes, writers[0], observe)
        )
        total = sum(tensor.target.size_bytes for tensor in plan.tensors)

        def task(number: int) -> list[TensorFact]:
            planned = plan.tensors[number]
            name, size = planned.pair.name, planned.target.size_bytes
            found = _finished(planned, writers)
            if found is not None:
                observe(Progress("truncate", name, size, total, tuple(found), resumed=True))
                return found
            found = process_tensor(job, planned, writers)
            for writer, fact in zip(writers, found, strict=True):
                writer.record(TENSOR, name, fact.to_json())
            observe(Progress("truncate", name, size, total, tuple(found)))
            return found

        try:
            records = pool.map(task, needs.sizes)
            sources = recording.result()
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
            manifests.append(publish(writers[number], plan, manifest, options))
        for writer in writers:
            writer.commit()
    return manifests


def _finished(
    planned: PlannedTensor, writers: Sequence[CheckpointWriter]
) -> list[TensorFact] | None:
    """Return what an earlier run made of a tensor, if it did so for all outputs."""
    found = []
    for writer in writers:
        document = writer.finished(planned.target)
        if document is None:
            return None
        found.append(TensorFact.from_json(document))
    return found
