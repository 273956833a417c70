"""Parquet that a stranger wrote, row by row within bounds. It imports pyarrow when it reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from svdcut.errors import DataError
from svdcut.evaluation.lines import (
    MAX_ROW,
    Row,
    check_columns,
    check_texts,
    max_text,
    readable,
    too_large,
)
from svdcut.files.jsonfile import check_regular, quoted
from svdcut.shown import byte_size

_MAX_ROWS = 8192
"""In memory at a time."""

_MAX_ROW_GROUP = 1 << 30
"""Bytes of the columns that are read, as the file says; a few kilobytes can stand for all."""


def read_parquet(path: Path, wanted: Sequence[str]) -> Iterator[Row]:
    """Yield some columns row by row, as `svdcut.evaluation.tables.read_rows` does."""
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
            with pq.ParquetFile(path) as file:
                names = list(file.schema_arrow.names)
                check_columns(str(path), names, wanted)
                _check_row_groups(path, file.metadata, wanted)
                _check_kinds(path, {name: file.schema_arrow.field(name).type for name in wanted})
            # As a dictionary, a text that many rows share is in memory once; numbers stay.
            with pq.ParquetFile(path, read_dictionary=list(wanted)) as file:
                yield from _rows(path, file, wanted)
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


def _rows(path: Path, file: Any, wanted: Sequence[str]) -> Iterator[Row]:  # noqa: ANN401
    number = size = 0
    most = max_text(path)
    batches = file.iter_batches(_MAX_ROWS, columns=list(wanted), use_threads=False)
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
            check_texts(f"{path}: row {number}", wanted, row)
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
