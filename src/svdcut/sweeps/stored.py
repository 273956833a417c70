"""A decomposition that lies on disk, and the cuts that it serves.

It decomposes nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svdcut.choose.cut import CutRequest, choose_cut, is_certified, kept_energies
from svdcut.choose.keep import Keep, choose_indices
from svdcut.choose.options import Options
from svdcut.choose.ranks import parse_rule
from svdcut.errors import CheckpointError, InputError, UsageError
from svdcut.files.checkpoint import open_checkpoint
from svdcut.files.jsonfile import quoted
from svdcut.files.tensorfile import Dtype, TensorEntry, read_bytes
from svdcut.pair.pairing import Action, Pair
from svdcut.pair.plan import Plan
from svdcut.streaming.stored_matrix import TORCH_DTYPES, MatrixSides, matrix_sides
from svdcut.svd.measured import MeasuredValues
from svdcut.sweeps.facts import Cost, Variant
from svdcut.truncation.report import MatrixResult
from svdcut.truncation.tensor_job import CutMatrix, Job, KeptMatrix, stays_whole

FACTORS_NAME = "factors.safetensors"
FACTS_NAME = "decomposition.json"
SIDES = ("left", "right")
VALUES = "values"
"""Squares, residuals and couplings of the triplets, a row each."""


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """What is known of one matrix, beside what fills tensors."""

    measured: MeasuredValues
    """Without the numbers of each triplet."""

    num_triplets: int
    """How many have their numbers in the file."""

    stored: tuple[int, ...]
    """Of which of them the vectors are there, too; ascending."""

    dtype: Dtype
    """Of the factors."""

    ranks: tuple[int, ...]
    """That the cuts have which the decomposition was made for."""

    edge: float | None
    """The noise edge, if it was asked for."""

    is_wide: bool
    zero_fraction: float
    equal_bytes: bool
    """These as in `svdcut.streaming.update.Update`."""

    @property
    def full_rank(self) -> int:
        """The most that the rank can be."""
        return self.measured.full_rank

    @property
    def is_zero(self) -> bool:
        """Whether the two sides do not differ."""
        return self.measured.energy == 0


@dataclass(frozen=True, slots=True)
class _Kept:
    """What a cut keeps of a matrix."""

    rank: int
    kept_norm: float
    tail_norm: float


def key_of(name: str, number: int, part: str) -> str:
    """Return the name of a tensor of the decomposition."""
    return f"{name}.{number}.{part}"


def document_of(
    identity: Mapping[str, str],
    variants: Sequence[Variant],
    tensors: Mapping[str, object],
    hashes: Mapping[str, str],
) -> dict[str, object]:
    """Return what ``decomposition.json`` holds.

    Parameters
    ----------
    identity, variants
        What was decomposed, and the cuts that it was made for.
    tensors : mapping of str to object
        The `StoredMatrix` of each matrix, as JSON.
    hashes : mapping of str to str
        The sha256 of each tensor of the file of factors, by `key_of`.
    """
    cuts = [(str(variant.rule), variant.keep.value) for variant in variants]
    facts = {"identity": identity, "variants": cuts, "tensors": tensors, "sha256": hashes}
    return {"facts": facts, "digest": _digest(facts)}


def _digest(facts: Mapping[str, object]) -> str:
    """Return the sha256 of facts; they have the same when they are read again."""
    return hashlib.sha256(json.dumps(facts, allow_nan=False).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Decomposed:
    """The triplets of a checkpoint's update that the cuts of a sweep need."""

    plan: Plan
    options: Options
    made_for: tuple[Variant, ...]
    """In the order of `StoredMatrix.ranks`."""

    tensors: Mapping[str, tuple[StoredMatrix, ...]]
    entries: Mapping[str, TensorEntry]
    hashes: Mapping[str, str]
    """The sha256 of each of the `entries`."""

    kept: Mapping[Variant, tuple[_Kept, ...]]
    """Of all matrices in their order, for each cut."""

    def cost(self, variant: Variant) -> Cost:
        """Return what a cut keeps, over all matrices."""
        cuts = self.kept[variant]
        kept = math.hypot(*(cut.kept_norm for cut in cuts))
        norm = math.hypot(kept, *(cut.tail_norm for cut in cuts))
        return Cost(
            rank=sum(cut.rank for cut in cuts),
            full_rank=sum(matrix.full_rank for matrix in self._matrices() if not matrix.is_zero),
            energy_retained=(kept / norm) ** 2 if norm else None,
        )

    def rounding_share(self, variant: Variant, rounding_error: float) -> float | None:
        """Return what storing a cut rounds, over what it cuts; None where it cuts nothing."""
        tail = math.hypot(*(cut.tail_norm for cut in self.kept[variant]))
        return rounding_error / tail if tail else None

    def signature(self, variant: Variant) -> tuple[Keep, tuple[int, ...]]:
        """Return what is the same for cuts that keep the same triplets."""
        ranks = tuple(cut.rank for cut in self.kept[variant])
        full_ranks = [matrix.full_rank for matrix in self._matrices()]
        is_end = all(k in (0, most) for k, most in zip(ranks, full_ranks, strict=True))
        return Keep.TOP if is_end else variant.keep, ranks

    def is_finetuned(self, variant: Variant) -> bool:
        """Whether a cut makes the fine-tuned side itself, to the last bit."""
        plan, options = self.plan, self.options
        same = all(
            tensor.pair.action is not Action.COPY_BASE
            and tensor.target.dtype is tensor.pair.finetuned.dtype
            for tensor in plan.tensors
        )
        whole = all(
            cut.rank == matrix.full_rank
            for cut, matrix in zip(self.kept[variant], self._matrices(), strict=True)
        )
        return same and whole and options.scale == 1 and not plan.finetuned.updates

    def describes(self, variant: Variant) -> bool:
        """Whether all is known that a manifest says of a cut.

        Of a matrix that stays as it is, the last singular values may not be.
        """
        return all(
            cut.rank <= matrix.num_triplets
            for cut, matrix in zip(self.kept[variant], self._matrices(), strict=True)
        )

    def _matrices(self) -> Iterator[StoredMatrix]:
        for matrices in self.tensors.values():
            yield from matrices

    def kept_matrices(
        self, pair: Pair, variant: Variant, device: torch.device
    ) -> Iterator[KeptMatrix]:
        """Yield what a cut keeps of each matrix of a tensor."""
        for sides in matrix_sides(pair):
            yield _Reader(self, pair, sides).kept(variant, device)

    def cut_tensor(self, job: Job, pair: Pair) -> Iterator[list[CutMatrix]]:
        """Yield the cuts of each matrix of a tensor, as `tensor_job.cut_tensor` does."""
        keeps = job.keeps or (job.options.keep,) * len(job.rules)
        variants = [Variant(*cut) for cut in zip(job.rules, keeps, strict=True)]
        for sides in matrix_sides(pair):
            reader = _Reader(self, pair, sides)
            yield [reader.cut(variant, job.device) for variant in variants]


