"""Check a manifest against the two sides that it names, without a single product.

The hashes of their weight files, the plan that their headers and the options make, and the
files that are copied beside the weights.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from svdcut import __version__
from svdcut.choose.options import Options
from svdcut.files.checkpoint import Checkpoint
from svdcut.files.filenames import ADAPTER_CONFIG_NAME, ADAPTER_NAME, CARD_NAME, MANIFEST_NAME
from svdcut.files.tensorfile import hash_file
from svdcut.pair.pairing import Action
from svdcut.pair.plan import Plan, PlannedTensor
from svdcut.record.manifest import FileFact, Manifest, TensorFact, WeightFileFact
from svdcut.record.publication import write_sidecars
from svdcut.streaming.pool import Pool
from svdcut.truncation.adapter_publication import find_task
from svdcut.verification.findings import Contradiction, Failure
from svdcut.verification.folder import Tell

SIDES = "sides"
"""The claim that fails where the two sides are swapped: nothing else need be said then."""

_PIECE_BYTES = 4 << 20

_OF_ADAPTER = (ADAPTER_NAME, ADAPTER_CONFIG_NAME)
"""Files of an adapter that are checked by what a loader makes of them."""


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
    files = [*base.files, *finetuned.files]

    def task(number: int) -> FileFact:
        file = files[number]
        fact = FileFact(file.size_bytes, hash_file(file.path, threading.Event()))
        tell(file.path.name, file.size_bytes)
        return fact

    facts = pool.map(task, [_PIECE_BYTES] * len(files))
    named = [(file.path.name, fact) for file, fact in zip(files, facts, strict=True)]
    count = len(base.files)
    ours = [("base", dict(named[:count])), ("finetuned", dict(named[count:]))]
    theirs = [manifest.base.files, manifest.finetuned.files]
    hashes = [{fact.sha256 for fact in found.values()} for _, found in ours]
    claimed = [{fact.sha256 for fact in said.values()} for said in theirs]
    if hashes != claimed and hashes == claimed[::-1]:
        swapped = "swapped: each is the other"
        yield Failure(SIDES, swapped, "base and fine-tuned side", file=MANIFEST_NAME)
        return
    for (side, found), said in zip(ours, theirs, strict=True):
        yield from _compare_files(f"{side}.files", found, said)


def _compare_files(
    claim: str,
    found: Mapping[str, WeightFileFact | FileFact],
    said: Mapping[str, WeightFileFact | FileFact],
) -> Iterator[Failure]:
    for name in sorted(found.keys() | said.keys()):
        if found.get(name) != said.get(name):
            yield Failure(claim, _hash(found.get(name)), _hash(said.get(name)), file=name)


def _hash(fact: WeightFileFact | FileFact | None) -> str | None:
    if fact is None:
        return None
    return fact.header_sha256 if isinstance(fact, WeightFileFact) else fact.sha256


def check_plan(plan: Plan, manifest: Manifest) -> Iterator[Failure]:
    """Yield what the options and the headers of both sides make otherwise."""
    pairing, matching = plan.pairing, manifest.matching
    claims: list[Contradiction] = [
        ("base.prefix", pairing.base_prefix, manifest.base.prefix),
        ("finetuned.prefix", pairing.finetuned_prefix, manifest.finetuned.prefix),
        ("base_only", pairing.base_only, manifest.base_only),
        ("matching.renames", pairing.matching.renames, matching.renames),
        ("matching.wrappers", pairing.matching.wrappers, matching.wrappers),
        ("matching.unmatched", pairing.unmatched, matching.unmatched),
    ]
    if manifest.adapter is not None:
        claims.append(("adapter.config", find_task(plan), manifest.adapter.config))
    for claim, found, said in claims:
        if found != said:
            yield Failure(claim, found, said, file=MANIFEST_NAME)
    planned = {tensor.pair.name: tensor for tensor in plan.tensors}
    for name in dict.fromkeys([*planned, *manifest.tensors]):
        for claim, found, said in _compare_tensor(
            planned.get(name), manifest.tensors.get(name), is_adapter=manifest.adapter is not None
        ):
            if found != said:
                yield Failure(claim, found, said, tensor=name)


def _compare_tensor(
    planned: PlannedTensor | None, fact: TensorFact | None, *, is_adapter: bool
) -> Iterator[Contradiction]:
    if planned is None or fact is None:
        yield "tensors", planned and planned.pair.action.value, fact and fact.action
        return
    target, action = planned.target, planned.pair.action
    yield "shape", target.shape, fact.shape
    if not is_adapter:
        yield "file", target.path.name, fact.file
        yield "dtype", target.dtype.value, fact.dtype
    yield "action", fact.action if may_become(action, fact) else action.value, fact.action


def may_become(planned: Action, fact: TensorFact) -> bool:
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
    recorder, finetuned = _Recorder(), plan.finetuned
    copied = finetuned.sidecars()
    wanted: Mapping[str, WeightFileFact | FileFact]
    said = dict(manifest.files)
    if manifest.adapter is None:
        wanted = write_sidecars(recorder, plan, options)
    else:
        copied = finetuned.tokenizer_files()
        wanted = {
            str(name): FileFact(*recorder.copy_file(source, name))
            for name, source in copied.items()
        }
        said = {name: fact for name, fact in said.items() if name not in _OF_ADAPTER}
    said.pop(CARD_NAME, None)
    if manifest.svdcut_version != __version__:
        ours = wanted.keys() - {str(name) for name in copied}
        said |= {name: wanted[name] for name in ours & said.keys()}
    yield from _compare_files("files", wanted, said)
