"""Every number that a manifest gives of one truncated tensor, computed a second time.

In float64, from whole spectra; it looks at no stored result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from svdcut.choose.cut import stable_seed
from svdcut.choose.keep import Keep, choose_indices, first_left_out
from svdcut.choose.noise import update_edge
from svdcut.choose.ranks import Rule
from svdcut.pair.pairing import Pair
from svdcut.record.manifest import Truncation
from svdcut.streaming.update import Update
from svdcut.svd.decomposition import Decomposition
from svdcut.svd.engine import decompose
from svdcut.svd.route import Route
from svdcut.verification.claims import close, joined
from svdcut.verification.tolerances import (
    OWN_VALUE_TOLERANCE,
    energy_rounding,
    lack,
    value_tolerance,
)

NORM_TOLERANCE = 1e-9
"""Of a norm: sums of squares in float64, in another order."""


@dataclass(frozen=True, slots=True)
class Spectrum:
    """What was found of one matrix; norms and values in its own units."""

    values: tuple[float, ...]
    """All singular values, descending; zeros for a matrix of zeros."""

    indices: tuple[int, ...]
    """Which of them stay, at the rank that is claimed."""

    norm: float
    excess: float
    """Bound on the relative excess error of the computed cut."""

    zero_fraction: float
    edge: float | None
    """Noise edge, under the noise rule."""

    ranks: tuple[int, int]
    """The least and the largest rank that the rule may mean."""

    @property
    def rank(self) -> int:
        """How many stay."""
        return len(self.indices)

    @property
    def first_cut(self) -> int:
        """Index of the largest value that is cut; the full rank where none is."""
        return first_left_out(self.indices)

    def energy(self, unit: float, *, kept: bool) -> float:
        """Return the sum of squares of what stays, or of what is cut, in a unit of norm."""
        chosen = set(self.indices)
        parts = (v / unit for i, v in enumerate(self.values) if (i in chosen) == kept)
        return math.fsum(part * part for part in parts)


@dataclass(frozen=True, slots=True)
class Claim:
    """What a manifest says of one matrix, as far as it decides what to compute."""

    rank: int
    rule: Rule
    keep: Keep
    seed: int
    """Of a random choice."""


def claims_of(pair: Pair, cut: Truncation, rule: Rule, keep: Keep, seed: int) -> list[Claim]:
    """Return the claims of each matrix of a tensor."""
    return [
        Claim(rank, rule, keep, stable_seed(pair.seed_name, number, seed))
        for number, rank in enumerate(cut.ranks)
    ]


def measure(update: Update, claim: Claim) -> tuple[Decomposition, Spectrum]:
    """Decompose an update by a route that needs no iteration.

    Parameters
    ----------
    update : Update
        It is scaled in place.
    claim : Claim
        What is claimed of it.

    Returns
    -------
    tuple of Decomposition and Spectrum
        All triplets, and the numbers that follow.
    """
    full_rank = update.full_rank
    rank = min(claim.rank, full_rank)
    indices = choose_indices(claim.keep, rank, full_rank, seed=claim.seed)
    # `bounds(k)` covers the first value, value k and the one after it.
    edges = {rank, first_left_out(indices), *(index + 1 for index in indices[-1:])}

    def accept(found: Decomposition) -> bool:
        measured = found.measured()
        return all(measured.bounds(k).value <= OWN_VALUE_TOLERANCE for k in edges)

    found = decompose(update.matrix, None, accept=accept, route=Route.GRAM)
    measured = found.measured()
    values = measured.singular_values() or [0.0] * full_rank
    edge = None
    if claim.rule.needs_edge and found.energy:
        edge = update_edge(update.storage, update.matrix.shape, values)
    boundary = full_rank - rank if claim.keep is Keep.BOTTOM else rank
    return found, Spectrum(
        values=tuple(values),
        indices=tuple(indices) if found.energy else (),
        norm=measured.norm,
        excess=measured.bounds(boundary).excess if found.energy else 0.0,
        zero_fraction=update.zero_fraction,
        edge=edge,
        ranks=claim.rule.rank_range(values, full_rank, edge=edge or 0.0),
    )


Contradiction = tuple[str, object, object]
"""A claim, what was found, and what it says."""


def compare(cut: Truncation, keep: Keep, spectra: Sequence[Spectrum]) -> Iterator[Contradiction]:
    """Yield every claim on a tensor that its spectra contradict.

    Parameters
    ----------
    cut : Truncation
        The claims.
    keep : Keep
        Which triplets stay.
    spectra : sequence of Spectrum
        Of each of its matrices.
    """
    ranks = [
        min(max(rank, spectrum.ranks[0]), spectrum.ranks[1])
        for rank, spectrum in zip(cut.ranks, spectra, strict=True)
    ]
    if tuple(ranks) != cut.ranks:
        yield "rank", joined(ranks), joined(cut.ranks)
        return
    yield from _compare_values(cut, keep, spectra)
    yield from _compare_norms(cut, keep, spectra)
    zeros = math.fsum(spectrum.zero_fraction for spectrum in spectra) / len(spectra)
    if not close(zeros, cut.zero_fraction, 0, 1e-12):
        yield "zero_fraction", zeros, cut.zero_fraction


def _compare_values(
    cut: Truncation, keep: Keep, spectra: Sequence[Spectrum]
) -> Iterator[Contradiction]:
    last: list[float | None] = [s.values[s.indices[-1]] if s.indices else None for s in spectra]
    following: list[float | None] = [
        s.values[s.first_cut] if s.rank < len(s.values) else None for s in spectra
    ]
    found: dict[str, list[float | None]] = {
        "sigma_first": [spectrum.values[0] for spectrum in spectra],
        "sigma_last_kept": last,
        "sigma_next": following,
        "noise_edge": [spectrum.edge for spectrum in spectra],
    }
    for claim, values in found.items():
        said = [getattr(matrix, claim) for matrix in cut.matrices]
        if not all(map(_agree, values, said, spectra, [keep] * len(values))):
            yield claim, joined(values), joined(said)


def _agree(found: float | None, said: float | None, spectrum: Spectrum, keep: Keep) -> bool:
    if found is None or said is None:
        return found is said
    first, norm = spectrum.values[0], spectrum.norm
    tolerance = value_tolerance(found, first, norm, len(spectrum.values), keep)
    return abs(found - said) <= tolerance


def _compare_norms(
    cut: Truncation, keep: Keep, spectra: Sequence[Spectrum]
) -> Iterator[Contradiction]:
    norm = math.hypot(*(spectrum.norm for spectrum in spectra))
    single = energy_rounding(1.0, 1, single=True) if _may_be_single(cut) else 0.0
    if not close(norm, cut.update_norm, NORM_TOLERANCE + single):
        yield "update_norm", norm, cut.update_norm
        return
    if norm == 0:
        return
    tail = math.fsum(spectrum.energy(norm, kept=False) for spectrum in spectra)
    allowed = math.fsum(tail_tolerance(cut, keep, spectrum, norm) for spectrum in spectra)
    said = cut.tail_norm / norm
    if not abs(tail - said * said) <= allowed + 2 * NORM_TOLERANCE * tail:
        yield "tail_norm", math.sqrt(tail) * norm, cut.tail_norm
    if not abs(1 - tail - cut.energy_retained) <= allowed + 2 * NORM_TOLERANCE:
        yield "energy_retained", 1 - tail, cut.energy_retained


def _may_be_single(cut: Truncation) -> bool:
    """Whether a claim may have been measured in float32: one route stands for a stack."""
    return cut.svd.method == "krylov" or len(cut.matrices) > 1


def tail_tolerance(cut: Truncation, keep: Keep, spectrum: Spectrum, unit: float) -> float:
    """Return how far the energy cut from a matrix may be off, in a unit of norm."""
    excess, norm = cut.svd.excess_bound, spectrum.norm / unit
    rounding = 2 * energy_rounding(norm, len(spectrum.values), single=_may_be_single(cut))
    if keep is Keep.RANDOM:
        return excess * 2 * norm * norm + rounding
    best = math.sqrt(spectrum.energy(unit, kept=keep is Keep.BOTTOM))
    return lack(best, norm, excess) + rounding
