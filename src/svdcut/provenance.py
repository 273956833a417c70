"""What a run is made from: its identity, the hashes of its inputs, and their constancy.

It looks at the inputs' files as a whole, and at no tensor.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from types import TracebackType

from svdcut._version import __version__
from svdcut.checkpoint import Checkpoint
from svdcut.errors import InputChangedError
from svdcut.manifest import FileFact, Source
from svdcut.options import Options
from svdcut.plan import Output, Plan
from svdcut.tensorfile import hash_file
from svdcut.writer import CheckpointWriter

_INPUT = "input"
"""Kind of a record of an input's hash."""


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
            modified = datetime.fromtimestamp(file.modified_ns / 1e9, timezone.utc)
            identity[f"{file.path.name} of {side}"] = (
                f"{file.size_bytes} bytes of {modified.isoformat()}"
            )
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

    Leaving the context ends the work.

    Parameters
    ----------
    plan : Plan
        Of the run.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._stop = threading.Event()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="svdcut-hash")

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
        self.cancel()
        self._executor.shutdown(wait=True)

    def cancel(self) -> None:
        """End early; what `sources` returns is of no use then."""
        self._stop.set()

    def sources(self, writer: CheckpointWriter) -> tuple[Source, Source]:
        """Wait for the hashes, and return the two inputs with them.

        Parameters
        ----------
        writer : CheckpointWriter
            Remembers each hash, in case the run ends here.

        Raises
        ------
        CheckpointError
            If a file cannot be read.
        InputChangedError
            If a file is not what an earlier attempt at this run has read.
        """
        plan = self._plan
        return (
            self._source(plan.base, plan.pairing.base_prefix, writer),
            self._source(plan.finetuned, plan.pairing.finetuned_prefix, writer),
        )

    def _source(
        self, checkpoint: Checkpoint, prefix: str | None, writer: CheckpointWriter
    ) -> Source:
        files = {}
        for file in checkpoint.files:
            digest = self._digests[file.path].result()
            if self._stop.is_set():
                break
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
