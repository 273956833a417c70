"""Check an adapter against what it was made from: make it again, and compare.

An adapter is small, so that a second one costs little beside the decompositions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from svdcut.adapter.factors import read_factors
from svdcut.adapter.reading import open_finetuned
from svdcut.choose.options import Options
from svdcut.choose.ranks import Rule
from svdcut.errors import SvdcutError
from svdcut.files.checkpoint import Checkpoint
from svdcut.files.filenames import MANIFEST_NAME
from svdcut.files.lora_factors import LowRankEntry
from svdcut.pair.plan import Form, Output, Plan
from svdcut.record.manifest import Manifest, TensorFact
from svdcut.record.progress import Observer
from svdcut.record.provenance import InputHashes
from svdcut.truncation.run import run_truncation
from svdcut.truncation.tensor_output import product_difference
from svdcut.verification.findings import Failure

_TOLERANCE = 1e-5
"""Relative difference of two honest runs of other versions or devices: what is promised of
singular values, and more than that of what is kept."""


def check_adapter(
    out: Path,
    manifest: Manifest,
    plan: Plan,
    options: Options,
    rules: Sequence[Rule],
    output: int,
    observe: Observer,
) -> tuple[tuple[int, int], list[Failure]]:
    """Make an adapter again, and compare.

    Parameters
    ----------
    out : Path
        The adapter, whose files are as its manifest says.
    manifest : Manifest
        Its manifest.
    plan : Plan
        Of the inputs.
    options : Options
        Of the manifest.
    rules : sequence of Rule
        Of all results of the run: some bytes depend on them.
    output : int
        Which of them is the adapter's.
    observe : callable
        Told of each tensor that is done.

    Returns
    -------
    tuple of tuple of int and list of Failure
        How many truncated tensors were reproduced or bounded, and every false claim.
    """
    with TemporaryDirectory(prefix="svdcut-") as folder, InputHashes(plan) as hashes:
        outputs = [
            Output(Path(folder) / str(number), rule, form=Form.ADAPTER)
            for number, rule in enumerate(rules)
        ]
        try:
            again = run_truncation(plan, outputs, options, hashes, observe=observe)[output]
        except SvdcutError as error:
            return (0, 0), [Failure("result", error.what, "an adapter", file=out.name)]
        same = again.adapter == manifest.adapter
        failures = list(_compare_facts(again, manifest, exact=same))
        failures += _compare_configs(again, manifest)
        cut = [name for name, fact in again.tensors.items() if fact.truncation]
        if not same:
            failures += _compare_products(outputs[output].path, out, plan.base)
    return (len(cut) * same, len(cut) * (not same)), failures


def _compare_configs(again: Manifest, manifest: Manifest) -> Iterator[Failure]:
    found, claimed = (made.adapter and made.adapter.config for made in (again, manifest))
    if found != claimed:
        yield Failure("adapter.config", found, claimed, file=MANIFEST_NAME)


def _compare_facts(again: Manifest, manifest: Manifest, *, exact: bool) -> Iterator[Failure]:
    for name, found in again.tensors.items():
        claimed = manifest.tensors.get(name)
        if claimed is None:
            yield Failure("tensors", found.action, None, tensor=name)
            continue
        for claim, value, said in _differences(found, claimed):
            if exact or not _close(value, said):
                yield Failure(claim, value, said, tensor=name)
    for name in manifest.tensors.keys() - again.tensors.keys():
        yield Failure("tensors", None, manifest.tensors[name].action, tensor=name)


def _differences(found: TensorFact, claimed: TensorFact) -> Iterator[tuple[str, object, object]]:
    ours, theirs = asdict(found), asdict(claimed)
    pairs = [(key, ours[key], theirs[key]) for key in ours if key != "truncation"]
    ours, theirs = _columns(ours["truncation"]), _columns(theirs["truncation"])
    pairs += [(key, ours.get(key), theirs.get(key)) for key in {**ours, **theirs}]
    yield from (pair for pair in pairs if pair[1] != pair[2])


def _columns(cut: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the claims on a tensor, with those on its matrices as lists."""
    if cut is None:
        return {}
    columns = {key: [matrix[key] for matrix in cut["matrices"]] for key in cut["matrices"][0]}
    return {**cut, **columns, "matrices": len(cut["matrices"])}


def _close(found: object, claimed: object) -> bool:
    """Whether two claims are those of honest runs that differ in their rounding."""
    if isinstance(found, (list, tuple)) and isinstance(claimed, (list, tuple)):
        return len(found) == len(claimed) and all(map(_close, found, claimed))
    if isinstance(found, float) and isinstance(claimed, float):
        return math.isclose(found, claimed, rel_tol=_TOLERANCE, abs_tol=1e-12)
    # Routes, bounds and hashes are those of the machine.
    return isinstance(found, (dict, str)) or found == claimed


def _compare_products(again: Path, out: Path, base: Checkpoint) -> Iterator[Failure]:
    """Compare what two adapters add to base, where their bytes differ."""
    ours, theirs = (open_finetuned(folder, base) for folder in (again, out))
    for name in {**ours.updates, **theirs.updates}:
        first, second = ours.updates.get(name), theirs.updates.get(name)
        if first is None or second is None:
            yield Failure("result", None, "the same tensors", tensor=name)
        elif (share := _distance(first, second)) > _TOLERANCE:
            yield Failure("result", f"{share:.2g} of it away", "the update", tensor=name)


def _distance(first: LowRankEntry, second: LowRankEntry) -> float:
    """Return how far two updates are apart, as a share of the first one's norm."""
    cpu = torch.device("cpu")
    squares, difference = 0.0, 0.0
    for number in range(first.experts):
        ours, theirs = read_factors(first, number, cpu), read_factors(second, number, cpu)
        if ours[0].shape != theirs[0].shape:
            return math.inf
        difference += product_difference(ours, theirs)
        left, right = ours
        squares += float(((left.T @ left) * (right @ right.T)).sum())
    return math.sqrt(difference / squares) if squares else math.sqrt(difference)
