"""Check a manifest against the two sides that it names, without a single product.

Hashes of their weight files, the plan that their headers and the options make, and the
files that are copied beside the weights.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

from svdcut import __version__
from svdcut.choose.options import Options
from svdcut.files.checkpoint import Checkpoint
from svdcut.files.filenames import CARD_NAME, MANIFEST_NAME
from svdcut.files.tensorfile import hash_file
from svdcut.pair.pairing import Action
from svdcut.pair.plan import Plan, PlannedTensor
from svdcut.record.manifest import FileFact, Manifest, TensorFact, WeightFileFact
from svdcut.record.publication import write_sidecars
from svdcut.streaming.pool import Pool
from svdcut.verification.files import Tell
from svdcut.verification.findings import Failure

SIDES = "sides"
"""Claim that fails where the two sides are swapped: every number is another's then."""

_PIECE_BYTES = 4 << 20


def check_sources(
    base: Checkpoint, finetuned: Checkpoint, manifest: Manifest, pool: Pool, tell: Tell
) -> Iterator[Failure]:
    """Yield the weight files of both sides that are not those of the manifest.

    Where each side is the other one, that alone is said, as the claim `SIDES`.

    Raises
    ------
    CheckpointError
        If one cannot be read.
    """
    sides = [
        ("base", base, manifest.base.files),
        ("finetuned", finetuned, manifest.finetuned.files),
    ]
    tasks = [(side, file, claimed) for side, sources, claimed in sides for file in sources.files]

    def task(number: int) -> FileFact:
        file = tasks[number][1]
        fact = FileFact(file.size_bytes, hash_file(file.path, threading.Event()))
        tell(file.path.name, file.size_bytes)
        return fact

    facts = pool.map(task, [_PIECE_BYTES] * len(tasks))
    hashes: dict[str, set[str]] = {}
    for (side, _, _), fact in zip(tasks, facts, strict=True):
        hashes.setdefault(side, set()).add(fact.sha256)
    ours, theirs = ({fact.sha256 for fact in claimed.values()} for _, _, claimed in sides)
    if ours != theirs and (hashes["base"], hashes["finetuned"]) == (theirs, ours):
        swapped = "swapped: each is the other"
        yield Failure(SIDES, swapped, "base and fine-tuned side", file=MANIFEST_NAME)
        return
    for (side, file, claimed), fact in zip(tasks, facts, strict=True):
        expected = claimed.get(file.path.name)
        if fact != expected:
            yield _other_file(side, file.path.name, fact, expected)
    for side, source, claimed in sides:
        for name in sorted(claimed.keys() - {file.path.name for file in source.files}):
            yield _other_file(side, name, None, claimed[name])


def _other_file(side: str, name: str, found: FileFact | None, expected: FileFact | None) -> Failure:
    return Failure(
        f"{side}.files",
        found and found.sha256,
        expected and expected.sha256,
        file=name,
    )


def check_plan(plan: Plan, manifest: Manifest) -> Iterator[Failure]:
    """Yield what the options and the headers of both sides make otherwise."""
    pairing = plan.pairing
    claims: tuple[tuple[str, object, object], ...] = (
        ("base.prefix", pairing.base_prefix, manifest.base.prefix),
        ("finetuned.prefix", pairing.finetuned_prefix, manifest.finetuned.prefix),
        ("base_only", pairing.base_only, manifest.base_only),
        ("matching.renames", pairing.matching.renames, manifest.matching.renames),
        ("matching.wrappers", pairing.matching.wrappers, manifest.matching.wrappers),
        ("matching.unmatched", pairing.unmatched, manifest.matching.unmatched),
    )
    for claim, found, expected in claims:
        if found != expected:
            yield Failure(claim, found, expected, file=MANIFEST_NAME)
    planned = {tensor.pair.name: tensor for tensor in plan.tensors}
    for name in dict.fromkeys([*planned, *manifest.tensors]):
        yield from _check_tensor(name, planned.get(name), manifest)


def _check_tensor(
    name: str, planned: PlannedTensor | None, manifest: Manifest
) -> Iterator[Failure]:
    fact = manifest.tensors.get(name)
    if planned is None or fact is None:
        found = None if planned is None else planned.pair.action.value
        yield Failure("tensors", found, fact and fact.action, tensor=name)
        return
    target, action = planned.target, planned.pair.action
    facts: list[tuple[str, object, object]] = [("shape", target.shape, fact.shape)]
    if manifest.adapter is None:
        facts += [
            ("file", target.path.name, fact.file),
            ("dtype", target.dtype.value, fact.dtype),
        ]
    for claim, is_so, said in facts:
        if is_so != said:
            yield Failure(claim, is_so, said, tensor=name)
    if not agrees(action, fact):
        yield Failure("action", action.value, fact.action, tensor=name)


def agrees(planned: Action, fact: TensorFact) -> bool:
    """Whether what is claimed of a tensor can have become of what is planned."""
    # Whether both sides hold the same bytes is not in their headers. An adapter asks it of
    # what is copied too.
    compared = (Action.TRUNCATE, Action.COPY_FINETUNED) if fact.file is None else (Action.TRUNCATE,)
    unchanged = planned in compared and fact.action == Action.UNCHANGED.value
    return unchanged or planned.value == fact.action


class _Recorder:
    """Takes the files of a result, and keeps nothing."""

    def write_file(self, name: Path, data: bytes) -> None:
        """Forget a file."""

    def copy_file(self, source: Path, name: Path) -> tuple[int, str]:  # noqa: ARG002
        """Return the size and the hash of a file."""
        return source.stat().st_size, hash_file(source, threading.Event())


def check_published(plan: Plan, manifest: Manifest, options: Options) -> Iterator[Failure]:
    """Yield the files beside the tensors that these inputs would not have given.

    The model card is left out: it may change on both sides without the weights. What
    svdcut writes itself is looked at only where this version wrote it.
    """
    wanted = write_sidecars(_Recorder(), plan, options)
    copied = {str(name) for name in plan.finetuned.sidecars()}
    for name in sorted(wanted.keys() | manifest.files.keys()):
        ours = name not in copied and manifest.svdcut_version != __version__
        if name == CARD_NAME or (ours and name in wanted and name in manifest.files):
            continue
        found, expected = wanted.get(name), manifest.files.get(name)
        if found != expected:
            yield Failure("files", _hash(found), _hash(expected), file=name)


def _hash(fact: WeightFileFact | FileFact | None) -> str | None:
    if fact is None:
        return None
    return fact.header_sha256 if isinstance(fact, WeightFileFact) else fact.sha256


def total_bytes(*sides: Checkpoint) -> int:
    """Return the bytes of all weight files."""
    return sum(file.size_bytes for side in sides for file in side.files)
