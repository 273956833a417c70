"""Run independent tasks side by side within a bound on memory.

Each task computes on one thread: matrix products change in the last bit with the
number of threads, and with one thread each the bytes depend on no machine's cores.
It knows nothing of what the tasks do.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import TypeVar

import torch

from svdcut.device import workers_on
from svdcut.svd.decomposition import SolverError

T = TypeVar("T")

_CPU = torch.device("cpu")


class MemoryGate:
    """Lets tasks in while their sizes together stay within a bound.

    Parameters
    ----------
    bound : int
        Bytes; a task that is larger than that runs alone.
    """

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._used = 0
        self._condition = threading.Condition()

    def enter(self, size: int) -> None:
        """Wait until there is room for `size` bytes, and take it."""
        with self._condition:
            self._condition.wait_for(lambda: self._used == 0 or self._used + size <= self._bound)
            self._used += size

    def leave(self, size: int) -> None:
        """Give the room back."""
        with self._condition:
            self._used -= size
            self._condition.notify_all()


class Reserve:
    """Extra memory for tasks that turn out to need more than planned.

    Parameters
    ----------
    size : int
        Bytes; who asks for more than that gets it alone.
    """

    def __init__(self, size: int = 0) -> None:
        self._gate = MemoryGate(size)

    @contextmanager
    def lend(self) -> Iterator[Callable[[int], None]]:
        """Yield a callback that reserves extra memory until the block ends.

        Call it with the number of bytes before allocating. A second call replaces the first
        reservation: no task waits for more while it holds some.
        """
        held = 0

        def take(num_bytes: int) -> None:
            nonlocal held
            self._gate.leave(held)
            held = 0
            self._gate.enter(num_bytes)
            held = num_bytes

        try:
            yield take
        finally:
            self._gate.leave(held)


class Pool:
    """Worker threads behind a memory gate; use it as a context.

    Leaving the context on an error waits for the tasks at work and drops the rest.

    Parameters
    ----------
    workers : int
        Threads.
    memory_bound : int
        Bytes for all tasks at work together.
    device : torch.device
        Where the tasks compute.
    """

    def __init__(self, workers: int, memory_bound: int, device: torch.device = _CPU) -> None:
        self._gate = MemoryGate(memory_bound)
        self._failed = threading.Event()
        self._device = device
        self._started = threading.local()
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix="svdcut")

    def __enter__(self) -> Pool:
        self._workers = workers_on(self._device)
        self._start = self._workers.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._executor.shutdown(wait=True, cancel_futures=kind is not None)
        self._workers.__exit__(kind, error, trace)

    def map(self, task: Callable[[int], T], sizes: Sequence[int]) -> list[T]:
        """Return ``[task(0), task(1), ...]``, started in this order as memory allows.

        Parameters
        ----------
        task : callable
            Takes the number of the task.
        sizes : sequence of int
            Bytes that each task needs.

        Raises
        ------
        Exception
            The first that a task raised; tasks not yet begun are then dropped.
        """
        futures: list[Future[T]] = []
        for number, size in enumerate(sizes):
            self._gate.enter(size)
            if self._failed.is_set():
                self._gate.leave(size)
                break
            futures.append(self._executor.submit(self._run, task, number, size))
        return [future.result() for future in futures]

    def _run(self, task: Callable[[int], T], number: int, size: int) -> T:
        if self._failed.is_set():
            # The task that failed has a lower number: its error is the one raised.
            self._gate.leave(size)
            raise CancelledError
        try:
            # Here rather than as the executor's initializer: a failure is the task's.
            if not hasattr(self._started, "done"):
                self._start()
                self._started.done = True
            return task(number)
        except BaseException:
            self._failed.set()
            raise
        finally:
            self._gate.leave(size)


def or_on_cpu(device: torch.device, work: Callable[[torch.device], T]) -> tuple[T, tuple[str, ...]]:
    """Do some work on a device, or on the CPU where the device fails at it.

    Parameters
    ----------
    device : torch.device
        Tried first.
    work : callable
        Takes the device; it may be called twice.

    Returns
    -------
    tuple of object and tuple of str
        What `work` returned, and how the device failed, if it did.
    """
    try:
        return work(device), ()
    except (torch.OutOfMemoryError, SolverError) as error:
        if device.type == "cpu":
            raise
        reason = "solver failed" if isinstance(error, SolverError) else "out of memory"
    # Out of the handler: its traceback would keep the tensors on the device alive.
    torch.cuda.empty_cache()
    return work(torch.device("cpu")), (f"{device.type}: {reason}",)
