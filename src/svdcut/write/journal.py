"""A journal of finished work, from which the next run resumes; and the lock of a run.

Each record is a line of JSON, appended after the bytes that it describes are on disk. The
journal does not interpret its records.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from svdcut.errors import OutputExistsError

JOURNAL_NAME = "journal.jsonl"
SCHEMA = "svdcut/journal/1"


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
        self._descriptor = self._open()
        self.identity: Mapping[str, str] | None = None
        """The identity of the run, from the first line; None for a new journal."""
        self._records: dict[tuple[str, str], object] = {}
        self._pending: list[tuple[str, str]] = []
        """Records since the last `sync`."""

        try:
            self._load()
        except BaseException:
            self.close()
            raise

    def _open(self) -> int:
        """Open and lock the file; one that another run has just removed was in use, too."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        with ExitStack() as on_failure:
            descriptor = os.open(self._path, flags, 0o666)
            on_failure.callback(os.close, descriptor)
            with suppress(BlockingIOError, FileNotFoundError):
                _lock(descriptor)
                if os.path.samestat(os.fstat(descriptor), self._path.stat()):
                    on_failure.pop_all()
                    return descriptor
        raise OutputExistsError(
            f"{self._path.parent} is in use: another run writes there",
            hint="Wait for it, or choose another output.",
        )

    def _load(self) -> None:
        whole = 0
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            for line in file:
                record = _parse(line, first=self.identity is None)
                if record is None:
                    break  # cut off by a crash, and what follows it with it
                whole += len(line)
                if self.identity is None:
                    self.identity = record["identity"]
                else:
                    self._records[record["kind"], record["name"]] = record["data"]
        if os.fstat(self._descriptor).st_size > whole:
            os.ftruncate(self._descriptor, whole)

    def begin(self, identity: Mapping[str, str]) -> None:
        """Start afresh with the identity of a run."""
        os.ftruncate(self._descriptor, 0)
        self._records.clear()
        self._pending.clear()
        self.identity = dict(identity)
        self._append({"schema": SCHEMA, "identity": self.identity})
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
            If it began as another run, or as none.
        """
        found = self.identity or {}
        for key in [*identity, *found]:
            before, now = found.get(key, "absent"), identity.get(key, "absent")
            if before != now:
                raise OutputExistsError(
                    f"{what} of another run: {key} was {before}, is {now}",
                    hint="Repeat that run to finish it, or drop its work with --restart.",
                )

    def find(self, kind: str, name: str) -> object:
        """Return what was recorded, or None."""
        return self._records.get((kind, name))

    def has(self, kind: str) -> bool:
        """Return whether there is a record of a kind."""
        with self._lock:
            return any(found == kind for found, _ in self._records)

    def record(self, kind: str, name: str, data: object) -> None:
        """Remember a record; `sync` makes it last."""
        with self._lock:
            self._records[kind, name] = data
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
                data = self._records[kind, name]
                self._append({"kind": kind, "name": name, "data": data})
                del pending[0]
            os.fsync(self._descriptor)
        except BaseException:
            with self._lock:
                for key in pending:
                    self._records.pop(key, None)
            raise

    def _append(self, document: Mapping[str, Any]) -> None:
        line = memoryview(json.dumps(document, allow_nan=False).encode() + b"\n")
        while line:
            line = line[os.write(self._descriptor, line) :]

    def close(self) -> None:
        """Release the lock."""
        os.close(self._descriptor)


def _lock(descriptor: int) -> None:
    """Lock a file, where the file system has locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return


def _parse(line: bytes, *, first: bool) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    keys = {"schema", "identity"} if first else {"kind", "name", "data"}
    whole = line.endswith(b"\n") and isinstance(record, dict) and record.keys() == keys
    return record if whole and (not first or record["schema"] == SCHEMA) else None


def count_finished(folder: Path, kind: str, name: str = JOURNAL_NAME) -> int:
    """Return how many records of a kind the journal in `folder` holds, without its lock."""
    try:
        with (folder / name).open("rb") as file:
            records = [_parse(line, first=False) for line in file]
    except OSError:
        return 0
    return len({r["name"] for r in records if r is not None and r["kind"] == kind})
