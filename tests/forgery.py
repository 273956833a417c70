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


def truncations(document: dict) -> list[dict]:
    facts = document["tensors"].values()
    return [fact["truncation"] for fact in facts if fact["truncation"]]


def retotal(document: dict) -> None:
    """Make the totals follow from the tensors."""
    cuts = truncations(document)
    totals = document["totals"]
    totals["tensors"], totals["truncated"] = len(document["tensors"]), len(cuts)
    totals["copied"] = len(document["tensors"]) - len(cuts)
    totals["rank"] = sum(matrix["rank"] for cut in cuts for matrix in cut["matrices"])
    totals["full_rank"] = sum(cut["full_rank"] * len(cut["matrices"]) for cut in cuts)
    parameters = 0
    for fact in document["tensors"].values():
        cut, shape = fact["truncation"], fact["shape"]
        if cut is not None:
            stack = len(shape) == 3 and len(cut["matrices"]) == shape[0]
            sides = shape[1:] if stack else (cut["rows"], math.prod(shape[1:]))
            parameters += sum(matrix["rank"] for matrix in cut["matrices"]) * sum(sides)
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
