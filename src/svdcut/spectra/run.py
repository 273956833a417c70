"""Measure the spectra of a checkpoint, or of two updates side by side, tensor by tensor.

It keeps nothing of a tensor but its numbers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from svdcut import __version__
from svdcut.choose.cut import stable_seed
from svdcut.device import device_name, num_workers, resolve_device
from svdcut.errors import SvdcutError
from svdcut.pair.pairing import Pair
from svdcut.record.progress import Observer, Progress
from svdcut.spectra.columns import describe
from svdcut.spectra.comparison import Comparison, Overlap
from svdcut.spectra.facts import Spectra, TensorSpectra
from svdcut.spectra.intruders import find_intruders
from svdcut.spectra.matrix import Spectrum, energy_distance
from svdcut.spectra.measure import measure_spectrum
from svdcut.spectra.options import SpectraOptions
from svdcut.spectra.plan import ComparisonPlan, SpectraPlan
from svdcut.streaming.memory import spectrum_needs
from svdcut.streaming.pool import Pool, Reserve, or_on_cpu
from svdcut.streaming.stored_matrix import MatrixSides, matrix_sides
from svdcut.streaming.update import read_update
from svdcut.svd.decomposition import SolverError
from svdcut.svd.subspace import LeadingSpaces, leading_spaces, principal_cosines

_Task = Sequence[Pair]
"""One tensor of each update that is measured."""


@dataclass(frozen=True, slots=True)
class _Found:
    """The results of a task."""

    tensors: list[TensorSpectra]
    overlaps: tuple[Overlap, ...]
    """For each matrix, where there are two tensors."""


def run_spectra(
    plan: SpectraPlan, options: SpectraOptions, *, observe: Observer = lambda progress: None
) -> Spectra:
    """Measure every matrix of a plan.

    Parameters
    ----------
    plan : SpectraPlan
        What to read.
    options : SpectraOptions
        As the plan was made with.
    observe : callable
        Told of each tensor that is done, by the thread that did it.

    Returns
    -------
    Spectra
        In the order of the plan.

    Raises
    ------
    NonFiniteError
        If a side holds NaN or infinity.
    CheckpointError
        If reading fails.

    Notes
    -----
    Reads every weight once, and once more for intruder dimensions. Memory is bounded by
    the largest tensors, beside eight bytes for each singular value.
    """
    began = time.monotonic()
    found = _measure_all([(pair,) for pair in plan.pairs], options, 0, observe)
    tensors = {pair.name: done.tensors[0] for pair, done in zip(plan.pairs, found, strict=True)}
    return _spectra(plan, options, tensors, time.monotonic() - began)


def run_comparison(
    plan: ComparisonPlan,
    options: SpectraOptions,
    *,
    observe: Observer = lambda progress: None,
) -> Comparison:
    """Measure every matrix of both updates, and compare those that both have.

    Parameters and errors are those of `run_spectra`.

    Returns
    -------
    Comparison
        In the order of the plan.

    Notes
    -----
    Reads base's weights twice and the others once; one update is in memory at a time,
    beside the leading spaces of the other. See `leading_spaces` for what these cost.
    """
    began = time.monotonic()
    found = list(
        zip(plan.tasks, _measure_all(plan.tasks, options, plan.rank, observe), strict=True)
    )
    spectra = {
        pair: tensor
        for task, done in found
        for pair, tensor in zip(task, done.tensors, strict=True)
    }
    seconds = time.monotonic() - began
    first, second = (
        _spectra(side, options, {pair.name: spectra[pair] for pair in side.pairs}, seconds)
        for side in (plan.first, plan.second)
    )
    both = [(task, done) for task, done in found if len(task) > 1]
    overlaps = {task[0].name: done.overlaps for task, done in both}
    partners = {task[0].name: task[1].name for task, _ in both}
    return Comparison(first, second, plan.rank, overlaps, partners, plan.unmatched)


def _spectra(
    plan: SpectraPlan, options: SpectraOptions, tensors: dict[str, TensorSpectra], seconds: float
) -> Spectra:
    return Spectra(
        svdcut_version=__version__,
        torch_version=str(torch.__version__),
        device=device_name(resolve_device(options.device)),
        subject=plan.subject,
        base=None if plan.base is None else plan.base.source,
        checkpoint=plan.checkpoint.source,
        top=options.top,
        tensors=tensors,
        left_out=plan.left_out,
        seconds=round(seconds, 3),
    )


def _measure_all(
    tasks: Sequence[_Task], options: SpectraOptions, rank: int, observe: Observer
) -> list[_Found]:
    """Measure all tasks, as many at a time as memory allows; on the CPU where the device fails."""
    device = resolve_device(options.device)
    needs = spectrum_needs(tasks, options.top, rank, intruders=options.intruders)
    reserve = Reserve(needs.reserve)
    sizes = [sum(pair.finetuned.size_bytes for pair in task) for task in tasks]

    def run(number: int) -> _Found:
        task = tasks[number]
        try:
            found, _ = or_on_cpu(
                device, lambda where: _Worker(options, rank, where, reserve).measure(task)
            )
        except SolverError as error:
            raise SvdcutError(f"tensor {task[0].name!r}: no SVD converged ({error})") from error
        observe(Progress("spectrum", task[0].name, sizes[number], sum(sizes)))
        return found

    with Pool(num_workers(device), needs.bound, device) as pool:
        return pool.map(run, needs.sizes)


@dataclass(frozen=True, slots=True)
class _Worker:
    """Measures one task."""

    options: SpectraOptions
    rank: int
    """Return the overlaps of the leading spaces of two tensors."""

    device: torch.device
    reserve: Reserve
    """Memory for a route that takes more than was counted."""

    def measure(self, task: _Task) -> _Found:
        """Measure a tensor, or those of two updates: one update is in memory at a time."""
        matrices: list[list[Spectrum]] = [[] for _ in task]
        overlaps = []
        for both in zip(*map(matrix_sides, task), strict=True):
            spaces = []
            for pair, sides, found in zip(task, both, matrices, strict=True):
                matrix, space = self._measure_matrix(pair, sides, with_space=len(task) > 1)
                found.append(matrix)
                if space is not None:
                    spaces.append(space)
            if spaces:
                overlaps.append(_overlap([found[-1] for found in matrices], spaces))
        tensors = [_tensor(pair, found) for pair, found in zip(task, matrices, strict=True)]
        return _Found(tensors, tuple(overlaps))

    def _measure_matrix(
        self, pair: Pair, sides: MatrixSides, *, with_space: bool
    ) -> tuple[Spectrum, LeadingSpaces | None]:
        seed = stable_seed(pair.seed_name, sides.number)
        update = read_update(sides, self.device, measure_rounding=True)
        top = self.options.top
        with self.reserve.lend() as escalate:
            found = measure_spectrum(update, top, seed=seed, escalate=escalate)
        space = None
        if with_space:
            with self.reserve.lend() as escalate:
                space = leading_spaces(update.matrix, self.rank, seed=seed, escalate=escalate)
        del update  # the weights need its memory
        if self.options.intruders and sides.base is not None:
            with self.reserve.lend() as escalate:
                intruders = find_intruders(sides, self.device, seed=seed, escalate=escalate)
            found = replace(found, intruders=intruders)
        return describe(found, top), space


def _tensor(pair: Pair, matrices: Sequence[Spectrum]) -> TensorSpectra:
    entry = pair.finetuned
    return TensorSpectra(entry.shape, entry.dtype.value, pair.stacked, tuple(matrices))


def _overlap(spectra: Sequence[Spectrum], spaces: Sequence[LeadingSpaces]) -> Overlap:
    first, second = spaces
    k = min(first.rank, second.rank)
    curves = [(spectrum.singular_values, spectrum.norm) for spectrum in spectra]
    return Overlap(
        rank=k,
        rows=len(first.left),
        columns=len(first.right),
        left_cosines=principal_cosines(first.left[:, :k], second.left[:, :k]),
        right_cosines=principal_cosines(first.right[:, :k], second.right[:, :k]),
        gaps=(first.gap(k), second.gap(k)) if k else None,
        energy_distance=energy_distance(*curves),
    )
