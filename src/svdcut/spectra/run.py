"""Measure the spectra of a whole checkpoint, tensor by tensor.

It decides on no tensor, and keeps nothing of one but its numbers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from svdcut import __version__
from svdcut.choose.cut import stable_seed
from svdcut.device import device_name, resolve_device
from svdcut.pair.pairing import Pair
from svdcut.record.progress import Observer
from svdcut.spectra.facts import Spectra, Spectrum, TensorSpectra
from svdcut.spectra.intruders import find_intruders
from svdcut.spectra.measure import measure_spectrum
from svdcut.spectra.plan import SpectraOptions, SpectraPlan
from svdcut.spectra.stream import Place, stream_tensors
from svdcut.streaming.memory import spectrum_needs
from svdcut.streaming.update import MatrixSides, matrix_sides, read_update
from svdcut.svd.subspace import LeadingSpaces, leading_spaces


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
    device = resolve_device(options.device)

    def work(number: int, place: Place) -> TensorSpectra:
        pair = plan.pairs[number]
        return describe_tensor(
            pair, [measure_matrix(pair, s, options, place)[0] for s in matrix_sides(pair)]
        )

    needs = spectrum_needs(plan.pairs, options.top, intruders=options.intruders)
    found = stream_tensors([(pair,) for pair in plan.pairs], needs, device, work, observe)
    return describe_spectra(plan, options, device, found, time.monotonic() - began)


def measure_matrix(
    pair: Pair,
    sides: MatrixSides,
    options: SpectraOptions,
    place: Place,
    *,
    rank: int = 0,
) -> tuple[Spectrum, LeadingSpaces | None]:
    """Measure one matrix of a tensor.

    Parameters
    ----------
    pair : Pair
        The tensor.
    sides : MatrixSides
        Where the matrix lies.
    options : SpectraOptions
        What is wanted.
    place : Place
        Where to work.
    rank : int
        Of the leading spaces that are wanted too; 0 for none.
    """
    seed = stable_seed(pair.seed_name, sides.number)
    update = read_update(sides, place.device, measure_rounding=True)
    with place.reserve.lend() as escalate:
        found = measure_spectrum(update, options.top, seed=seed, escalate=escalate)
    spaces = None
    if rank:
        with place.reserve.lend() as escalate:
            spaces = leading_spaces(update.matrix, rank, seed=seed, escalate=escalate)
    del update  # the weights need its memory
    if options.intruders and sides.base is not None:
        with place.reserve.lend() as escalate:
            intruders = find_intruders(sides, place.device, seed=seed, escalate=escalate)
        found = replace(found, intruders=intruders)
    return found, spaces


def describe_tensor(pair: Pair, matrices: Sequence[Spectrum]) -> TensorSpectra:
    """Return the spectra of a tensor from those of its matrices."""
    entry = pair.finetuned
    return TensorSpectra(entry.shape, entry.dtype.value, pair.stacked, tuple(matrices))


def describe_spectra(
    plan: SpectraPlan,
    options: SpectraOptions,
    device: torch.device,
    tensors: Sequence[TensorSpectra],
    seconds: float,
) -> Spectra:
    """Return the spectra of a checkpoint from those of its tensors, in the plan's order."""
    return Spectra(
        svdcut_version=__version__,
        torch_version=str(torch.__version__),
        device=device_name(device),
        subject=plan.subject,
        base=None if plan.base is None else plan.base.source,
        checkpoint=plan.checkpoint.source,
        top=options.top,
        tensors=dict(zip((pair.name for pair in plan.pairs), tensors, strict=True)),
        left_out=plan.left_out,
        seconds=round(seconds, 3),
    )
