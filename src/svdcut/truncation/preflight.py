"""Compare what a run needs with what the machine has: disk and memory.

From headers alone; it reads no weights and changes nothing. Memory is estimated in
`svdcut.streaming.memory`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from svdcut.choose.options import Options
from svdcut.choose.ranks import FULL, Rule, rule_for
from svdcut.errors import OutputError
from svdcut.machine import available_memory, free_device_memory, free_space, max_open_files
from svdcut.pair.pairing import Action
from svdcut.pair.plan import Form, Output, Plan
from svdcut.shown import byte_size
from svdcut.streaming.memory import memory_needs
from svdcut.write.destination import partial_path

_PROCESS_BYTES = 400 << 20
"""Memory of Python and torch by themselves (measured)."""

_SMALL_FILES_BYTES = 1 << 20
"""Room for the card, the index and the manifest, beside a share for each tensor."""

_BYTES_PER_FACT = 2000

_FACTOR_ITEMSIZE = 4

_FILES_BESIDE = 2
"""Files beside the weights of each output: its journal, and the staged bytes of an adapter."""

_FILES_OF_PROCESS = 16
"""Inputs, libraries, streams."""

_MAKE_ROOM = "Make room, or choose a place on another disk."


@dataclass(frozen=True, slots=True)
class DiskNeed:
    """Disk space that the outputs on one file system take."""

    folder: Path
    """The folder of one of them."""

    needed_bytes: int
    free_bytes: int

    def refuse(self, *, hint: str = _MAKE_ROOM) -> None:
        """Refuse a disk without room.

        Parameters
        ----------
        hint : str
            What the user can do.

        Raises
        ------
        OutputError
            If more is needed than is free.
        """
        if self.needed_bytes > self.free_bytes:
            raise OutputError(
                f"{self.folder}: {byte_size(self.needed_bytes)} to write, but only "
                f"{byte_size(self.free_bytes)} free there",
                hint=hint,
            )


@dataclass(frozen=True, slots=True)
class Preflight:
    """The disk space and memory that a run needs, and those that there are."""

    disks: tuple[DiskNeed, ...]
    memory_needed: int
    """Bytes, at most."""

    memory_available: int | None
    """Bytes; None where the system does not tell."""

    device_memory_available: int | None
    """Bytes free on the CUDA device; None where there is none."""

    def refuse(self, *, hint: str = _MAKE_ROOM) -> None:
        """Refuse disks without room.

        Parameters
        ----------
        hint : str
            What the user can do.

        Raises
        ------
        OutputError
            If a disk has no room for the result.
        """
        for disk in self.disks:
            disk.refuse(hint=hint)

    def warnings(self) -> Iterator[str]:
        """Yield warnings: too little memory on the host or the GPU."""
        needed, host, device = (
            self.memory_needed,
            self.memory_available,
            self.device_memory_available,
        )
        if host is not None and needed > host:
            yield (
                f"the run may take {byte_size(needed)} of memory, and {byte_size(host)} can be had"
            )
        if device is not None and needed > device:
            yield (
                f"the largest tensors may take {byte_size(needed)} on the GPU, which has "
                f"{byte_size(device)} free: those that find no room are done on the CPU"
            )


def check_run(
    plan: Plan, outputs: Sequence[Output], options: Options, *, processes: int = 1
) -> Preflight:
    """Estimate what a run needs, and look up what the machine has.

    Parameters
    ----------
    plan : Plan
        What is to be written.
    outputs : sequence of Output
        Where.
    options : Options
        As the plan was made with.
    processes : int
        Number of processes that share the run on this machine.

    Raises
    ------
    OutputError
        If the outputs have more files than the system lets this process open.
    """
    _refuse_many_files(plan, outputs)
    rules = [output.rule for output in outputs]
    return Preflight(
        disks=tuple(_disk_needs(plan, outputs, options)),
        memory_needed=processes * (_PROCESS_BYTES + memory_needs(plan, rules, options).total),
        memory_available=available_memory(),
        device_memory_available=free_device_memory(options.device),
    )


def _refuse_many_files(plan: Plan, outputs: Sequence[Output]) -> None:
    """Raise where the system opens fewer files than all outputs together have."""
    shards = {Form.CHECKPOINT: len(plan.files), Form.ADAPTER: 1}
    needed = sum(shards[output.form] + _FILES_BESIDE for output in outputs) + _FILES_OF_PROCESS
    limit = max_open_files()
    if needed > limit:
        raise OutputError(
            f"{len(outputs)} outputs take {needed} open files, and the system allows {limit}",
            hint="Raise the limit (ulimit -n), or write fewer ranks at a time.",
        )


def check_checkpoint(plan: Plan, folder: Path) -> DiskNeed:
    """Return the disk space that one checkpoint takes, beyond what an earlier run left there.

    Parameters
    ----------
    plan : Plan
        Of its tensors.
    folder : Path
        Where it is to be written.
    """
    return _disk_need(folder, _checkpoint_bytes(plan), replaced=folder)


def check_factors(plan: Plan, rules: Sequence[Rule], options: Options, folder: Path) -> DiskNeed:
    """Return a lower bound on the disk space that the triplets of some rules take.

    Parameters
    ----------
    plan : Plan
        Of the tensors.
    rules : sequence of Rule
        Their largest counts; those that keep everything copy the fine-tuned side.
    options : Options
        As the plan was made with.
    folder : Path
        Where the triplets are to be kept.
    """
    partial = [rule for rule in rules if rule != FULL]
    size = max((_factor_bytes(plan, rule, options) for rule in partial), default=0)
    return _disk_need(folder, size + _small_bytes(plan), replaced=folder)


def _factor_bytes(plan: Plan, rule: Rule, options: Options) -> int:
    """Return the bytes of the factors of a rule; ranks that a spectrum decides count as none."""
    total = 0
    for pair in (t.pair for t in plan.tensors if t.pair.action is Action.TRUNCATE):
        chosen = rule_for(pair.name, rule, options.rank_for)
        sides = zip(pair.matrices, pair.full_ranks, strict=True)
        total += sum((chosen.known_rank(most) or 0) * (m + n) for (m, n), most in sides)
    return _FACTOR_ITEMSIZE * total


def _disk_need(folder: Path, size: int, *, replaced: Path | None = None) -> DiskNeed:
    """Return the space that an output takes beyond its unfinished work and what it replaces."""
    _, free = free_space(folder)
    there = sum(_allocated(path) for path in (partial_path(folder), replaced) if path)
    return DiskNeed(folder, max(size - there, 0), free)


def _checkpoint_bytes(plan: Plan) -> int:
    beside = sum(path.stat().st_size for path in plan.finetuned.sidecars().values())
    return _small_bytes(plan) + plan.size_bytes + beside


def _small_bytes(plan: Plan) -> int:
    return _SMALL_FILES_BYTES + _BYTES_PER_FACT * len(plan.tensors)


def _disk_needs(plan: Plan, outputs: Sequence[Output], options: Options) -> Iterator[DiskNeed]:
    """Yield the space that all outputs on one file system take together."""
    needs: dict[int, DiskNeed] = {}
    for output in outputs:
        size = _checkpoint_bytes(plan)
        if output.form is Form.ADAPTER:  # the factors are staged, then laid out in their file
            size = _small_bytes(plan) + 2 * _factor_bytes(plan, output.rule, options)
        need = _disk_need(output.path, size)
        system, _ = free_space(output.path)
        before = needs[system].needed_bytes if system in needs else 0
        needs[system] = replace(need, needed_bytes=before + need.needed_bytes)
    yield from needs.values()


def _allocated(folder: Path) -> int:
    """Return the bytes that a folder takes on disk."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
