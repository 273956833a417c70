"""What a run needs and what there is, before it begins: disk, memory, time.

From headers and a look at the machine; it reads no weights and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from svdcut.destination import partial_path
from svdcut.errors import OutputError
from svdcut.machine import available_memory, free_device_memory, free_space, num_cores
from svdcut.memory import expected_top, memory_needs
from svdcut.options import Options
from svdcut.pairing import Action
from svdcut.plan import Form, Output, Plan
from svdcut.ranks import Rule, RuleKind, rule_for
from svdcut.svd.route import Route, choose_route

_PROCESS_BYTES = 400 << 20
"""Of Python and torch by themselves (measured)."""

_SMALL_FILES_BYTES = 1 << 20
"""Room for the card, the index and the manifest, beside a share for each tensor."""

_BYTES_PER_FACT = 2000

_READ_SECONDS = 2e-9
_KRYLOV_SECONDS = 6e-10
_GRAM_SECONDS = 5e-11
_EIGH_SECONDS = 4.5e-10
"""Of one core, each with its own product of sides and ranks (measured, CPU)."""


@dataclass(frozen=True, slots=True)
class DiskNeed:
    """What the outputs on one file system take."""

    folder: Path
    """Of one of them."""

    needed_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Preflight:
    """What a run needs, and what there is."""

    disks: tuple[DiskNeed, ...]
    memory_needed: int
    """Bytes, at most."""

    memory_available: int | None
    """Bytes; None where the system does not tell."""

    device_memory_available: int | None
    """Bytes free on the CUDA device; None where there is none."""

    seconds: float | None
    """Rough; None for CUDA, which was not measured."""

    def refuse(self) -> None:
        """Raise if the run cannot end well.

        Raises
        ------
        OutputError
            If a disk has no room for the result.
        """
        for disk in self.disks:
            if disk.needed_bytes > disk.free_bytes:
                raise OutputError(
                    f"{disk.folder}: {_gigabytes(disk.needed_bytes)} to write, but only "
                    f"{_gigabytes(disk.free_bytes)} free there",
                    hint="Make room, or choose a place on another disk.",
                )

    def warnings(self) -> Iterator[str]:
        """Yield what may go wrong."""
        there = self.memory_available
        if there is not None and self.memory_needed > there:
            yield (
                f"the run may take {_gigabytes(self.memory_needed)} of memory, and "
                f"{_gigabytes(there)} can be had"
            )
        there = self.device_memory_available
        if there is not None and self.memory_needed > there:
            yield (
                f"the largest tensors may take {_gigabytes(self.memory_needed)} on the GPU, "
                f"which has {_gigabytes(there)} free: those that find no room are done on the CPU"
            )


def check_run(plan: Plan, outputs: Sequence[Output], options: Options) -> Preflight:
    """Find what a run needs and what there is.

    Parameters
    ----------
    plan : Plan
        What is to be written.
    outputs : sequence of Output
        Where.
    options : Options
        As the plan was made with.
    """
    rules = [output.rule for output in outputs]
    on_device = free_device_memory(options.device)
    return Preflight(
        disks=tuple(_disk_needs(plan, outputs, options)),
        memory_needed=_PROCESS_BYTES + memory_needs(plan, rules, options).total,
        memory_available=available_memory(),
        device_memory_available=on_device,
        seconds=_seconds(plan, rules, options) if on_device is None else None,
    )


def _disk_needs(plan: Plan, outputs: Sequence[Output], options: Options) -> Iterator[DiskNeed]:
    beside = sum(path.stat().st_size for path in plan.finetuned.sidecars().values())
    small = _SMALL_FILES_BYTES + _BYTES_PER_FACT * len(plan.tensors)
    needs: dict[int, DiskNeed] = {}
    for output in outputs:
        system, free = free_space(output.path)
        is_adapter = output.form is Form.ADAPTER
        weights = _adapter_bytes(plan, output.rule, options) if is_adapter else plan.size_bytes
        size = small + (weights if is_adapter else weights + beside)
        needed = max(size - _allocated(partial_path(output.path)), 0)
        before = needs.get(system)
        needs[system] = DiskNeed(
            before.folder if before else output.path,
            needed + (before.needed_bytes if before else 0),
            free,
        )
    yield from needs.values()


def _adapter_bytes(plan: Plan, rule: Rule, options: Options) -> int:
    """Return the bytes that an adapter takes at least: its factors, put aside and in place.

    Ranks that depend on the spectrum count as none.
    """
    total = 0
    for tensor in plan.tensors:
        chosen = rule_for(tensor.pair.name, rule, options.rank_for)
        if tensor.pair.action is Action.TRUNCATE and chosen.kind is RuleKind.FIXED:
            pairs = zip(tensor.pair.matrices, tensor.pair.full_ranks, strict=True)
            total += sum(min(int(chosen.value), most) * (m + n) for (m, n), most in pairs)
    return 2 * 4 * total


def _allocated(folder: Path) -> int:
    """Return the bytes on disk that unfinished work takes already."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def _seconds(plan: Plan, rules: Sequence[Rule], options: Options) -> float:
    total = 0.0
    for tensor in plan.tensors:
        pair = tensor.pair
        size = pair.finetuned.size_bytes + (pair.base.size_bytes if pair.base else 0)
        total += size * _READ_SECONDS
        if pair.action is Action.TRUNCATE:
            top = expected_top(pair, rules, options)
            chosen = [rule_for(pair.name, rule, options.rank_for) for rule in rules]
            passes = 1 + any(rule.kind is RuleKind.BUDGET for rule in chosen)
            total += passes * sum(_svd_seconds(*shape, top, options.svd) for shape in pair.matrices)
    return total / num_cores()


def _svd_seconds(m: int, n: int, top: int | None, route: Route) -> float:
    n, m = sorted((m, n))
    if (choose_route(n, top) if route is Route.AUTO else route) is Route.KRYLOV and top is not None:
        return _KRYLOV_SECONDS * m * n * max(top, 16)
    return _GRAM_SECONDS * m * n**2 + _EIGH_SECONDS * n**3


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
