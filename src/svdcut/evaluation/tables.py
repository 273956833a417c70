"""Tables that a stranger wrote, row by row: CSV, TSV, JSON Lines, JSON and Parquet.

Knows formats and names of columns; says nothing of what a column means.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from svdcut.errors import DataError
from svdcut.evaluation.lines import (
    COMPRESSED,
    Lines,
    Row,
    check_columns,
    check_texts,
    open_lines,
    open_text,
)
from svdcut.evaluation.parquet import read_parquet
from svdcut.files.jsonfile import check_num_values, quoted

_MAX_DOCUMENT = 512 << 20
_MAX_VALUES = 20_000_000
"""Of a JSON document, which is in memory as a whole."""

_MAX_ROW_VALUES = 1_000_000
_MAX_DIGITS = 4000
_MAX_COLUMNS = 10_000
_QUOTES = (
    "Quotes open and close a field, and are written twice within one; one that is not closed "
    "takes in what follows it. JSON Lines have no such rules, and no limit on texts."
)


def read_rows(path: Path, wanted: Sequence[str]) -> Iterator[Row]:
    """Yield some columns of a table, row by row; blank lines are none.

    Parameters
    ----------
    path : Path
        ``.csv``, ``.tsv``, ``.jsonl``, ``.json`` (a list of objects, or JSON Lines) or
        ``.parquet``; text may be compressed, as ``.csv.gz`` or ``.csv.bz2``.
    wanted : sequence of str
        Names of columns; the cells of a row come in this order.

    Yields
    ------
    sequence
        Text of CSV and TSV; of the others, whatever a cell holds. Every text is Unicode
        without NUL.

    Raises
    ------
    DataError
        If the file cannot be read, is not of the format that its name says, lacks a column,
        has two of one name, or a row is not like the others.
    """
    *_, kind, last = "", "", *(suffix.lower() for suffix in path.suffixes)
    read = _READERS.get(last)
    if last in COMPRESSED and kind != ".parquet":
        read = _READERS.get(kind)
    if read is None:
        raise DataError(
            f"{path}: its name does not end as that of a table",
            hint=f"Tables are {', '.join(_READERS)}; text may be compressed, as .csv.gz.",
        )
    return read(path, wanted)


def _delimited(dialect: str, path: Path, wanted: Sequence[str]) -> Iterator[Row]:
    with open_lines(path, first_row=0) as lines:
        rows = _fields(lines, dialect)
        header = next(rows, None)
        if header is None:
            raise DataError(f"{path}: empty", hint="Its first line must name the columns.")
        if len(header) > _MAX_COLUMNS:
            what = f"{len(header)} columns, where at most {_MAX_COLUMNS} are expected"
            raise DataError(f"{path}: {what}", hint="Save the columns that are needed.")
        check_texts(lines.where, range(1, len(header) + 1), header)
        check_columns(str(path), header, wanted)
        places = [header.index(name) for name in wanted]
        lines.end_row()
        for row in rows:
            if len(row) != len(header):
                raise DataError(
                    f"{lines.where}: {len(row)} fields, where the header names {len(header)}",
                    hint="Put quotes around fields that hold the delimiter or line breaks.",
                )
            check_texts(lines.where, header, row)
            yield [row[place] for place in places]
            lines.end_row()


def _fields(lines: Lines, dialect: str) -> Iterator[list[str]]:
    reader = csv.reader(lines, dialect, strict=True)
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{lines.where}: {error}", hint=_QUOTES) from error
        if row is None:
            return
        if row:
            yield row


def _json(path: Path, wanted: Sequence[str]) -> Iterator[Row]:
    with open_text(path) as file:
        is_list = file.read(1024).lstrip().startswith("[")
    return _json_list(path, wanted) if is_list else _json_lines(path, wanted)


def _json_list(path: Path, wanted: Sequence[str]) -> Iterator[Row]:
    with open_text(path) as file:
        text = file.read(_MAX_DOCUMENT + 1)
    if len(text) > _MAX_DOCUMENT:
        raise DataError(
            f"{path}: larger than {_MAX_DOCUMENT >> 20} MB",
            hint="Save it as JSON Lines (.jsonl), which are read one by one.",
        )
    for number, item in enumerate(_parse(str(path), text, _MAX_VALUES), 1):
        yield pick_cells(f"{path}: row {number}", item, wanted)


def _json_lines(path: Path, wanted: Sequence[str]) -> Iterator[Row]:
    with open_lines(path) as lines:
        for line in lines:
            if line.isspace():
                continue
            item = _parse(lines.where, line, _MAX_ROW_VALUES)
            yield pick_cells(lines.where, item, wanted)
            lines.end_row()


def _parse(where: str, text: str, max_values: int) -> Any:  # noqa: ANN401
    hint = "Each line of JSON Lines is a JSON object; a .json file may be a list of them."
    try:
        check_num_values(text, max_values)
        return json.loads(text, parse_int=_parse_int, object_pairs_hook=_without_repeats)
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON ({error})", hint=hint) from error
    except RecursionError as error:
        raise DataError(f"{where}: nested too deep", hint=hint) from error


def _parse_int(text: str) -> int:
    """Return an integer, if it is not so long that it takes minutes to read."""
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of these pairs, of which no two have one name."""
    result = dict(pairs)
    if len(result) != len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{quoted(twice)} is named twice")
    return result


def pick_cells(where: str, item: object, wanted: Sequence[str]) -> Row:
    """Return some fields of a JSON object.

    Raises
    ------
    DataError
        If it is none, lacks a field, or holds text that is not Unicode.
    """
    if not isinstance(item, dict):
        raise DataError(
            f"{where}: {quoted(item)}, where a JSON object is expected",
            hint='Each example is an object, as {"text": "...", "label": 1}.',
        )
    names: list[str] = list(item)
    check_texts(where, range(1, len(names) + 1), names)
    if not all(name in item for name in wanted):
        check_columns(where, names, wanted)
    row = [item[name] for name in wanted]
    check_texts(where, wanted, row)
    return row


_READERS: dict[str, Callable[[Path, Sequence[str]], Iterator[Row]]] = {
    ".csv": partial(_delimited, "excel"),
    ".tsv": partial(_delimited, "excel-tab"),
    ".jsonl": _json_lines,
    ".json": _json,
    ".parquet": read_parquet,
}
