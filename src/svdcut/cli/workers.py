"""Share a command among processes: who this process is, and how to start the others."""

from __future__ import annotations

import logging
import sys
import uuid

from svdcut.errors import Interrupted, UsageError, WorkerError
from svdcut.worker import ALONE, Worker, launched_worker, parse_part


def find_worker(part: str | None, workers: int, *, restart: bool) -> Worker:
    """Return what this process is to the run.

    Parameters
    ----------
    part : str or None
        As ``2/8``.
    workers : int
        How many processes to start.
    restart : bool
        Whether to drop unfinished work.

    Raises
    ------
    UsageError
        If these do not go together.
    """
    launched = launched_worker()
    if part is None:
        return launched or ALONE
    if launched is not None or workers > 1:
        raise UsageError("--part is of a process that others know nothing of", hint="Leave it out.")
    if restart:
        raise UsageError(
            "--restart would drop what other parts have done",
            hint="Remove the unfinished work before the parts start.",
        )
    return parse_part(part)


def run_workers(count: int) -> None:
    """Run this command in `count` processes that share it.

    Raises
    ------
    WorkerError
        If a process was killed.
    SystemExit
        With the exit code of the process that failed, which has said why.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.WARNING)  # torch says all of it again
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "svdcut", *sys.argv[1:])
    except SignalException as stopped:
        raise Interrupted(stopped.sigval) from stopped
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            raise SystemExit(failure.exitcode) from error
        raise WorkerError(
            f"worker {rank + 1} of {count} was killed by signal {-failure.exitcode}",
            hint="Is there enough memory? The same command goes on from what is finished.",
        ) from error
