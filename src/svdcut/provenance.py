"""What a run is made from: its identity, the hashes of its inputs, and their constancy.

It looks at the inputs' files as a whole, and at no tensor.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone

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


def hash_inputs(
    plan: Plan, writer: CheckpointWriter, stop: threading.Event
) -> tuple[Source, Source]:
    """Return the two inputs with the hashes of their weight files.

    Parameters
    ----------
    plan : Plan
        Of the run.
    writer : CheckpointWriter
        Remembers the hashes, in case the run ends here.
    stop : threading.Event
        Set to end early; the result is of no use then.

    Raises
    ------
    InputChangedError
        If a file is not what an earlier attempt at this run has read.
    """
    pairing = plan.pairing
    return (
        _hash_source(plan.base, pairing.base_prefix, writer, stop),
        _hash_source(plan.finetuned, pairing.finetuned_prefix, writer, stop),
    )


def _hash_source(
    checkpoint: Checkpoint, prefix: str | None, writer: CheckpointWriter, stop: threading.Event
) -> Source:
    files = {}
    for file in checkpoint.files:
        digest = hash_file(file.path, stop)
        if stop.is_set():
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
