"""Write a checkpoint so that it appears complete or not at all.

Everything goes to ``OUT.partial``, is synced, and renamed once. Memory is that of
the bytes in flight: files get their full size first, and each tensor is written at
its planned offset. It knows nothing of what the bytes mean.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from svdcut.errors import OutputError, OutputExistsError, UsageError
from svdcut.tensorfile import FileLayout, TensorEntry

MANIFEST_NAME = "svdcut.json"


def check_output(out: Path, inputs: Sequence[Path], *, force: bool, restart: bool) -> None:
    """Refuse an output that cannot or must not be written, before any work.

    Parameters
    ----------
    out : Path
        The folder to write.
    inputs : sequence of Path
        What is read.
    force : bool
        Whether an existing result may be replaced.
    restart : bool
        Whether an unfinished one may be dropped.

    Raises
    ------
    UsageError
        If `out` is, holds or lies in an input, or is a folder that svdcut did not write.
    OutputExistsError
        If it is there, or unfinished work is.
    """
    if out.name in ("", ".."):
        raise UsageError(f"{out}: the output needs a name of its own", hint="As -o out.")
    target = out.resolve()
    for source in (path.resolve() for path in inputs):
        if target == source or source in target.parents:
            raise UsageError(f"{out}: the output lies in the input {source}")
        if target in source.parents:
            raise UsageError(f"{out}: the output would replace a folder that holds {source}")
    if os.path.lexists(out):
        if not force:
            raise OutputExistsError(f"{out} exists", hint="--force replaces it.")
        if not _is_ours(out):
            raise UsageError(
                f"{out} exists and was not written by svdcut (it has no {MANIFEST_NAME})",
                hint="Remove it yourself, or choose another output.",
            )
        replaced = _replaced_path(out)
        if os.path.lexists(replaced):
            raise OutputExistsError(
                f"{replaced} exists: a run was killed while it replaced {out}",
                hint="It is the result before that one; move it away or remove it.",
            )
    if os.path.lexists(partial_path(out)) and not restart:
        raise _unfinished(out)


def partial_path(out: Path) -> Path:
    """Return where `out` is while it is written."""
    return out.with_name(out.name + ".partial")


def _replaced_path(out: Path) -> Path:
    """Return where an old `out` is while the new one takes its place."""
    return out.with_name(out.name + ".replaced")


def _unfinished(out: Path) -> OutputExistsError:
    return OutputExistsError(
        f"{partial_path(out)} exists: a run to {out} is under way or was killed",
        hint="If none is running, --restart drops it and starts anew.",
    )


def _is_ours(out: Path) -> bool:
    """Whether svdcut may replace what is there."""
    empty = out.is_dir() and not out.is_symlink() and not any(out.iterdir())
    return empty or (out / MANIFEST_NAME).is_file()


class TensorSink:
    """Takes the bytes of one tensor, in order.

    Parameters
    ----------
    descriptor : int
        Of the file.
    entry : TensorEntry
        Where they go.
    """

    def __init__(self, descriptor: int, entry: TensorEntry) -> None:
        self._descriptor = descriptor
        self._entry = entry
        self._done = 0
        self._digest = hashlib.sha256()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write the next bytes."""
        view = memoryview(data).cast("B")
        if self._done + len(view) > self._entry.size_bytes:
            raise ValueError(f"too many bytes for tensor {self._entry.name!r}")
        self._digest.update(view)
        while view:
            try:
                count = os.pwrite(self._descriptor, view, self._entry.offset + self._done)
            except OSError as error:
                raise _output_error(self._entry.path, error) from error
            self._done += count
            view = view[count:]

    def finish(self) -> str:
        """Return the sha256 of the tensor, once all of it is written."""
        if self._done != self._entry.size_bytes:
            raise ValueError(
                f"tensor {self._entry.name!r}: {self._done} of {self._entry.size_bytes} bytes"
            )
        return self._digest.hexdigest()


class CheckpointWriter:
    """A checkpoint in the making; use it as a context.

    Leaving the context without `commit` drops everything.

    Parameters
    ----------
    out : Path
        The folder to write; see `check_output`.
    files : sequence of FileLayout
        Its weight files.
    restart : bool
        Whether to drop unfinished work.

    Raises
    ------
    OutputExistsError
        If there is unfinished work, as that of another process which began meanwhile.
    OutputError
        If the disk is full or the folder cannot be written.
    """

    def __init__(self, out: Path, files: Sequence[FileLayout], *, restart: bool = False) -> None:
        self._out = out
        self._partial = partial_path(out)
        self._files = files
        self._restart = restart
        self._owns_partial = False
        self._descriptors: dict[str, int] = {}

    def __enter__(self) -> CheckpointWriter:
        try:
            if self._restart:
                _remove(self._partial)
            self._partial.parent.mkdir(parents=True, exist_ok=True)
            self._partial.mkdir()
            self._owns_partial = True
            for file in self._files:
                self._create(file)
        except BaseException as error:
            if not self._owns_partial and os.path.lexists(self._partial):
                raise _unfinished(self._out) from error
            self._abandon()
            if isinstance(error, OSError):
                raise _output_error(self._partial, error) from error
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._abandon()

    def _create(self, file: FileLayout) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        descriptor = os.open(self._partial / file.name, flags, 0o666)
        self._descriptors[file.name] = descriptor
        try:
            # Claims the space now: a full disk is found before hours of work.
            os.posix_fallocate(descriptor, 0, file.size_bytes)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
            os.ftruncate(descriptor, file.size_bytes)
        view = memoryview(file.header)
        done = 0
        while done < len(view):
            done += os.pwrite(descriptor, view[done:], done)

    def sink(self, entry: TensorEntry) -> TensorSink:
        """Return where the bytes of a planned tensor go."""
        return TensorSink(self._descriptors[entry.path.name], entry)

    def write_text(self, name: str, text: str) -> None:
        """Write a small file."""
        try:
            (self._partial / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise _output_error(self._partial / name, error) from error

    def copy_file(self, source: Path, name: Path) -> None:
        """Copy a small file."""
        target = self._partial / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        except OSError as error:
            raise _output_error(target, error) from error

    def commit(self) -> None:
        """Sync everything and give the folder its name.

        Raises
        ------
        OutputError
            If that fails; the old folder, if any, is then still there.
        """
        try:
            for descriptor in self._descriptors.values():
                os.fsync(descriptor)
            for path in self._partial.rglob("*"):
                if path.name not in self._descriptors:
                    _sync(path)
            _sync(self._partial)
            self._publish()
            self._owns_partial = False
            _sync(self._out.absolute().parent)
        except OSError as error:
            raise _output_error(self._out, error) from error

    def _publish(self) -> None:
        if not os.path.lexists(self._out):
            self._partial.rename(self._out)
            return
        if not _is_ours(self._out):
            raise OutputError(f"{self._out} appeared during the run; svdcut did not write it")
        # A folder with content cannot be renamed over: step it aside first.
        old = _replaced_path(self._out)
        self._out.rename(old)
        try:
            self._partial.rename(self._out)
        except BaseException:
            old.rename(self._out)
            raise
        _remove(old)

    def _abandon(self) -> None:
        """Close everything, and drop what was not committed."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()
        if self._owns_partial:
            shutil.rmtree(self._partial, ignore_errors=True)
            self._owns_partial = False


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


def _output_error(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path}: cannot be written: {error.strerror or error}")
