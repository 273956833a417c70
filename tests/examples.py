"""Labelled examples as files of every format that `svdcut evaluate` reads."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
from pathlib import Path

BOM = "\ufeff"


def write_csv(path: Path, table: dict[str, list], dialect: str = "excel", start: str = ""):
    """Write columns as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(start)
        writer = csv.writer(file, dialect, quoting=csv.QUOTE_MINIMAL)
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))


def objects(table: dict[str, list]) -> list[dict]:
    """Return the rows of columns."""
    return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]


def write_lines(path: Path, table: dict[str, list], *, ascii_only: bool = False):
    """Write columns as JSON Lines."""
    lines = [json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in objects(table)]
    path.write_bytes("".join(lines).encode())


def write_parquet(path: Path, table: dict[str, list]):
    """Write columns as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(table), path)


def compressed(path: Path, suffix: str) -> Path:
    """Compress a file."""
    compress = {".gz": gzip.compress, ".bz2": bz2.compress}[suffix]
    result = path.with_name(path.name + suffix)
    result.write_bytes(compress(path.read_bytes()))
    return result


def write_everything(folder: Path, table: dict[str, list]) -> list[Path]:
    """Write columns in every format, but for Parquet."""
    paths = [folder / name for name in ("a.csv", "bom.csv", "a.tsv", "a.jsonl", "e.jsonl")]
    write_csv(paths[0], table)
    write_csv(paths[1], table, start=BOM)
    write_csv(paths[2], table, "excel-tab")
    write_lines(paths[3], table)
    write_lines(paths[4], table, ascii_only=True)
    as_list, as_lines = folder / "list.json", folder / "lines.json"
    as_list.write_text(json.dumps(objects(table), indent=1))
    write_lines(as_lines, table)
    zipped = [compressed(paths[0], ".gz"), compressed(paths[3], ".bz2"), compressed(as_list, ".gz")]
    return [*paths, as_list, as_lines, *zipped]
