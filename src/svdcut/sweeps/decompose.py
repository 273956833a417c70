"""Decompose every matrix once, as far as all cuts of a sweep need, and keep it on disk.

It evaluates nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from svdcut.choose.cut import CutRequest
from svdcut.choose.keep import Keep
from svdcut.choose.options import Options
from svdcut.choose.ranks import FULL, NOTHING, Rule
from svdcut.device import device_name, num_workers, resolve_device
from svdcut.errors import InputChangedError, OutputExistsError
from svdcut.pair.pairing import Pair
from svdcut.pair.plan import Output, Plan
from svdcut.record.progress import Observer, Progress
from svdcut.record.provenance import identify_run, refuse_changed
from svdcut.streaming.memory import memory_needs
from svdcut.streaming.pool import Pool, Reserve
from svdcut.streaming.stored_matrix import MatrixSides, matrix_sides
from svdcut.sweeps.decomposition import Decomposition, StoredMatrix, job_for
from svdcut.sweeps.result import BASE, Variant
from svdcut.sweeps.rows import explain_writing
from svdcut.truncation.budget import allocate_budgets
from svdcut.truncation.reconstruction import CutMatrix, stays_whole
from svdcut.truncation.tensor_job import (
    Job,
    decompose_matrix,
    decompose_on_device,
)
from svdcut.write.journal import JOURNAL_NAME, Journal


def decompose_update(
    plan: Plan,
    variants: Sequence[Variant],
    options: Options,
    folder: Path,
    *,
    restart: bool = False,
    observe: Observer = lambda progress: None,
) -> Decomposition:
    """Decompose every matrix as far as some cuts need, unless that was done before.

    Parameters
    ----------
    plan : Plan
        Of the two sides.
    variants : sequence of Variant
        The cuts.
    options : Options
        As the plan was made with.
    folder : Path
        Where the triplets are kept, a file for each matrix. A matrix whose file serves all
        `variants` is not decomposed again: after one of rank 64, that is all ranks below.
    restart : bool
        Whether to drop what is there.
    observe : callable
        Told of each tensor that is done, unless all are there.

    Raises
    ------
    NonFiniteError, QualityError, CheckpointError, OutputError
        As `svdcut.truncation.run.run_truncation` does.
    OutputExistsError
        If the folder holds something else, or another run is at work there.

    Notes
    -----
    The decompositions are those that a truncation to the same list of rules makes, by the
    same calls; but where a matrix stays whole, nothing is decomposed for that. Disk:
    ``8 k (m + n)`` bytes a matrix.
    """
    found = Decomposition(plan, options, folder)
    with _journal(folder, identify_work(plan, options), restart=restart) as journal:
        missing = {
            pair.name: sides
            for pair in found.pairs
            if (sides := [s for s in matrix_sides(pair) if not found.serves(pair, s, variants)])
        }
        if missing:
            _Work(found, tuple(variants), missing, observe).run(journal)
        _refuse_changed(plan, folder)
    return found


def identify_work(plan: Plan, options: Options) -> dict[str, str]:
    """Return everything that shapes a decomposition, in words, but for the cuts."""
    device = device_name(resolve_device(options.device))
    machinery = {"torch": str(torch.__version__), "device": device}
    identity = identify_run(plan, [Output(Path(), BASE.rule)], options, machinery)
    del identity["the result"], identity["--rank"], identity["--keep"]
    return identity


@contextmanager
def _journal(folder: Path, identity: dict[str, str], *, restart: bool) -> Iterator[Journal]:
    """Lock a folder; empty it first where it holds work of another identity."""
    if folder.exists() and any(folder.iterdir()) and not (folder / JOURNAL_NAME).is_file():
        raise OutputExistsError(
            f"{folder} exists and is no decomposition that svdcut made (it has no {JOURNAL_NAME})",
            hint="Move it away, or choose another output.",
        )
    with ExitStack() as stack:
        with explain_writing(folder):
            journal = stack.enter_context(closing(Journal(folder)))
            _remove(folder, "*.partial")  # of runs that were killed
            if restart or journal.identity != identity:
                _remove(folder, "*.safetensors")
                journal.begin(identity)
        yield journal


def _remove(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        path.unlink()


def _refuse_changed(plan: Plan, folder: Path) -> None:
    """Refuse inputs that changed, and drop what was made of them."""
    try:
        refuse_changed(plan)
    except InputChangedError:
        _remove(folder, "*.safetensors")
        raise


@dataclass(frozen=True, slots=True)
class _Work:
    """A decomposition at work."""

    made: Decomposition
    variants: tuple[Variant, ...]
    missing: dict[str, list[MatrixSides]]
    """The matrices to decompose, by tensor."""

    observe: Observer

    def run(self, journal: Journal) -> None:
        """Decompose what is missing; `journal` remembers spectra that a budget needs."""
        plan, options = self.made.plan, self.made.options
        others = [v.keep for v in self.variants if v.keep is not Keep.TOP]
        needs = memory_needs(
            plan, self._rules_to_decompose(), replace(options, keep=(*others, Keep.TOP)[0])
        )
        job = replace(job_for(self.variants, options), reserve=Reserve(needs.reserve))
        sizes = {t.pair.name: n for t, n in zip(plan.tensors, needs.sizes, strict=True)}
        pairs = self.made.pairs
        total = sum(pair.finetuned.size_bytes for pair in pairs)

        def task(number: int) -> None:
            pair = pairs[number]
            self._tensor(job, pair)
            size, resumed = pair.finetuned.size_bytes, pair.name not in self.missing
            self.observe(Progress("decompose", pair.name, size, total, resumed=resumed))

        with Pool(num_workers(job.device), needs.bound, job.device) as pool:
            budgets = allocate_budgets(job, plan, pool, needs.sizes, journal, self.observe)
            job = replace(job, budgets=budgets)
            pool.map(task, [sizes[pair.name] for pair in pairs])

    def _rules_to_decompose(self) -> list[Rule]:
        """Return the rules without the one for which matrices may stay as they are."""
        rules = [variant.rule for variant in self.variants]
        if self.made.options.scale == 1 and not self.made.plan.finetuned.updates:
            rules = [rule for rule in rules if rule != FULL]
        return rules or [NOTHING]

    def _tensor(self, job: Job, pair: Pair) -> None:
        """Decompose the missing matrices of a tensor."""
        for sides in self.missing.get(pair.name, ()):
            decompose_on_device(job, pair, partial(self._matrix, pair, sides))

    def _matrix(self, pair: Pair, sides: MatrixSides, job: Job) -> None:
        """Decompose a matrix, and write it; where a cut leaves it whole, not for that one."""
        full_rank = pair.full_ranks[sides.number]
        requests = job.requests(pair, sides.number)
        can_stay = stays_whole(sides, full_rank, full_rank, job.options.scale)
        whole = [can_stay and request.rule == FULL for request in requests]
        asked = [request for request, is_whole in zip(requests, whole, strict=True) if not is_whole]
        cuts = decompose_matrix(job, pair, sides, asked or [CutRequest(NOTHING, Keep.TOP, 0)])
        found = iter(cuts)
        ranks = [full_rank if is_whole else next(found).result.cut.rank for is_whole in whole]
        names = map(str, self.variants)
        self._write(pair, sides, cuts, dict(zip(names, ranks, strict=True)))

    def _write(
        self, pair: Pair, sides: MatrixSides, cuts: Sequence[CutMatrix], ranks: dict[str, int]
    ) -> None:
        result = cuts[0].result
        needed = sorted({index for cut in cuts for index in cut.result.cut.indices})
        left, right = cuts[0].factors(needed)
        dtype = torch.promote_types(left.dtype, right.dtype)
        matrix = StoredMatrix(
            tensor=pair.name,
            measured=result.measured,
            indices=tuple(needed),
            ranks=ranks,
            edge=next((c.result.cut.edge for c in cuts if c.result.cut.edge is not None), None),
            is_wide=cuts[0].is_wide,
            zero_fraction=result.zero_fraction,
            equal_bytes=result.equal_bytes,
            hashes={},
        )
        self.made.write(pair, sides.number, matrix, left.to(dtype), right.T.to(dtype))
