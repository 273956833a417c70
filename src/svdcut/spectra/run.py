"""Measure the spectra of a whole checkpoint, tensor by tensor.

It decides on no tensor, and keeps nothing of one but its numbers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import torch

from svdcut._version import __version__
from svdcut.cut import stable_seed
from svdcut.device import device_name, num_workers, resolve_device
from svdcut.errors import SvdcutError
from svdcut.memory import spectrum_needs
from svdcut.pairing import Pair
from svdcut.pool import Pool, or_on_cpu
from svdcut.progress import Observer, Progress
from svdcut.spectra.facts import Spectra, Spectrum, TensorSpectra
from svdcut.spectra.measure import measure_spectrum
from svdcut.spectra.plan import SpectraOptions, SpectraPlan
from svdcut.svd.decomposition import SolverError
from svdcut.update import matrix_entries, read_update


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
    Reads every weight once. Memory is bounded by the largest tensors, beside eight
    bytes for each singular value.
    """
    began = time.monotonic()
    device = resolve_device(options.device)
    torch.backends.cuda.matmul.allow_tf32 = False
    needs = spectrum_needs(plan.pairs, options.top)
    total = sum(pair.finetuned.size_bytes for pair in plan.pairs)
    careful = threading.Lock()

    def task(number: int) -> TensorSpectra:
        pair = plan.pairs[number]
        found, _ = or_on_cpu(
            device, lambda place: tuple(_spectra_of(pair, options, place, careful))
        )
        observe(Progress("spectrum", pair.name, pair.finetuned.size_bytes, total))
        entry = pair.finetuned
        return TensorSpectra(entry.shape, entry.dtype.value, pair.stacked, found)

    with Pool(num_workers(device), needs.bound, device) as pool:
        found = pool.map(task, needs.sizes)
    names = [pair.name for pair in plan.pairs]
    return Spectra(
        svdcut_version=__version__,
        torch_version=str(torch.__version__),
        device=device_name(device),
        subject=plan.subject,
        base=None if plan.base is None else plan.base.source,
        checkpoint=plan.checkpoint.source,
        top=options.top,
        tensors=dict(zip(names, found, strict=True)),
        left_out=plan.left_out,
        seconds=round(time.monotonic() - began, 3),
    )


def _spectra_of(
    pair: Pair, options: SpectraOptions, device: torch.device, careful: threading.Lock
) -> Iterator[Spectrum]:
    for number, (base, finetuned) in enumerate(matrix_entries(pair)):
        # The leading values are not moved by the rounding of a float32 subtraction.
        update = read_update(
            base, finetuned, device, measure_rounding=True, exact=options.top is None
        )
        with ExitStack() as stack:
            try:
                found = measure_spectrum(
                    update,
                    options.top,
                    seed=stable_seed(pair.seed_name, number),
                    escalate=lambda: stack.enter_context(careful),
                )
            except SolverError as error:
                raise SvdcutError(f"tensor {pair.name!r}: no SVD converged ({error})") from error
        yield found
