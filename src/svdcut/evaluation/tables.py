"""Tables that a stranger wrote, row by row: CSV, TSV, JSON Lines, JSON and Parquet.

Knows formats and names of columns; says nothing of what a column means.
"""

from __future__ import annotations

import csv
import difflib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from svdcut.errors import DataError
from svdcut.evaluation.lines import (
    COMPRESSED,
    MAX_ROW,
    Lines,
    flaw,
    max_text,
    open_lines,
    open_text,
    readable,
    too_large,
)
from svdcut.files.jsonfile import check_num_values, check_regular, quoted
from svdcut.shown import byte_size

_MAX_DOCUMENT = 512 << 20
_MAX_VALUES = 20_000_000
"""Of a JSON document, which is in memory as a whole."""

_MAX_ROW_VALUES = 1_000_000
_MAX_DIGITS = 4000
_MAX_LISTED = 20
_MAX_COMPARED = 1000
_MAX_COLUMNS = 10_000
_PARQUET_ROWS = 8192
"""In memory at a time."""

_MAX_ROW_GROUP = 1 << 30
"""Bytes of the columns that are read, as the file says; a few kilobytes can stand for all."""

_NOT_UTF8 = "Save the file as UTF-8."
_QUOTES = (
    "Quotes open and close a field, and are written twice within one; one that is not closed "
    "takes in what follows it. JSON Lines have no such rules, and no limit on texts."
)

Row = Sequence[object]


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


def _csv(path: Path, wanted: Sequence[str]) -> Iterator[Row]:
    return _delimited(path, wanted, "excel")


def _tsv(path: Path, wanted: Sequence[str]) -> Iterator[Row]:
    return _delimited(path, wanted, "excel-tab")


def _delimited(path: Path, wanted: Sequence[str], dialect: str) -> Iterator[Row]:
    with open_lines(path, first_row=0) as lines:
        rows = _fields(lines, dialect)
        header = next(rows, None)
        if header is None:
            raise DataError(f"{path}: empty", hint="Its first line must name the columns.")
        if len(header) > _MAX_COLUMNS:
            what = f"{len(header)} columns, where at most {_MAX_COLUMNS} are expected"
            raise DataError(f"{path}: {what}", hint="Save the columns that are needed.")
        _check_texts(lines.where, range(1, len(header) + 1), header)
        _check_columns(str(path), header, wanted)
        places = [header.index(name) for name in wanted]
        lines.end_row()
        for row in rows:
            if len(row) != len(header):
                raise DataError(
                    f"{lines.where}: {len(row)} fields, where the header names {len(header)}",
                    hint="Put quotes around fields that hold the delimiter or line breaks.",
                )
            _check_texts(lines.where, header, row)
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
    _check_texts(where, range(1, len(names) + 1), names)
    if not all(name in item for name in wanted):
        _check_columns(where, names, wanted)
    row = [item[name] for name in wanted]
    _check_texts(where, wanted, row)
    return row


def _parquet(path: Path, wanted: Sequence[str]) -> Iterator[Row]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DataError(
            f"{path}: Parquet needs pyarrow, which is not installed",
            hint="pip install pyarrow, or save it as CSV or JSON Lines.",
        ) from error
    try:
        with readable(path):
            check_regular(path)
            # As a dictionary, a text that many rows share is in memory once.
            with pq.ParquetFile(path) as file:
                names = list(file.schema_arrow.names)
                _check_columns(str(path), names, wanted)
                _check_row_groups(path, file.metadata, wanted)
                kinds = {name: file.schema_arrow.field(name).type for name in wanted}
                _check_kinds(path, kinds)
                texts = [name for name, kind in kinds.items() if _is_text(kind)]
            with pq.ParquetFile(path, read_dictionary=texts) as file:
                yield from _parquet_rows(path, file, wanted)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as Parquet: {error}") from error


