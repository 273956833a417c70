"""The identity of a run, the hashes of its input files, and the check that they did not change.

It looks at whole files, and at no tensor.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

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
    """Return everything that determines the bytes of a run's results, as text by name.

    Unfinished work of the same identity is this run's own.

    Parameters
    ----------
    plan, outputs, options
        The parts of the run.
    machinery : mapping of str to str
        The version of torch, and the device.
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
        The plan of the run: only its two sides count.
    own : collection of Path, optional
        The files to hash at once, where other workers hash the rest.
    """

    def __init__(self, plan: Plan, own: Collection[Path] | None = None) -> None:
        self._plan = plan
        self._own = own
        self._stop = threading.Event()
        threads = max(1, num_cores() // _CORES_PER_HASH)
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="svdcut-hash")

    def __enter__(self) -> InputHashes:
        files = [file.path for file in (*self._plan.base.files, *self._plan.finetuned.files)]
        own = [path for path in files if self._own is None or path in self._own]
        self._digests = {path: self._hash(path) for path in own}
        self._names = {path: str(path.resolve()) for path in files}
        return self

    def _hash(self, path: Path) -> Future[str]:
        return self._executor.submit(hash_file, path, self._stop)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._executor.shutdown(wait=True)

    def record_known(self, writer: CheckpointWriter) -> None:
        """Record the hashes that are there already, in case the run ends before all are."""
        for path, hashing in self._digests.items():
            if hashing.done():
                self._record(path, writer)

    def record_own(self, writer: CheckpointWriter) -> None:
        """Wait for the hashes at work, and record them for another worker."""
        for path in self._digests:
            self._record(path, writer)

    def sources(self, writer: CheckpointWriter) -> tuple[Source, Source]:
        """Wait for the hashes, and return the two inputs with them.

        Parameters
        ----------
        writer : CheckpointWriter
            Remembers them.

        Raises
        ------
        CheckpointError
            If a file cannot be read.
        InputChangedError
            If one is not what an earlier attempt at this run has read.
        """
        plan = self._plan
        return (
            self._source(plan.base, plan.pairing.base_prefix, writer),
            self._source(plan.finetuned, plan.pairing.finetuned_prefix, writer),
        )

    def _source(
        self, checkpoint: Checkpoint, prefix: str | None, writer: CheckpointWriter
    ) -> Source:
        files = {
            file.path.name: FileFact(file.size_bytes, self._record(file.path, writer))
            for file in checkpoint.files
        }
        return Source(checkpoint.source, checkpoint.revision, prefix, files)

    def _record(self, path: Path, writer: CheckpointWriter) -> str:
        """Return the hash of a file, and record it the first time."""
        name = self._names[path]
        before = writer.find(_INPUT, name)
        if path not in self._digests:
            if isinstance(before, str):
                return before
            self._digests[path] = self._hash(path)
        digest = self._digests[path].result()
        if before is None:
            writer.record(_INPUT, name, digest)
        elif before != digest:
            raise InputChangedError(
                f"{path} is not what it was when this run began",
                hint="Repeat this with --restart.",
            )
        return digest
