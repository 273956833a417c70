"""A journal of finished work, from which the next run resumes; and the lock of a run.

Each record is a line of JSON, appended after the bytes that it describes are on disk. The
journal does not interpret its records. Processes that share a run have a journal each, and read
those of the others.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from svdcut.errors import OutputExistsError

JOURNAL_NAME = "journal.jsonl"
SCHEMA = "svdcut/journal/1"

_Records = dict[tuple[str, str], object]
"""Data by kind and name."""


@dataclass(slots=True)
class _Lines:
    """The whole lines of a journal file, as far as they were read."""

    path: Path
    identity: Mapping[str, str] | None = None
    records: _Records = field(default_factory=dict)
    size: int = 0
    """Bytes of these lines."""

    def read(self, descriptor: int | None = None) -> None:
        """Read the lines that came since; a line that was cut off ends the file."""
        # Opened anew each time: network file systems look for changes then.
        with self.path.open("rb") if descriptor is None else os.fdopen(descriptor, "rb") as file:
            if os.fstat(file.fileno()).st_size < self.size:  # begun afresh
                self.identity, self.size = None, 0
                self.records.clear()
            file.seek(self.size)
            for line in file:
                record = _parse(line, first=self.identity is None)
                if record is None:
                    break
                self.size += len(line)
                if self.identity is None:
                    self.identity = record["identity"]
                else:
                    self.records[record["kind"], record["name"]] = record["data"]


class Journal:
    """Records of finished work, under a lock that ends with the process.

    Parameters
    ----------
    folder : Path
        The folder of the journal; it is made.
    name : str
        The name of its file.

    Raises
    ------
    OutputExistsError
        If another process holds the lock.
    OSError
        If the file cannot be opened.

    Notes
    -----
    The lock is ``flock``, which the system releases when a process dies in any way.
    Where a file system has none, two runs at once go unnoticed.
    """

    def __init__(self, folder: Path, name: str = JOURNAL_NAME) -> None:
        self._path = folder / name
        self._lock = threading.Lock()
        self._descriptor = _open_locked(self._path)
        self._own = _Lines(self._path)
        self._others: dict[Path, _Lines] = {}
        self._pending: list[tuple[str, str]] = []
        """Records since the last `sync`."""

        try:
            self._load()
        except BaseException:
            self.close()
            raise

    @property
    def identity(self) -> Mapping[str, str] | None:
        """Identity of the run, from the first line; None for a new journal."""
        return self._own.identity

    @property
    def is_begun(self) -> bool:
        """Whether this journal, or one beside it, has an identity."""
        return any(lines.identity is not None for lines in self._all())

    def _all(self) -> list[_Lines]:
        return [self._own, *self._others.values()]

    def _load(self) -> None:
        self._own.read(os.dup(self._descriptor))
        if os.fstat(self._descriptor).st_size > self._own.size:
            os.ftruncate(self._descriptor, self._own.size)  # cut off by a crash
        self.refresh()

    def refresh(self) -> None:
        """Read what other processes have recorded since."""
        with self._lock:
            for path in _siblings(self._path):
                with suppress(FileNotFoundError):
                    self._others.setdefault(path, _Lines(path)).read()

    def remove_others(self) -> None:
        """Remove the journals of other processes, which have ended."""
        for path in self._others:
            path.unlink(missing_ok=True)
        self._others.clear()

    def begin(self, identity: Mapping[str, str]) -> None:
        """Start afresh with the identity of a run."""
        os.ftruncate(self._descriptor, 0)
        self._pending.clear()
        self._own = _Lines(self._path, dict(identity))
        self._append({"schema": SCHEMA, "identity": dict(identity)})
        self.sync()

    def refuse_other(self, identity: Mapping[str, str], what: str) -> None:
        """Refuse to go on from the work of another run.

        Parameters
        ----------
        identity : mapping of str to str
            The identity of this run.
        what : str
            The subject of the message.

        Raises
        ------
        OutputExistsError
            If it, or a journal beside it, began as another run.
        """
        for found in filter(None, [lines.identity for lines in self._all()]):
            for key in [*identity, *found]:
                before, now = found.get(key, "absent"), identity.get(key, "absent")
                if before != now:
                    raise OutputExistsError(
                        f"{what} of another run: {key} was {before}, is {now}",
                        hint="Repeat that run to finish it, or drop its work with --restart.",
                    )

    def find(self, kind: str, name: str) -> object:
        """Return what was recorded, or None."""
        with self._lock:
            found = (lines.records.get((kind, name)) for lines in self._all())
            return next((data for data in found if data is not None), None)

    def names(self, kind: str) -> set[str]:
        """Return the names of all records of a kind."""
        with self._lock:
            return {name for lines in self._all() for found, name in lines.records if found == kind}

    def record(self, kind: str, name: str, data: object) -> None:
        """Remember a record; `sync` makes it last."""
        with self._lock:
            self._own.records[kind, name] = data
            self._pending.append((kind, name))

    def sync(self, first: Callable[[], object] = lambda: None) -> None:
        """Put everything that was recorded on disk.

        Parameters
        ----------
        first : callable
            Puts the bytes there that the records speak of. Records that are not written,
            because it or the writing fails, are forgotten.
        """
        with self._lock:
            pending, self._pending = self._pending, []
        try:
            first()
            while pending:
                kind, name = pending[0]
                data = self._own.records[kind, name]
                self._append({"kind": kind, "name": name, "data": data})
                del pending[0]
            os.fsync(self._descriptor)
        except BaseException:
            with self._lock:
                for key in pending:
                    self._own.records.pop(key, None)
            raise

    def _append(self, document: Mapping[str, Any]) -> None:
        line = memoryview(json.dumps(document, allow_nan=False).encode() + b"\n")
        while line:
            line = line[os.write(self._descriptor, line) :]

    def close(self) -> None:
        """Release the lock."""
        os.close(self._descriptor)


def _siblings(path: Path) -> list[Path]:
    """Return the journals of other processes that share the run: ``journal-3.jsonl``."""
    stem = path.stem.partition("-")[0]
    return [p for p in sorted(path.parent.glob(f"{stem}*{path.suffix}")) if p != path]


def _open_locked(path: Path) -> int:
    """Open and lock a journal; one that another run has just removed was in use, too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    with ExitStack() as on_failure:
        descriptor = os.open(path, flags, 0o666)
        on_failure.callback(os.close, descriptor)
        with suppress(FileNotFoundError):
            locked = try_lock(descriptor, fcntl.LOCK_EX)
            if locked is not False and os.path.samestat(os.fstat(descriptor), path.stat()):
                on_failure.pop_all()
                return descriptor
    raise in_use(path.parent)


def in_use(folder: Path) -> OutputExistsError:
    """Return the error to raise where another run is at work."""
    return OutputExistsError(
        f"{folder} is in use: another run writes there",
        hint="Wait for it, or choose another output.",
    )


def try_lock(descriptor: int, kind: int) -> bool | None:
    """Lock a file; return whether that was possible, None where the file system has no locks."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _parse(line: bytes, *, first: bool) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    keys = {"schema", "identity"} if first else {"kind", "name", "data"}
    whole = line.endswith(b"\n") and isinstance(record, dict) and record.keys() == keys
    return record if whole and (not first or record["schema"] == SCHEMA) else None


def count_finished(folder: Path, kind: str, name: str = JOURNAL_NAME) -> int:
    """Return how many records of a kind the journals in `folder` hold, without their locks."""
    found: set[str] = set()
    for path in (folder / name, *_siblings(folder / name)):
        lines = _Lines(path)
        with suppress(OSError):
            lines.read()
        found |= {name for recorded, name in lines.records if recorded == kind}
    return len(found)
