"""What a run is made from: its identity, the hashes of its inputs, and their constancy.

It looks at the inputs' files as a whole, and at no tensor.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from svdcut import __version__
from svdcut.choose.options import Options
from svdcut.errors import InputChangedError
from svdcut.files.checkpoint import Checkpoint
from svdcut.files.tensorfile import hash_file
from svdcut.machine import num_cores
from svdcut.pair.plan import Output, Plan
from svdcut.record.manifest import FileFact, Source
from svdcut.write.writer import CheckpointWriter

_INPUT = "input"
"""Kind of a record of an input's hash."""

_CORES_PER_HASH = 4
"""A GPU is done sooner than one core has hashed both sides, which are two files at least."""


def identify_run(
    plan: Plan, outputs: Sequence[Output], options: Options, machinery: Mapping[str, str]
) -> dict[str, str]:
    """Return everything that shapes the bytes of a run's results, in words.

    Unfinished work of the same identity is this run's own.

    Parameters
    ----------
    plan, outputs, options
        Of the run.
    machinery : mapping of str to str
        What computes: the version of torch, the device.
    """
    identity = {
        "svdcut": __version__,
        **machinery,
        "the result": ", ".join(dict.fromkeys(output.form.value for output in outputs)),
        "--rank": ", ".join(str(output.rule) for output in outputs),
    }
    for key, value in options.to_json(outputs[0].rule).items():
        if key not in ("rank", "device"):
            identity[f"--{key.replace('_', '-')}"] = str(value)
    for side, checkpoint in (("base", plan.base), ("the fine-tuned side", plan.finetuned)):
        for file in checkpoint.files:
            # No date: a file system may hold times that no calendar does.
            modified = f"{file.size_bytes} bytes, modified at {file.modified_ns} ns"
            identity[f"{file.path.name} of {side}"] = modified
    return identity


def refuse_changed(plan: Plan) -> None:
    """Refuse a result of files that changed while they were read.

    Raises
    ------
    InputChangedError
        If one did.
    """
    for file in (*plan.base.files, *plan.finetuned.files):
        try:
            status = file.path.stat()
            same = (status.st_size, status.st_mtime_ns) == (file.size_bytes, file.modified_ns)
        except FileNotFoundError:
            same = False
        if not same:
            raise InputChangedError(
                f"{file.path} changed while it was read; nothing was published",
                hint="Is a training run still writing it? Repeat this when it is complete.",
            )


class InputHashes:
    """Hashes of the inputs' weight files, made in the background; use it as a context.

    Leaving the context ends the work, and nothing else does: several runs may use them, one
    after the other.

    Parameters
    ----------
    plan : Plan
        Of the run; of all of them, as far as its two sides go.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._stop = threading.Event()
        threads = max(1, num_cores() // _CORES_PER_HASH)
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="svdcut-hash")

    def __enter__(self) -> InputHashes:
        files = (*self._plan.base.files, *self._plan.finetuned.files)
        self._digests = {
            file.path: self._executor.submit(hash_file, file.path, self._stop) for file in files
        }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._executor.shutdown(wait=True)

    @contextmanager
    def recorded(self, writer: CheckpointWriter) -> Iterator[Callable[[], tuple[Source, Source]]]:
        """Record each hash as it comes, for as long as the context lasts.

        Parameters
        ----------
        writer : CheckpointWriter
            Remembers them, in case the run ends before all are there.

        Yields
        ------
        callable
            Waits for the hashes, and returns the two inputs with them. It raises
            `CheckpointError` if a file cannot be read, and `InputChangedError` if one is not
            what an earlier attempt at this run has read.
        """
        left: Future[Any] = Future()
        with ThreadPoolExecutor(1) as recorder:
            recording = recorder.submit(self._sources, writer, left)
            try:
                yield recording.result
            finally:
                left.set_result(None)

    def _sources(self, writer: CheckpointWriter, left: Future[Any]) -> tuple[Source, Source]:
        plan = self._plan
        return (
            self._source(plan.base, plan.pairing.base_prefix, writer, left),
            self._source(plan.finetuned, plan.pairing.finetuned_prefix, writer, left),
        )

    def _source(
        self,
        checkpoint: Checkpoint,
        prefix: str | None,
        writer: CheckpointWriter,
        left: Future[Any],
    ) -> Source:
        files = {}
        for file in checkpoint.files:
            hashing = self._digests[file.path]
            wait((hashing, left), return_when=FIRST_COMPLETED)
            if left.done():
                break  # nobody asks for what is returned
            digest = hashing.result()
            name = str(file.path.resolve())
            before = writer.find(_INPUT, name)
            if before not in (None, digest):
                raise InputChangedError(
                    f"{file.path} is not what it was when this run began",
                    hint="Repeat this with --restart.",
                )
            writer.record(_INPUT, name, digest)
            files[file.path.name] = FileFact(file.size_bytes, digest)
        return Source(checkpoint.source, checkpoint.revision, prefix, files)
