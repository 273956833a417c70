"""Damage and forge results, as one does who makes every hash fit again."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from pathlib import Path

from svdcut.files.header import read_header
from svdcut.files.tensorfile import read_bytes
from svdcut.record.manifest import Manifest

COUNTS = ("rank", "full_rank")


def read(out: Path) -> dict:
    return json.loads((out / "svdcut.json").read_bytes())


def write(out: Path, document: dict) -> None:
    """Write a manifest with the digest and the totals that belong to it."""
    retotal(document)
    (out / "svdcut.json").write_bytes(Manifest.loads(json.dumps(document)).dumps().encode())


def change(out: Path, edit) -> None:
    """Edit a manifest in place; `edit` takes its document."""
    document = read(out)
    edit(document)
    write(out, document)


def as_list(value) -> list:
    return value if isinstance(value, list) else [value]


def retotal(document: dict) -> None:
    """Make the totals follow from the tensors."""
    cuts = [fact for fact in document["tensors"].values() if fact["action"] == "truncate"]
    totals = document["totals"]
    totals["tensors"], totals["truncated"] = len(document["tensors"]), len(cuts)
    totals["copied"] = len(document["tensors"]) - len(cuts)
    totals["rank"] = sum(sum(as_list(fact["rank"])) for fact in cuts)
    totals["full_rank"] = sum(fact["full_rank"] * len(as_list(fact["rank"])) for fact in cuts)
    parameters = 0
    for fact in cuts:
        stack = isinstance(fact["rank"], list)
        shape = fact["shape"][1:] if stack else (fact["rows"], math.prod(fact["shape"][1:]))
        parameters += sum(as_list(fact["rank"])) * sum(shape)
    totals["parameters_kept"] = parameters
    norm, tail, rounding = (
        math.hypot(*(fact[key] for fact in cuts))
        for key in ("update_norm", "tail_norm", "rounding_error")
    )
    totals["energy_retained"] = 1 - (tail / norm) ** 2 if norm else None
    totals["tail_norm"], totals["rounding_error"] = tail, rounding


def span(path: Path, name: str) -> tuple[int, int]:
    """Return where the bytes of a tensor are in its file."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        start, stop = json.loads(file.read(length))[name]["data_offsets"]
    return 8 + length + start, 8 + length + stop


def replace_tensor(out: Path, name: str, raw: bytes) -> None:
    """Put other bytes in place of a tensor, and their hash into the manifest."""
    path = out / read(out)["tensors"][name]["file"]
    start, stop = span(path, name)
    assert stop - start == len(raw)
    data = bytearray(path.read_bytes())
    assert data[start:stop] != raw
    data[start:stop] = raw
    path.write_bytes(data)
    change(out, lambda d: d["tensors"][name].__setitem__("sha256", hashlib.sha256(raw).hexdigest()))


def replace_file(out: Path, name: str, data: bytes) -> None:
    """Put other content into a file, and its size and hash into the manifest."""
    (out / name).write_bytes(data)
    fact = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    change(out, lambda d: d["files"].__setitem__(name, fact))


def rehash_adapter(out: Path) -> None:
    """Make the hashes of an adapter's manifest agree with its file."""
    path = out / "adapter_model.safetensors"
    header = read_header(path)

    def edit(document: dict) -> None:
        for entry in header.entries:
            digest = hashlib.sha256(read_bytes(entry)).hexdigest()
            document["adapter"]["tensors"][entry.name]["sha256"] = digest
        raw = path.read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        document["files"][path.name] = {
            "size": len(raw),
            "header_sha256": hashlib.sha256(raw[:start]).hexdigest(),
        }

    change(out, edit)