class _Reader:
    """One matrix of a decomposition."""

    def __init__(self, decomposed: Decomposed, pair: Pair, sides: MatrixSides) -> None:
        self.facts = decomposed.tensors[pair.name][sides.number]
        self._decomposed, self._pair, self._sides = decomposed, pair, sides

    @cached_property
    def measured(self) -> MeasuredValues:
        """The values."""
        stored = self._read(VALUES, Dtype.F64, (3, self.facts.num_triplets))
        squares, residuals, couplings = (tuple(row) for row in stored.tolist())
        return replace(
            self.facts.measured, squares=squares, residuals=residuals, couplings=couplings
        )

    def request(self, variant: Variant) -> CutRequest | None:
        """Return what a cut asks for, with its rank; None where that is not to be known."""
        facts, options = self.facts, self._decomposed.options
        job = Job((variant.rule,), options, torch.device("cpu"), {}, keeps=(variant.keep,))
        (request,) = job.requests(self._pair, self._sides.number)
        if facts.is_zero:
            return replace(request, rank=0)
        if variant in self._decomposed.made_for:
            rank = facts.ranks[self._decomposed.made_for.index(variant)]
            return replace(request, rank=rank)
        if request.known_rank(facts.full_rank) is not None:
            return request
        rule = request.rule
        unknown = rule.is_joint or (rule.needs_edge and facts.edge is None)
        if unknown or facts.num_triplets < facts.full_rank:
            return None
        values = self.measured.singular_values()
        rank = rule.rank(values, facts.full_rank, edge=facts.edge or 0.0)
        return replace(request, rank=rank)

    def indices(self, request: CutRequest) -> Sequence[int]:
        """Return which triplets stay."""
        facts = self.facts
        rank = request.known_rank(facts.full_rank)
        assert rank is not None
        return choose_indices(request.keep, rank, facts.full_rank, seed=request.seed)

    def find(self, variant: Variant) -> _Kept | None:
        """Return what a cut keeps, or None if what is stored does not tell or not serve."""
        facts, request = self.facts, self.request(variant)
        if request is None:
            return None
        indices = self.indices(request)
        measured = self.measured
        if self._is_whole(indices):
            return _Kept(len(indices), measured.norm, 0.0)
        if not set(indices) <= set(facts.stored):
            return None
        if variant not in self._decomposed.made_for:
            bounds = choose_cut(measured, request, facts.edge).bounds
            if not is_certified(bounds, self._decomposed.options.tolerance):
                return None
        kept, tail = kept_energies(measured, indices)
        norms = (math.sqrt(energy) * measured.scale for energy in (kept, tail))
        return _Kept(len(indices), *norms)

    def _is_whole(self, indices: Sequence[int]) -> bool:
        scale = self._decomposed.options.scale
        return stays_whole(self._sides, len(indices), self.facts.full_rank, scale)

    def kept(self, variant: Variant, device: torch.device) -> KeptMatrix:
        """Return what a cut keeps."""
        request = self.request(variant)
        assert request is not None
        return self._kept(self.indices(request), device)

    def _kept(self, indices: Sequence[int], device: torch.device) -> KeptMatrix:
        facts = self.facts
        return KeptMatrix(
            sides=self._sides,
            indices=indices,
            full_rank=facts.full_rank,
            scale=facts.measured.scale,
            factors=lambda chosen: self._factors(chosen, device),
            is_wide=facts.is_wide,
        )

    def cut(self, variant: Variant, device: torch.device) -> CutMatrix:
        """Return what a cut keeps, with all that is known of it."""
        request = self.request(variant)
        assert request is not None
        facts, cut = self.facts, choose_cut(self.measured, request, self.facts.edge)
        return CutMatrix(
            self._kept(cut.indices, device),
            MatrixResult(cut, self.measured, facts.zero_fraction, facts.equal_bytes),
        )

    def _factors(self, indices: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
        facts = self.facts
        place = {index: position for position, index in enumerate(facts.stored)}
        picked = torch.tensor([place[index] for index in indices], dtype=torch.long)
        rows = self._pair.matrices[self._sides.number]
        left, right = (
            self._read(side, facts.dtype, (size, len(facts.stored)))
            .index_select(1, picked)
            .to(device)
            for side, size in zip(SIDES, rows, strict=True)
        )
        return left, right.T

    def _read(self, part: str, dtype: Dtype, shape: tuple[int, int]) -> Tensor:
        if not math.prod(shape):
            return torch.empty(shape, dtype=TORCH_DTYPES[dtype])
        key = key_of(self._pair.name, self._sides.number, part)
        entry, expected = self._decomposed.entries[key], self._decomposed.hashes[key]
        data = read_bytes(entry)
        if hashlib.sha256(data).hexdigest() != expected:
            raise CheckpointError(
                f"{entry.path}: tensor {quoted(key)} is damaged: its sha256 is not that of what "
                "was written",
                hint=f"Remove {entry.path.parent}: it is made again, and rows that are done stay.",
            )
        return torch.frombuffer(data, dtype=TORCH_DTYPES[dtype]).reshape(shape)


def open_decomposed(
    plan: Plan,
    variants: Sequence[Variant],
    options: Options,
    folder: Path,
    identity: Mapping[str, str],
) -> Decomposed | None:
    """Return the decomposition of a folder, if it is complete and serves some cuts.

    Parameters
    ----------
    plan, variants, options, folder
        As for `svdcut.sweeps.decompose.decompose_update`.
    identity : mapping of str to str
        Everything that shapes a decomposition, in words, but for the cuts.

    Returns
    -------
    Decomposed or None
        None as well where it is damaged: then it is to be made again. Factors are read, and
        compared with their hashes, when a cut needs them; `CheckpointError` tells then.

    Notes
    -----
    Serves every cut whose rank follows from what is known, whose triplets are stored, and
    which is certified like any other: after one of rank 64, all ranks below.
    """
    try:
        found = _read(plan, options, folder, identity)
        return None if found is None else _serve(found, variants)
    except (OSError, ValueError, KeyError, TypeError, InputError, UsageError):
        return None


def _read(
    plan: Plan, options: Options, folder: Path, identity: Mapping[str, str]
) -> Decomposed | None:
    from pydantic import TypeAdapter

    document: dict[str, Any] = json.loads((folder / FACTS_NAME).read_bytes())
    facts = document["facts"]
    if document["digest"] != _digest(facts) or facts["identity"] != identity:
        return None
    known = tuple(Variant(parse_rule(rule), Keep(keep)) for rule, keep in facts["variants"])
    tensors = TypeAdapter(dict[str, tuple[StoredMatrix, ...]]).validate_python(facts["tensors"])
    hashes = facts["sha256"]
    entries = open_checkpoint(folder / FACTORS_NAME).tensors if hashes else {}
    if entries.keys() != hashes.keys():
        return None
    return Decomposed(plan, options, known, tensors, entries, hashes, kept={})


def _serve(decomposed: Decomposed, variants: Sequence[Variant]) -> Decomposed | None:
    """Return the decomposition with what some cuts keep, if it serves all of them."""
    found: dict[Variant, list[_Kept]] = {variant: [] for variant in variants}
    for pair in (tensor.pair for tensor in decomposed.plan.tensors):
        if pair.action is not Action.TRUNCATE:
            continue
        for sides in matrix_sides(pair):
            reader = _Reader(decomposed, pair, sides)
            for variant, cuts in found.items():
                kept = reader.find(variant)
                if kept is None:
                    return None
                cuts.append(kept)
    return replace(decomposed, kept={variant: tuple(cuts) for variant, cuts in found.items()})
