"""Decompose every matrix once, as far as all cuts of a sweep need, and keep it on disk."""

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
from svdcut.sweeps.result import BASE, Variant, explain_writing
from svdcut.truncation.budget import allocate_budgets
from svdcut.truncation.reconstruction import stays_whole
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
        The plan of the two sides.
    variants : sequence of Variant
        The cuts.
    options : Options
        The options of the plan.
    folder : Path
        Folder of the triplets, one file per matrix. A file that serves all `variants` is not
        made again: after rank 64 it serves all ranks below.
    restart : bool
        Whether to drop the files that are there.
    observe : callable
        Called after each tensor, unless all files are there.

    Raises
    ------
    NonFiniteError, QualityError, CheckpointError, OutputError
        As `svdcut.truncation.run.run_truncation` does.
    OutputExistsError
        If the folder holds something else, or another run works there.

    Notes
    -----
    The decompositions are those of a truncation to the same list of rules, except that a matrix
    which stays whole is not decomposed for that. Disk: ``8 k (m + n)`` bytes per matrix.
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
    """Return everything that a decomposition depends on, in words, except the cuts."""
    device = device_name(resolve_device(options.device))
    machinery = {"torch": str(torch.__version__), "device": device}
    identity = identify_run(plan, [Output(Path(), BASE.rule)], options, machinery)
    del identity["the result"], identity["--rank"], identity["--keep"]
    return identity


@contextmanager
def _journal(folder: Path, identity: dict[str, str], *, restart: bool) -> Iterator[Journal]:
    """Lock a folder, and drop files of another identity."""
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
    """Refuse inputs that changed, and drop the files made from them."""
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
        """Decompose the missing matrices; `journal` keeps spectra for budgets."""
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
            missing = self.missing.get(pair.name, [])
            for sides in missing:
                decompose_on_device(job, pair, partial(self._matrix, pair, sides))
            size = pair.finetuned.size_bytes
            self.observe(Progress("decompose", pair.name, size, total, resumed=not missing))

        with Pool(num_workers(job.device), needs.bound, job.device) as pool:
            budgets = allocate_budgets(job, plan, pool, needs.sizes, journal, self.observe)
            job = replace(job, budgets=budgets)
            pool.map(task, [sizes[pair.name] for pair in pairs])

    def _rules_to_decompose(self) -> list[Rule]:
        """Return the rules, without the full rank if it leaves matrices as they are."""
        rules = [variant.rule for variant in self.variants]
        if self.made.options.scale == 1 and not self.made.plan.finetuned.updates:
            rules = [rule for rule in rules if rule != FULL]
        return rules or [NOTHING]

    def _matrix(self, pair: Pair, sides: MatrixSides, job: Job) -> None:
        """Decompose a matrix for the cuts that do not leave it whole, and write it."""
        full_rank = pair.full_ranks[sides.number]
        requests = job.requests(pair, sides.number)
        can_stay = stays_whole(sides, full_rank, full_rank, job.options.scale)
        asked = [request for request in requests if not (can_stay and request.rule == FULL)]
        made = decompose_matrix(job, pair, sides, asked or [CutRequest(NOTHING, Keep.TOP, 0)])
        cuts = [matrix.result.cut for matrix in made]
        found = iter(cuts)
        ranks = {
            str(variant): full_rank if can_stay and request.rule == FULL else next(found).rank
            for variant, request in zip(self.variants, requests, strict=True)
        }
        first, result = made[0], made[0].result
        needed = sorted({index for cut in cuts for index in cut.indices})
        left, right = first.factors(needed)
        dtype = torch.promote_types(left.dtype, right.dtype)
        matrix = StoredMatrix(
            tensor=pair.name,
            measured=result.measured,
            indices=tuple(needed),
            ranks=ranks,
            edge=next((cut.edge for cut in cuts if cut.edge is not None), None),
            is_wide=first.is_wide,
            zero_fraction=result.zero_fraction,
            equal_bytes=result.equal_bytes,
            hashes={},
        )
        self.made.write(pair, sides.number, matrix, left.to(dtype), right.T.to(dtype))
