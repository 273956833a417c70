"""What a sweep measures: its rows, their log on disk, and the files with the result.

It imports no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svdcut.choose.keep import Keep
from svdcut.choose.ranks import FULL, NOTHING, Rule, parse_rule
from svdcut.errors import EvaluationError, OutputExistsError
from svdcut.evaluation.metrics import Evaluation
from svdcut.files.atomic_write import write_whole
from svdcut.record.summary import puts_much_back
from svdcut.shown import brief, write_csv
from svdcut.write.journal import Journal
from svdcut.write.tensor_writer import output_error

SCHEMA = "svdcut/sweep/1"

JSON_NAME = "sweep.json"
CSV_NAME = "sweep.csv"
PICTURE_NAME = "sweep.png"

ROWS_NAME = "rows.jsonl"
ROW = "row"
"""Kind of a row's record in the log."""

_FINETUNED = "finetuned"
_FORMAT = "4"
"""Version of the records and of their identity."""

_LOG_START = b'{"schema": "svdcut/journal/1"'

_EXPECTED = (
    'Expected an accuracy from 0 to 1, {"accuracy": ...} with "size" and "groups" '
    '({NAME: {"accuracy", "size"}}) where they are known, or what svdcut evaluate --json prints.'
)


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to cut all tensors."""

    rule: Rule
    keep: Keep = Keep.TOP

    def __str__(self) -> str:
        return str(self.rule) if self.keep is Keep.TOP else f"{self.keep.value} {self.rule}"

    @property
    def is_end(self) -> bool:
        """Whether it keeps nothing or everything, whatever `keep` says."""
        return self.rule in (NOTHING, FULL)


BASE = Variant(NOTHING)
"""No update at all: base's matrices, with the head and the biases of the fine-tuned side."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The evaluation of a cut, as it would be stored."""

    evaluation: Evaluation
    rounding_error: float
    """Norm of what storage rounds, over all matrices."""


def read_outcome(value: object, source: str) -> Evaluation:
    """Return the evaluation that a function or a command of the user's own gave.

    Parameters
    ----------
    value : object
        An `Evaluation`, an accuracy, or a mapping as ``svdcut evaluate --json`` prints it, of
        which the accuracy is enough.
    source : str
        Who gave it, for messages.

    Raises
    ------
    EvaluationError
        If it is none of these.
    """
    if isinstance(value, Evaluation):
        return value
    try:
        return Evaluation.from_json(value if isinstance(value, Mapping) else {"accuracy": value})
    except ValueError as error:
        raise EvaluationError(f"{source}: no evaluation: {error}", hint=_EXPECTED) from error


@dataclass(frozen=True, slots=True)
class Row:
    """One cut: what it keeps over all matrices, and the evaluation of the model with it."""

    variant: Variant
    rank: int
    """Triplets that are kept, over all matrices."""

    full_rank: int
    energy_retained: float | None
    """Share of the squared singular values; None if the two sides do not differ."""

    rounding_share: float | None
    """Norm of what storage rounds, divided by that of what was cut; None if nothing was."""

    evaluation: Evaluation

    @property
    def is_cut(self) -> bool:
        """Whether anything is left out."""
        return self.rank < self.full_rank

    @property
    def puts_much_back(self) -> bool:
        """Whether storage brings back much of what was cut."""
        if self.rounding_share is None or self.energy_retained is None:
            return False
        tail = math.sqrt(max(1 - self.energy_retained, 0.0))
        return puts_much_back(self.rounding_share * tail, tail, 1.0)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return self.cut_to_json() | self.evaluation.to_json()

    def cut_to_json(self) -> dict[str, Any]:
        """Return the part of the JSON object about the cut."""
        return {
            "rule": str(self.variant.rule),
            "keep": self.variant.keep.value,
            "rank": self.rank,
            "full_rank": self.full_rank,
            "energy_retained": self.energy_retained,
            "rounding_share": self.rounding_share,
        }

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Row:
        """Return the row that `to_json` wrote."""
        numbers = ("rank", "full_rank", "energy_retained", "rounding_share")
        variant = Variant(parse_rule(document["rule"]), Keep(document["keep"]))
        cut = {name: document[name] for name in numbers}
        return Row(variant=variant, evaluation=Evaluation.from_json(document), **cut)


