"""Rows that are done, each on disk as soon as it is.

It knows nothing of how a row is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from svdcut.errors import OutputExistsError
from svdcut.evaluation.metrics import Evaluation
from svdcut.sweeps.facts import Row, Variant
from svdcut.write.journal import Journal
from svdcut.write.tensor_writer import output_error

ROWS_NAME = "rows.jsonl"
ROW = "row"
"""Kind of a record of a row."""

_FINETUNED = "finetuned"
_FORMAT = "3"
"""Another for each change of what a record holds; since 3, what storage puts back."""


class RowLog:
    """The rows of a sweep, in a file that grows by a line a row; use it as a context.

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

    def __init__(self, folder: Path, identity: Mapping[str, str], *, restart: bool) -> None:
        path = folder / ROWS_NAME
        identity = {**identity, "the format of the rows": _FORMAT}
        if path.is_file() and path.stat().st_size and not _is_log(path):
            raise OutputExistsError(
                f"{path} exists and holds no rows of svdcut",
                hint="Move it away, or choose another output.",
            )
        try:
            self._journal = Journal(folder, ROWS_NAME)
        except OSError as error:
            raise output_error(path, error) from error
        self._path = path
        try:
            if restart or not any(map(self._journal.count, (ROW, _FINETUNED))):
                self._journal.begin(identity)
            else:
                self._journal.refuse_other(identity, f"{path} holds rows")
        except BaseException as error:
            self._journal.close()
            if isinstance(error, OSError):
                raise output_error(path, error) from error
            raise

    def __enter__(self) -> RowLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._journal.close()

    def finetuned(self) -> Evaluation | None:
        """Return how the fine-tuned side does, if that is known."""
        found = self._journal.find(_FINETUNED, "")
        return Evaluation.from_json(found) if isinstance(found, dict) else None

    def find(self, variant: Variant) -> Row | None:
        """Return a row that is done."""
        found = self._journal.find(ROW, str(variant))
        return Row.from_json(found) if isinstance(found, dict) else None

    def add_finetuned(self, evaluation: Evaluation) -> None:
        """Put the evaluation of the fine-tuned side on disk."""
        self._add(_FINETUNED, "", evaluation.to_json())

    def add(self, row: Row) -> None:
        """Put a row on disk."""
        self._add(ROW, str(row.variant), row.to_json())

    def _add(self, kind: str, name: str, document: Mapping[str, object]) -> None:
        try:
            self._journal.record(kind, name, document)
            self._journal.sync()
        except OSError as error:
            raise output_error(self._path, error) from error


def _is_log(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_START)) == _START


_START = b'{"schema": "svdcut/journal/1"'
