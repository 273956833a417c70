"""A decomposition on disk, one file per matrix, and the cuts that can be made from it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from itertools import chain
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from svdcut.choose.cut import Cut, CutRequest, choose_cut, is_certified
from svdcut.choose.keep import Keep, choose_indices
from svdcut.choose.options import Options
from svdcut.device import resolve_device
from svdcut.errors import CheckpointError
from svdcut.files.atomic_write import write_whole
from svdcut.files.header import read_header
from svdcut.files.jsonfile import parse_dataclass, quoted
from svdcut.pair.pairing import Action, Pair
from svdcut.pair.plan import Plan
from svdcut.streaming.stored_matrix import MatrixSides, matrix_sides, to_bytes
from svdcut.svd.certificate import Bounds, MeasuredValues
from svdcut.sweeps.result import Variant
from svdcut.truncation.reconstruction import CutMatrix, MatrixResult, stays_whole
from svdcut.truncation.tensor_job import Job

_SIDES = ("left", "right")
_FACTS = "facts"
_DIGEST = "sha256 of the facts"


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """The facts of one matrix, stored with its vectors."""

    tensor: str
    measured: MeasuredValues
    indices: tuple[int, ...]
    """The triplets whose vectors are in the file, ascending."""

    ranks: Mapping[str, int]
    """The rank of each cut that the matrix was decomposed for, by the text of its variant."""

    edge: float | None
    """The noise edge, if a rule needed it."""

    is_wide: bool
    zero_fraction: float
    equal_bytes: bool
    """These three as in `svdcut.streaming.update.Update`."""

    hashes: Mapping[str, str]
    """The sha256 of each side's vectors."""

    def cut(
        self, sides: MatrixSides, variant: Variant, request: CutRequest, options: Options
    ) -> Cut | None:
        """Return a cut, or None if the stored facts or vectors are not enough for it."""
        measured = self.measured
        rank = self._rank(variant, request)
        if rank is None:
            return None
        if stays_whole(sides, rank, measured.full_rank, options.scale):
            return _whole(measured)
        request = replace(request, rank=rank)
        indices = choose_indices(request.keep, rank, measured.full_rank, seed=request.seed)
        if not set(indices) <= set(self.indices):
            return None
        cut = choose_cut(measured, request, self.edge)
        is_known = str(variant) in self.ranks or is_certified(cut.bounds, options.tolerance)
        return cut if is_known else None

    def _rank(self, variant: Variant, request: CutRequest) -> int | None:
        measured = self.measured
        if measured.energy == 0:
            return 0
        known = self.ranks.get(str(variant), request.known_rank(measured.full_rank))
        if known is not None:
            return known
        rule = request.rule
        if rule.is_joint or (rule.needs_edge and self.edge is None) or not measured.is_complete:
            return None
        values = measured.singular_values()
        return rule.rank(values, measured.full_rank, edge=self.edge or 0.0)


def _whole(measured: MeasuredValues) -> Cut:
    """Return the cut that keeps all of a matrix, whichever triplets are stored."""
    s = measured.singular_values()
    return Cut(
        indices=range(measured.full_rank),
        bounds=Bounds(0.0, 0.0),
        residual=0.0,
        edge=None,
        kept_norm=measured.norm,
        tail_norm=0.0,
        sigma_first=s[0] if s else 0.0,
        sigma_last_kept=s[-1] if measured.is_complete else None,
        sigma_next=None,
    )


@dataclass(frozen=True, slots=True)
class Kept:
    """Ranks and norms of a cut, over all matrices."""

    ranks: tuple[int, ...]
    """The rank of each matrix."""

    full_ranks: tuple[int, ...]
    full_rank: int
    """Sum over the matrices that differ between the two sides."""

    norm: float
    """Norm of the kept triplets."""

    tail_norm: float
    """Norm of the triplets that are cut."""

    @property
    def energy_retained(self) -> float | None:
        """Share of the squared singular values; None if the two sides do not differ."""
        norm = math.hypot(self.norm, self.tail_norm)
        return (self.norm / norm) ** 2 if norm else None

    def signature(self, keep: Keep) -> tuple[Keep, tuple[int, ...]]:
        """Return a key that is equal for cuts that keep the same triplets."""
        is_end = all(k in (0, most) for k, most in zip(self.ranks, self.full_ranks, strict=True))
        return Keep.TOP if is_end else keep, self.ranks


