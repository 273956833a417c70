"""Go through tensors once, as many at a time as memory allows.

What is done with a tensor is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from svdcut.device import num_workers
from svdcut.errors import SvdcutError
from svdcut.pair.pairing import Pair
from svdcut.record.progress import Observer, Progress
from svdcut.streaming.memory import MemoryNeeds
from svdcut.streaming.pool import Pool, Reserve, or_on_cpu
from svdcut.svd.decomposition import SolverError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Place:
    """Where one tensor is at work."""

    device: torch.device
    reserve: Reserve
    """For tensors that take more memory than was counted for all."""


def stream_tensors(
    tasks: Sequence[Sequence[Pair]],
    needs: MemoryNeeds,
    device: torch.device,
    work: Callable[[int, Place], T],
    observe: Observer,
) -> list[T]:
    """Return ``work(number, place)`` for each task.

    Parameters
    ----------
    tasks : sequence of sequence of Pair
        The tensors that are looked at together; a task is called by the first.
    needs : MemoryNeeds
        Of the tasks.
    device : torch.device
        Where to work; on the CPU where it fails.
    work : callable
        Called by several threads.
    observe : callable
        Told of each task that is done, by the thread that did it.

    Raises
    ------
    SvdcutError
        If no decomposition converges, with the name of the tensor.
    """
    reserve = Reserve(needs.reserve)
    sizes = [sum(pair.finetuned.size_bytes for pair in task) for task in tasks]

    def run(number: int) -> T:
        name = tasks[number][0].name
        try:
            found, _ = or_on_cpu(device, lambda where: work(number, Place(where, reserve)))
        except SolverError as error:
            raise SvdcutError(f"tensor {name!r}: no SVD converged ({error})") from error
        observe(Progress("spectrum", name, sizes[number], sum(sizes)))
        return found

    with Pool(num_workers(device), needs.bound, device) as pool:
        return pool.map(run, needs.sizes)
