"""Truncate the updates of a whole checkpoint, tensor by tensor.

`run_truncation` carries out a plan. It chooses no tensor and parses no option.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import cast

import torch

from svdcut._version import __version__
from svdcut.checkpoint import Checkpoint
from svdcut.errors import CheckpointError, InputChangedError, UsageError
from svdcut.machine import num_cores
from svdcut.manifest import FileFact, Manifest, Source, TensorFact
from svdcut.options import Options
from svdcut.pairing import Action, Pair
from svdcut.plan import Output, Plan, PlannedTensor
from svdcut.pool import Pool
from svdcut.preflight import memory_bound, working_bytes
from svdcut.publication import publish
from svdcut.ranks import Rule, RuleKind, allocate_budget
from svdcut.report import sum_totals
from svdcut.svd.engine import decompose
from svdcut.tensor_job import BudgetRanks, Job, matrix_entries, or_on_cpu, process_tensor
from svdcut.tensorfile import hash_file
from svdcut.update import read_update
from svdcut.writer import TENSOR, CheckpointWriter

_SPECTRA, _INPUT = "spectra", "input"
"""Kinds of records beside that of a tensor."""


@dataclass(frozen=True, slots=True)
class Progress:
    """A tensor is done."""

    stage: str
    """``spectra`` (the first pass of a budget) or ``truncate``."""

    name: str
    size_bytes: int
    total_bytes: int
    """Of all tensors of the stage."""

    facts: tuple[TensorFact, ...] = ()
    """What was written, for each output."""

    resumed: bool = False
    """Whether an earlier run had done it."""


Observer = Callable[[Progress], None]


def run_truncation(
    plan: Plan,
    outputs: Sequence[Output],
    options: Options,
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
    identity = identify_run(plan, outputs, options, device)
    sizes = [working_bytes(tensor.pair) for tensor in plan.tensors]
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
        workers = num_cores() if device.type == "cpu" else 1
        pool = stack.enter_context(Pool(workers, memory_bound(plan)))
        hasher = stack.enter_context(ThreadPoolExecutor(1))
        stop = threading.Event()
        stack.callback(stop.set)
        hashing = hasher.submit(_hash_inputs, plan, writers[0], stop)
        job = Job(tuple(output.rule for output in outputs), options, device, {})
        job = replace(job, budgets=_allocate_budgets(job, plan, pool, sizes, writers[0], observe))
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
            records = pool.map(task, sizes)
            sources = hashing.result()
        except CheckpointError:
            # A file that changed is the cause of what was found wrong in it.
            _refuse_changed(plan)
            raise
        _refuse_changed(plan)
        manifests = []
        for number, output in enumerate(outputs):
            facts = [record[number] for record in records]
            names = [planned.pair.name for planned in plan.tensors]
            manifest = Manifest(
                svdcut_version=__version__,
                torch_version=str(torch.__version__),
                created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
                device=_device_name(device),
                command=tuple(command),
                base=sources[0],
                finetuned=sources[1],
                options=options.to_json(output.rule),
                totals=sum_totals(plan, facts, time.monotonic() - began),
                tensors=dict(zip(names, facts, strict=True)),
                base_only=plan.pairing.base_only,
            )
            manifests.append(publish(writers[number], plan, manifest, options))
        for writer in writers:
            writer.commit()
    return manifests


def identify_run(
    plan: Plan, outputs: Sequence[Output], options: Options, device: torch.device
) -> dict[str, str]:
    """Return everything that shapes the bytes of a run's results, in words.

    Unfinished work of the same identity is this run's own.
    """
    identity = {
        "svdcut": __version__,
        "torch": str(torch.__version__),
        "device": _device_name(device),
        "--rank": ", ".join(str(output.rule) for output in outputs),
    }
    for key, value in options.to_json(outputs[0].rule).items():
        if key not in ("rank", "device"):
            identity[f"--{key.replace('_', '-')}"] = str(value)
    for side, checkpoint in (("base", plan.base), ("the fine-tuned side", plan.finetuned)):
        for file in checkpoint.files:
            modified = datetime.fromtimestamp(file.modified_ns / 1e9, timezone.utc)
            identity[f"{file.path.name} of {side}"] = (
                f"{file.size_bytes} bytes of {modified.isoformat()}"
            )
    return identity


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


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


def _refuse_changed(plan: Plan) -> None:
    """Refuse a result of files that changed while they were read."""
    for file in (*plan.base.files, *plan.finetuned.files):
        try:
            status = file.path.stat()
            same = (status.st_size, status.st_mtime_ns) == (file.size_bytes, file.modified_ns)
        except FileNotFoundError:
            same = False
        if not same:
            raise InputChangedError(
                f"{file.path} changed while it was read; nothing was published",
                hint="Is a training run still writing it? Repeat this when it is complete.",
            )


def resolve_device(name: str) -> torch.device:
    """Return the device that a name means.

    Raises
    ------
    UsageError
        If there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name!r}: expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {name}: torch {torch.__version__} sees {torch.cuda.device_count()} "
            "CUDA devices"
        )
    return device


