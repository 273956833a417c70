"""Decompose every matrix once, as far as all cuts of a sweep need, and keep it on disk.

It evaluates nothing.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svdcut.choose.cut import CutRequest
from svdcut.choose.keep import Keep
from svdcut.choose.options import Options
from svdcut.choose.ranks import FULL, NOTHING, Rule
from svdcut.device import device_name, num_workers, resolve_device
from svdcut.errors import OutputExistsError
from svdcut.files.tensorfile import Dtype, lay_out
from svdcut.pair.pairing import Action, Pair
from svdcut.pair.plan import Output, Plan, PlannedTensor
from svdcut.record.progress import Observer, Progress
from svdcut.record.provenance import identify_run, refuse_changed
from svdcut.streaming.memory import memory_needs
from svdcut.streaming.pool import Pool, Reserve
from svdcut.streaming.stored_matrix import MatrixSides, matrix_sides, to_bytes
from svdcut.sweeps.facts import BASE, Variant
from svdcut.sweeps.stored import (
    FACTORS_NAME,
    FACTS_NAME,
    SIDES,
    VALUES,
    Decomposed,
    StoredMatrix,
    document_of,
    key_of,
    open_decomposed,
)
from svdcut.truncation.budget import allocate_budgets
from svdcut.truncation.tensor_job import (
    CutMatrix,
    Job,
    decompose_matrix,
    decompose_on_device,
    stays_whole,
)
from svdcut.write.tensor_writer import Range
from svdcut.write.writer import TENSOR, CheckpointWriter

_DTYPES = {torch.float32: Dtype.F32, torch.float64: Dtype.F64}

_Record = Mapping[str, Any]


def decompose_update(
    plan: Plan,
    variants: Sequence[Variant],
    options: Options,
    folder: Path,
    *,
    restart: bool = False,
    observe: Observer = lambda progress: None,
) -> Decomposed:
    """Decompose every matrix as far as some cuts need, or find that it was done before.

    Parameters
    ----------
    plan : Plan
        Of the two sides.
    variants : sequence of Variant
        The cuts.
    options : Options
        As the plan was made with.
    folder : Path
        Where the triplets are kept. A later call goes on from what an interrupted one left,
        and takes what is complete where that serves all of `variants`.
    restart : bool
        Whether to drop what is there.
    observe : callable
        Told of each tensor that is done.

    Raises
    ------
    NonFiniteError, QualityError, CheckpointError, OutputError
        As `svdcut.truncation.run.run_truncation` does.
    OutputExistsError
        If the folder holds something else, or unfinished work of other inputs or options.

    Notes
    -----
    The decompositions are those that a truncation to the same list of rules makes, by the
    same calls; but where a matrix stays whole, nothing is decomposed for that. Disk:
    ``8 k (m + n)`` bytes a matrix, and as much again at work.
    """
    device = resolve_device(options.device)
    identity = identify_work(plan, options)
    if not restart:
        found = open_decomposed(plan, variants, options, folder, identity)
        if found is not None:
            return found
    _refuse_foreign(folder)
    work = _Work(plan, tuple(variants), options, device, observe)
    cuts = ", ".join(map(str, variants))
    with CheckpointWriter(
        folder, (), {**identity, "cuts": cuts}, stages=True, restart=restart
    ) as writer:
        records = work.run(writer)
        refuse_changed(plan)
        work.publish(writer, identity, records)
        if folder.exists():  # of other cuts, or dropped by a restart
            shutil.rmtree(folder)
        writer.commit()
    made = open_decomposed(plan, variants, options, folder, identity)
    assert made is not None
    return made


def identify_work(plan: Plan, options: Options) -> dict[str, str]:
    """Return everything that shapes a decomposition, in words, but for the cuts."""
    device = device_name(resolve_device(options.device))
    machinery = {"torch": str(torch.__version__), "device": device}
    identity = identify_run(plan, [Output(Path(), BASE.rule)], options, machinery)
    del identity["the result"], identity["--rank"], identity["--keep"]
    return identity


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not (folder / FACTS_NAME).is_file():
        raise OutputExistsError(
            f"{folder} exists and is no decomposition that svdcut made (it has no {FACTS_NAME})",
            hint="Move it away, or choose another output.",
        )


@dataclass(frozen=True, slots=True)
class _Work:
    """A decomposition at work."""

    plan: Plan
    variants: tuple[Variant, ...]
    options: Options
    device: torch.device
    observe: Observer

    @property
    def tensors(self) -> list[PlannedTensor]:
        return [t for t in self.plan.tensors if t.pair.action is Action.TRUNCATE]

    def run(self, writer: CheckpointWriter) -> list[_Record]:
        """Decompose what is not yet; return what is recorded of each tensor."""
        others = [v.keep for v in self.variants if v.keep is not Keep.TOP]
        options = replace(self.options, keep=others[0] if others else Keep.TOP)
        needs = memory_needs(self.plan, self._rules_to_decompose(), options)
        rules = tuple(variant.rule for variant in self.variants)
        keeps = tuple(variant.keep for variant in self.variants)
        job = Job(rules, self.options, self.device, {}, Reserve(needs.reserve), keeps=keeps)
        sizes = {t.pair.name: n for t, n in zip(self.plan.tensors, needs.sizes, strict=True)}
        with Pool(num_workers(self.device), needs.bound, self.device) as pool:
            budgets = allocate_budgets(job, self.plan, pool, needs.sizes, writer, self.observe)
            task = self._task(replace(job, budgets=budgets), writer)
            return pool.map(task, [sizes[tensor.pair.name] for tensor in self.tensors])

    def _rules_to_decompose(self) -> list[Rule]:
        """Return the rules without the one for which matrices may stay as they are."""
        rules = [variant.rule for variant in self.variants]
        if self.options.scale == 1 and not self.plan.finetuned.updates:
            rules = [rule for rule in rules if rule != FULL]
        return rules or [NOTHING]

    def _task(self, job: Job, writer: CheckpointWriter) -> Callable[[int], _Record]:
        tensors = self.tensors
        total = sum(tensor.target.size_bytes for tensor in tensors)

        def task(number: int) -> _Record:
            pair, size = tensors[number].pair, tensors[number].target.size_bytes
            found = writer.finished_parts(pair.name)
            resumed = found is not None
            if found is None:
                made, _ = decompose_on_device(job, pair, lambda job: _decompose(job, pair, writer))
                found = made
            self.observe(Progress("decompose", pair.name, size, total, resumed=resumed))
            return found

        return task

    def publish(
        self, writer: CheckpointWriter, identity: Mapping[str, str], records: Sequence[_Record]
    ) -> None:
        """Put the tensors in one file, and the facts in another."""
        facts: dict[str, object] = {}
        shapes: dict[str, tuple[Dtype, tuple[int, ...]]] = {}
        for pair, record in zip((t.pair for t in self.tensors), records, strict=True):
            facts[pair.name] = record["matrices"]
            for number, matrix in enumerate(record["matrices"]):
                for part, shape in _shapes(pair.matrices[number], matrix).items():
                    shapes[key_of(pair.name, number, part)] = shape
        hashes = self._write_tensors(writer, shapes) if shapes else {}
        document = document_of(identity, self.variants, facts, hashes)
        writer.write_file(Path(FACTS_NAME), json.dumps(document, allow_nan=False).encode())

    def _write_tensors(
        self, writer: CheckpointWriter, shapes: Mapping[str, tuple[Dtype, tuple[int, ...]]]
    ) -> dict[str, str]:
        """Write the file of factors; return the sha256 of each tensor."""
        file = lay_out(FACTORS_NAME, shapes, {})
        writer.add_file(file)
        staging = writer.staging
        places = [place for tensor in self.tensors for place in staging.parts(tensor.pair.name)]
        hashes = {}
        for entry, place in zip(file.entries, places, strict=True):
            output = writer.open(entry)
            output.write(staging.read(place))
            hashes[entry.name] = output.finish()
        return hashes


def _shapes(sides: tuple[int, int], matrix: _Record) -> dict[str, tuple[Dtype, tuple[int, ...]]]:
    """Return the tensors that are stored of a matrix, in the order in which they are kept."""
    shapes: dict[str, tuple[Dtype, tuple[int, ...]]] = {}
    if matrix["num_triplets"]:
        shapes[VALUES] = (Dtype.F64, (3, matrix["num_triplets"]))
    if matrix["stored"]:
        for side, rows in zip(SIDES, sides, strict=True):
            shapes[side] = (Dtype(matrix["dtype"]), (rows, len(matrix["stored"])))
    return shapes


def _decompose(job: Job, pair: Pair, writer: CheckpointWriter) -> _Record:
    """Keep the triplets of a tensor's matrices, and record what they are."""
    found: list[StoredMatrix] = []
    places: list[Range] = []
    digest = hashlib.sha256()
    for sides in matrix_sides(pair):
        matrix, tensors = _decompose_matrix(job, pair, sides)
        found.append(matrix)
        for tensor in tensors:
            data = to_bytes(tensor)
            digest.update(data)
            places.append(writer.staging.append(data))
    writer.staging.record_parts(pair.name, places)
    record = {"sha256": digest.hexdigest(), "matrices": [asdict(matrix) for matrix in found]}
    writer.record(TENSOR, pair.name, record)
    return record


