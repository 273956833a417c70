"""Compute one tensor of a result again, and hold the result against it.

First by the very route and seed that the manifest names: the same bytes prove all of
what is stored. Then by another one, for the numbers; and where the bytes are others, for
the bounds that they must keep.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from svdcut.choose.options import Options
from svdcut.choose.ranks import Rule
from svdcut.errors import CheckpointError, SvdcutError
from svdcut.files.tensorfile import TensorEntry
from svdcut.pair.pairing import Action
from svdcut.pair.plan import PlannedTensor
from svdcut.record.manifest import TensorFact, Truncation
from svdcut.streaming.pool import or_on_cpu
from svdcut.streaming.stored_matrix import TORCH_DTYPES, MatrixEntry, MatrixSides, matrix_sides
from svdcut.streaming.update import read_update
from svdcut.svd.decomposition import SolverError
from svdcut.truncation.reconstruction import merged_rows
from svdcut.truncation.tensor_job import Job, process_tensor
from svdcut.truncation.tensor_output import CheckpointTensor
from svdcut.verification.claims import close
from svdcut.verification.findings import Failure
from svdcut.verification.spectrum import (
    Claim,
    Contradiction,
    Spectrum,
    claims_of,
    compare,
    measure,
)
from svdcut.verification.stored import (
    Measured,
    compare_stored,
    exact_values,
    measure_exact,
    measure_stored,
)
from svdcut.write.tensor_writer import TensorWriter

_SAME_ROUNDING = 1e-3
"""Relative difference of the rounding errors of two runs that store the same bytes: what
they meant to store differs by less than this share of a unit in the last place."""


@dataclass(frozen=True, slots=True)
class Recomputed:
    """What became of one tensor."""

    failures: tuple[Failure, ...]
    reproduced: bool = False
    """Whether it gave the bytes that the manifest names."""

    spectra: tuple[Spectrum, ...] = ()
    """Of its matrices, where it is truncated."""


@dataclass(frozen=True, slots=True)
class Discard:
    """Where recomputed tensors go: they are hashed, and kept nowhere."""

    descriptor: int
    """Of the null device."""

    def open(self, planned: PlannedTensor, options: Options) -> CheckpointTensor:
        """Return what takes a planned tensor."""
        return CheckpointTensor(
            TensorWriter(self.descriptor, planned.target), planned, options.scale
        )


def recompute_tensor(
    job: Job,
    output: int,
    planned: PlannedTensor,
    fact: TensorFact,
    stored: TensorEntry | None,
    nowhere: Discard,
) -> Recomputed:
    """Compute one tensor again.

    Parameters
    ----------
    job : Job
        As the manifest's options say, with the ranks that it claims as budgets. Its rules
        are those of the whole run: results of one decomposition need all of them to
        come out to the byte.
    output : int
        Which of them is the result's.
    planned : PlannedTensor
        Where the tensor comes from.
    fact : TensorFact
        What is claimed of it.
    stored : TensorEntry or None
        The tensor in the result; None where it is missing, or of another form.
    nowhere : Discard
        Takes the bytes.

    Returns
    -------
    Recomputed
        Every claim that does not hold.

    Raises
    ------
    CheckpointError
        If a side cannot be read.
    """
    name, cut = planned.pair.name, fact.truncation
    try:
        again = process_tensor(job, planned, [nowhere] * len(job.rules))[output]
    except CheckpointError:
        raise
    except SvdcutError as error:
        return Recomputed((Failure("result", error.what, fact.sha256, tensor=name),))
    if again.action != fact.action:
        return Recomputed((Failure("action", again.action, fact.action, tensor=name),))
    if cut is None or again.truncation is None:
        same = again.sha256 == fact.sha256
        wrong = Failure("result", again.sha256, fact.sha256, tensor=name)
        return Recomputed(() if same else (wrong,), reproduced=same)
    same = again.sha256 == fact.sha256 and again.truncation.ranks == cut.ranks
    rule = job.rules_for(planned.pair)[output]
    work = _Tensor(job, planned, cut, rule, None if same else stored)
    try:
        found, spectra = work.check()
    except SolverError as error:
        raise SvdcutError(f"tensor {name!r}: no SVD converged ({error})") from error
    if same and not close(again.truncation.rounding_error, cut.rounding_error, _SAME_ROUNDING):
        found.append(("rounding_error", again.truncation.rounding_error, cut.rounding_error))
    failures = tuple(Failure(*contradiction, tensor=name) for contradiction in found)
    return Recomputed(failures, reproduced=same, spectra=tuple(spectra))


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A truncated tensor at work."""

    job: Job
    planned: PlannedTensor
    cut: Truncation
    rule: Rule
    stored: TensorEntry | None
    """None where nothing need be asked of the stored bytes."""

    def check(self) -> tuple[list[Contradiction], list[Spectrum]]:
        options = self.job.options
        claims = claims_of(self.planned.pair, self.cut, self.rule, options.keep, options.seed)
        sides = list(matrix_sides(self.planned.pair))
        if len(claims) != len(sides):
            return [("matrices", len(sides), len(claims))], []
        spectra, measured, wrong = [], [], []
        for claim, matrix in zip(claims, sides, strict=True):
            (spectrum, found), _ = or_on_cpu(
                self.job.device,
                lambda device, c=claim, m=matrix: self._matrix(c, m, device),  # type: ignore[misc]
            )
            spectra.append(spectrum)
            if isinstance(found, Measured):
                measured.append(found)
            elif found is not None:
                wrong.append(found)
        contradictions = [*compare(self.cut, options.keep, spectra), *wrong[:1]]
        if measured and not contradictions:
            contradictions += compare_stored(
                self.cut, options.keep, options.scale, measured, spectra
            )
        if self.stored is not None:
            contradictions += self._new_rows()
        return contradictions, spectra

    def _matrix(
        self, claim: Claim, matrix: MatrixSides, device: torch.device
    ) -> tuple[Spectrum, Measured | Contradiction | None]:
        noise = claim.rule.needs_edge
        update = read_update(matrix, device, measure_rounding=noise)
        decomposition, spectrum = measure(update, claim)
        if self.stored is None:
            return spectrum, None
        stored = MatrixEntry(self.stored, matrix.finetuned.first, matrix.finetuned.shape)
        scale, full_rank = self.job.options.scale, len(spectrum.values)
        wanted = exact_values(spectrum.rank, full_rank, scale, matrix)
        if wanted is not None:
            exact = measure_exact(wanted, stored.read(torch.device("cpu")), spectrum)
            source = "base" if spectrum.rank == 0 else "the fine-tuned side"
            return spectrum, exact or ("result", "other values", f"those of {source}")
        values = stored.read(device)
        keep = self.job.options.keep
        return spectrum, measure_stored(
            update, decomposition, spectrum, values, self.cut, keep, scale
        )

    def _new_rows(self) -> Iterator[Contradiction]:
        """Check the rows that base lacks: they are the fine-tuned side's."""
        pair, stored = self.planned.pair, self.stored
        assert stored is not None
        if not pair.new_rows:
            return
        (sides,) = matrix_sides(pair)
        ours = MatrixEntry(stored, 0, sides.finetuned.shape).following(pair.new_rows)
        device, dtype = self.job.device, TORCH_DTYPES[stored.dtype]
        theirs = [rows.stored.clone() for rows in merged_rows(sides, device, dtype, new=True)]
        if not torch.equal(
            torch.cat(theirs).view(torch.uint8), ours.read(device).view(torch.uint8)
        ):
            yield "result", "other rows", f"those of the fine-tuned side from {pair.shared_rows} on"


def is_cheap(planned: PlannedTensor, fact: TensorFact) -> bool:
    """Whether a tensor takes no SVD, so that no sample need leave it out."""
    return planned.pair.action is not Action.TRUNCATE or fact.truncation is None
