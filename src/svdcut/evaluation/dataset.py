"""Labelled examples and their groups. It imports neither numpy nor torch."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from svdcut.errors import DataError, UsageError
from svdcut.evaluation.options import DataOptions
from svdcut.evaluation.tables import read_rows
from svdcut.files.jsonfile import quoted

T = TypeVar("T")

_MAX_GROUPS = 10_000

_NUMBER = re.compile(r"-?\d+(\.\d+)?", re.ASCII)
_NO_FRACTION = re.compile(r"\.0+\Z")
_TRUTHS = {"true": "1", "false": "0"}

_Table = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Dataset:
    """Labelled examples; each column has one cell per row."""

    source: str
    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    """The second texts, for a task on pairs."""

    labels: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]]
    """The columns of labels and groups, with cells as in the file: ``1``, ``positive``; ``1.0``
    in a column of numbers is ``1``."""

    groups: tuple[tuple[str, ...], ...]
    """The groups of each row; none, one or several.

    A product of columns makes disjoint groups, named ``col=value`` and joined by ``, ``: as in
    group DRO, where label and negation make six groups of MultiNLI (Sagawa et al. 2020,
    https://arxiv.org/abs/1911.08731). A column of memberships makes a group for each label,
    named ``male, label=1``: as in CivilComments-WILDS, where eight identities make sixteen
    groups (Koh et al. 2021, https://arxiv.org/abs/2012.07421).
    """

    aligned: tuple[bool, ...] | None
    """Whether a shortcut agrees with the label; None if that is not known."""

    rows: tuple[int, ...]
    """The number of each row in the file, from 1; the header is not counted."""

    classes: tuple[str, ...]
    """The distinct labels of the whole file, in its order, whatever a sample leaves out."""

    def sample(self, limit: int, seed: int) -> Dataset:
        """Return a random sample of the rows, in their order."""
        # Only random() gives the same numbers in every version of Python.
        draw = random.Random(seed).random  # noqa: S311
        keys = [draw() for _ in self.rows]
        taken = sorted(sorted(range(len(keys)), key=keys.__getitem__)[:limit])

        def take(column: Sequence[T]) -> tuple[T, ...]:
            return tuple(column[place] for place in taken)

        return replace(
            self,
            texts=take(self.texts),
            pairs=None if self.pairs is None else take(self.pairs),
            labels=take(self.labels),
            columns={name: take(column) for name, column in self.columns.items()},
            groups=take(self.groups),
            aligned=None if self.aligned is None else take(self.aligned),
            rows=take(self.rows),
        )


def read_dataset(path: str | Path, options: DataOptions) -> Dataset:
    """Read labelled examples from CSV, TSV, JSON Lines, JSON or Parquet, by the suffix.

    With `limit` it is a random sample, without replacement, in the order of the file. A smaller
    sample is part of a larger one. The whole file is checked.

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
    _check_columns(options)
    names = tuple(dict.fromkeys((options.label, *options.grouping)))
    table = _read_table(path, options.text_columns, names)
    _check_values(path, {name: table[name] for name in names}, options.label)
    labels = table[options.label]
    dataset = Dataset(
        source=str(path),
        texts=table[options.text],
        pairs=None if options.text_pair is None else table[options.text_pair],
        labels=labels,
        columns={name: table[name] for name in names},
        groups=_make_groups(path, table, options),
        aligned=_read_alignment(path, table, options.aligned),
        rows=tuple(range(1, len(labels) + 1)),
        classes=tuple(dict.fromkeys(labels)),
    )
    return dataset if options.limit is None else dataset.sample(options.limit, options.seed)


def _check_columns(options: DataOptions) -> None:
    aligned = () if options.aligned is None else (options.aligned,)
    others = dict.fromkeys((options.label, *options.grouping))
    grouping = (options.group, options.group_columns, (options.label, *aligned))
    for names in ((*options.text_columns, *others), *grouping):
        for twice in _repeated(names):
            raise UsageError(
                f"the column {quoted(twice)} is named for two things",
                hint="Text, second text and label are columns of their own; name a group once.",
            )


def _repeated(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


# Cells


def _read_table(path: Path, texts: Sequence[str], others: Sequence[str]) -> _Table:
    """Return the cells of each column as text; the columns that are not texts may hold numbers."""
    wanted = (*texts, *others)
    table: dict[str, list[str]] = {name: [] for name in wanted}
    known: dict[str, str] = {}  # keeps a label that many rows share in memory once
    for number, row in enumerate(read_rows(path, wanted), 1):
        for name, cell in zip(wanted, row, strict=True):
            is_text = name in texts
            text = _to_text(path, number, name, cell, only_text=is_text)
            table[name].append(text if is_text else known.setdefault(text, text))
    if not table[wanted[0]]:
        raise DataError(f"{path}: no rows")
    for name in others:
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


def _check_values(path: Path, table: _Table, label: str) -> None:
    for name, column in table.items():
        what, hint = "value", "It tells no groups apart; leave it out, or name another."
        if name == label:
            what, hint = "label", "With one class, accuracy tells nothing."
        for number, text in enumerate(column, 1):
            if not text.strip():
                raise _cell_error(path, number, name, "nothing", f"a {what}")
        only, *others = set(column)
        if not others:
            raise DataError(
                f"{path}: column {quoted(name)}: every row has the {what} {quoted(only)}, "
                "where at least two are expected",
                hint=hint,
            )


# Groups


def _make_groups(path: Path, table: _Table, options: DataOptions) -> tuple[tuple[str, ...], ...]:
    """Return the names of each row's groups."""
    labels = table[options.label]
    parts: list[list[str | None]] = []
    names: list[str] = []
    if options.group:
        keys = list(zip(*(table[name] for name in options.group), strict=True))
        product = {key: _product_name(options.group, key) for key in dict.fromkeys(keys)}
        names += product.values()
        parts.append([product[key] for key in keys])
    for name in options.group_columns:
        with_label = {label: f"{name}, {options.label}={label}" for label in dict.fromkeys(labels)}
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