def _decompose_matrix(
    job: Job, pair: Pair, sides: MatrixSides
) -> tuple[StoredMatrix, list[Tensor]]:
    """Return what is known of a matrix, and the tensors to store, long sides in rows."""
    full_rank = pair.full_ranks[sides.number]
    requests = job.requests(pair, sides.number)
    can_stay = stays_whole(sides, full_rank, full_rank, job.options.scale)
    whole = [can_stay and request.rule == FULL for request in requests]
    asked = [request for request, is_whole in zip(requests, whole, strict=True) if not is_whole]
    cuts = decompose_matrix(job, pair, sides, asked or [CutRequest(NOTHING, Keep.TOP, 0)])
    found = iter(cuts if asked else ())
    ranks = [full_rank if is_whole else next(found).result.cut.rank for is_whole in whole]
    return _keep(cuts, ranks)


def _keep(cuts: Sequence[CutMatrix], ranks: Sequence[int]) -> tuple[StoredMatrix, list[Tensor]]:
    first = cuts[0]
    kept, measured = first.kept, first.result.measured
    needed = sorted({index for cut in cuts for index in cut.kept.indices})
    left, right = kept.factors(needed)
    dtype = torch.promote_types(left.dtype, right.dtype)
    matrix = StoredMatrix(
        measured=replace(measured, squares=(), residuals=(), couplings=()),
        num_triplets=len(measured.squares),
        stored=tuple(needed),
        dtype=_DTYPES[dtype],
        ranks=tuple(ranks),
        edge=next((c.result.cut.edge for c in cuts if c.result.cut.edge is not None), None),
        is_wide=kept.is_wide,
        zero_fraction=first.result.zero_fraction,
        equal_bytes=first.result.equal_bytes,
    )
    values = [measured.squares, measured.residuals, measured.couplings]
    tensors = [torch.tensor(values, dtype=torch.float64)] if measured.squares else []
    if needed:
        tensors += [left.to(dtype), right.T.to(dtype)]
    return matrix, tensors
