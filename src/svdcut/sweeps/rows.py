"""Rows that are done, each on disk as soon as it is.

It knows nothing of how a row is measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svdcut.errors import OutputExistsError
from svdcut.evaluation.metrics import Evaluation
from svdcut.sweeps.result import Row, Variant
from svdcut.write.journal import Journal
from svdcut.write.tensor_writer import output_error

ROWS_NAME = "rows.jsonl"
ROW = "row"
"""Kind of a record of a row."""

_FINETUNED = "finetuned"
_FORMAT = "3"
"""Another for each change of what a record holds; since 3, what storage puts back."""

_START = b'{"schema": "svdcut/journal/1"'


@dataclass(frozen=True, slots=True)
class RowLog:
    """The rows of a sweep, in a file that grows by a line a row: see `open_rows`."""

    path: Path
    journal: Journal

    def finetuned(self) -> Evaluation | None:
        """Return how the fine-tuned side does, if that is known."""
        found: Any = self.journal.find(_FINETUNED, "")
        return None if found is None else Evaluation.from_json(found)

    def find(self, variant: Variant) -> Row | None:
        """Return a row that is done."""
        found: Any = self.journal.find(ROW, str(variant))
        return None if found is None else Row.from_json(found)

    def add_finetuned(self, evaluation: Evaluation) -> None:
        """Put the evaluation of the fine-tuned side on disk."""
        self._add(_FINETUNED, "", evaluation.to_json())

    def add(self, row: Row) -> None:
        """Put a row on disk."""
        self._add(ROW, str(row.variant), row.to_json())

    def _add(self, kind: str, name: str, document: Mapping[str, object]) -> None:
        with explain_writing(self.path):
            self.journal.record(kind, name, document)
            self.journal.sync()


@contextmanager
def open_rows(folder: Path, identity: Mapping[str, str], *, restart: bool) -> Iterator[RowLog]:
    """Open the rows of a sweep, and keep others from writing there.

    Parameters
    ----------
    folder : Path
        Where the file lies; it is made.
    identity : mapping of str to str
        Everything that shapes a row, in words.
    restart : bool
        Whether to drop rows of another identity, and those of this one.

    Raises
    ------
    OutputExistsError
        If another process is at work there, or the rows are of another identity.
    OutputError
        If the file cannot be written.
    """
    path = folder / ROWS_NAME
    identity = {**identity, "the format of the rows": _FORMAT}
    if path.is_file() and path.stat().st_size and not _is_log(path):
        raise OutputExistsError(
            f"{path} exists and holds no rows of svdcut",
            hint="Move it away, or choose another output.",
        )
    with ExitStack() as stack:
        with explain_writing(path):
            journal = stack.enter_context(closing(Journal(folder, ROWS_NAME)))
            if restart or not any(map(journal.names, (ROW, _FINETUNED))):
                journal.begin(identity)
            else:
                journal.refuse_other(identity, f"{path} holds rows")
        yield RowLog(path, journal)


def _is_log(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_START)) == _START


@contextmanager
def explain_writing(path: Path) -> Iterator[None]:
    """Turn an error of the system into one that names what could not be written."""
    try:
        yield
    except OSError as error:
        raise output_error(path, error) from error