def _check_row_groups(path: Path, metadata: Any, wanted: Sequence[str]) -> None:  # noqa: ANN401
    """Refuse a part that would take far more memory than a table's does."""
    groups = range(metadata.num_row_groups) if metadata.num_columns else ()
    most = min(_MAX_ROW_GROUP, max_text(path))
    for group in map(metadata.row_group, groups):
        columns = map(group.column, range(group.num_columns))
        size = sum(
            column.total_uncompressed_size for column in columns if column.path_in_schema in wanted
        )
        if size > most:
            raise DataError(
                f"{path}: a row group of {byte_size(size)}, where at most "
                f"{byte_size(most)} are read at a time",
                hint="Save it with smaller row groups, or as JSON Lines.",
            )


def _check_kinds(path: Path, kinds: Mapping[str, Any]) -> None:
    """Refuse columns of lists and their like, of which no cell is a text or a number."""
    import pyarrow as pa

    for name, kind in kinds.items():
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        if pa.types.is_nested(plain) or pa.types.is_binary(plain):
            raise DataError(
                f"{path}: column {quoted(name)} is of {quoted(str(kind))}, where text or numbers "
                "are expected"
            )


def _is_text(kind: Any) -> bool:  # noqa: ANN401
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _parquet_rows(path: Path, file: Any, wanted: Sequence[str]) -> Iterator[Row]:  # noqa: ANN401
    number = size = 0
    most = max_text(path)
    batches = file.iter_batches(_PARQUET_ROWS, columns=list(wanted), use_threads=False)
    for batch in batches:
        columns = [_values(batch.column(batch.schema.get_field_index(name))) for name in wanted]
        for row in zip(*columns, strict=True):
            number += 1
            lengths = [len(cell) for cell in row if isinstance(cell, str)]
            size += sum(lengths)
            if max(lengths, default=0) > MAX_ROW:
                what = f"longer than {MAX_ROW >> 20} MB, which no example is"
                raise DataError(f"{path}: row {number}: {what}")
            if size > most:
                raise too_large(path, most)
            _check_texts(f"{path}: row {number}", wanted, row)
            yield row


def _values(array: Any) -> list[object]:  # noqa: ANN401
    import pyarrow as pa

    if not pa.types.is_dictionary(array.type):
        values: list[object] = array.to_pylist()
        return values
    places = array.indices.to_pylist()
    used = sorted({place for place in places if place is not None})
    taken = array.dictionary.take(pa.array(used, pa.int64())).to_pylist()
    known = dict(zip(used, taken, strict=True))
    return [None if place is None else known[place] for place in places]


def _check_columns(where: str, names: Sequence[str], wanted: Iterable[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1 and name]
    if twice:
        raise DataError(
            f"{where}: {len(twice)} names stand for several columns: {quoted(twice[0])}"
            if len(twice) > 1
            else f"{where}: two columns are named {quoted(twice[0])}",
            hint="Give each column a name of its own.",
        )
    for name in wanted:
        if name not in names:
            raise DataError(f"{where}: no column {quoted(name)}", hint=_suggestion(name, names))


def _suggestion(name: str, names: Sequence[str]) -> str:
    listed = ", ".join(quoted(there) for there in names[:_MAX_LISTED])
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    folded = {there[:100].casefold().strip(): there for there in names[:_MAX_COMPARED]}
    near = difflib.get_close_matches(name[:100].casefold(), folded, n=1)
    question = f"; did you mean {quoted(folded[near[0]])}?" if near else "."
    return f"There are {listed}{more}{question}"


def _check_texts(where: str, names: Iterable[object], row: Iterable[object]) -> None:
    for name, cell in zip(names, row, strict=True):
        found = flaw(cell) if isinstance(cell, str) else None
        if found is not None:
            raise DataError(
                f"{where}, column {quoted(name)}: {found}, where text is expected", hint=_NOT_UTF8
            )


_READERS: dict[str, Callable[[Path, Sequence[str]], Iterator[Row]]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".jsonl": _json_lines,
    ".json": _json,
    ".parquet": _parquet,
}
