"""Carry out a verification: the folder alone, then the inputs, then every tensor again.

The inputs are compared by the hashes of their weight files, by the plan that their headers and
the options make, and by the files that are copied beside the weights.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from svdcut import __version__
from svdcut.adapter.reading import open_finetuned
from svdcut.choose.options import Options
from svdcut.choose.ranks import parse_rule
from svdcut.device import resolve_device
from svdcut.errors import SvdcutError, UsageError
from svdcut.files.checkpoint import Checkpoint, open_checkpoint
from svdcut.files.filenames import ADAPTER_CONFIG_NAME, ADAPTER_NAME, CARD_NAME, MANIFEST_NAME
from svdcut.files.tensorfile import TensorEntry, hash_file
from svdcut.machine import num_cores
from svdcut.pair.plan import Plan, PlannedTensor, make_plan
from svdcut.record.manifest import FileFact, Manifest, TensorFact, WeightFileFact
from svdcut.record.progress import Observer, Progress
from svdcut.record.publication import copy_files, write_sidecars
from svdcut.record.summary import describe_matching
from svdcut.streaming.memory import SPARE_BYTES
from svdcut.streaming.pool import Pool
from svdcut.truncation.adapter_publication import find_task
from svdcut.verification.claims import check_claims, read_manifest
from svdcut.verification.findings import (
    Checked,
    Contradiction,
    Failure,
    Verification,
    conclude,
    differences,
)
from svdcut.verification.folder import check_folder
from svdcut.verification.options import VerifyOptions
from svdcut.verification.recomputation import Recomputation, may_become
from svdcut.verification.stored import Result
from svdcut.write.tensor_writer import Staging

_SIDES = "sides"
"""The claim that fails where the two sides are swapped: nothing else need be said then."""

_PIECE_BYTES = 4 << 20

_OF_ADAPTER = (ADAPTER_NAME, ADAPTER_CONFIG_NAME)
"""Files of an adapter that are checked by what a loader makes of them."""


def run_verification(asked: VerifyOptions, observe: Observer) -> Verification:
    """Check a result.

    Parameters
    ----------
    asked : VerifyOptions
        The options of the command; both sides are named, or neither.
    observe : callable
        Called after each tensor and file, by the thread that did it.

    Returns
    -------
    Verification
        Every claim that does not hold.

    Raises
    ------
    CheckpointError
        If there is no manifest, or an input cannot be read.
    UsageError
        If there is no such device.

    Notes
    -----
    Reads every byte of the result once, and with inputs every byte of these twice.
    Memory is bounded as that of a truncation.
    """
    base = None if asked.base is None else open_checkpoint(asked.base, quiet=asked.quiet)
    device = resolve_device(asked.device if base else "cpu")
    manifest, failures = read_manifest(asked.out)
    if manifest is None:
        return conclude(Checked(files=1), failures)
    entries, found = check_folder(asked.out, manifest, observe)
    failures += found
    checked = Checked(
        files=1 + len(manifest.files),
        tensors=len(entries),
        truncated=sum(fact.truncation is not None for fact in manifest.tensors.values()),
    )
    finetuned = None
    try:
        options = Options.from_json(manifest.options)
        rule = parse_rule(manifest.options["rank"])
        if base is not None and asked.finetuned is not None:
            finetuned = open_finetuned(
                asked.finetuned, base, renames=options.map, quiet=asked.quiet
            )
    except UsageError as error:
        return conclude(checked, [*failures, _no_plan(error)])
    failures += check_claims(manifest, options, rule)
    if base is None or finetuned is None:
        return conclude(checked, failures)
    checked = replace(checked, input_files=len(base.files) + len(finetuned.files))
    found = list(_check_sources(base, finetuned, manifest, observe))
    failures += found
    if any(failure.claim == _SIDES for failure in found):
        return conclude(checked, failures)
    try:
        plan = make_plan(base, finetuned, options)
        opened = _open_result(asked.out, manifest, plan, entries, options)
    except SvdcutError as error:
        return conclude(checked, [*failures, _no_plan(error)])
    with opened as result:
        failures += [*_check_plan(plan, manifest), *_check_published(plan, manifest, options)]
        again = Recomputation(plan, manifest, rule, options, result, device)
        count, found = again.run(asked, observe)
    return conclude(replace(checked, recomputed=count), failures + found)


def _no_plan(error: SvdcutError) -> Failure:
    return Failure("options", error.what, "options that make a plan", file=MANIFEST_NAME)


def _open_result(
    out: Path,
    manifest: Manifest,
    plan: Plan,
    entries: Mapping[str, TensorEntry],
    options: Options,
) -> Result:
    """Open a result as a loader does."""
    if manifest.adapter is None:
        return Result(entries)
    loaded = open_finetuned(out, _untie(plan), renames=options.map)
    hashes = {
        entries[name].offset: fact.sha256
        for name, fact in manifest.adapter.tensors.items()
        if name in entries
    }
    nowhere = Staging(Path(os.devnull), lambda *_: None, lambda *_: None)
    return Result(loaded.tensors, loaded.updates, hashes, nowhere)


def _untie(plan: Plan) -> Checkpoint:
    """Return base with a head of its own where the fine-tuned side has untied it."""
    base = plan.base
    pairs = [planned.pair for planned in plan.tensors]
    shared = Counter(pair.base for pair in pairs)
    heads = {
        pair.name: replace(pair.base, name=pair.name)
        for pair in pairs
        if pair.base is not None and shared[pair.base] > 1 and pair.name not in base.tensors
    }
    if not heads or not base.ties_embeddings:
        return base
    config = {**base.config, "tie_word_embeddings": False}
    if isinstance(config.get("text_config"), dict):
        config["text_config"] = {**config["text_config"], "tie_word_embeddings": False}
    return replace(base, tensors={**base.tensors, **heads}, config=config)


def _check_sources(
    base: Checkpoint, finetuned: Checkpoint, manifest: Manifest, observe: Observer
) -> Iterator[Failure]:
    """Yield the weight files of both sides that are not those of the manifest.

    If the sides are swapped, yield the claim `_SIDES` alone.

    Raises
    ------
    CheckpointError
        If one cannot be read.
    """
    files = [*base.files, *finetuned.files]
    total = sum(file.size_bytes for file in files)

    def task(number: int) -> FileFact:
        file = files[number]
        fact = FileFact(file.size_bytes, hash_file(file.path, threading.Event()))
        observe(Progress("inputs", file.path.name, file.size_bytes, total))
        return fact

    with Pool(num_cores(), SPARE_BYTES) as pool:
        facts = list(pool.map(task, [_PIECE_BYTES] * len(files)))
    named = [(file.path.name, fact) for file, fact in zip(files, facts, strict=True)]
    ours = [dict(named[: len(base.files)]), dict(named[len(base.files) :])]
    theirs = [manifest.base.files, manifest.finetuned.files]
    hashes, claimed = (
        [{fact.sha256 for fact in side.values()} for side in sides] for sides in (ours, theirs)
    )
    if hashes != claimed and hashes == claimed[::-1]:
        swapped = "swapped: each is the other"
        yield Failure(_SIDES, swapped, "base and fine-tuned side", file=MANIFEST_NAME)
        return
    for name, found, said in zip(("base", "finetuned"), ours, theirs, strict=True):
        yield from _compare_files(f"{name}.files", found, said)


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


def _check_plan(plan: Plan, manifest: Manifest) -> Iterator[Failure]:
    """Yield what the options and the headers of both sides make otherwise."""
    pairing = plan.pairing
    claims: list[Contradiction] = [
        ("base.prefix", pairing.base_prefix, manifest.base.prefix),
        ("finetuned.prefix", pairing.finetuned_prefix, manifest.finetuned.prefix),
        ("base_only", pairing.base_only, manifest.base_only),
    ]
    matching, names = describe_matching(pairing), ("renames", "wrappers", "unmatched")
    for claim, found, said in differences(matching, manifest.matching, *names):
        claims.append((f"matching.{claim}", found, said))
    if manifest.adapter is not None:
        claims.append(("adapter.config", find_task(plan), manifest.adapter.config))
    for claim, found, said in claims:
        if found != said:
            yield Failure(claim, found, said, file=MANIFEST_NAME)
    planned = {tensor.pair.name: tensor for tensor in plan.tensors}
    for name in dict.fromkeys([*planned, *manifest.tensors]):
        tensor, fact = planned.get(name), manifest.tensors.get(name)
        if tensor is None or fact is None:
            action = tensor and tensor.pair.action.value
            yield Failure("tensors", action, fact and fact.action, tensor=name)
            continue
        found = _as_planned(fact, tensor, is_adapter=manifest.adapter is not None)
        for wrong in differences(found, fact, "shape", "file", "dtype", "action"):
            yield Failure(*wrong, tensor=name)


def _as_planned(fact: TensorFact, planned: PlannedTensor, *, is_adapter: bool) -> TensorFact:
    """Return the facts of a tensor with everything that the plan decides."""
    target, action = planned.target, planned.pair.action
    found = replace(fact, shape=target.shape)
    if not may_become(action, fact):
        found = replace(found, action=action.value)
    if is_adapter:
        return found
    return replace(found, file=target.path.name, dtype=target.dtype.value)


class _Recorder:
    """Takes the files of a result, and keeps nothing."""

    def write_file(self, name: Path, data: bytes) -> None:
        """Forget a file."""

    def copy_file(self, source: Path, name: Path) -> tuple[int, str]:  # noqa: ARG002
        """Return the size and the hash of a file."""
        return source.stat().st_size, hash_file(source, threading.Event())


def _check_published(plan: Plan, manifest: Manifest, options: Options) -> Iterator[Failure]:
    """Yield the files beside the tensors that these inputs would not have given.

    The model card is left out: it may change on both sides without the weights. What
    svdcut writes itself is looked at only where this version wrote it.
    """
    said = dict(manifest.files)
    if manifest.adapter is None:
        copied = plan.finetuned.sidecars()
        wanted = write_sidecars(_Recorder(), plan, options)
    else:
        copied = plan.finetuned.tokenizer_files()
        wanted = copy_files(_Recorder(), copied)
        said = {name: fact for name, fact in said.items() if name not in _OF_ADAPTER}
    said.pop(CARD_NAME, None)
    if manifest.svdcut_version != __version__:
        ours = wanted.keys() - {str(name) for name in copied}
        said |= {name: wanted[name] for name in ours & said.keys()}
    yield from _compare_files("files", wanted, said)
