"""Labelled examples and their groups. It imports neither numpy nor torch."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from svdcut.errors import DataError, UsageError
from svdcut.evaluation.metrics import Grouping
from svdcut.evaluation.tables import read_rows
from svdcut.files.jsonfile import quoted

_MAX_GROUPS = 10_000

_NUMBER = re.compile(r"-?\d+(\.\d+)?", re.ASCII)
_NO_FRACTION = re.compile(r"\.0+\Z")
_TRUTHS = {"true": "1", "false": "0"}

_Table = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a table by their meaning."""

    text: str = "text"
    label: str = "label"
    text_pair: str | None = None
    group: tuple[str, ...] = ()
    """Columns whose product makes disjoint groups, named ``col=value``, joined by ``, ``.

    As in group DRO, where label and negation make six groups of MultiNLI.
    Sagawa et al. 2020, https://arxiv.org/abs/1911.08731
    """

    group_columns: tuple[str, ...] = ()
    """Columns that make overlapping groups: a row is a member from 0.5 up, of 0 to 1.

    Each group is a column with a label, named ``male, label=1``. A row that belongs to no group
    counts in the average only. As in CivilComments-WILDS, where eight identities make sixteen
    groups. Koh et al. 2021, https://arxiv.org/abs/2012.07421
    """

    aligned: str | None = None
    """Column of 0 or 1: whether the shortcut agrees with the label."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns of texts."""
        return (self.text,) if self.text_pair is None else (self.text, self.text_pair)

    @property
    def values(self) -> tuple[str, ...]:
        """The columns of labels and groups, each once."""
        return tuple(dict.fromkeys((self.label, *self.grouping)))

    @property
    def grouping(self) -> tuple[str, ...]:
        """The columns that groups are made of, each once; with the label, if it splits some."""
        label = (self.label,) if self.group_columns else ()
        aligned = () if self.aligned is None else (self.aligned,)
        return tuple(dict.fromkeys((*label, *self.group, *self.group_columns, *aligned)))


