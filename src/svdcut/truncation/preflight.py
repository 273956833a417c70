"""Compare what a run needs with what the machine has: disk, memory, time.

From headers alone; it reads no weights and changes nothing. Memory is estimated in
`svdcut.streaming.memory`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from svdcut.choose.keep import Keep
from svdcut.choose.options import Options
from svdcut.choose.ranks import FULL, Rule, rule_for
from svdcut.errors import OutputError
from svdcut.machine import (
    available_memory,
    free_device_memory,
    free_space,
    max_open_files,
    num_cores,
)
from svdcut.pair.pairing import Action, Pair
from svdcut.pair.plan import Form, Output, Plan
from svdcut.shown import byte_size
from svdcut.streaming.memory import expected_top, memory_needs
from svdcut.svd.route import Route, choose_route, is_few
from svdcut.write.destination import partial_path

_PROCESS_BYTES = 400 << 20
"""What Python and torch take by themselves (measured)."""

_SMALL_FILES_BYTES = 1 << 20
"""Room for the card, the index and the manifest, beside a share for each tensor."""

_BYTES_PER_FACT = 2000

_FILES_BESIDE = 2
"""Files beside the weights of each output: its journal, and the staged bytes of an adapter."""

_FILES_OF_PROCESS = 16
"""Inputs, libraries, streams."""

_READ_SECONDS = 2e-9
_KRYLOV_SECONDS = 6e-10
_GRAM_SECONDS = 5e-11
_EIGH_SECONDS = 4.5e-10
"""Seconds of one core, each per its own product of sides and ranks (measured, CPU)."""

_MAKE_ROOM = "Make room, or choose a place on another disk."


@dataclass(frozen=True, slots=True)
class DiskNeed:
    """Disk space that the outputs on one file system take."""

    folder: Path
    """The folder of one of them."""

    needed_bytes: int
    free_bytes: int

    def refuse(self, *, hint: str = _MAKE_ROOM) -> None:
        """Raise if there is no room.

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

    def refuse(self, *, hint: str = _MAKE_ROOM) -> None:
        """Raise if a disk has no room.

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
        there = self.memory_available
        if there is not None and self.memory_needed > there:
            yield (
                f"the run may take {byte_size(self.memory_needed)} of memory, and "
                f"{byte_size(there)} can be had"
            )
        there = self.device_memory_available
        if there is not None and self.memory_needed > there:
            yield (
                f"the largest tensors may take {byte_size(self.memory_needed)} on the GPU, "
                f"which has {byte_size(there)} free: those that find no room are done on the CPU"
            )


def check_run(plan: Plan, outputs: Sequence[Output], options: Options) -> Preflight:
    """Estimate what a run needs, and look up what the machine has.

    Parameters
    ----------
    plan : Plan
        What is to be written.
    outputs : sequence of Output
        Where.
    options : Options
        As the plan was made with.

    Raises
    ------
    OutputError
        If the outputs have more files than the system lets this process open.
    """
    _refuse_many_files(plan, outputs)
    rules = [output.rule for output in outputs]
    on_device = free_device_memory(options.device)
    return Preflight(
        disks=tuple(_disk_needs(plan, outputs, options)),
        memory_needed=_PROCESS_BYTES + memory_needs(plan, rules, options).total,
        memory_available=available_memory(),
        device_memory_available=on_device,
        seconds=_seconds(plan, rules, options) if on_device is None else None,
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


def check_factors(
    plan: Plan, cuts: Sequence[tuple[Rule, Keep]], options: Options, folder: Path
) -> DiskNeed:
    """Return the disk space that the factors of some cuts take.

    Parameters
    ----------
    plan : Plan
        Of the tensors.
    cuts : sequence of tuple
        Which triplets each keeps.
    options : Options
        As the plan was made with.
    folder : Path
        Where they are to be kept.

    Notes
    -----
    Ranks that depend on the spectrum count as none. A matrix that is the same on both sides
    takes nothing in the end, but is counted: no weights are read.
    """
    pairs = [tensor.pair for tensor in plan.tensors if tensor.pair.action is Action.TRUNCATE]
    size = sum(_factor_bytes(pair, cuts, options) for pair in pairs)
    return _disk_need(folder, size + _small_bytes(plan), replaced=folder)


def _disk_need(folder: Path, size: int, *, replaced: Path | None = None) -> DiskNeed:
    """Return the space that an output takes beyond its unfinished work and what it replaces."""
    _, free = free_space(folder)
    there = sum(_allocated(path) for path in (partial_path(folder), replaced) if path)
    return DiskNeed(folder, max(size - there, 0), free)


def _factor_bytes(pair: Pair, cuts: Sequence[tuple[Rule, Keep]], options: Options) -> int:
    """Return a lower bound on the bytes of the triplets that some cuts keep of a tensor."""
    chosen = [(rule_for(pair.name, rule, options.rank_for), keep) for rule, keep in cuts]
    if options.scale == 1 and pair.update is None:  # then all of it is copied
        chosen = [(rule, keep) for rule, keep in chosen if rule != FULL]
    is_top = all(keep is Keep.TOP for _, keep in chosen)
    top = expected_top(pair, [rule for rule, _ in chosen], options) if is_top and chosen else None
    total = 0
    for (m, n), most in zip(pair.matrices, pair.full_ranks, strict=True):
        short = min(m, n)
        # The leading ones alone are kept in float32, where that is as exact as asked.
        is_leading = is_few(top, short) or _is_krylov(short, top, options.svd)
        itemsize = 4 if is_leading and options.svd is not Route.EXACT else 8
        total += itemsize * _kept_rank(most, chosen) * (m + n)
    return total


def _kept_rank(most: int, cuts: Sequence[tuple[Rule, Keep]]) -> int:
    """Return how many triplets the cuts of known rank keep of a matrix."""
    ranks = dict.fromkeys(Keep, 0)
    for rule, keep in cuts:
        ranks[keep] = max(ranks[keep], rule.known_rank(most) or 0)
    return min(max(ranks[Keep.TOP] + ranks[Keep.BOTTOM], ranks[Keep.RANDOM]), most)


def _checkpoint_bytes(plan: Plan) -> int:
    beside = sum(path.stat().st_size for path in plan.finetuned.sidecars().values())
    return _small_bytes(plan) + plan.size_bytes + beside


def _small_bytes(plan: Plan) -> int:
    return _SMALL_FILES_BYTES + _BYTES_PER_FACT * len(plan.tensors)


def _disk_needs(plan: Plan, outputs: Sequence[Output], options: Options) -> Iterator[DiskNeed]:
    needs: dict[int, DiskNeed] = {}
    for output in outputs:
        is_adapter = output.form is Form.ADAPTER
        need = _disk_need(
            output.path,
            _adapter_bytes(plan, output.rule, options) if is_adapter else _checkpoint_bytes(plan),
        )
        system, _ = free_space(output.path)
        if system in needs:
            needed = needs[system].needed_bytes + need.needed_bytes
            need = replace(needs[system], needed_bytes=needed)
        needs[system] = need
    yield from needs.values()


def _adapter_bytes(plan: Plan, rule: Rule, options: Options) -> int:
    """Return a lower bound on the bytes of an adapter: its factors, staged and in their file.

    Ranks that depend on the spectrum count as none.
    """
    total = 0
    for tensor in plan.tensors:
        chosen = rule_for(tensor.pair.name, rule, options.rank_for)
        if tensor.pair.action is Action.TRUNCATE:
            pairs = zip(tensor.pair.matrices, tensor.pair.full_ranks, strict=True)
            total += sum((chosen.known_rank(most) or 0) * (m + n) for (m, n), most in pairs)
    return _small_bytes(plan) + 2 * 4 * total


def _allocated(folder: Path) -> int:
    """Return the bytes that a folder takes on disk."""
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
            passes = 1 + any(rule.is_joint for rule in chosen)
            total += passes * sum(_svd_seconds(*shape, top, options.svd) for shape in pair.matrices)
    return total / num_cores()


def _svd_seconds(m: int, n: int, top: int | None, route: Route) -> float:
    n, m = sorted((m, n))
    if top is not None and _is_krylov(n, top, route):
        return _KRYLOV_SECONDS * m * n * max(top, 16)
    return _GRAM_SECONDS * m * n**2 + _EIGH_SECONDS * n**3


def _is_krylov(short: int, top: int | None, route: Route) -> bool:
    """Whether the first route computes leading triplets alone."""
    chosen = choose_route(short, top) if route is Route.AUTO else route
    return chosen is Route.KRYLOV and top is not None and top < short
