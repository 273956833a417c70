"""The spectrum of one matrix, by the cheapest route that is exact.

It reads no file; its caller has read the matrix.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence

from svdcut.choose.noise import update_edge
from svdcut.spectra.matrix import Spectrum
from svdcut.streaming.update import Update
from svdcut.svd.certificate import VALUE_TOLERANCE, MeasuredValues, Method
from svdcut.svd.decomposition import Decomposition
from svdcut.svd.engine import decompose
from svdcut.svd.route import Route, choose_route
from svdcut.svd.values import singular_values


def measure_spectrum(
    update: Update,
    top: int | None,
    *,
    seed: int,
    escalate: Callable[[int], object] = lambda _: None,
) -> Spectrum:
    """Measure the singular values of a matrix.

    Parameters
    ----------
    update : Update
        As read; its matrix is scaled in place.
    top : int or None
        How many leading values are wanted; None for all.
    seed : int
        Of the random start of an iteration.
    escalate : callable
        As for `svdcut.svd.engine.decompose`.

    Returns
    -------
    Spectrum
        With every value that was computed, within `VALUE_TOLERANCE`: at least those that are
        wanted. Its columns are still to be filled.

    Raises
    ------
    SolverError
        If no route converges.

    Notes
    -----
    All values cost what `svd.values.singular_values` does; leading ones of a large
    matrix, what a truncation at that rank does.
    """
    full_rank = update.full_rank
    if top is None or choose_route(full_rank, top) is not Route.KRYLOV:
        found = singular_values(update.matrix, escalate=escalate)
        values = found.singular_values
        return _spectrum(update, values, math.hypot(*values), found.method, found.bound)
    head = _leading(update, top, seed, escalate)
    values = head.singular_values() if head.energy else [0.0] * full_rank
    if len(values) < full_rank:
        values = values[:top]  # the bound holds for no more
    return _spectrum(update, values, head.norm, head.method, head.value_bound(top))


def _leading(
    update: Update, top: int, seed: int, escalate: Callable[[int], object]
) -> MeasuredValues:
    def accept(found: Decomposition) -> bool:
        return found.measured().value_bound(top) <= VALUE_TOLERANCE

    found = decompose(update.matrix, top, accept=accept, seed=seed, escalate=escalate)
    return found.measured()


def _spectrum(
    update: Update, values: Sequence[float], norm: float, method: Method, bound: float
) -> Spectrum:
    whole = len(values) == update.full_rank
    return Spectrum(
        singular_values=array("d", values),
        full_rank=update.full_rank,
        size=math.prod(update.matrix.shape),
        norm=norm,
        base_norm=None if update.base is None else update.base_norm,
        noise_edge=update_edge(update.storage, update.matrix.shape, values if whole else None),
        zero_fraction=update.zero_fraction,
        method=method.value,
        value_bound=bound,
    )
