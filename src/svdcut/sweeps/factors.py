"""One decomposition of every matrix, kept on disk, for all cuts of a sweep.

It evaluates nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svdcut.budget import allocate_budgets
from svdcut.checkpoint import open_checkpoint
from svdcut.device import device_name, num_workers, resolve_device
from svdcut.errors import InputError, OutputExistsError, UsageError
from svdcut.matrix_entry import TORCH_DTYPES, to_bytes
from svdcut.memory import memory_needs
from svdcut.options import Options
from svdcut.pairing import Action, Pair
from svdcut.plan import Output, Plan, PlannedTensor
from svdcut.pool import Pool, or_on_cpu
from svdcut.progress import Observer, Progress
from svdcut.provenance import identify_run, refuse_changed
from svdcut.ranks import Keep, choose_indices, parse_rule
from svdcut.spool import Range
from svdcut.sweeps.facts import BASE, Cost, Variant
from svdcut.tensor_job import Job, cut_tensor, naming
from svdcut.tensor_output import CutMatrix, is_whole
from svdcut.tensorfile import Dtype, TensorEntry, lay_out, read_bytes
from svdcut.writer import TENSOR, CheckpointWriter

_FACTORS = "factors.safetensors"
_FACTS = "decomposition.json"
_SIDES = ("left", "right")
_DTYPES = {torch.float32: Dtype.F32, torch.float64: Dtype.F64}


@dataclass(frozen=True, slots=True)
class KeptRank:
    """What one cut keeps of a matrix."""

    rank: int
    kept_norm: float
    tail_norm: float


@dataclass(frozen=True, slots=True)
class MatrixFact:
    """One matrix, and what every cut keeps of it."""

    full_rank: int
    scale: float
    """The factor on the product of the factors that are kept."""

    is_wide: bool
    """Whether a side is stored in float64."""

    dtype: Dtype
    """Of the factors."""

    stored: tuple[int, ...]
    """Which triplets are at hand, ascending."""

    cuts: tuple[KeptRank, ...]


_Facts = Mapping[str, tuple[MatrixFact, ...]]
_Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Decomposed:
    """The triplets of a checkpoint's update that the cuts of a sweep need."""

    plan: Plan
    options: Options
    variants: tuple[Variant, ...]
    """In the order of `MatrixFact.cuts`."""

    tensors: _Facts
    entries: Mapping[str, TensorEntry]
    """Where the factors lie."""

    def cost(self, variant: Variant) -> Cost:
        """Return what a cut keeps, over all matrices."""
        number = self.variants.index(variant)
        matrices = [matrix for facts in self.tensors.values() for matrix in facts]
        cuts = [matrix.cuts[number] for matrix in matrices]
        kept = math.hypot(*(cut.kept_norm for cut in cuts))
        norm = math.hypot(kept, *(cut.tail_norm for cut in cuts))
        return Cost(
            rank=sum(cut.rank for cut in cuts),
            full_rank=sum(matrix.full_rank for matrix in matrices if _differs(matrix)),
            energy_retained=(kept / norm) ** 2 if norm else None,
        )

    def signature(self, variant: Variant) -> tuple[Keep, tuple[int, ...]]:
        """Return what is the same for cuts that keep the same triplets."""
        number = self.variants.index(variant)
        matrices = [matrix for facts in self.tensors.values() for matrix in facts]
        ranks = tuple(matrix.cuts[number].rank for matrix in matrices)
        full_ranks = [matrix.full_rank for matrix in matrices]
        is_end = all(k in (0, most) for k, most in zip(ranks, full_ranks, strict=True))
        return Keep.TOP if is_end else variant.keep, ranks

    def rank(self, name: str, number: int, variant: Variant) -> int:
        """Return how many triplets a cut keeps of matrix `number` of a tensor."""
        return self.tensors[name][number].cuts[self.variants.index(variant)].rank

    def factors(
        self, pair: Pair, number: int, variant: Variant, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Return what a cut keeps of a matrix, as ``svd.Decomposition.factors`` does.

        Returns
        -------
        tuple of Tensor
            `left` (m, k) and `right` (k, n), to be multiplied by the scale of the matrix.
        """
        fact = self.tensors[pair.name][number]
        rank = self.rank(pair.name, number, variant)
        place = {index: position for position, index in enumerate(fact.stored)}
        chosen = [place[i] for i in _indices(self, pair, number, variant, rank)]
        picked = torch.tensor(chosen, dtype=torch.long)
        left, right = (
            self._read(pair, number, side, fact).index_select(1, picked).to(device)
            for side in _SIDES
        )
        return left, right.T

    def _read(self, pair: Pair, number: int, side: str, fact: MatrixFact) -> Tensor:
        rows = pair.matrices[number][_SIDES.index(side)]
        dtype = TORCH_DTYPES[fact.dtype]
        if not fact.stored:
            return torch.empty((rows, 0), dtype=dtype)
        data = read_bytes(self.entries[_key(pair.name, number, side)])
        return torch.frombuffer(data, dtype=dtype).reshape(rows, len(fact.stored))


def _differs(matrix: MatrixFact) -> bool:
    """Whether there is anything to cut."""
    return any(cut.kept_norm or cut.tail_norm for cut in matrix.cuts)


def _indices(
    decomposed: Decomposed, pair: Pair, number: int, variant: Variant, rank: int
) -> list[int]:
    job = _job(decomposed.options, (variant,), torch.device("cpu"))
    (request,) = job.requests(pair, number)
    full_rank = decomposed.tensors[pair.name][number].full_rank
    return choose_indices(variant.keep, rank, full_rank, seed=request.seed)


def _key(name: str, number: int, side: str) -> str:
    return f"{name}.{number}.{side}"


def _job(options: Options, variants: Sequence[Variant], device: torch.device) -> Job:
    rules = tuple(variant.rule for variant in variants)
    return Job(rules, options, device, {}, keeps=tuple(variant.keep for variant in variants))


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
        As `svdcut.truncation.run_truncation` does.
    OutputExistsError
        If the folder holds something else, or unfinished work of other inputs or options.

    Notes
    -----
    The decompositions are those that a truncation to the same list of rules makes, by the
    same calls. Disk: ``8 k (m + n)`` bytes a matrix, and as much again at work.
    """
    device = resolve_device(options.device)
    torch.backends.cuda.matmul.allow_tf32 = False
    identity = identify_work(plan, options)
    if not restart:
        found = _open(plan, variants, options, folder, identity)
        if found is not None:
            return found
    _refuse_foreign(folder)
    work = _Work(plan, tuple(variants), options, device, observe)
    with CheckpointWriter(
        folder, (), {**identity, "cuts": _listed(variants)}, spools=True, restart=restart
    ) as writer:
        records = work.run(writer)
        refuse_changed(plan)
        work.publish(writer, identity, records)
        if folder.exists():  # of other cuts, or dropped by a restart
            shutil.rmtree(folder)
        writer.commit()
    made = _open(plan, variants, options, folder, identity)
    assert made is not None
    return made


def identify_work(plan: Plan, options: Options) -> dict[str, str]:
    """Return everything that shapes a decomposition, in words, but for the cuts."""
    device = device_name(resolve_device(options.device))
    machinery = {"torch": str(torch.__version__), "device": device}
    identity = identify_run(plan, [Output(Path(), BASE.rule)], options, machinery)
    del identity["the result"], identity["--rank"], identity["--keep"]
    return identity


def _listed(variants: Sequence[Variant]) -> str:
    return ", ".join(map(str, variants))


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not (folder / _FACTS).is_file():
        raise OutputExistsError(
            f"{folder} exists and is no decomposition that svdcut made (it has no {_FACTS})",
            hint="Move it away, or choose another output.",
        )


def _open(
    plan: Plan,
    variants: Sequence[Variant],
    options: Options,
    folder: Path,
    identity: Mapping[str, str],
) -> Decomposed | None:
    """Return what is there, if it is complete and serves."""
    from pydantic import TypeAdapter

    try:
        document = json.loads((folder / _FACTS).read_bytes())
        known = tuple(Variant(parse_rule(r), Keep(keep)) for r, keep in document["variants"])
        if document["identity"] != identity or not set(variants) <= set(known):
            return None
        facts = TypeAdapter(dict[str, tuple[MatrixFact, ...]]).validate_python(document["tensors"])
        entries = open_checkpoint(folder / _FACTORS).tensors if document["has_factors"] else {}
    except (OSError, ValueError, KeyError, TypeError, InputError, UsageError):
        return None  # damaged, or not there: it is made again
    return Decomposed(plan, options, known, facts, entries)


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
        rules = tuple(variant.rule for variant in self.variants)
        others = [v.keep for v in self.variants if v.keep is not Keep.TOP]
        options = replace(self.options, keep=others[0] if others else Keep.TOP)
        needs = memory_needs(self.plan, rules, options)
        job = _job(self.options, self.variants, self.device)
        sizes = {t.pair.name: n for t, n in zip(self.plan.tensors, needs.sizes, strict=True)}
        with Pool(num_workers(self.device), needs.bound, self.device) as pool:
            budgets = allocate_budgets(job, self.plan, pool, needs.sizes, writer, self.observe)
            task = self._task(replace(job, budgets=budgets), writer)
            return pool.map(task, [sizes[tensor.pair.name] for tensor in self.tensors])

    def _task(self, job: Job, writer: CheckpointWriter) -> Callable[[int], _Record]:
        tensors = self.tensors
        total = sum(tensor.target.size_bytes for tensor in tensors)

        def task(number: int) -> _Record:
            pair, size = tensors[number].pair, tensors[number].target.size_bytes
            found = writer.finished_parts(pair.name)
            resumed = found is not None
            if found is None:
                with naming(pair):
                    made, _ = or_on_cpu(
                        job.device,
                        lambda device: _decompose(replace(job, device=device), pair, writer),
                    )
                found = made
            self.observe(Progress("decompose", pair.name, size, total, resumed=resumed))
            return found

        return task

    def publish(
        self, writer: CheckpointWriter, identity: Mapping[str, str], records: Sequence[_Record]
    ) -> None:
        """Put the factors in one file, and the facts in another."""
        facts: dict[str, object] = {}
        shapes: dict[str, tuple[Dtype, tuple[int, ...]]] = {}
        for pair, record in zip((t.pair for t in self.tensors), records, strict=True):
            facts[pair.name] = record["matrices"]
            for number, matrix in enumerate(record["matrices"]):
                for side, rows in zip(_SIDES, pair.matrices[number], strict=True):
                    if matrix["stored"]:
                        shape = (rows, len(matrix["stored"]))
                        shapes[_key(pair.name, number, side)] = (Dtype(matrix["dtype"]), shape)
        if shapes:
            self._write_factors(writer, shapes)
        document = {
            "identity": identity,
            "variants": [(str(variant.rule), variant.keep.value) for variant in self.variants],
            "has_factors": bool(shapes),
            "tensors": facts,
        }
        writer.write_file(Path(_FACTS), json.dumps(document, allow_nan=False).encode())

    def _write_factors(
        self, writer: CheckpointWriter, shapes: Mapping[str, tuple[Dtype, tuple[int, ...]]]
    ) -> None:
        file = lay_out(_FACTORS, shapes, {})
        writer.add_file(file)
        places = [place for tensor in self.tensors for place in writer.parts(tensor.pair.name)]
        for entry, place in zip(file.entries, places, strict=True):
            sink = writer.sink(entry)
            sink.write(writer.read_parts([place]))
            sink.finish()


def _decompose(job: Job, pair: Pair, writer: CheckpointWriter) -> _Record:
    """Keep the triplets of a tensor's matrices, and record what they are."""
    facts: list[MatrixFact] = []
    places: list[Range] = []
    digest = hashlib.sha256()
    for matrices in cut_tensor(job, pair):
        fact, factors = _keep(job, matrices)
        facts.append(fact)
        for factor in factors if fact.stored else ():
            data = to_bytes(factor)
            digest.update(data)
            places.append(writer.keep(data))
    writer.keep_parts(pair.name, places)
    record = {"sha256": digest.hexdigest(), "matrices": [asdict(fact) for fact in facts]}
    writer.record(TENSOR, pair.name, record)
    return record


def _keep(job: Job, matrices: Sequence[CutMatrix]) -> tuple[MatrixFact, list[Tensor]]:
    """Return the facts of a matrix, and its factors, each with its long side in rows."""
    first = matrices[0]
    decomposition = first.decomposition
    full_rank = decomposition.full_rank
    needed = sorted(
        {
            index
            for matrix in matrices
            for index in matrix.cut.indices
            if not is_whole(matrix.sides, matrix.cut.rank, full_rank, job.options.scale)
        }
    )
    left, right = decomposition.factors(needed)
    dtype = torch.promote_types(left.dtype, right.dtype)
    fact = MatrixFact(
        full_rank=full_rank,
        scale=decomposition.scale,
        is_wide=first.update.is_wide,
        dtype=_DTYPES[dtype],
        stored=tuple(needed),
        cuts=tuple(KeptRank(m.cut.rank, m.cut.kept_norm, m.cut.tail_norm) for m in matrices),
    )
    return fact, [left.to(dtype), right.T.to(dtype)]
