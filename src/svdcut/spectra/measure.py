"""The spectrum of one matrix, by the cheapest route that is exact.

It reads no file; its caller has read the matrix.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence

from svdcut.choose.noise import update_edge
from svdcut.choose.ranks import Noise, rank_for_energy
from svdcut.spectra.facts import Spectrum
from svdcut.spectra.statistics import effective_rank, head_rank, stable_rank
from svdcut.streaming.update import Update
from svdcut.svd.certificate import VALUE_TOLERANCE
from svdcut.svd.decomposition import Decomposition
from svdcut.svd.engine import decompose
from svdcut.svd.measured import MeasuredValues, Method
from svdcut.svd.route import Route, choose_route
from svdcut.svd.values import singular_values


def measure_spectrum(
    update: Update,
    top: int | None,
    *,
    seed: int,
    escalate: Callable[[int], object] = lambda _: None,
) -> Spectrum:
    """Measure the singular values of a matrix, and what follows from them.

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
        Every value within `VALUE_TOLERANCE`. Where the leading values alone were
        computed, what needs the others is None.

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
        values, method, bound = found.singular_values, found.method, found.bound
        return _describe(update, values, values[:top], math.hypot(*values), method, bound)
    head = _leading(update, top, seed, escalate)
    values = head.singular_values() or [0.0] * full_rank
    known = values if head.is_complete or not head.energy else None
    return _describe(update, known, values[:top], head.norm, head.method, head.value_bound(top))


def _leading(
    update: Update, top: int, seed: int, escalate: Callable[[int], object]
) -> MeasuredValues:
    def accept(found: Decomposition) -> bool:
        return found.measured().value_bound(top) <= VALUE_TOLERANCE

    found = decompose(update.matrix, top, accept=accept, seed=seed, escalate=escalate)
    return found.measured()


def _describe(
    update: Update,
    values: Sequence[float] | None,
    shown: Sequence[float],
    norm: float,
    method: Method,
    bound: float,
) -> Spectrum:
    """Return the facts, from all values or, where these are None, from the leading ones."""
    full_rank = update.full_rank
    known = shown if values is None else values
    edge = update_edge(update.storage, update.matrix.shape, values)
    above = None
    if edge is not None:
        above = Noise().rank(known, full_rank, edge=edge)
        if values is None and above == len(known):
            above = None  # there may be more

    def rank(share: float) -> int | None:
        if norm == 0:
            return 0
        return head_rank(shown, norm, share) if values is None else rank_for_energy(values, share)

    return Spectrum(
        singular_values=array("d", shown),
        full_rank=full_rank,
        norm=norm,
        base_norm=None if update.base is None else update.base_norm,
        stable_rank=stable_rank(known, norm),
        effective_rank=None if values is None else effective_rank(values),
        rank_90=rank(0.9),
        rank_99=rank(0.99),
        noise_edge=edge,
        above_noise_edge=above,
        zero_fraction=update.zero_fraction,
        method=method.value,
        value_bound=bound,
    )
