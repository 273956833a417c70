"""Carry out a verification, without the inputs or with them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from svdcut.adapter.reading import open_finetuned
from svdcut.choose.options import Options
from svdcut.choose.ranks import parse_rule
from svdcut.device import resolve_device
from svdcut.errors import SvdcutError, UsageError
from svdcut.files.checkpoint import Checkpoint, open_checkpoint
from svdcut.files.filenames import MANIFEST_NAME
from svdcut.files.tensorfile import TensorEntry
from svdcut.machine import num_cores
from svdcut.pair.plan import Plan, make_plan
from svdcut.record.manifest import Manifest
from svdcut.record.progress import Observer, Progress
from svdcut.streaming.memory import SPARE_BYTES
from svdcut.streaming.pool import Pool
from svdcut.verification.claims import check_claims, read_manifest
from svdcut.verification.findings import Checked, Failure, Verification, conclude
from svdcut.verification.folder import check_folder
from svdcut.verification.inputs import (
    SIDES,
    check_plan,
    check_published,
    check_sources,
)
from svdcut.verification.options import VerifyOptions
from svdcut.verification.recomputation import Recomputation
from svdcut.verification.stored import Result
from svdcut.write.tensor_writer import Staging


def run_verification(asked: VerifyOptions, observe: Observer) -> Verification:
    """Check a result.

    Parameters
    ----------
    asked : VerifyOptions
        Of the command; both sides are named, or neither.
    observe : callable
        Told of each tensor and file that is done, by the thread that did it.

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
    with Pool(num_cores(), SPARE_BYTES) as pool:
        total = sum(fact.size for fact in manifest.files.values())
        tell = _teller("result", total, observe)
        entries, found = check_folder(asked.out, manifest, pool, tell)
        failures += found
        checked = Checked(
            files=1 + len(manifest.files),
            tensors=len(entries),
            truncated=sum(fact.truncation is not None for fact in manifest.tensors.values()),
        )
        try:
            options = Options.from_json(manifest.options)
            rule = parse_rule(manifest.options["rank"])
            finetuned = _open_finetuned(asked, base, options)
        except UsageError as error:
            return conclude(checked, [*failures, _no_plan(error)])
        failures += check_claims(manifest, options, rule)
        if base is None or finetuned is None:
            return conclude(checked, failures)
        files = (*base.files, *finetuned.files)
        tell = _teller("inputs", sum(file.size_bytes for file in files), observe)
        failures += check_sources(base, finetuned, manifest, pool, tell)
    checked = replace(checked, input_files=len(files))
    if any(failure.claim == SIDES for failure in failures):
        return conclude(checked, failures)
    try:
        plan = make_plan(base, finetuned, options)
        opened = _open_result(asked.out, manifest, plan, entries, options)
    except SvdcutError as error:
        return conclude(checked, [*failures, _no_plan(error)])
    with opened as result:
        failures += [*check_plan(plan, manifest), *check_published(plan, manifest, options)]
        again = Recomputation(plan, manifest, rule, options, result, device)
        count, found = again.run(asked, observe)
    return conclude(replace(checked, recomputed=count), failures + found)


def _open_finetuned(
    asked: VerifyOptions, base: Checkpoint | None, options: Options
) -> Checkpoint | None:
    if base is None or asked.finetuned is None:
        return None
    return open_finetuned(asked.finetuned, base, renames=options.map, quiet=asked.quiet)


def _no_plan(error: SvdcutError) -> Failure:
    return Failure("options", error.what, "options that make a plan", file=MANIFEST_NAME)


def _teller(stage: str, total: int, observe: Observer) -> Callable[[str, int], None]:
    return lambda name, size: observe(Progress(stage, name, size, total))


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
