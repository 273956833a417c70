"""The screen and the document of a dry run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from svdcut.choose.ranks import rule_for
from svdcut.cli.result_screen import print_pairing
from svdcut.cli.screen import SHOWN_ROWS, Screen, WrappedName, print_json, print_more
from svdcut.names import collapse_numbers
from svdcut.pair.pairing import Action
from svdcut.pair.plan import Form
from svdcut.shown import byte_size

if TYPE_CHECKING:
    from svdcut.api.truncation import Request
    from svdcut.choose.options import Options
    from svdcut.choose.ranks import Rule
    from svdcut.files.checkpoint import Checkpoint
    from svdcut.pair.plan import PlannedTensor
    from svdcut.truncation.preflight import Preflight


def print_plan(request: Request, *, as_json: bool) -> None:
    """Print what a run would do."""
    documents = [plan_document(request, number) for number in range(len(request.outputs))]
    if as_json:
        print_json(documents if len(documents) > 1 else documents[0])
        return
    plan = request.plan
    console = Screen(highlight=False)
    facts = [document["tensors"] for document in documents]
    rows = Counter(_row(tensor, facts) for tensor in plan.tensors)
    console.print(_table(rows))
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


def _table(rows: Mapping[tuple[str, ...], int]) -> Table:
    """Return a row for each kind of tensor: those that differ in the number of their layer."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("tensor", overflow="fold")
    table.add_column("n", justify="right")
    for column in ("action", "shape", "dtype", "rule"):
        table.add_column(column, overflow="fold")
    for (name, *cells), count in islice(rows.items(), SHOWN_ROWS):
        table.add_row(WrappedName(name), str(count), *cells)
    return table


def _row(tensor: PlannedTensor, facts: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
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
        "needs": _needs(request.preflight),
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


def _needs(preflight: Preflight) -> dict[str, Any]:
    return {
        "disks": [
            {
                "folder": str(disk.folder),
                "needed_bytes": disk.needed_bytes,
                "free_bytes": disk.free_bytes,
            }
            for disk in preflight.disks
        ],
        "memory_bytes": preflight.memory_needed,
        "memory_available_bytes": preflight.memory_available,
        "device_memory_available_bytes": preflight.device_memory_available,
    }
