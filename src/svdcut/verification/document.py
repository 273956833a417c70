"""Read a manifest that may have been damaged or forged: its text, schema and digest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from svdcut.errors import CheckpointError
from svdcut.files.filenames import MANIFEST_NAME, check_own
from svdcut.record.manifest import SCHEMA, SCHEMA_PATH, Manifest
from svdcut.verification.findings import Failure

_MAX_BYTES = 1 << 28
"""Of a manifest; half a million tensors need fewer."""

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
        pairs = enumerate(zip(text, again, strict=False))
        same = next((i for i, (a, b) in pairs if a != b), min(len(text), len(again)))
        return [_failure("text", f"another text from character {same} on", "as svdcut writes it")]
    return []


def _failure(claim: str, found: str, expected: str) -> Failure:
    return Failure(claim, found, expected, file=MANIFEST_NAME)
