"""Compare what a manifest claims of tensors with what a second run found.

Arithmetic on numbers, within the one table of `tolerances`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields

from svdcut.choose.keep import Keep
from svdcut.choose.ranks import Budget
from svdcut.pair.pairing import Pair
from svdcut.record.manifest import MatrixFact, Truncation
from svdcut.truncation.budget import Spectra, merge_copies
from svdcut.verification.findings import Contradiction, Failure
from svdcut.verification.stored import Distance
from svdcut.verification.tolerances import (
    NORM,
    SHARE,
    SINGLE,
    energy_rounding,
    energy_tolerance,
    is_close,
    norm_tolerance,
    value_tolerance,
)

_SLACK = 1 + 1e-6
"""Of sums of squares that were taken over blocks."""


def compare_facts(
    cut: Truncation,
    again: Truncation,
    ranks: Sequence[int],
    *,
    tolerance: float,
    single: bool,
) -> Iterator[Contradiction]:
    """Yield the numbers of a tensor that are not those of a second computation.

    Parameters
    ----------
    cut : Truncation
        What is claimed.
    again : Truncation
        What was found at the claimed ranks.
    ranks : sequence of int
        The ranks next to the claimed ones that the rule may mean.
    tolerance : float
        The option of the run that made the claims.
    single : bool
        Whether the claims may have been computed in float32.
    """
    wrong = differences(again, cut, ("rule", "keep", "rows", "full_rank"))
    for found in (ranks, again.ranks):
        wrong += [("rank", a, b) for a, b in zip(found, cut.ranks, strict=True) if a != b]
    if wrong:
        yield wrong[0]  # the other numbers are those of another cut
        return
    for ours, theirs in zip(again.matrices, cut.matrices, strict=True):
        yield from _compare_values(ours, theirs, again, tolerance)
    yield from _compare_norms(cut, again, single=single)


def differences(found: object, said: object, claims: Sequence[str]) -> list[Contradiction]:
    """Return the fields of two facts that differ."""
    pairs = [(claim, getattr(found, claim), getattr(said, claim)) for claim in claims]
    return [pair for pair in pairs if pair[1] != pair[2]]


def _compare_values(
    ours: MatrixFact, theirs: MatrixFact, again: Truncation, tolerance: float
) -> Iterator[Contradiction]:
    norm, size, keep = again.update_norm, again.full_rank, Keep(again.keep)
    for item in fields(MatrixFact):
        found, said = getattr(ours, item.name), getattr(theirs, item.name)
        if found is None or said is None:
            agree = found is said
        else:
            first = found if item.name == "noise_edge" else ours.sigma_first
            allowed = value_tolerance(found, first, norm, size, keep, tolerance)
            agree = abs(found - said) <= allowed
        if not agree:
            yield item.name, found, said


def _compare_norms(cut: Truncation, again: Truncation, *, single: bool) -> Iterator[Contradiction]:
    norm, energy = again.update_norm, energy_tolerance(cut, again, single=single)
    if not is_close(norm, cut.update_norm, norm_tolerance(single=single)):
        yield "update_norm", norm, cut.update_norm
        return
    tail, said = ((side.tail_norm / norm) ** 2 if norm else side.tail_norm for side in (again, cut))
    if not abs(tail - said) <= energy + 2 * NORM * tail:
        yield "tail_norm", again.tail_norm, cut.tail_norm
    if not abs(again.energy_retained - cut.energy_retained) <= energy + 2 * NORM:
        yield "energy_retained", again.energy_retained, cut.energy_retained
    if not is_close(again.zero_fraction, cut.zero_fraction, 0, SHARE):
        yield "zero_fraction", again.zero_fraction, cut.zero_fraction


def compare_stored(
    cut: Truncation, again: Truncation, scale: float, distance: Distance, *, single: bool
) -> Iterator[Contradiction]:
    """Yield what the stored numbers of a tensor contradict.

    Parameters
    ----------
    cut : Truncation
        What is claimed.
    again : Truncation
        What was found.
    scale : float
        Of the kept update.
    distance : Distance
        Of what is stored from what was made again.
    single : bool
        Whether the claims may have been computed in float32.
    """
    allowed = distance.work + distance.triplets
    if not distance.beyond <= allowed * _SLACK:
        yield (
            "result",
            f"norm {distance.beyond:.3g} away, beyond rounding",
            f"at most {allowed:.3g}",
        )
    said, found = cut.rounding_error, again.rounding_error
    most = distance.storage + distance.work + NORM * found
    if not (said <= most and abs(found - said) <= allowed + NORM * found):
        yield "rounding_error", again.rounding_error, cut.rounding_error
    if not scale:
        return
    norm, tail = again.update_norm, again.tail_norm
    slack = energy_tolerance(cut, again, single=single) * norm**2
    low, high = (math.sqrt(max(tail**2 + sign * slack, 0.0)) for sign in (-1, 1))
    # The update itself is rounded to float32.
    off = ((distance.storage + distance.work) / abs(scale) + SINGLE * norm) * _SLACK
    if not low - off <= distance.error <= high + off:
        yield "error", distance.error, f"{tail:.6g}, within {off:.2g}"


def check_budget(
    rule: Budget,
    pairs: Sequence[Pair],
    spectra: Mapping[str, Spectra],
    claimed: Mapping[str, Sequence[int]],
) -> Iterator[Failure]:
    """Yield the tensors whose ranks show that a budget was not spent best.

    Parameters
    ----------
    rule : Budget
        The rule.
    pairs : sequence of Pair
        All tensors under it.
    spectra : mapping
        Of all of them, by name.
    claimed : mapping
        The ranks that are claimed of each tensor.

    Notes
    -----
    What counts is the energy that is kept: another computation may order triplets of almost
    equal energy otherwise.
    """
    owners, copies = merge_copies([(pair, spectra[pair.name]) for pair in pairs])
    for copy, owner in copies:
        if claimed[copy.name] != claimed[owner.name]:
            yield Failure("rank", claimed[owner.name], claimed[copy.name], copy.name)
    values = {(pair.name, i): s for pair, matrices in owners for i, s in enumerate(matrices)}
    shapes = {(pair.name, i): m for pair, _ in owners for i, m in enumerate(pair.matrices)}
    said = {(name, i): claimed[name][i] for name, i in values}
    full = sum(sum(shapes[key]) * len(s) for key, s in values.items())
    spent = sum(sum(shapes[key]) * rank for key, rank in said.items())
    best = rule.allocate(values, shapes)
    off = math.fsum(2 * energy_rounding(len(s)) * _energy(s, len(s)) for s in values.values())
    kept, most = (
        math.fsum(_energy(s, ranks[key]) for key, s in values.items()) for ranks in (said, best)
    )
    if spent > rule.share * full * (1 + SHARE) or kept < most - off:
        for key, rank in best.items():
            if rank != said[key]:
                yield Failure("rank", rank, said[key], key[0])


def _energy(s: Sequence[float], rank: int) -> float:
    return math.fsum(value * value for value in s[:rank])
