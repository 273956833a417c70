"""The screens of ``svdcut truncate`` and ``svdcut extract``: a plan, or what was done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from svdcut.choose.keep import Keep
from svdcut.choose.ranks import rule_for
from svdcut.cli.screen import (
    SHOWN_ROWS,
    Column,
    Screen,
    common_ends,
    first_names,
    no_room,
    open_screen,
    print_json,
    print_more,
    print_table,
)
from svdcut.files.filenames import MANIFEST_NAME
from svdcut.files.tensorfile import Dtype, size_bytes
from svdcut.names import collapse_numbers
from svdcut.pair.pairing import Action
from svdcut.pair.plan import Form
from svdcut.record.manifest import Manifest, WeightFileFact
from svdcut.record.summary import Group, summarize
from svdcut.shown import byte_size, counted, printable
from svdcut.svd.certificate import Method

if TYPE_CHECKING:
    from svdcut.api.truncation import Request
    from svdcut.choose.options import Options
    from svdcut.choose.ranks import Rule
    from svdcut.files.checkpoint import Checkpoint
    from svdcut.pair.matching import Matching
    from svdcut.pair.pairing import Pairing
    from svdcut.pair.plan import PlannedTensor
    from svdcut.truncation.preflight import Preflight

_CERTIFIED = {
    Keep.TOP: "Certified within {} of the best possible error at each rank",
    Keep.BOTTOM: "What was cut, the leading triplets, is certified within {} of the best possible "
    "error at its rank",
    Keep.RANDOM: "A random set is no best one: the energy that it keeps is certified within {} of "
    "the update's",
}
"""Sentences on the certificate, by the triplets that stay."""

_LARGE_BYTES = 10 << 20
"""Size from which a tensor that an adapter stores whole is named."""

_COLUMNS = (
    Column("n", 1),
    Column("shape", 4),
    Column("rank"),
    Column("energy"),
    Column("cut", 2),
    Column("rounding", 3),
)

_PLAN_COLUMNS = (
    Column("n", 1),
    *(Column(title, justify="left") for title in ("action", "shape", "dtype", "rule")),
)

_SHOWN_FILES = 12
"""Names of a usual folder of a training run."""


def print_result(request: Request, manifests: Sequence[Manifest]) -> None:
    """Print what was done, one table for each output."""
    console = open_screen()
    print_pairing(console, request)
    for output, manifest in zip(request.outputs, manifests, strict=True):
        groups = summarize(manifest)
        _print_groups(console, groups)
        console.print()
        for line in filter(None, (*_result_lines(manifest), _whole_line(manifest))):
            console.say(line)
        weights = (f for f in manifest.files.values() if isinstance(f, WeightFileFact))
        size = byte_size(sum(fact.size for fact in weights))
        console.say(
            f"[bold]{escape(str(output.path))}[/bold]: {size} in {manifest.totals.seconds:.1f} s "
            f"on {escape(manifest.device)}"
        )


def print_pairing(console: Screen, request: Request) -> None:
    """Print how the names of the two sides were matched, and what of both was left over."""
    plan = request.plan
    print_matching(console, plan.pairing)
    if plan.pairing.base_only:
        names = escape(first_names(plan.pairing.base_only))
        count = counted(len(plan.pairing.base_only), "tensor")
        console.say(f"Skipped {count} that only base has: {names}.")
    if request.left_behind:
        names = escape(first_names(request.left_behind, _SHOWN_FILES))
        console.say(f"Files of the fine-tuned side left behind: {names}.")


def print_matching(console: Screen, pairing: Pairing) -> None:
    """Print how the names of the two sides were matched."""
    for line in _matching_lines(pairing.matching):
        console.say(escape(printable(line)))


def _matching_lines(matching: Matching) -> Iterator[str]:
    for rename in matching.renames:
        if not rename.finetuned:
            yield f"Matched without the prefix {rename.base!r} of base."
        elif not rename.base:
            yield f"Matched without the prefix {rename.finetuned!r} of the fine-tuned side."
        else:
            yield f"Matched {rename.base!r} of base with {rename.finetuned!r}."
    if matching.wrappers:
        yield f"Matched without {', '.join(map(repr, matching.wrappers))} in names."


def _print_groups(console: Screen, groups: Sequence[Group]) -> None:
    start, end = common_ends([group.name for group in groups])
    rows = [
        [
            group.name[len(start) : len(group.name) - len(end)],
            str(group.count),
            "x".join(map(str, group.shape)),
            f"{group.rank_text()}/{group.full_rank}",
            f"{group.energy_retained:.1%}",
            f"{group.tail_norm:.1e}",
            f"{group.rounding_error:.0e}",
        ]
        for group in groups[:SHOWN_ROWS]
    ]
    title = f"{printable(start)} … {printable(end)}".strip()
    dropped = print_table(console, title, _COLUMNS, rows, gap=1, max_name=12) if rows else []
    print_more(console, len(groups), f"see {MANIFEST_NAME}")
    if dropped:
        console.say(no_room(dropped, MANIFEST_NAME), style="dim")


def _result_lines(manifest: Manifest) -> Iterator[str]:
    totals = manifest.totals
    energy = totals.energy_retained
    kept = "" if energy is None else f", {energy:.1%} of the update's energy kept"
    yield (
        f"{totals.truncated} of {totals.tensors} tensors truncated: rank {totals.rank} of "
        f"{totals.full_rank}{kept}."
    )
    cuts = [fact.truncation for fact in manifest.tensors.values() if fact.truncation]
    if cuts:
        methods = Counter(cut.svd.method for cut in cuts)
        routes = ", ".join(f"{count} by {method}" for method, count in sorted(methods.items()))
        worst = max(cut.svd.excess_bound for cut in cuts)
        keep = Keep(manifest.options["keep"])
        yield f"{_CERTIFIED[keep].format(f'{worst:.0e}')} ({routes})."
    fallbacks = sum(bool(cut.svd.rejected) and cut.svd.method == Method.EXACT for cut in cuts)
    if fallbacks:
        count = counted(fallbacks, "tensor")
        yield f"{count} fell back to the full SVD: see svd in {MANIFEST_NAME}."


def _whole_line(manifest: Manifest) -> str | None:
    """Say what an adapter stores beside factors; a large tensor is named."""
    adapter = manifest.adapter
    if adapter is None:
        return None
    sizes = {
        name: size_bytes(Dtype(fact.dtype), fact.shape)
        for name, fact in adapter.tensors.items()
        if ".lora_" not in name
    }
    if not sizes:
        return None
    largest = max(sizes, key=lambda name: sizes[name])
    noun = "tensor is" if len(sizes) == 1 else "tensors are"
    line = f"{len(sizes)} {noun} stored whole, {byte_size(sum(sizes.values()))}"
    if sizes[largest] < _LARGE_BYTES:
        return f"{line}."
    return (
        f"{line}, of which {escape(printable(largest))} {byte_size(sizes[largest])}: "
        "see docs/adapters.md."
    )


def print_plan(request: Request, *, as_json: bool) -> None:
    """Print what a run would do."""
    documents = [plan_document(request, number) for number in range(len(request.outputs))]
    if as_json:
        print_json(documents if len(documents) > 1 else documents[0])
        return
    plan = request.plan
    console = open_screen()
    facts = [document["tensors"] for document in documents]
    rows = Counter(_plan_row(tensor, facts) for tensor in plan.tensors)
    cells = [[name, str(count), *rest] for (name, *rest), count in rows.items()]
    print_table(console, "tensor", _PLAN_COLUMNS, cells[:SHOWN_ROWS], gap=1)
    print_more(console, len(rows), "--json shows each tensor")
    console.print()
    print_pairing(console, request)
    outs = ", ".join(str(output.path) for output in request.outputs)
    checkpoints = sum(output.form is Form.CHECKPOINT for output in request.outputs)
    size = byte_size(plan.size_bytes) if checkpoints else "factors"
    console.say(
        f"{plan.num_truncated} of {len(plan.tensors)} tensors to truncate, "
        f"{size} to write to {escape(outs)}. Nothing was written. The run finds the tensors that "
        "are equal on both sides, and copies them."
    )
    console.say(_needs_text(request.preflight))


def _plan_row(tensor: PlannedTensor, facts: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return what tensors of one kind share: those that differ in the number of their layer."""
    name, target = tensor.pair.name, tensor.target
    cuts = [found[name]["truncation"] for found in facts]
    rules = dict.fromkeys(cut["rule"] if cut else "" for cut in cuts)
    shape = "x".join(map(str, target.shape)) or "scalar"
    action = tensor.pair.action.value
    return collapse_numbers(name), action, shape, target.dtype.value, ", ".join(rules)


