"""The screen and the document of a dry run."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from svdcut.cli.output import Screen, megabytes, print_json, print_pairing
from svdcut.pairing import Action
from svdcut.plan import Form
from svdcut.ranks import rule_for
from svdcut.shown import printable

if TYPE_CHECKING:
    from svdcut.api import Request
    from svdcut.preflight import Preflight


def print_plan(request: Request, *, as_json: bool) -> None:
    """Print what a run would do."""
    documents = [plan_document(request, number) for number in range(len(request.outputs))]
    if as_json:
        print_json(documents if len(documents) > 1 else documents[0])
        return
    plan = request.plan
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("tensor", "action", "shape", "dtype", "rule"):
        table.add_column(column, overflow="fold")
    rules = [documents[n]["tensors"] for n in range(len(documents))]
    for tensor in plan.tensors:
        name = tensor.pair.name
        rule = ", ".join(dict.fromkeys(str(facts[name].get("rule", "")) for facts in rules))
        shape = " x ".join(map(str, tensor.target.shape)) or "scalar"
        table.add_row(
            escape(printable(name)),
            tensor.pair.action.value,
            shape,
            tensor.target.dtype.value,
            rule,
        )
    console = Screen(highlight=False)
    console.print(table)
    console.print()
    print_pairing(console, request)
    outs = ", ".join(str(output.path) for output in request.outputs)
    checkpoints = sum(output.form is Form.CHECKPOINT for output in request.outputs)
    size = megabytes(plan.size_bytes) if checkpoints else "factors"
    console.print(
        f"{plan.num_truncated} of {len(plan.tensors)} tensors to truncate, "
        f"{size} to write to {escape(outs)}. Nothing was written.",
        soft_wrap=True,
    )
    console.print(_needs_text(request.preflight), soft_wrap=True)


def _needs_text(preflight: Preflight) -> str:
    disks = ", ".join(
        f"{megabytes(disk.needed_bytes)} of {megabytes(disk.free_bytes)} free"
        for disk in preflight.disks
    )
    there = preflight.memory_available
    memory = f"at most {megabytes(preflight.memory_needed)}"
    memory += "" if there is None else f" of {megabytes(there)} available"
    device = preflight.device_memory_available
    gpu = "" if device is None else f"; on the GPU likewise, of {megabytes(device)} free"
    time = "" if preflight.seconds is None else f" Time: roughly {_duration(preflight.seconds)}."
    return f"Disk: {disks}. Memory: {memory}{gpu}.{time}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def plan_document(request: Request, number: int) -> dict[str, Any]:
    """Return the plan of one output, in the shape of its manifest."""
    plan, output = request.plan, request.outputs[number]
    tensors: dict[str, dict[str, Any]] = {}
    for tensor in plan.tensors:
        facts: dict[str, Any] = {
            "action": tensor.pair.action.value,
            "shape": list(tensor.target.shape),
            "dtype": tensor.target.dtype.value,
            "file": tensor.target.path.name,
        }
        if tensor.pair.action is Action.TRUNCATE:
            rule = rule_for(tensor.pair.name, output.rule, request.options.rank_for)
            facts |= {
                "rule": str(rule),
                "keep": request.options.keep.value,
                "full_rank": tensor.pair.full_ranks[0],
            }
        tensors[tensor.pair.name] = facts
    return {
        "schema": "svdcut/plan/1",
        "out": str(output.path),
        "base": {
            "source": plan.base.source,
            "revision": plan.base.revision,
            "prefix": plan.pairing.base_prefix,
        },
        "finetuned": {
            "source": plan.finetuned.source,
            "revision": plan.finetuned.revision,
            "prefix": plan.pairing.finetuned_prefix,
        },
        "options": request.options.to_json(output.rule),
        "totals": {
            "tensors": len(plan.tensors),
            "truncated": plan.num_truncated,
            "copied": len(plan.tensors) - plan.num_truncated,
            "size_bytes": plan.size_bytes,
        },
        "needs": _needs(request.preflight),
        "tensors": tensors,
        "base_only": list(plan.pairing.base_only),
        "left_behind": list(request.left_behind),
        "matching": {
            "renames": [asdict(rename) for rename in plan.pairing.matching.renames],
            "wrappers": list(plan.pairing.matching.wrappers),
            "unmatched": list(plan.pairing.unmatched),
        },
    }


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
        "seconds": preflight.seconds,
    }
