"""Labelled examples and the groups that they belong to.

Imports neither numpy nor torch; it knows no model.
"""

from __future__ import annotations

import heapq
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from svdcut.errors import DataError, UsageError
from svdcut.evaluation.metrics import Grouping
from svdcut.evaluation.tables import Row, read_rows
from svdcut.files.jsonfile import quoted

_MAX_GROUPS = 10_000

_NUMBER = re.compile(r"-?\d+(\.\d+)?", re.ASCII)
_NO_FRACTION = re.compile(r"\.0+\Z")
_TRUTHS = {"true": 1.0, "false": 0.0}

_Table = Mapping[str, tuple[str, ...]]
_Groups = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Columns:
    """What is in which column of a table."""

    text: str = "text"
    label: str = "label"
    text_pair: str | None = None
    group: tuple[str, ...] = ()
    """Disjoint groups: the product of these columns, named ``col=value``, joined by ``, ``.

    As in group DRO, where label and negation make six groups of MultiNLI.
    Sagawa et al. 2020, https://arxiv.org/abs/1911.08731
    """

    group_columns: tuple[str, ...] = ()
    """Overlapping groups: who is in one is told by a number, 0 to 1, of at least 0.5.

    Each group is a column with a label, named ``male, label=1``; rows of no column count in
    the average only. As in CivilComments-WILDS, where eight identities make sixteen groups.
    Koh et al. 2021, https://arxiv.org/abs/2012.07421
    """

    aligned: str | None = None
    """0 or 1: whether the shortcut agrees with the label."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns that a model reads."""
        return (self.text,) if self.text_pair is None else (self.text, self.text_pair)

    @property
    def values(self) -> tuple[str, ...]:
        """The other columns, each once."""
        return tuple(dict.fromkeys((self.label, *self.grouping)))

    @property
    def grouping(self) -> tuple[str, ...]:
        """The columns that groups are made of, each once; the label, if it parts some."""
        label = (self.label,) if self.group_columns else ()
        aligned = () if self.aligned is None else (self.aligned,)
        return tuple(dict.fromkeys((*label, *self.group, *self.group_columns, *aligned)))


@dataclass(frozen=True, slots=True)
class Dataset(Grouping):
    """Labelled examples."""

    source: str
    columns: Columns
    table: Mapping[str, tuple[str, ...]]
    """The cells of every column that is named, as in the file: ``1``, ``positive``; the ``1.0``
    of a column of numbers is ``1``."""

    rows: tuple[int, ...]
    """The number of each row in the file, from 1; a header is not counted."""

    classes: tuple[str, ...]
    """All labels of the file, also of rows that a sample leaves out; each once, in its order."""

    @property
    def texts(self) -> tuple[str, ...]:
        """What a model reads."""
        return self.table[self.columns.text]

    @property
    def pairs(self) -> tuple[str, ...] | None:
        """The other text of each row, where the task is on pairs."""
        name = self.columns.text_pair
        return None if name is None else self.table[name]

    @property
    def labels(self) -> tuple[str, ...]:
        """What a model should answer."""
        return self.table[self.columns.label]

    def sample(self, limit: int, seed: int) -> Dataset:
        """Return a random sample of the rows, in their order."""
        # Of Python's generators, random() alone gives the same numbers in every version.
        draw = random.Random(seed).random  # noqa: S311
        keys = [draw() for _ in self.rows]
        taken = sorted(heapq.nsmallest(limit, range(len(keys)), key=keys.__getitem__))
        return replace(
            self,
            groups=tuple(self.groups[i] for i in taken),
            aligned=None if self.aligned is None else tuple(self.aligned[i] for i in taken),
            table={name: tuple(column[i] for i in taken) for name, column in self.table.items()},
            rows=tuple(self.rows[i] for i in taken),
        )


def read_dataset(
    path: str | Path, columns: Columns, *, limit: int | None = None, seed: int = 0
) -> Dataset:
    """Read labelled examples.

    Parameters
    ----------
    path : str or Path
        CSV, TSV, JSON Lines, JSON or Parquet, by its suffix.
    columns : Columns
        What is in which column.
    limit : int, optional
        Take a random sample of that many rows, without replacement, in the order of the
        file. A smaller sample is part of a larger one. What is checked is the whole file.
    seed : int
        Of the sample.

    Raises
    ------
    UsageError
        If one column is to be two things, or the limit is not positive.
    DataError
        If the file holds no such examples: see `read_rows`; an empty label; one class only;
        a group column that tells nothing apart; a membership that is no number from 0 to 1;
        an alignment that is neither 0 nor 1.
    """
    path = Path(path)
    _check_request(columns, limit)
    texts, values = columns.texts, columns.values
    wanted = tuple(dict.fromkeys((*texts, *values)))
    table = _make_table(path, read_rows(path, wanted), wanted, texts=texts)
    _check_values(path, {name: table[name] for name in values}, columns)
    dataset = Dataset(
        groups=_groups(path, table, columns),
        aligned=_aligned(path, table, columns.aligned),
        source=str(path),
        columns=columns,
        table=table,
        rows=tuple(range(1, len(table[columns.label]) + 1)),
        classes=tuple(dict.fromkeys(table[columns.label])),
    )
    return dataset if limit is None else dataset.sample(limit, seed)


