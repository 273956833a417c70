"""Write a checkpoint so that it appears complete or not at all.

Everything goes to ``OUT.partial``, is synced, and renamed once. Memory is that of
the bytes in flight: files get their full size first, and each tensor is written at
its planned offset. What is finished survives a crash. Several processes may write
different tensors of one result. It knows nothing of what the bytes mean.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from svdcut.errors import OutputError, OutputExistsError, SvdcutError
from svdcut.files.tensorfile import FileLayout, TensorEntry, hash_file, iterate_bytes
from svdcut.worker import ALONE, Worker
from svdcut.write.destination import (
    check_partial,
    partial_path,
    publish_folder,
    remove,
    sync_path,
)
from svdcut.write.journal import JOURNAL_NAME, Journal, in_use, try_lock
from svdcut.write.tensor_writer import (
    Staging,
    TensorWriter,
    staging_name,
    write_at,
    writing,
)

TENSOR = "tensor"
"""Kind of a record of a finished tensor."""

_RESULT_NAME = "checkpoint"
_SYNC_SECONDS = 1.0
"""At most this much work is lost by a power failure."""


class CheckpointWriter:
    """A checkpoint in the making; use it as a context.

    Leaving the context without `commit` keeps the tensors that were recorded, for a
    writer of the same identity to go on from; an error that would come again drops
    them, and so does a context that is left before any is finished.

    Parameters
    ----------
    out : Path
        The folder to write; see `svdcut.write.destination.check_output`.
    files : sequence of FileLayout
        Its weight files, as far as they are known: see `add_file`.
    identity : mapping of str to str
        Everything that shapes the bytes, in words.
    stages : bool
        True if some bytes have no place until the end: see `staging`.
    restart : bool
        True to drop unfinished work.
    force : bool
        True to replace an existing result.
    worker : Worker
        The place of this process among those that share the run. The first that torchrun
        started prepares the folder, before the others come.

    Raises
    ------
    OutputExistsError
        If another run is at work there, or the unfinished work is of another identity.
    OutputError
        If the disk is full or the folder cannot be written.
    """

    def __init__(
        self,
        out: Path,
        files: Sequence[FileLayout],
        identity: Mapping[str, str],
        *,
        stages: bool = False,
        restart: bool = False,
        force: bool = False,
        worker: Worker = ALONE,
    ) -> None:
        self._out = out
        self._partial = partial_path(out)
        self._result = self._partial / _RESULT_NAME
        self._files = list(files)
        self._identity = identity
        self._restart = restart
        self._force = force
        self._worker = worker
        self._gate: int | None = None  # a lock that parts share
        self._is_published = False
        self._descriptors: dict[str, int] = {}
        self._sync_lock = threading.Lock()
        self._synced_at = time.monotonic()
        self._stages = stages
        self._staging: Staging | None = None
        self._whole: set[str] = set()  # there already, with the right header and length

    def __enter__(self) -> CheckpointWriter:
        check_partial(self._partial)
        name = JOURNAL_NAME if self._worker.is_first else f"journal-{self._worker.index}.jsonl"
        with writing(self._partial), ExitStack() as on_failure:
            if not (self._worker.is_first or self._worker.is_launched):
                self._gate = self._open_gate()
                on_failure.callback(os.close, self._gate)
            self._journal = Journal(self._partial, name)
            on_failure.pop_all()
        try:
            with writing(self._partial):
                self._prepare()
        except BaseException as error:
            self._leave(error)
            raise
        return self

    def _prepare(self) -> None:
        """Drop or take over unfinished work, and make the files that are known."""
        journal = self._journal
        if self._worker.is_first and (self._restart or not journal.is_begun):
            if self._result.is_dir():
                shutil.rmtree(self._result)
            for path in self._partial.glob(staging_name("*")):
                path.unlink()
            journal.remove_others()
            journal.begin(self._identity)
        journal.refuse_other(self._identity, f"{self._partial} is the unfinished work")
        if journal.identity is None:
            journal.begin(self._identity)
        self._result.mkdir(exist_ok=True)
        if self._worker.is_first:
            self._drop_small_files()
        for file in self._files:
            self._create(file)
        if self._stages:
            index = 0 if self._worker.is_first else self._worker.index + 1
            path = self._partial / staging_name(index)
            self._staging = Staging(path, self.find, self.record, index)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave(error)

    def _open_gate(self) -> int:
        """Open the journal of a run without parts, and share its lock with the other parts."""
        self._partial.mkdir(parents=True, exist_ok=True)
        path = self._partial / JOURNAL_NAME
        gate = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        locked = try_lock(gate, fcntl.LOCK_SH)
        if locked:
            return gate
        os.close(gate)
        if locked is False:
            raise in_use(self._partial)
        raise OutputError(
            f"{self._partial}: the file system has no locks, which tell parts who is the last",
            hint="Start all of them at once: --workers N, or torchrun.",
        )

    def is_last(self) -> bool:
        """Whether no other part is at work; then none can begin any more."""
        assert self._gate is not None
        self.flush()
        fcntl.flock(self._gate, fcntl.LOCK_UN)
        if not try_lock(self._gate, fcntl.LOCK_EX):
            return False
        self.refresh()
        self._drop_small_files()
        return True

    def _drop_small_files(self) -> None:
        """Remove the small files that a stopped run left."""
        names = {file.name for file in self._files}
        for path in self._result.iterdir():
            if path.name not in names:
                remove(path)

    def _create(self, file: FileLayout) -> None:
        path = self._result / file.name
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        self._descriptors[file.name] = descriptor
        if os.fstat(descriptor).st_size == file.size_bytes and file.header == os.pread(
            descriptor, len(file.header), 0
        ):
            self._whole.add(file.name)
        if self._worker.is_first:
            _allocate(descriptor, file.size_bytes)
        os.ftruncate(descriptor, file.size_bytes)
        write_at(descriptor, memoryview(file.header), 0)

    def finished(self, entry: TensorEntry) -> Mapping[str, Any] | None:
        """Return what was recorded of a tensor in an earlier run, if its bytes are there.

        Parameters
        ----------
        entry : TensorEntry
            A planned tensor.

        Returns
        -------
        mapping or None
            The `data` of `record`; it must hold the hash under ``sha256``.

        Notes
        -----
        Reads the tensor's bytes: what a failing disk has lost is made again.
        """
        if entry.path.name not in self._whole:
            return None
        ours = replace(entry, path=self._result / entry.path.name)
        return self._intact(entry.name, iterate_bytes(ours))

    def finished_parts(self, name: str) -> Mapping[str, Any] | None:
        """Return what was recorded of a tensor in an earlier run, if its parts are there."""
        places = self.staging.parts(name)
        return self._intact(name, map(self.staging.read, places) if places else None)

    def _intact(self, name: str, pieces: Iterable[bytearray] | None) -> Mapping[str, Any] | None:
        """Return the record of a tensor, unless its bytes have another hash."""
        data = self._journal.find(TENSOR, name)
        if not isinstance(data, dict):
            return None
        digest = hashlib.sha256()
        for piece in pieces or ():
            digest.update(piece)
        return data if pieces is None or digest.hexdigest() == data["sha256"] else None

    def refresh(self) -> None:
        """Read what other workers have recorded since."""
        with writing(self._partial):
            self._journal.refresh()
        self._whole.update(self._descriptors)  # they wrote to files that this one may have made

    def recorded(self, kind: str = TENSOR) -> set[str]:
        """Return the names of everything of a kind that any worker has recorded."""
        return self._journal.names(kind)

    def add_file(self, file: FileLayout) -> None:
        """Make a weight file whose layout was not known at the start.

        Raises
        ------
        OutputError
            If the disk is full.
        """
        with writing(self._result / file.name):
            self._create(file)

    @property
    def staging(self) -> Staging:
        """The file of bytes that have no place yet."""
        assert self._staging is not None
        return self._staging

    def open(self, entry: TensorEntry) -> TensorWriter:
        """Return what writes the bytes of a planned tensor."""
        return TensorWriter(self._descriptors[entry.path.name], entry)

    def find(self, kind: str, name: str) -> object:
        """Return what was recorded beside the tensors, or None."""
        return self._journal.find(kind, name)

    def record(self, kind: str, name: str, data: object) -> None:
        """Record a result; within a second it lasts, whatever happens.

        Parameters
        ----------
        kind, name : str
            The key: `TENSOR` and its name for a tensor whose bytes are written.
        data : object
            As JSON.
        """
        self._journal.record(kind, name, data)
        due = time.monotonic() - self._synced_at >= _SYNC_SECONDS
        if due and self._sync_lock.acquire(blocking=False):
            try:
                self._sync()
            finally:
                self._sync_lock.release()

    def flush(self) -> None:
        """Make everything last that was recorded."""
        with self._sync_lock:
            self._sync()

    def _sync(self) -> None:
        """Put the bytes on disk, then the records that speak of them, in this order."""
        with writing(self._partial):
            self._journal.sync(self._sync_bytes)
        self._synced_at = time.monotonic()

    def _sync_bytes(self) -> None:
        for descriptor in self._descriptors.values():
            os.fsync(descriptor)
        if self._staging is not None:
            os.fsync(self._staging.descriptor)

    def write_file(self, name: Path, data: bytes) -> None:
        """Write a small file."""
        target = self._result / name
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)

    def copy_file(self, source: Path, name: Path) -> tuple[int, str]:
        """Copy a small file; return its size in bytes and its sha256."""
        target = self._result / name
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            return target.stat().st_size, hash_file(target, threading.Event())

    def commit(self) -> None:
        """Sync everything and give the folder its name.

        Raises
        ------
        OutputError
            If that fails; the old folder, if any, is then still there.
        """
        self.flush()
        with writing(self._out):
            for path in self._result.rglob("*"):
                if path.name not in self._descriptors:
                    sync_path(path)
            sync_path(self._result)
            publish_folder(self._result, self._out, force=self._force)
        self._is_published = True

    def _leave(self, error: BaseException | None) -> None:
        """Close everything; keep what is finished, if it can be of use."""
        try:
            if self._is_useful(error):
                with suppress(OutputError), self._sync_lock:
                    self._sync()  # what cannot be recorded is made again
        finally:
            for descriptor in self._descriptors.values():
                os.close(descriptor)
            self._descriptors.clear()
            if self._staging is not None:
                os.close(self._staging.descriptor)
            if self._is_published or (self._worker.is_alone and not self._is_useful(error)):
                shutil.rmtree(self._partial, ignore_errors=True)
            self._journal.close()
            if self._gate is not None:
                os.close(self._gate)

    def _is_useful(self, error: BaseException | None) -> bool:
        """Return whether a later run can go on from the finished work."""
        if isinstance(error, OutputExistsError):
            return True  # it is another run's
        if isinstance(error, SvdcutError) and not error.keeps_work:
            return False
        return self._result.is_dir() and bool(self.recorded())


def _allocate(descriptor: int, size: int) -> None:
    """Claim the space of a file, so that a full disk is found before hours of work.

    By one process alone: where the file system cannot do it, the C library writes to each block.
    """
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
