"""Write a checkpoint so that it appears complete or not at all.

Everything goes to ``OUT.partial``, is synced, and renamed once. Memory is that of
the bytes in flight: files get their full size first, and each tensor is written at
its planned offset. What is finished survives a crash. It knows nothing of what the
bytes mean.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from svdcut.errors import OutputError, OutputExistsError, SvdcutError
from svdcut.files.tensorfile import FileLayout, TensorEntry, iterate_bytes
from svdcut.write.destination import check_partial, is_ours, partial_path, replaced_path
from svdcut.write.journal import Journal
from svdcut.write.staging import Range, Spool
from svdcut.write.tensor_writer import TensorSink, output_error, write_at

TENSOR = "tensor"
"""Kind of a record of a finished tensor."""

_PARTS = "parts"
"""Kind of a record of where the parts of a tensor lie in the spool."""

_RESULT_NAME = "checkpoint"
_SPOOL_NAME = "spool"
_NEW_NAME = "new"
_COPY_BYTES = 1 << 20
_SYNC_SECONDS = 1.0
"""Work that a power failure may cost."""


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
    spools : bool
        Whether there are bytes that have no place until the end: see `keep`.
    restart : bool
        Whether to drop unfinished work.
    force : bool
        Whether to replace an existing result.

    Raises
    ------
    OutputExistsError
        If another process is at work there, or the unfinished work is of another identity.
    OutputError
        If the disk is full or the folder cannot be written.
    """

    def __init__(
        self,
        out: Path,
        files: Sequence[FileLayout],
        identity: Mapping[str, str],
        *,
        spools: bool = False,
        restart: bool = False,
        force: bool = False,
    ) -> None:
        self._out = out
        self._partial = partial_path(out)
        self._result = self._partial / _RESULT_NAME
        self._files = list(files)
        self._identity = identity
        self._restart = restart
        self._force = force
        self._descriptors: dict[str, int] = {}
        self._pending: list[tuple[str, str, object]] = []
        self._pending_lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self._synced_at = time.monotonic()
        self._spools = spools
        self._spool: Spool | None = None
        self._places: dict[str, list[Range]] = {}
        self._whole: set[str] = set()
        """Files that were there already, with the right header and length."""

    def __enter__(self) -> CheckpointWriter:
        check_partial(self._partial)
        try:
            self._journal = Journal(self._partial)
        except OSError as error:
            raise output_error(self._partial, error) from error
        try:
            if self._restart or self._journal.identity is None:
                self._begin()
            else:
                what = f"{self._partial} is the unfinished work"
                self._journal.refuse_other(self._identity, what)
            self._result.mkdir(exist_ok=True)
            self._remove_strays()
            for file in self._files:
                self._create(file)
            if self._spools:
                self._spool = Spool(self._partial / _SPOOL_NAME)
        except BaseException as error:
            self._leave(error)
            if isinstance(error, OSError):
                raise output_error(self._partial, error) from error
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave(error)

    def _begin(self) -> None:
        if self._result.is_dir():
            shutil.rmtree(self._result)
        (self._partial / _SPOOL_NAME).unlink(missing_ok=True)
        self._journal.begin(self._identity)

    def _remove_strays(self) -> None:
        """Remove what a run left that was stopped while it wrote the small files."""
        names = {file.name for file in self._files}
        for path in self._result.iterdir():
            if path.name not in names:
                _remove(path)

    def _create(self, file: FileLayout) -> None:
        path = self._result / file.name
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        self._descriptors[file.name] = descriptor
        if os.fstat(descriptor).st_size == file.size_bytes and file.header == os.pread(
            descriptor, len(file.header), 0
        ):
            self._whole.add(file.name)
        try:
            # Claims the space now: a full disk is found before hours of work.
            os.posix_fallocate(descriptor, 0, file.size_bytes)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
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
        data = self._journal.find(TENSOR, entry.name)
        if not isinstance(data, dict) or entry.path.name not in self._whole:
            return None
        digest = hashlib.sha256()
        for piece in iterate_bytes(replace(entry, path=self._result / entry.path.name)):
            digest.update(piece)
        return data if digest.hexdigest() == data["sha256"] else None

    def add_file(self, file: FileLayout) -> None:
        """Make a weight file whose layout came out of the work.

        Raises
        ------
        OutputError
            If the disk is full.
        """
        try:
            self._create(file)
        except OSError as error:
            raise output_error(self._result / file.name, error) from error

    def keep(self, data: bytes | bytearray | memoryview) -> Range:
        """Put bytes aside that have no place yet, and return where they lie."""
        assert self._spool is not None
        return self._spool.append(data)

    def keep_parts(self, name: str, places: Sequence[Range]) -> None:
        """Record where the parts of a tensor lie, before the tensor itself is recorded."""
        self._places[name] = list(places)
        self.record(_PARTS, name, [[place.offset, place.size] for place in places])

    def parts(self, name: str) -> list[Range]:
        """Return where the parts of a tensor lie; none if it has none."""
        if name not in self._places:
            found = self._journal.find(_PARTS, name)
            self._places[name] = [Range(*p) for p in found] if isinstance(found, list) else []
        return self._places[name]

    def read_parts(self, places: Sequence[Range]) -> bytearray:
        """Return the bytes that lie at some places, in this order."""
        assert self._spool is not None
        return self._spool.read(places)

    def finished_parts(self, name: str) -> Mapping[str, Any] | None:
        """Return what was recorded of a tensor in an earlier run, if its parts are there."""
        data = self._journal.find(TENSOR, name)
        if not isinstance(data, dict):
            return None
        digest, places = hashlib.sha256(), self.parts(name)
        for place in places:
            digest.update(self.read_parts([place]))
        return data if not places or data["sha256"] == digest.hexdigest() else None

    def sink(self, entry: TensorEntry) -> TensorSink:
        """Return where the bytes of a planned tensor go."""
        return TensorSink(self._descriptors[entry.path.name], entry)

    def find(self, kind: str, name: str) -> object:
        """Return what was recorded beside the tensors, or None."""
        return self._journal.find(kind, name)

    def record(self, kind: str, name: str, data: object) -> None:
        """Record a result; within a second it lasts, whatever happens.

        Parameters
        ----------
        kind, name : str
            What it is of; `TENSOR` and its name for a tensor whose bytes are written.
        data : object
            As JSON.
        """
        with self._pending_lock:
            self._pending.append((kind, name, data))
        due = time.monotonic() - self._synced_at >= _SYNC_SECONDS
        if due and self._sync_lock.acquire(blocking=False):
            try:
                self._sync()
            finally:
                self._sync_lock.release()

    def _sync(self) -> None:
        """Put the bytes on disk, then the records that speak of them, in this order."""
        with self._pending_lock:
            pending, self._pending = self._pending, []
        try:
            for descriptor in self._descriptors.values():
                os.fsync(descriptor)
            if self._spool is not None:
                self._spool.sync()
            for record in pending:
                self._journal.record(*record)
            self._journal.sync()
        except OSError as error:
            raise output_error(self._partial, error) from error
        self._synced_at = time.monotonic()

    def write_file(self, name: Path, data: bytes) -> None:
        """Write a small file."""
        target = self._result / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        except OSError as error:
            raise output_error(target, error) from error

    def copy_file(self, source: Path, name: Path) -> tuple[int, str]:
        """Copy a small file; return its size in bytes and its sha256."""
        target = self._result / name
        size, digest = 0, hashlib.sha256()
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with source.open("rb") as ours, target.open("wb") as theirs:
                while data := ours.read(_COPY_BYTES):
                    theirs.write(data)
                    digest.update(data)
                    size += len(data)
        except OSError as error:
            raise output_error(target, error) from error
        return size, digest.hexdigest()

    def commit(self) -> None:
        """Sync everything and give the folder its name.

        Raises
        ------
        OutputError
            If that fails; the old folder, if any, is then still there.
        """
        with self._sync_lock:
            self._sync()
        try:
            self._give_usual_modes()
            for path in self._result.rglob("*"):
                if path.name not in self._descriptors:
                    _sync(path)
            _sync(self._result)
            self._publish()
            _sync(self._out.absolute().parent)
        except OSError as error:
            raise output_error(self._out, error) from error

    def _give_usual_modes(self) -> None:
        """Give files of an earlier run the permissions that new ones have now."""
        new = self._partial / _NEW_NAME
        new.touch()
        for descriptor in self._descriptors.values():
            os.fchmod(descriptor, stat.S_IMODE(new.stat().st_mode))

    def _publish(self) -> None:
        old = replaced_path(self._out)
        if os.path.lexists(self._out):
            if not (self._force and is_ours(self._out)):
                raise OutputExistsError(f"{self._out} appeared during the run")
            # A folder with content cannot be renamed over: step it aside first.
            self._out.rename(old)
        try:
            self._result.rename(self._out)
        except BaseException:
            if os.path.lexists(old):
                old.rename(self._out)
            raise
        if self._force and os.path.lexists(old):
            _remove(old)

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
            if self._spool is not None:
                self._spool.close()
            if not self._is_useful(error):
                shutil.rmtree(self._partial, ignore_errors=True)
            self._journal.close()

    def _is_useful(self, error: BaseException | None) -> bool:
        """Whether a later run can go on from what there is."""
        if isinstance(error, OutputExistsError):
            return True  # it is another run's
        if isinstance(error, SvdcutError) and not error.keeps_work:
            return False
        finished = self._journal.count(TENSOR) or any(r[0] == TENSOR for r in self._pending)
        return self._result.is_dir() and bool(finished)


def _remove(path: Path) -> None:
    """Remove a folder with all in it, a file, or a link alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
