"""Meet the other workers of a run in the store that torchrun brings.

It moves no tensors: workers write to one folder, and read each other's journals.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from datetime import timedelta

from svdcut.errors import WorkerError
from svdcut.worker import Worker

_START_SECONDS = 30.0
"""Workers that start together are at work this soon."""

_POLL_SECONDS = 0.2


class Team:
    """The workers that torchrun started together; without it, this one alone.

    Parameters
    ----------
    worker : Worker
        This process.

    Raises
    ------
    WorkerError
        If the store cannot be reached.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._others = range(worker.count) if worker.is_launched else range(0)
        if not self._others:
            return
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        try:
            self._store = TCPStore(
                os.environ["MASTER_ADDR"],
                int(os.environ["MASTER_PORT"]),
                is_master=worker.index == 0 and not hosted,
                timeout=timedelta(seconds=_START_SECONDS),
                wait_for_workers=False,
            )
        except RuntimeError as error:
            raise WorkerError(f"{worker}: the store of torchrun cannot be reached") from error

    def tell(self, what: str) -> None:
        """Tell the others that this worker has reached a stage."""
        if self._others:
            self._store.set(self._key(what, self._worker.index), "1")

    def start(self) -> None:
        """Wait until all have started.

        Raises
        ------
        WorkerError
            If one has not in time; it is named.
        """
        self.tell("started")
        end = time.monotonic() + _START_SECONDS
        while missing := self._missing("started", self._others):
            if time.monotonic() > end:
                names = ", ".join(str(index + 1) for index in missing)
                raise WorkerError(
                    f"of {self._worker.count} workers, {names} did not start within "
                    f"{_START_SECONDS:.0f} s",
                    hint="Was this started within a job of torchrun? env -u TORCHELASTIC_RUN_ID "
                    "runs it by itself.",
                )
            time.sleep(_POLL_SECONDS)

    def wait_for_first(self, what: str) -> None:
        """Wait until the first worker has reached a stage."""
        self._wait(what, range(1) if self._others else ())

    def wait_for_all(self, what: str, poll: Callable[[], object] = lambda: None) -> None:
        """Wait until all workers have reached a stage; call `poll` meanwhile.

        There is no limit: torchrun ends all workers when one fails.
        """
        self._wait(what, self._others, poll)

    def _wait(
        self, what: str, workers: Iterable[int], poll: Callable[[], object] = lambda: None
    ) -> None:
        while self._missing(what, workers):
            time.sleep(_POLL_SECONDS)
            poll()

    def _missing(self, what: str, workers: Iterable[int]) -> list[int]:
        try:
            return [n for n in workers if not self._store.check([self._key(what, n)])]
        except RuntimeError as error:  # the store has gone with the worker that held it
            raise WorkerError("the first worker has ended before the others") from error

    def _key(self, what: str, index: int) -> str:
        return f"svdcut/{self._worker.attempt}/{what}/{index}"
