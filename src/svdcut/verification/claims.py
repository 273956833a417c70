"""Hold a manifest against itself: what its numbers say of each other.

Arithmetic on claims; it reads no file and imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from svdcut.choose.keep import Keep
from svdcut.choose.options import Options
from svdcut.choose.ranks import Rule, rule_for
from svdcut.files.filenames import MANIFEST_NAME
from svdcut.record.manifest import Manifest, TensorFact, Truncation
from svdcut.svd.certificate import VALUE_TOLERANCE
from svdcut.svd.route import Route
from svdcut.verification.findings import Failure

ROUNDING = 1e-11
"""Relative difference of sums of the same numbers in another order."""

_METHODS = {
    Route.EXACT: ("exact", "none", "factored"),
    Route.GRAM: ("gram", "exact", "none", "factored"),
}
"""What a run that starts at a route can end with."""


def joined(values: Sequence[object]) -> object:
    """Return the value of the only matrix, or a list over the experts of a stack."""
    return values[0] if len(values) == 1 else list(values)


def close(found: float, claimed: float, relative: float, absolute: float = 0.0) -> bool:
    """Whether two numbers agree; NaN agrees with nothing."""
    return abs(found - claimed) <= max(relative * max(abs(found), abs(claimed)), absolute)


def matrix_shapes(fact: TensorFact, cut: Truncation) -> list[tuple[int, int]]:
    """Return the shapes of the matrices that a tensor was truncated as, by its claims."""
    if is_stack(fact, cut):
        return [(fact.shape[1], fact.shape[2])] * len(cut.matrices)
    return [(cut.rows, math.prod(fact.shape[1:]))] * len(cut.matrices)


def is_stack(fact: TensorFact, cut: Truncation) -> bool:
    """Whether a tensor was truncated expert by expert, by its claims."""
    return len(fact.shape) == 3 and len(cut.matrices) == fact.shape[0]


def check_claims(manifest: Manifest, options: Options, rule: Rule) -> Iterator[Failure]:
    """Yield every claim that contradicts another.

    Parameters
    ----------
    manifest : Manifest
        Of the right types.
    options : Options
        Its options, parsed.
    rule : Rule
        Its rank rule, parsed.
    """
    for name, fact in manifest.tensors.items():
        if fact.truncation is not None:
            wanted = rule_for(name, rule, options.rank_for)
            for claim, found, expected in _check_tensor(fact, fact.truncation, options, wanted):
                yield Failure(claim, found, expected, tensor=name)
    for claim, found, expected in _check_totals(manifest):
        yield Failure(claim, found, expected, file=MANIFEST_NAME)


Contradiction = tuple[str, object, object]
"""A claim, what follows from the others, and what it says."""


def _check_tensor(
    fact: TensorFact, cut: Truncation, options: Options, rule: Rule
) -> Iterator[Contradiction]:
    wrong = _check_shape(fact, cut)
    if wrong is not None:
        yield wrong
        return
    if cut.rule != str(rule):
        yield "rule", str(rule), cut.rule
    if cut.keep != options.keep.value:
        yield "keep", options.keep.value, cut.keep
    yield from _check_ranks(cut, rule)
    yield from _check_values(cut, rule)
    yield from _check_norms(cut)
    yield from _check_svd(cut, options)


def _check_shape(fact: TensorFact, cut: Truncation) -> Contradiction | None:
    """Return what makes the claims of a tensor impossible to read, matrix by matrix."""
    stack, count = is_stack(fact, cut), len(cut.matrices)
    if len(fact.shape) < 2 or not (stack or count == 1):
        return "matrices", f"shape {list(fact.shape)}", count
    m, n = matrix_shapes(fact, cut)[0]
    rows = fact.shape[1] if stack else fact.shape[0]
    if cut.rows > rows or (stack and cut.rows != rows):
        return "rows", rows, cut.rows
    # An adapter's update has no more ranks than its factors, whichever route it took after.
    factored = cut.svd.method in ("factored", "none") or any(
        route.startswith("factored") for route in cut.svd.rejected
    )
    if cut.full_rank > min(m, n) or (cut.full_rank < min(m, n) and not factored):
        return "full_rank", min(m, n), cut.full_rank
    return None


def _check_ranks(cut: Truncation, rule: Rule) -> Iterator[Contradiction]:
    wanted = list(cut.ranks)
    for i, matrix in enumerate(cut.matrices):
        known = rule.known_rank(cut.full_rank) if matrix.sigma_first else 0
        wanted[i] = min(matrix.rank, cut.full_rank) if known is None else known
    if wanted != list(cut.ranks):
        yield "rank", joined(wanted), joined(cut.ranks)


def _check_values(cut: Truncation, rule: Rule) -> Iterator[Contradiction]:
    """Check which values are there, and their order."""
    for matrix in cut.matrices:
        rank, first, edge = matrix.rank, matrix.sigma_first, matrix.noise_edge
        last, after = matrix.sigma_last_kept, matrix.sigma_next
        if (last is None) != (rank == 0) or (last is not None and not last <= first):
            yield "sigma_last_kept", f"rank {rank}, first value {first}", last
        if (after is None) != (rank == cut.full_rank) or (after is not None and not after <= first):
            yield "sigma_next", f"rank {rank}, first value {first}", after
        ordered = last is None or after is None or last >= after
        if cut.keep == Keep.TOP.value and not ordered:
            yield "sigma_next", f"last kept value {last}", after
        if (edge is None) != (not rule.needs_edge or first == 0):
            yield "noise_edge", f"rule {cut.rule}", edge


def _check_norms(cut: Truncation) -> Iterator[Contradiction]:
    share = 1.0
    if cut.update_norm > 0:
        lost = cut.tail_norm / cut.update_norm
        share = 1 - lost * lost
    if not close(share, cut.energy_retained, 0, ROUNDING):
        yield "energy_retained", share, cut.energy_retained
    if not any(cut.ranks) and not close(cut.update_norm, cut.tail_norm, ROUNDING):
        yield "tail_norm", cut.update_norm, cut.tail_norm
    if all(rank == cut.full_rank for rank in cut.ranks) and cut.tail_norm != 0:
        yield "tail_norm", 0.0, cut.tail_norm


def _check_svd(cut: Truncation, options: Options) -> Iterator[Contradiction]:
    svd = cut.svd
    if not svd.excess_bound <= options.tolerance:
        yield "svd.excess_bound", f"tolerance {options.tolerance:g}", svd.excess_bound
    certified = svd.excess_bound <= options.tolerance and svd.value_bound <= VALUE_TOLERANCE
    if certified != svd.certified:
        yield "svd.certified", certified, svd.certified
    proof = "random_start" if svd.method == "krylov" else "spectrum"
    if svd.proof != proof:
        yield "svd.proof", proof, svd.proof
    allowed = _METHODS.get(options.svd)
    if allowed is not None and svd.method not in allowed:
        yield "svd.method", f"one of {', '.join(allowed)}", svd.method


def _check_totals(manifest: Manifest) -> Iterator[Contradiction]:
    cuts = [(fact, fact.truncation) for fact in manifest.tensors.values() if fact.truncation]
    norm = math.hypot(*(cut.update_norm for _, cut in cuts))
    tail = math.hypot(*(cut.tail_norm for _, cut in cuts))
    lost = tail / norm if norm else 0.0
    found: dict[str, int | float | None] = {
        "tensors": len(manifest.tensors),
        "truncated": len(cuts),
        "copied": len(manifest.tensors) - len(cuts),
        "rank": sum(sum(cut.ranks) for _, cut in cuts),
        "full_rank": sum(cut.full_rank * len(cut.matrices) for _, cut in cuts),
        "parameters_kept": sum(
            rank * sum(shape)
            for fact, cut in cuts
            for rank, shape in zip(cut.ranks, matrix_shapes(fact, cut), strict=True)
        ),
        "energy_retained": 1 - lost * lost if norm else None,
        "tail_norm": tail,
        "rounding_error": math.hypot(*(cut.rounding_error for _, cut in cuts)),
    }
    for key, value in found.items():
        claimed = getattr(manifest.totals, key)
        if isinstance(value, float) and claimed is not None:
            if not close(value, claimed, ROUNDING, ROUNDING if key == "energy_retained" else 0):
                yield f"totals.{key}", value, claimed
        elif value != claimed:
            yield f"totals.{key}", value, claimed