@dataclass(frozen=True, slots=True)
class Sweep:
    """Both ends, all cuts between them, and the rank to use."""

    __repr__ = brief

    base: Evaluation
    """At rank 0, as ``truncate -k 0`` writes it: with the fine-tuned head and biases."""

    finetuned: Evaluation
    rows: tuple[Row, ...]
    """In the requested order; controls follow."""

    tolerance: float
    """Accuracy that a cut may cost."""

    chosen: Row | None
    """The smallest rank within the tolerance, chosen without group labels."""

    chosen_with_groups: Row | None
    """The rank with the smallest gap within the tolerance, chosen by group labels."""

    answer: tuple[str, ...]
    """The choice in words, one sentence each."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object, as ``sweep.json`` holds it."""
        return {
            "schema": SCHEMA,
            "base": self.base.to_json(),
            "finetuned": self.finetuned.to_json(),
            "rows": [row.to_json() for row in self.rows],
            "tolerance": self.tolerance,
            "chosen": _choice(self.chosen, needs_group_labels=False),
            "chosen_with_groups": _choice(self.chosen_with_groups, needs_group_labels=True),
            "answer": list(self.answer),
        }

    def save(self, folder: Path) -> None:
        """Write ``sweep.json`` and ``sweep.csv``, and replace earlier ones."""
        text = json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n"
        write_whole(folder / JSON_NAME, lambda path: path.write_text(text, encoding="utf-8"))
        write_whole(folder / CSV_NAME, lambda path: write_csv(path, self._lines()))

    def _lines(self) -> Iterator[dict[str, object]]:
        """Yield the cells of each end and each row; an undefined number is None."""
        names = list(self.finetuned.groups)
        no_cut = dict.fromkeys(self.rows[0].cut_to_json())
        for name, end in (("base", self.base), ("finetuned", self.finetuned)):
            yield no_cut | {"rule": name} | _cells(end, names)
        for row in self.rows:
            yield row.cut_to_json() | _cells(row.evaluation, names)


def _choice(row: Row | None, *, needs_group_labels: bool) -> dict[str, Any] | None:
    if row is None:
        return None
    document = row.to_json()
    start = {name: document.pop(name) for name in ("rule", "keep", "rank")}
    return {**start, "needs_group_labels": needs_group_labels, **document}


def _cells(evaluation: Evaluation, names: list[str]) -> dict[str, object]:
    interval, gap = evaluation.interval, evaluation.gap
    between = evaluation.intervals.get("best_worst")
    groups = {name: evaluation.groups.get(name) for name in names}
    return {
        "accuracy": evaluation.accuracy,
        "accuracy_low": interval.low,
        "accuracy_high": interval.high,
        "size": evaluation.size,
        "worst_group": evaluation.worst_group,
        "worst_group_accuracy": evaluation.worst_group_accuracy,
        "gap_best_worst": gap.best_worst,
        "gap_best_worst_low": between and between.low,
        "gap_best_worst_high": between and between.high,
        "gap_average_worst": gap.average_worst,
        "gap_aligned_conflicting": gap.aligned_conflicting,
        **{f"accuracy:{name}": group and group.accuracy for name, group in groups.items()},
    }


# The log of rows


@dataclass(frozen=True, slots=True)
class RowLog:
    """The finished rows of a sweep, one line each in a file: see `open_rows`."""

    path: Path
    journal: Journal

    def finetuned(self) -> Evaluation | None:
        """Return the evaluation of the fine-tuned side, if it is finished."""
        found: Any = self.journal.find(_FINETUNED, "")
        return None if found is None else Evaluation.from_json(found)

    def find(self, variant: Variant) -> Row | None:
        """Return the row of a variant, if it is finished."""
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
    """Open the log of a sweep, and lock it.

    Parameters
    ----------
    folder : Path
        Folder of the file; it is made.
    identity : mapping of str to str
        Everything that the rows depend on, in words.
    restart : bool
        Whether to drop the rows that are there.

    Raises
    ------
    OutputExistsError
        If another process works there, or the rows are of another identity.
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
        return file.read(len(_LOG_START)) == _LOG_START


@contextmanager
def explain_writing(path: Path) -> Iterator[None]:
    """Turn an error of the system into one that names the file that could not be written."""
    try:
        yield
    except OSError as error:
        raise output_error(path, error) from error
