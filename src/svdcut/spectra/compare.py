"""Measure two updates of one base side by side, tensor by tensor.

Their spectra are measured as anywhere else; it adds what their leading spaces share.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from svdcut.device import resolve_device
from svdcut.pair.pairing import Pair
from svdcut.record.progress import Observer
from svdcut.spectra.comparison import Comparison, Overlap
from svdcut.spectra.facts import Spectrum, TensorSpectra
from svdcut.spectra.plan import ComparisonPlan, SpectraOptions
from svdcut.spectra.run import describe_spectra, describe_tensor, measure_matrix
from svdcut.spectra.statistics import energy_distance
from svdcut.spectra.stream import Place, stream_tensors
from svdcut.streaming.memory import comparison_needs
from svdcut.streaming.update import matrix_sides
from svdcut.svd.subspace import LeadingSpaces, principal_cosines

_Found = tuple[list[TensorSpectra], tuple[Overlap, ...]]
"""The spectra of each tensor of a task, and the overlaps of two."""


def run_comparison(
    plan: ComparisonPlan,
    options: SpectraOptions,
    *,
    observe: Observer = lambda progress: None,
) -> Comparison:
    """Measure every matrix of both updates, and compare those that both have.

    Parameters
    ----------
    plan : ComparisonPlan
        What to read.
    options : SpectraOptions
        As the plan was made with.
    observe : callable
        Told of each task that is done, by the thread that did it.

    Returns
    -------
    Comparison
        In the order of the plan.

    Raises
    ------
    NonFiniteError
        If a side holds NaN or infinity.
    CheckpointError
        If reading fails.

    Notes
    -----
    Reads base's weights twice and the others once; one update is in memory at a time,
    beside the leading spaces of the other. See `leading_spaces` for what these cost.
    """
    began = time.monotonic()
    device = resolve_device(options.device)

    def work(number: int, place: Place) -> _Found:
        return _compare(plan.tasks[number], options, place, plan.rank)

    needs = comparison_needs(plan.tasks, options.top, plan.rank, intruders=options.intruders)
    found = stream_tensors(plan.tasks, needs, device, work, observe)
    spectra: dict[Pair, TensorSpectra] = {}
    overlaps = {}
    for task, (tensors, shared) in zip(plan.tasks, found, strict=True):
        spectra.update(zip(task, tensors, strict=True))
        if len(task) > 1:
            overlaps[task[0].name] = shared
    seconds = time.monotonic() - began
    first, second = (
        describe_spectra(side, options, device, [spectra[p] for p in side.pairs], seconds)
        for side in (plan.first, plan.second)
    )
    partners = {task[0].name: task[1].name for task in plan.tasks if len(task) > 1}
    return Comparison(first, second, plan.rank, overlaps, partners, plan.unmatched)


def _compare(task: Sequence[Pair], options: SpectraOptions, place: Place, rank: int) -> _Found:
    matrices: list[list[Spectrum]] = [[] for _ in task]
    overlaps = []
    for both in zip(*map(matrix_sides, task), strict=True):
        spaces = []
        for pair, sides, of_pair in zip(task, both, matrices, strict=True):
            wanted = rank if len(task) > 1 else 0
            found, space = measure_matrix(pair, sides, options, place, rank=wanted)
            of_pair.append(found)
            if space is not None:
                spaces.append(space)
        if spaces:
            overlaps.append(_overlap([of_pair[-1] for of_pair in matrices], spaces))
    tensors = [describe_tensor(pair, found) for pair, found in zip(task, matrices, strict=True)]
    return tensors, tuple(overlaps)


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