class Decomposition:
    """The triplets of an update that the cuts of a sweep need, in files of one folder."""

    def __init__(self, plan: Plan, options: Options, folder: Path) -> None:
        self.plan = plan
        self.options = options
        self.folder = folder
        self._places = {tensor.pair.name: n for n, tensor in enumerate(plan.tensors)}
        self.kept = cache(self._kept)

    @property
    def pairs(self) -> list[Pair]:
        """The tensors that are decomposed."""
        pairs = (tensor.pair for tensor in self.plan.tensors)
        return [pair for pair in pairs if pair.action is Action.TRUNCATE]

    def path(self, pair: Pair, number: int) -> Path:
        """Return the file of matrix `number` of a tensor."""
        return self.folder / f"{self._places[pair.name]:05}-{number:05}.safetensors"

    def write(
        self, pair: Pair, number: int, matrix: StoredMatrix, left: Tensor, right: Tensor
    ) -> None:
        """Write a matrix with the vectors (m, k) and (n, k) of ``matrix.indices``."""
        vectors = (left.cpu().contiguous(), right.cpu().contiguous())
        tensors = dict(zip(_SIDES, vectors, strict=True))
        hashes = {side: _sha256(to_bytes(tensor)) for side, tensor in tensors.items()}
        facts = json.dumps(asdict(replace(matrix, hashes=hashes)), allow_nan=False)
        metadata = {_FACTS: facts, _DIGEST: _sha256(facts.encode())}
        write_whole(
            self.path(pair, number), lambda path: save_file(tensors, path, metadata=metadata)
        )

    def read(self, pair: Pair, number: int) -> StoredMatrix | None:
        """Return the facts of a matrix; None if it has no file, or a damaged one."""
        try:
            metadata = read_header(self.path(pair, number)).metadata
            facts = metadata[_FACTS]
            if metadata[_DIGEST] != _sha256(facts.encode()):
                return None
            matrix = parse_dataclass(StoredMatrix, json.loads(facts))
        except (CheckpointError, KeyError, ValueError):
            return None
        return matrix if matrix.tensor == pair.name else None

    def serves(self, pair: Pair, sides: MatrixSides, variants: Sequence[Variant]) -> bool:
        """Whether the stored facts and vectors of a matrix are enough for some cuts."""
        matrix = self.read(pair, sides.number)
        if matrix is None:
            return False
        requests = job_for(variants, self.options).requests(pair, sides.number)
        cuts = (
            matrix.cut(sides, variant, request, self.options)
            for variant, request in zip(variants, requests, strict=True)
        )
        return all(cut is not None for cut in cuts)

    def _kept(self, variant: Variant) -> Kept:
        """Return ranks and norms of a cut that every matrix serves."""
        ranks, full_ranks, norms, full_rank = [], [], [], 0
        for matrix in chain.from_iterable(self.cut_tensor(variant, pair) for pair in self.pairs):
            cut, measured = matrix.result.cut, matrix.result.measured
            ranks.append(cut.rank)
            full_ranks.append(measured.full_rank)
            norms.append((cut.kept_norm, cut.tail_norm))
            full_rank += measured.full_rank if measured.energy else 0
        norm, tail_norm = (math.hypot(*side) for side in zip(*norms, strict=True))
        return Kept(tuple(ranks), tuple(full_ranks), full_rank, norm, tail_norm)

    def is_finetuned(self, variant: Variant) -> bool:
        """Whether a cut gives the fine-tuned side itself, to the last bit."""
        same = all(
            tensor.pair.action is not Action.COPY_BASE
            and tensor.target.dtype is tensor.pair.finetuned.dtype
            for tensor in self.plan.tensors
        )
        kept = self.kept(variant)
        is_plain = self.options.scale == 1 and not self.plan.finetuned.updates
        return same and kept.ranks == kept.full_ranks and is_plain

    def cut_tensor(
        self, variant: Variant, pair: Pair, device: torch.device | None = None
    ) -> Iterator[CutMatrix]:
        """Yield the cut of each matrix of a tensor; its factors go to `device`, or the default.

        A `CheckpointError` is raised if a file is damaged, for factors when they are read.
        """
        job = job_for([variant], self.options)
        for sides in matrix_sides(pair):
            matrix = self.read(pair, sides.number)
            if matrix is None:
                raise self._damaged(pair, sides.number, "its facts")
            (request,) = job.requests(pair, sides.number)
            cut = matrix.cut(sides, variant, request, self.options)
            assert cut is not None
            factors = partial(self._factors, pair, sides.number, matrix, device or job.device)
            facts = (matrix.measured, matrix.zero_fraction, matrix.equal_bytes)
            yield CutMatrix(sides, MatrixResult(cut, *facts), factors, matrix.is_wide)

    def _factors(
        self,
        pair: Pair,
        number: int,
        matrix: StoredMatrix,
        device: torch.device,
        chosen: Sequence[int],
    ) -> tuple[Tensor, Tensor]:
        """Return the factors (m, k) and (k, n) of chosen triplets."""
        tensors = load_file(self.path(pair, number))
        for side in _SIDES:
            if _sha256(to_bytes(tensors[side])) != matrix.hashes[side]:
                raise self._damaged(pair, number, side)
        place = {index: position for position, index in enumerate(matrix.indices)}
        picked = torch.tensor([place[index] for index in chosen], dtype=torch.long)
        left, right = (tensors[side].index_select(1, picked).to(device) for side in _SIDES)
        return left, right.T

    def _damaged(self, pair: Pair, number: int, part: str) -> CheckpointError:
        path = self.path(pair, number)
        return CheckpointError(
            f"{path}: {part} of matrix {number} of tensor {quoted(pair.name)}: damaged, the sha256 "
            "is not that of what was written",
            hint=f"Remove {path}: it is made again, and rows that are done stay.",
        )


def job_for(variants: Sequence[Variant], options: Options) -> Job:
    """Return the job of some cuts; ranks of budgets are not set."""
    return Job(
        rules=tuple(variant.rule for variant in variants),
        options=options,
        device=resolve_device(options.device),
        budgets={},
        keeps=tuple(variant.keep for variant in variants),
    )


def _sha256(data: bytes | bytearray | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()
