"""Check a manifest against itself: its text, schema, digest, and claims that follow from others.

It may have been damaged or forged. It is compared with no other file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from svdcut.choose.keep import Keep
from svdcut.choose.options import Options
from svdcut.choose.ranks import Rule, rule_for
from svdcut.errors import CheckpointError
from svdcut.files.filenames import MANIFEST_NAME, check_own
from svdcut.record.manifest import SCHEMA, SCHEMA_PATH, Manifest, MatrixFact, Truncation
from svdcut.record.summary import sum_totals
from svdcut.svd.certificate import Method, Proof, allowed_value_error
from svdcut.verification.findings import Contradiction, Failure, differences
from svdcut.verification.tolerances import SUM

_MAX_BYTES = 1 << 28
"""Largest size of a manifest; half a million tensors need less."""

_MAX_MESSAGE = 200
_LARGEST = 2**63


def read_manifest(out: Path) -> tuple[Manifest | None, list[Failure]]:
    """Read the manifest of a result.

    Parameters
    ----------
    out : Path
        The folder.

    Returns
    -------
    tuple of Manifest or None and list of Failure
        None where the text is none that svdcut could have written: nothing else can
        be checked then.

    Raises
    ------
    CheckpointError
        If there is none, or it cannot be read.
    """
    raw = _read(out)
    try:
        text = raw.decode()
        document = json.loads(text, parse_int=_parse_int, parse_constant=_refuse_constant)
        _check_schema(document)
        manifest = Manifest.loads(text)
        again = manifest.dumps()
    except (ValueError, RecursionError) as error:
        reason = str(error).strip() or type(error).__name__
        return None, [_failure("schema", reason[:_MAX_MESSAGE], SCHEMA)]
    return manifest, _compare(text, again, document["digest"])


def _read(out: Path) -> bytes:
    path = out / MANIFEST_NAME
    if not out.is_dir():
        raise CheckpointError(f"{out}: no such folder", hint="Name a folder that svdcut wrote.")
    if not path.is_file():
        raise CheckpointError(
            f"{out}: not a result of svdcut: it has no {MANIFEST_NAME}",
            hint="Name the folder that was given to -o.",
        )
    check_own(path, out)
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if len(raw) > _MAX_BYTES:
        raise CheckpointError(f"{path}: larger than any manifest, {_MAX_BYTES >> 20} MB")
    return raw


def _parse_int(digits: str) -> int:
    # Larger ones than files can hold would only overflow later.
    if len(digits) > len(str(_LARGEST)) or abs(int(digits)) > _LARGEST:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _check_schema(document: Any) -> None:  # noqa: ANN401
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    schema = json.loads(SCHEMA_PATH.read_text("utf-8"))
    error = best_match(Draft202012Validator(schema).iter_errors(document))
    if error is not None:
        raise ValueError(f"{error.json_path}: {error.message}")


def _compare(text: str, again: str, digest: str) -> list[Failure]:
    """Compare a text with the one that svdcut would write of the same facts."""
    start, _, end = text.rpartition(digest)
    computed = hashlib.sha256(f"{start}{'0' * len(digest)}{end}".encode()).hexdigest()
    if computed != digest:
        return [_failure("digest", computed, digest)]
    if text != again:
        same = len(os.path.commonprefix([text, again]))  # noqa: RUF071 - of characters
        return [_failure("text", f"another text from character {same} on", "as svdcut writes it")]
    return []


def _failure(claim: str, found: str, expected: str) -> Failure:
    return Failure(claim, found, expected, file=MANIFEST_NAME)


def check_claims(manifest: Manifest, options: Options, rule: Rule) -> Iterator[Failure]:
    """Yield every claim that contradicts another.

    Parameters
    ----------
    manifest : Manifest
        The manifest, valid by its schema.
    options : Options
        Its options, parsed.
    rule : Rule
        Its rank rule, parsed.
    """
    for name, fact in manifest.tensors.items():
        if fact.truncation is not None:
            own = rule_for(name, rule, options.rank_for)
            for claim, found, said in _follow(fact.truncation, options, own):
                if found != said:
                    yield Failure(claim, found, said, tensor=name)
    totals = sum_totals(manifest.tensors, manifest.totals.seconds)
    sums = {"tail_norm": SUM * totals.tail_norm, "rounding_error": SUM * totals.rounding_error}
    exact = ("tensors", "truncated", "copied", "rank", "full_rank", "parameters_kept")
    wrong = differences(totals, manifest.totals, *exact, energy_retained=SUM, **sums)
    for claim, found, said in wrong:
        yield Failure(f"totals.{claim}", found, said, file=MANIFEST_NAME)


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
    kept = 1 - lost * lost
    if not abs(kept - cut.energy_retained) <= SUM:
        yield "energy_retained", kept, cut.energy_retained
    svd = cut.svd
    # The bound widens tolerances: never beyond the option of the run.
    yield "svd.excess_bound", min(svd.excess_bound, options.tolerance), svd.excess_bound
    values = svd.value_bound <= allowed_value_error(options.tolerance)
    certified = svd.excess_bound <= options.tolerance and values
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