def _needs_text(preflight: Preflight) -> str:
    disks = ", ".join(
        f"{byte_size(disk.needed_bytes)} of {byte_size(disk.free_bytes)} free"
        for disk in preflight.disks
    )
    there = preflight.memory_available
    memory = f"at most {byte_size(preflight.memory_needed)}"
    memory += "" if there is None else f" of {byte_size(there)} available"
    device = preflight.device_memory_available
    gpu = "" if device is None else f"; on the GPU likewise, of {byte_size(device)} free"
    return f"Disk: {disks}. Memory: {memory}{gpu}."


def plan_document(request: Request, number: int) -> dict[str, Any]:
    """Return the plan of one output, in the shape of its manifest."""
    plan, output = request.plan, request.outputs[number]
    return {
        "schema": "svdcut/plan/2",
        "out": str(output.path),
        "base": _side(plan.base, plan.pairing.base_prefix),
        "finetuned": _side(plan.finetuned, plan.pairing.finetuned_prefix),
        "options": request.options.to_json(output.rule),
        "totals": {
            "tensors": len(plan.tensors),
            "truncated": plan.num_truncated,
            "copied": len(plan.tensors) - plan.num_truncated,
            "size_bytes": plan.size_bytes,
        },
        "needs": {
            "disks": [
                asdict(disk) | {"folder": str(disk.folder)} for disk in request.preflight.disks
            ],
            "memory_bytes": request.preflight.memory_needed,
            "memory_available_bytes": request.preflight.memory_available,
            "device_memory_available_bytes": request.preflight.device_memory_available,
        },
        "tensors": {
            tensor.pair.name: _tensor_facts(tensor, output.rule, request.options)
            for tensor in plan.tensors
        },
        "base_only": list(plan.pairing.base_only),
        "left_behind": list(request.left_behind),
        "matching": {
            "renames": [asdict(rename) for rename in plan.pairing.matching.renames],
            "wrappers": list(plan.pairing.matching.wrappers),
            "unmatched": list(plan.pairing.unmatched),
        },
    }


def _side(checkpoint: Checkpoint, prefix: str | None) -> dict[str, str | None]:
    return {"source": checkpoint.source, "revision": checkpoint.revision, "prefix": prefix}


def _tensor_facts(tensor: PlannedTensor, rule: Rule, options: Options) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "action": tensor.pair.action.value,
        "shape": list(tensor.target.shape),
        "dtype": tensor.target.dtype.value,
        "file": tensor.target.path.name,
        "truncation": None,
    }
    if tensor.pair.action is Action.TRUNCATE:
        facts["truncation"] = {
            "rule": str(rule_for(tensor.pair.name, rule, options.rank_for)),
            "keep": options.keep.value,
            "full_rank": tensor.pair.full_ranks[0],
        }
    return facts