@dataclass(frozen=True, slots=True)
class Dataset(Grouping):
    """Labelled examples."""

    source: str
    columns: Columns
    table: Mapping[str, tuple[str, ...]]
    """The cells of every named column, as in the file: ``1``, ``positive``; ``1.0`` in a column
    of numbers is ``1``."""

    rows: tuple[int, ...]
    """The number of each row in the file, from 1; the header is not counted."""

    classes: tuple[str, ...]
    """The distinct labels of the whole file, in its order, whatever a sample leaves out."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The text of each row."""
        return self.table[self.columns.text]

    @property
    def pairs(self) -> tuple[str, ...] | None:
        """The second text of each row, for a task on pairs."""
        name = self.columns.text_pair
        return None if name is None else self.table[name]

    @property
    def labels(self) -> tuple[str, ...]:
        """The label of each row."""
        return self.table[self.columns.label]

    def sample(self, limit: int, seed: int) -> Dataset:
        """Return a random sample of the rows, in their order."""
        # Only random() gives the same numbers in every version of Python.
        draw = random.Random(seed).random  # noqa: S311
        keys = [draw() for _ in self.rows]
        taken = sorted(sorted(range(len(keys)), key=keys.__getitem__)[:limit])
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
        The columns by their meaning.
    limit : int, optional
        Take a random sample of that many rows, without replacement, in the order of the
        file. A smaller sample is part of a larger one. The whole file is checked.
    seed : int
        Seed of the sample.

    Raises
    ------
    UsageError
        If one column has two meanings.
    DataError
        As `read_rows` does; if a label is empty; if there is only one label, or one value of a
        group column; if a membership is not a number from 0 to 1, or an alignment neither 0
        nor 1.
    """
    path = Path(path)
    _check_columns(columns)
    table = _read_table(path, columns)
    _check_values(path, table, columns)
    dataset = Dataset(
        groups=_make_groups(path, table, columns),
        aligned=_read_alignment(path, table, columns.aligned),
        source=str(path),
        columns=columns,
        table=table,
        rows=tuple(range(1, len(table[columns.label]) + 1)),
        classes=tuple(dict.fromkeys(table[columns.label])),
    )
    return dataset if limit is None else dataset.sample(limit, seed)


def _check_columns(columns: Columns) -> None:
    aligned = () if columns.aligned is None else (columns.aligned,)
    grouping = (columns.group, columns.group_columns, (columns.label, *aligned))
    for names in ((*columns.texts, *columns.values), *grouping):
        for twice in _repeated(names):
            raise UsageError(
                f"the column {quoted(twice)} is named for two things",
                hint="Text, second text and label are columns of their own; name a group once.",
            )


def _repeated(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


# Cells


def _read_table(path: Path, columns: Columns) -> _Table:
    """Return the cells of each column as text; label and group columns may hold numbers."""
    wanted = (*columns.texts, *columns.values)
    table: dict[str, list[str]] = {name: [] for name in wanted}
    known: dict[str, str] = {}  # keeps a label that many rows share in memory once
    for number, row in enumerate(read_rows(path, wanted), 1):
        for name, cell in zip(wanted, row, strict=True):
            is_text = name in columns.texts
            text = _to_text(path, number, name, cell, only_text=is_text)
            table[name].append(text if is_text else known.setdefault(text, text))
    if not table[columns.label]:
        raise DataError(f"{path}: no rows")
    for name in columns.values:
        table[name] = _drop_zero_fractions(table[name])
    return {name: tuple(column) for name, column in table.items()}


def _to_text(path: Path, number: int, name: str, cell: object, *, only_text: bool) -> str:
    expected = "text" if only_text else "text or a number"
    if isinstance(cell, str):
        if cell.isascii() or cell.encode(errors="replace").decode() == cell:
            return cell
        expected = "text"  # JSON can name half a character
    elif not only_text:
        if isinstance(cell, bool):
            return str(cell).lower()
        if isinstance(cell, int):
            return str(cell)
        if isinstance(cell, float) and math.isfinite(cell):
            return str(int(cell)) if cell.is_integer() else str(cell)
    raise _cell_error(path, number, name, "null" if cell is None else quoted(cell), expected)


def _drop_zero_fractions(column: list[str]) -> list[str]:
    """Return a column without ``.0``, which tables add to integers if some cells are empty."""
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
    for name in columns.values:
        what, hint = "value", "It tells no groups apart; leave it out, or name another."
        if name == columns.label:
            what, hint = "label", "With one class, accuracy tells nothing."
        for number, text in enumerate(table[name], 1):
            if not text.strip():
                raise _cell_error(path, number, name, "nothing", f"a {what}")
        only, *others = set(table[name])
        if not others:
            raise DataError(
                f"{path}: column {quoted(name)}: every row has the {what} {quoted(only)}, "
                "where at least two are expected",
                hint=hint,
            )


# Groups


def _make_groups(path: Path, table: _Table, columns: Columns) -> tuple[tuple[str, ...], ...]:
    """Return the names of each row's groups."""
    labels = table[columns.label]
    parts: list[list[str | None]] = []
    names: list[str] = []
    if columns.group:
        keys = list(zip(*(table[name] for name in columns.group), strict=True))
        product = {key: _product_name(columns.group, key) for key in dict.fromkeys(keys)}
        names += product.values()
        parts.append([product[key] for key in keys])
    for name in columns.group_columns:
        with_label = {label: f"{name}, {columns.label}={label}" for label in dict.fromkeys(labels)}
        names += with_label.values()
        shares = _numbers(path, table, name, "a number from 0 to 1", lambda x: 0 <= x <= 1)
        members = zip(shares, labels, strict=True)
        parts.append([with_label[label] if share >= 0.5 else None for share, label in members])
    _check_names(path, names)
    known: dict[tuple[str, ...], tuple[str, ...]] = {}  # keeps equal tuples in memory once
    rows = zip(*parts, strict=True) if parts else ((),) * len(labels)
    return tuple(known.setdefault(own, own) for own in (tuple(filter(None, row)) for row in rows))


def _product_name(names: Sequence[str], values: Sequence[str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in zip(names, values, strict=True))


def _check_names(path: Path, names: Sequence[str]) -> None:
    if len(names) > _MAX_GROUPS:
        raise DataError(
            f"{path}: {len(names)} groups, where at most {_MAX_GROUPS} are expected",
            hint="Name columns of few values.",
        )
    for twice in _repeated(names):
        raise DataError(
            f"{path}: two groups would be named {quoted(twice)}",
            hint="Take ', ' and '=' out of the values of the group columns, or of their names.",
        )


def _read_alignment(path: Path, table: _Table, name: str | None) -> tuple[bool, ...] | None:
    if name is None:
        return None
    return tuple(map(bool, _numbers(path, table, name, "0 or 1", lambda x: x in {0, 1})))


def _numbers(
    path: Path, table: _Table, name: str, expected: str, is_valid: Callable[[float], bool]
) -> list[float]:
    known = {text: _to_number(text) for text in set(table[name])}
    for number, text in enumerate(table[name], 1):
        if not is_valid(known[text]):
            raise _cell_error(path, number, name, quoted(text), expected)
    return [known[text] for text in table[name]]


def _to_number(text: str) -> float:
    try:
        return float(_TRUTHS.get(text.strip().lower(), text))
    except ValueError:
        return math.nan
