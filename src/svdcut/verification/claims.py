"""What a manifest says of itself: the claims that would be wrong silently without the inputs.

Arithmetic on claims; it reads no file and imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from svdcut.choose.keep import Keep
from svdcut.choose.options import Options
from svdcut.choose.ranks import Rule, rule_for
from svdcut.files.filenames import MANIFEST_NAME
from svdcut.record.manifest import Manifest, MatrixFact, Totals, Truncation
from svdcut.svd.certificate import VALUE_TOLERANCE
from svdcut.svd.measured import Method, Proof
from svdcut.truncation.report import sum_totals
from svdcut.verification.findings import Contradiction, Failure
from svdcut.verification.tolerances import SUM, is_close


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
            own = rule_for(name, rule, options.rank_for)
            for claim, found, said in _follow(fact.truncation, options, own):
                if not _agree(claim, found, said):
                    yield Failure(claim, found, said, tensor=name)
    totals = sum_totals(manifest.tensors, manifest.totals.seconds)
    for item in fields(Totals):
        found, said = (getattr(side, item.name) for side in (totals, manifest.totals))
        if not _agree(item.name, found, said):
            yield Failure(f"totals.{item.name}", found, said, file=MANIFEST_NAME)


def _agree(claim: str, found: object, said: object) -> bool:
    if isinstance(found, float) and isinstance(said, float):
        # A share may have lost its leading digits.
        return is_close(found, said, SUM, SUM if claim == "energy_retained" else 0)
    return found == said


def _follow(cut: Truncation, options: Options, rule: Rule) -> Iterator[Contradiction]:
    """Yield claims on a tensor, each with what follows from the options and the others."""
    yield "rule", str(rule), cut.rule
    yield "keep", options.keep.value, cut.keep
    for matrix in cut.matrices:
        known = rule.known_rank(cut.full_rank) if matrix.sigma_first else 0
        wanted = min(matrix.rank, cut.full_rank) if known is None else known
        yield "rank", wanted, matrix.rank
        yield from _follow_order(matrix, cut)
    lost = cut.tail_norm / cut.update_norm if cut.update_norm else 0.0
    yield "energy_retained", 1 - lost * lost, cut.energy_retained
    svd = cut.svd
    yield "svd.excess_bound", min(svd.excess_bound, options.tolerance), svd.excess_bound
    certified = svd.excess_bound <= options.tolerance and svd.value_bound <= VALUE_TOLERANCE
    yield "svd.certified", certified, svd.certified
    iterates = svd.method == Method.KRYLOV.value
    yield "svd.proof", (Proof.RANDOM_START if iterates else Proof.SPECTRUM).value, svd.proof


def _follow_order(matrix: MatrixFact, cut: Truncation) -> Iterator[Contradiction]:
    """Yield the values around the cut: which there are, and their order."""
    first, last, after = matrix.sigma_first, matrix.sigma_last_kept, matrix.sigma_next
    if (last is None) != (matrix.rank == 0) or (last or 0) > first:
        yield "sigma_last_kept", f"rank {matrix.rank}, first value {first}", last
    most = last if cut.keep == Keep.TOP.value and last is not None else first
    if (after is None) != (matrix.rank == cut.full_rank) or (after or 0) > most:
        yield "sigma_next", f"rank {matrix.rank}, a value of {most} before", after
