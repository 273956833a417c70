"""The place of a result: refuse a bad one before any work, and publish by one rename after it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from svdcut.errors import OutputError, OutputExistsError, UsageError
from svdcut.files.filenames import MANIFEST_NAME
from svdcut.files.jsonfile import quoted
from svdcut.write.journal import JOURNAL_NAME


def check_output(out: Path, inputs: Sequence[Path], *, force: bool) -> None:
    """Refuse an output that cannot or must not be written.

    Parameters
    ----------
    out : Path
        The folder to write.
    inputs : sequence of Path
        Files and folders that the run reads.
    force : bool
        True if an existing result may be replaced.

    Raises
    ------
    UsageError
        If `out` is, holds or lies in an input, or is a folder that svdcut did not write.
    OutputExistsError
        If it is there, or something is where its unfinished form would be.
    """
    check_apart(out, inputs)
    if os.path.lexists(out):
        _check_existing(out, force=force)
    check_partial(partial_path(out))


def check_apart(out: Path, inputs: Sequence[Path]) -> None:
    """Refuse a folder that is, holds or lies in an input.

    Raises
    ------
    UsageError
        If it is one.
    """
    if out.name in ("", ".."):
        raise UsageError(f"{out}: the output needs a name of its own", hint="As -o out.")
    _check_length(out, replaced_path(out))
    target = out.resolve()
    for source in (path.resolve() for path in inputs):
        if target == source or source in target.parents:
            raise UsageError(f"{out}: the output lies in the input {source}")
        if target in source.parents:
            raise UsageError(f"{out}: the output would replace a folder that holds {source}")


def check_target(path: Path, inputs: Sequence[Path]) -> None:
    """Refuse a place for a file before any work is done.

    Parameters
    ----------
    path : Path
        The file to write; one that is there is replaced.
    inputs : sequence of Path
        Folders and files that are read, in which nothing may be replaced.

    Raises
    ------
    UsageError
        If it is a folder, or a file of an input.
    OutputError
        If there is no folder to write it to.
    """
    _check_length(path, path)
    if path.is_dir():
        raise UsageError(f"{path}: a folder is there; name a file")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise OutputError(f"{path}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{path}: {folder} cannot be written to")
    for side in inputs:
        place = side.resolve()
        if path.exists() and place in {path.resolve(), *path.resolve().parents}:
            raise UsageError(f"{path}: a file of the input {side}", hint="Name another.")


def _check_length(path: Path, place: Path) -> None:
    """Refuse a path whose `place` has a name too long for the file system."""
    try:
        place.lstat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UsageError(
                f"{quoted(str(path))} is too long",
                hint="Choose a shorter name; .partial is added to that of a folder.",
            ) from error


def _check_existing(out: Path, *, force: bool) -> None:
    if not force:
        raise OutputExistsError(f"{out} exists", hint="--force replaces it.")
    if not is_ours(out):
        raise UsageError(
            f"{out} exists and was not written by svdcut (it has no {MANIFEST_NAME})",
            hint="Remove it yourself, or choose another output.",
        )
    if out.is_mount():
        raise UsageError(
            f"{out} is a mount point, which cannot be replaced",
            hint="Name a folder within it.",
        )
    replaced = replaced_path(out)
    if os.path.lexists(replaced):
        raise OutputExistsError(
            f"{replaced} exists: a run was killed while it replaced {out}",
            hint="It is the result before that one; move it away or remove it.",
        )


def check_partial(partial: Path) -> None:
    """Refuse a folder of unfinished work that svdcut did not leave.

    Raises
    ------
    OutputExistsError
        If something else is there.
    """
    if not os.path.lexists(partial):
        return
    found = list(partial.iterdir()) if partial.is_dir() and not partial.is_symlink() else [partial]
    foreign = any(path.is_symlink() for path in found)  # what they lead to would be emptied
    if foreign or (found and not (partial / JOURNAL_NAME).is_file()):
        raise OutputExistsError(
            f"{partial} exists and is no unfinished work of svdcut",
            hint="It is the place for that: move it away, or choose another output.",
        )


def partial_path(out: Path) -> Path:
    """Return where `out` is while it is written."""
    return out.with_name(out.name + ".partial")


def replaced_path(out: Path) -> Path:
    """Return where an old `out` is while the new one takes its place."""
    return out.with_name(out.name + ".replaced")


def is_ours(out: Path) -> bool:
    """Return whether svdcut may replace this folder: its own, or an empty one."""
    empty = out.is_dir() and not out.is_symlink() and not any(out.iterdir())
    return empty or (out / MANIFEST_NAME).is_file()


def publish_folder(result: Path, out: Path, *, force: bool) -> None:
    """Give a finished folder its name, in place of what svdcut wrote there before.

    Raises
    ------
    OutputExistsError
        If something else is there now.
    OSError
        If it cannot be renamed; the old folder, if any, is then still there.
    """
    old = replaced_path(out)
    if os.path.lexists(out):
        if not (force and is_ours(out)):
            raise OutputExistsError(f"{out} appeared during the run")
        # A folder with content cannot be renamed over: step it aside first.
        out.rename(old)
    try:
        result.rename(out)
    except BaseException:
        if os.path.lexists(old):
            old.rename(out)
        raise
    if force and os.path.lexists(old):
        remove(old)
    sync_path(out.absolute().parent)


def remove(path: Path) -> None:
    """Remove a folder with all in it, a file, or a link alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync_path(path: Path) -> None:
    """Put a file or the names of a folder on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