def _allocate_budgets(
    job: Job,
    plan: Plan,
    pool: Pool,
    sizes: Sequence[int],
    writer: CheckpointWriter,
    observe: Observer,
) -> BudgetRanks:
    """Take the spectra of all tensors under a budget, and spend the budgets."""
    rules = [
        {rule for rule in job.rules_for(tensor.pair) if rule.kind is RuleKind.BUDGET}
        if tensor.pair.action is Action.TRUNCATE
        else set()
        for tensor in plan.tensors
    ]
    needed = [number for number, group in enumerate(rules) if group]
    total = sum(plan.tensors[number].target.size_bytes for number in needed)

    def task(index: int) -> list[list[float]]:
        planned = plan.tensors[needed[index]]
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

    spectra = pool.map(task, [sizes[number] for number in needed])
    ranks: dict[tuple[Rule, str, int], int] = {}
    for rule in set().union(*rules):
        pairs = [
            (plan.tensors[number].pair, values)
            for number, values in zip(needed, spectra, strict=True)
            if rule in rules[number]
        ]
        allocated = allocate_budget(
            {(pair.name, i): s for pair, values in pairs for i, s in enumerate(values)},
            {(pair.name, i): m for pair, _ in pairs for i, m in enumerate(pair.matrices)},
            rule.value,
        )
        ranks |= {(rule, *key): rank for key, rank in allocated.items()}
    return ranks


def _spectra(pair: Pair, device: torch.device) -> list[list[float]]:
    spectra = []
    for base, finetuned in matrix_entries(pair):
        update = read_update(base, finetuned, device, measure_rounding=False)
        # Small values need not be exact here: they only rank the triplets.
        found = decompose(update.matrix, None, accept=lambda _: True)
        spectra.append(found.singular_values() or [0.0] * found.full_rank)
    return spectra


def _hash_inputs(
    plan: Plan, writer: CheckpointWriter, stop: threading.Event
) -> tuple[Source, Source]:
    pairing = plan.pairing
    return (
        _hash_source(plan.base, pairing.base_prefix, writer, stop),
        _hash_source(plan.finetuned, pairing.finetuned_prefix, writer, stop),
    )


def _hash_source(
    checkpoint: Checkpoint, prefix: str | None, writer: CheckpointWriter, stop: threading.Event
) -> Source:
    files = {}
    for file in checkpoint.files:
        digest = hash_file(file.path, stop)
        if stop.is_set():
            break
        name = str(file.path.resolve())
        before = writer.find(_INPUT, name)
        if before not in (None, digest):
            raise InputChangedError(
                f"{file.path} is not what it was when this run began",
                hint="Repeat this with --restart.",
            )
        writer.record(_INPUT, name, digest)
        files[file.path.name] = FileFact(file.size_bytes, digest)
    return Source(checkpoint.source, checkpoint.revision, prefix, files)
