r"""Compare what a manifest claims of a tensor with what a second run found, within tolerances.

`compare_facts` and `compare_stored` are the table: a number and its tolerance in each row. A
tolerance is the sum of what either computation may be off by, so that no true claim is ever
called false. The excess bound of a claim counts, as `claims` holds it to the option of the run.

- **Singular values.** The claim is within `allowed_value_error` of the run's tolerance, the
  second computation within `VALUE_TOLERANCE`: relative to the value, or to `VALUE_FLOOR` of the
  first value, whichever is larger.
  Those of ``--keep bottom`` and ``random`` are not certified one by one: a Gram matrix, with
  its backward error of ``n eps |A|^2``, gives each of them within ``sqrt(n eps) |A|``.
- **Energies** are off by the backward error of a Gram matrix; those of a few leading
  triplets by the rounding of float32. The energy that is cut exceeds the least possible by what
  the certificate allows: ``(1 + excess)^2 - 1`` of it.
- **Two cuts at one rank** that lack energies `a` and `b` against the best cut differ by at
  most ``(sqrt(a) + sqrt(b)) sqrt(l_k + l_{k+1}) / sqrt(l_k - l_{k+1})``, where `l_i` are the
  squared singular values. Proof for one cut: let `P` project onto its space, `v_i` be the
  true vectors, and ``d_i = |P v_i|^2``. Its lack is ``sum_{i<=k} l_i (1 - d_i) - sum_{j>k}
  l_j d_j >= (l_k - l_{k+1}) t`` with ``t = sum_{i<=k} (1 - d_i) = sum_{j>k} d_j``. Its
  difference from the best cut has two orthogonal parts with the squares ``sum_{i<=k}
  l_i (1 - d_i) <= lack * l_k / (l_k - l_{k+1})`` and ``sum_{j>k} l_j d_j <= l_{k+1} t``.
  A set of triplets that is not a leading one is a sum and difference of leading ones.
- **A product of factors** of rank `k` in a precision `u` is off by at most
  ``(terms + 4) u |left| |right|``, where ``|right| = sqrt(k)`` and ``|left|`` is the norm
  that is kept; each entry of a product is a sum of so many terms.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

from svdcut.choose.keep import Keep
from svdcut.choose.ranks import BACKWARD, Budget, Rule
from svdcut.pair.pairing import Pair
from svdcut.record.manifest import Truncation
from svdcut.svd.certificate import (
    ERROR_FLOOR,
    VALUE_FLOOR,
    VALUE_TOLERANCE,
    MeasuredValues,
    Method,
    allowed_value_error,
)
from svdcut.svd.route import is_few
from svdcut.truncation.budget import Spectra, merge_copies
from svdcut.verification.findings import Contradiction, Failure, differences

SUM = 1e-11
"""Relative: the same numbers summed in another order."""

NORM = 1e-9
"""Relative: a norm, from float64 sums over millions of entries in another order."""

SHARE = 1e-12
"""Absolute: a share of counted entries."""

SINGLE, DOUBLE = 2.0**-24, 2.0**-53
"""Units of roundoff."""

_SINGLE_ENERGY = 2.0**-20
"""Relative error of an energy that was measured in float32; a tenth of it was seen."""

_SLACK = 1 + 1e-6
"""Relative: a root of a sum of squares that was taken over blocks."""


@dataclass(frozen=True, slots=True)
class Distance:
    """The distance of a stored matrix from the one that was made again, in Frobenius norms."""

    beyond: float = 0.0
    """Norm of the part of ``stored - intended`` that no rounding to the storage dtype explains."""

    storage: float = 0.0
    """The most that storage may round."""

    error: float = 0.0
    """Norm of ``update - stored update / scale``."""

    work: float = 0.0
    """Bound on the difference of two computations of ``intended`` from the same triplets."""

    triplets: float = 0.0
    """Bound on the difference that other triplets make; infinite where nothing bounds it."""

    @staticmethod
    def join(parts: Sequence[Distance]) -> Distance:
        """Return the norms over all matrices of a tensor."""
        names = [item.name for item in fields(Distance)]
        return Distance(*(math.hypot(*(getattr(part, name) for part in parts)) for name in names))


def compare_facts(
    cut: Truncation, again: Truncation, ranks: Sequence[int], tolerance: float, *, single: bool
) -> Iterator[Contradiction]:
    """Yield the numbers of a tensor that are not those of a second computation.

    Parameters
    ----------
    cut : Truncation
        The claims.
    again : Truncation
        The second computation, at the claimed ranks.
    ranks : sequence of int
        The ranks next to the claimed ones that the rule may mean.
    tolerance : float
        The option of the run that made the claims.
    single : bool
        True if the claims may have been computed in float32.
    """
    wrong = list(differences(again, cut, "rule", "keep", "rows", "full_rank"))
    for found in (ranks, again.ranks):
        wrong += [("rank", a, b) for a, b in zip(found, cut.ranks, strict=True) if a != b]
    if wrong:
        yield wrong[0]  # the other numbers are those of another cut
        return
    for ours, theirs in zip(again.matrices, cut.matrices, strict=True):
        allowed = {}
        for key in ("sigma_first", "sigma_last_kept", "sigma_next", "noise_edge"):
            value = getattr(ours, key) or 0.0
            first = value if key == "noise_edge" else ours.sigma_first
            allowed[key] = _value_tolerance(again, value, first, tolerance)
        yield from differences(ours, theirs, **allowed)
    norm, tails = again.update_norm, again.tail_norm + cut.tail_norm
    energy = _energy_tolerance(cut, again, single=single)
    tail_square = energy * norm**2 + 2 * NORM * again.tail_norm**2
    yield from differences(
        again,
        cut,
        update_norm=(NORM + (_SINGLE_ENERGY if single else 0)) * norm,
        tail_norm=tail_square / tails if tails else 0.0,  # |a - b| = |a^2 - b^2| / (a + b)
        energy_retained=energy + 2 * NORM,
        zero_fraction=SHARE,
    )


def compare_stored(
    cut: Truncation, again: Truncation, scale: float, distance: Distance, *, single: bool
) -> Iterator[Contradiction]:
    """Yield what the stored numbers of a tensor contradict.

    Parameters
    ----------
    cut : Truncation
        The claims.
    again : Truncation
        The second computation.
    scale : float
        The factor of the kept update.
    distance : Distance
        The stored numbers from those that were made again.
    single : bool
        True if the claims may have been computed in float32.
    """
    allowed = distance.work + distance.triplets
    if not distance.beyond <= allowed * _SLACK:
        found = f"norm {distance.beyond:.3g} away, beyond rounding"
        yield "result", found, f"at most {allowed:.3g}"
    said, rounding = cut.rounding_error, again.rounding_error
    # Triplets that may differ by much still round by no more than storage does.
    possible = said <= distance.storage + distance.work + NORM * rounding
    if not (possible and abs(rounding - said) <= allowed + NORM * rounding):
        yield "rounding_error", rounding, said
    if not scale:
        return
    norm, tail = again.update_norm, again.tail_norm
    slack = _energy_tolerance(cut, again, single=single) * norm**2
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
        All singular values of these tensors, by name.
    claimed : mapping
        The ranks that are claimed of each tensor.

    Notes
    -----
    Compares the energy that is kept, not the ranks: another computation may order triplets of
    almost equal energy otherwise.
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
    off = math.fsum(2 * _energy_rounding(len(s)) * _energy(s, len(s)) for s in values.values())
    kept, most = (
        math.fsum(_energy(s, ranks[key]) for key, s in values.items()) for ranks in (said, best)
    )
    if spent > rule.share * full * (1 + SHARE) or kept < most - off:
        for key, rank in best.items():
            if rank != said[key]:
                yield Failure("rank", rank, said[key], key[0])


def _energy(s: Sequence[float], rank: int) -> float:
    return math.fsum(value * value for value in s[:rank])


def is_single(cut: Truncation, rule: Rule) -> bool:
    """Return whether the numbers of a tensor may come from a few triplets, found in float32."""
    whole = rule.known_rank(cut.full_rank) is None and not rule.is_joint
    if cut.keep != Keep.TOP.value or (whole and not cut.svd.rejected):
        return False
    if len(cut.matrices) > 1:
        return True  # one method stands for all experts
    few = cut.svd.method == Method.GRAM.value and is_few(cut.ranks[0], cut.full_rank)
    return few or cut.svd.method == Method.KRYLOV.value


def _value_tolerance(again: Truncation, value: float, first: float, tolerance: float) -> float:
    """Return how far two computations of a singular value may be apart, `first` the largest."""
    size, relative = again.full_rank, VALUE_TOLERANCE + allowed_value_error(tolerance)
    found = relative * max(value, VALUE_FLOOR * first) + size * BACKWARD * first
    if again.keep != Keep.TOP.value:
        found += math.sqrt(size * BACKWARD) * again.update_norm
    return found


def _energy_tolerance(cut: Truncation, again: Truncation, *, single: bool) -> float:
    """Return how far two energies that are kept or cut may be apart, as a share of the whole."""
    rounding = _energy_rounding(again.full_rank) + (_SINGLE_ENERGY if single else 0)
    excess = max(cut.svd.excess_bound, again.svd.excess_bound)
    if cut.keep == Keep.RANDOM.value or again.update_norm == 0:
        return 2 * (excess + rounding)
    # What the leading triplets leave: with --keep bottom, that is kept.
    best = (again.tail_norm / again.update_norm) ** 2
    if cut.keep == Keep.BOTTOM.value:
        best = again.energy_retained
    return _lack(best, 1.0, excess) + 2 * rounding


def _energy_rounding(size: int) -> float:
    """Return the rounding error of a sum of squared singular values, as a share of them all."""
    return size * BACKWARD


def cut_tolerance(measured: MeasuredValues, indices: Sequence[int], excess: float) -> float:
    """Return the norm that two cuts of one matrix may differ by; infinite without a gap.

    Parameters
    ----------
    measured : MeasuredValues
        The values of the matrix, at least those around each end of a run of `indices`.
    indices : sequence of int
        The indices of the triplets that stay.
    excess : float
        Bound on the relative excess error of either cut.
    """
    chosen, squares = set(indices), (*measured.squares, 0.0)
    last = min(measured.full_rank, len(squares))
    ends = [k for k in range(1, last) if ((k - 1) in chosen) != (k in chosen)]
    # The certificate of scattered triplets is about their energy alone.
    rounding = _energy_rounding(measured.full_rank) if len(ends) > 1 else 0
    total = 0.0
    for k in ends:
        gap = squares[k - 1] - squares[k]
        if gap <= 0:
            return math.inf
        best = max(measured.energy - math.fsum(squares[:k]), 0.0)
        lack = _lack(best, measured.energy, excess) + rounding * measured.energy
        total += 2 * math.sqrt(lack * (squares[k - 1] + squares[k]) / gap)
    return total * measured.scale


def _lack(best: float, energy: float, excess: float) -> float:
    """Return the energy that a cut may lack; best errors near zero count as `ERROR_FLOOR`."""
    return excess * (2 + excess) * max(best, ERROR_FLOOR**2 * energy)


def product_tolerance(k: int, terms: int, unit: float, kept: float) -> float:
    """Return the rounding error of a product of thin factors.

    Parameters
    ----------
    k : int
        Its rank.
    terms : int
        How many terms each entry is the sum of.
    unit : float
        The unit of roundoff.
    kept : float
        Norm of the product.
    """
    return (terms + 4) * unit * math.sqrt(k) * kept