def _check_request(columns: Columns, limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise UsageError(f"a limit of {limit} rows: at least 1 is needed")
    aligned = () if columns.aligned is None else (columns.aligned,)
    grouping = (columns.group, columns.group_columns, (columns.label, *aligned))
    for names in ((*columns.texts, *columns.values), *grouping):
        twice = _repeated(names)
        if twice is not None:
            raise UsageError(
                f"the column {quoted(twice)} is named for two things",
                hint="Text, second text and label are columns of their own; name a group once.",
            )


def _repeated(names: Iterable[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)


# Cells


def _make_table(
    path: Path, rows: Iterable[Row], wanted: Sequence[str], *, texts: Sequence[str] = ()
) -> _Table:
    """Return the cells of each column as text; of all but `texts`, numbers are taken too."""
    table: dict[str, list[str]] = {name: [] for name in wanted}
    known: dict[str, str] = {}  # labels that many rows share are in memory once
    for number, row in enumerate(rows, 1):
        for name, cell in zip(wanted, row, strict=True):
            text = _text(path, number, name, cell, only_text=name in texts)
            table[name].append(text if name in texts else known.setdefault(text, text))
    if not table[wanted[0]]:
        raise DataError(f"{path}: no rows")
    return {
        name: tuple(column if name in texts else _plain(column)) for name, column in table.items()
    }


def _text(path: Path, number: int, name: str, cell: object, *, only_text: bool) -> str:
    if isinstance(cell, str):
        try:
            cell.encode()
        except UnicodeEncodeError:  # half a character, which JSON can name
            raise _cell_error(path, number, name, quoted(cell), "text") from None
        return cell
    if not only_text:
        if isinstance(cell, bool):
            return str(cell).lower()
        if isinstance(cell, int):
            return str(cell)
        if isinstance(cell, float) and math.isfinite(cell):
            return str(int(cell)) if cell.is_integer() else str(cell)
    expected = "text" if only_text else "text or a number"
    raise _cell_error(path, number, name, "null" if cell is None else quoted(cell), expected)


def _plain(column: Sequence[str]) -> Sequence[str]:
    """Return a column without the ``.0`` that numbers get where others of it are missing."""
    distinct = set(column)
    if not all(map(_NUMBER.fullmatch, distinct)):
        return column
    plain = {text: _NO_FRACTION.sub("", text) for text in distinct}
    return [plain[text] for text in column]


def _cell_error(path: Path, number: int, name: str, found: str, expected: str) -> DataError:
    return DataError(
        f"{path}: row {number}, column {quoted(name)}: {found}, where {expected} is expected"
    )


def _check_values(path: Path, table: _Table, columns: Columns) -> None:
    for name in table:
        number = next((i for i, text in enumerate(table[name], 1) if not text.strip()), None)
        if number is not None:
            what = "a label" if name == columns.label else "a value"
            raise _cell_error(path, number, name, "nothing", what)
        only = set(table[name])
        if len(only) == 1:
            what = "label" if name == columns.label else "value"
            raise DataError(
                f"{path}: column {quoted(name)}: every row has the {what} {quoted(*only)}, "
                "where at least two are expected",
                hint="With one class, accuracy tells nothing."
                if name == columns.label
                else "It tells no groups apart; leave it out, or name another.",
            )


# Groups


def _groups(path: Path, table: _Table, columns: Columns) -> _Groups:
    names: list[str] = []
    parts: list[list[str | None]] = []
    if columns.group:
        keys = list(zip(*(table[name] for name in columns.group), strict=True))
        product = {key: _product_name(columns.group, key) for key in dict.fromkeys(keys)}
        names += product.values()
        parts.append([product[key] for key in keys])
    for name in columns.group_columns:
        labels = table[columns.label]
        with_label = {label: f"{name}, {columns.label}={label}" for label in dict.fromkeys(labels)}
        names += with_label.values()
        members = _memberships(path, table, name)
        parts.append([with_label[k] if m else None for m, k in zip(members, labels, strict=True)])
    _check_names(path, names)
    if not parts:
        return ((),) * len(next(iter(table.values())))
    known: dict[tuple[str, ...], tuple[str, ...]] = {}
    found = (tuple(filter(None, row)) for row in zip(*parts, strict=True))
    return tuple(known.setdefault(row, row) for row in found)


def _product_name(names: Sequence[str], values: Sequence[str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in zip(names, values, strict=True))


def _check_names(path: Path, names: Sequence[str]) -> None:
    if len(names) > _MAX_GROUPS:
        raise DataError(
            f"{path}: {len(names)} groups, where at most {_MAX_GROUPS} are expected",
            hint="Name columns of few values.",
        )
    twice = _repeated(names)
    if twice is not None:
        raise DataError(
            f"{path}: two groups would be named {quoted(twice)}",
            hint="Take ', ' and '=' out of the values of the group columns, or of their names.",
        )


def _memberships(path: Path, table: _Table, name: str) -> list[bool]:
    shares = _numbers(path, table, name, "a number from 0 to 1", lambda x: 0 <= x <= 1)
    return [share >= 0.5 for share in shares]


def _aligned(path: Path, table: _Table, name: str | None) -> tuple[bool, ...] | None:
    if name is None:
        return None
    return tuple(map(bool, _numbers(path, table, name, "0 or 1", lambda x: x in {0, 1})))


def _numbers(
    path: Path, table: _Table, name: str, expected: str, is_valid: Callable[[float], bool]
) -> list[float]:
    known = {text: _number(text) for text in set(table[name])}
    for number, text in enumerate(table[name], 1):
        if not is_valid(known[text]):
            raise _cell_error(path, number, name, quoted(text), expected)
    return [known[text] for text in table[name]]


def _number(text: str) -> float:
    truth = _TRUTHS.get(text.strip().lower())
    if truth is not None:
        return truth
    try:
        return float(text)
    except ValueError:
        return math.nan
