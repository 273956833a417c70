"""Check the folder of a result against its manifest: every byte that the manifest names.

It reads nothing outside of the folder but weights that the folder links to, and only regular
files.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath

from svdcut.adapter.peft_config import read_peft_config
from svdcut.adapter.tensors import collect_tensors
from svdcut.errors import CheckpointError, InputError
from svdcut.files.checkpoint import open_checkpoint
from svdcut.files.filenames import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_NAME,
    INDEX_NAME,
    MANIFEST_NAME,
    WEIGHTS_NAME,
    is_own,
)
from svdcut.files.header import read_header
from svdcut.files.jsonfile import check_regular
from svdcut.files.tensorfile import LENGTH_BYTES, TensorEntry, hash_file, iterate_bytes
from svdcut.machine import num_cores
from svdcut.record.manifest import FileFact, Manifest, TensorFact, WeightFileFact
from svdcut.record.progress import Observer, Progress
from svdcut.streaming.memory import SPARE_BYTES
from svdcut.streaming.pool import Pool
from svdcut.verification.findings import Failure, differences

_PIECE_BYTES = 16 << 20
"""Memory that a tensor takes while it is hashed."""

_HARMLESS = re.compile(
    r"""
      \..*                                                # .git, .gitattributes
    | (?!.*(vocab|merges|dict)).*\.txt                    # the others are of tokenizers
    | .*\.(md|rst|pdf|html?|bib|cff|ipynb|csv|tsv|jsonl|log|ya?ml|png|jpe?g|gif|svg|webp|mp4)
    | (licen[cs]e|copying|notice|authors)[\w-]*           # with an ending, see above
    | (.*(results|metrics).*|trainer_state)\.json
    | events\.out\.tfevents\..*\d
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""Names of files that people add, and no loader takes: all others could change what is loaded."""


def check_folder(
    out: Path, manifest: Manifest, observe: Observer
) -> tuple[dict[str, TensorEntry], list[Failure]]:
    """Check every file and every tensor of a result.

    Parameters
    ----------
    out : Path
        The folder.
    manifest : Manifest
        The manifest of the result.
    observe : callable
        Called after each tensor that is hashed.

    Returns
    -------
    tuple of dict and list of Failure
        The tensors of its weight files by name, and every claim that does not hold.

    Notes
    -----
    Reads every byte once. Memory is a piece of a tensor for each thread.
    """
    entries = {entry.name: entry for entry in _entries(out, manifest)}
    claims = _claims(manifest)
    checks = (_check_file(out, name, fact) for name, fact in manifest.files.items())
    failures = [failure for failure in checks if failure is not None]
    failures += _find_strays(out, manifest)
    failures += _check_entries(claims, entries)
    if all(failure.is_note for failure in failures):
        failures += _check_adapter(out) if manifest.adapter else _check_checkpoint(out, entries)
    total = sum(fact.size for fact in manifest.files.values())
    failures += _hash_tensors(claims, entries, total, observe)
    return entries, failures


def _regular_file(out: Path, name: str) -> Path | None:
    """Return the path of a file that a manifest names, or None where there is none.

    A name that leads out of the folder names none; nor does one of a device or a pipe,
    which would never end.
    """
    parts = PurePosixPath(name)
    if not name or parts.is_absolute() or ".." in parts.parts:
        return None
    path = out / parts
    try:
        check_regular(path)
    except (OSError, ValueError):
        return None
    return path


def _entries(out: Path, manifest: Manifest) -> Iterator[TensorEntry]:
    for name, fact in manifest.files.items():
        path = _regular_file(out, name) if isinstance(fact, WeightFileFact) else None
        if path is not None:
            with suppress(CheckpointError):  # `_check_file` says why
                yield from read_header(path).entries


def _check_file(out: Path, name: str, fact: WeightFileFact | FileFact) -> Failure | None:
    """Return the first claim about a file that does not hold."""
    path, wanted = _regular_file(out, name), "a file in this folder"
    if path is None:
        return Failure("files", None, wanted, file=name)
    if isinstance(fact, FileFact) and not is_own(path, out):
        return Failure("files", "a link out of it", wanted, file=name)
    size = path.stat().st_size
    if size != fact.size:
        return Failure("size", size, fact.size, file=name)
    try:
        if isinstance(fact, FileFact):
            claim, said, found = "sha256", fact.sha256, hash_file(path, threading.Event())
        else:
            claim, said, found = "header_sha256", fact.header_sha256, _hash_header(path)
    except CheckpointError as error:
        return Failure("files", error.what, "a file that can be read", file=name)
    return None if found == said else Failure(claim, found, said, file=name)


def _hash_header(path: Path) -> str:
    read_header(path)  # refuses what is not well-formed
    with path.open("rb") as file:
        length = file.read(LENGTH_BYTES)
        return hashlib.sha256(length + file.read(int.from_bytes(length, "little"))).hexdigest()


def _find_strays(out: Path, manifest: Manifest) -> Iterator[Failure]:
    """Yield files that a loader could take, and the manifest does not list."""
    known = {MANIFEST_NAME, *manifest.files}
    for folder, beneath, files in os.walk(out):
        beneath[:] = sorted(name for name in beneath if not name.startswith("."))
        links = [name for name in beneath if Path(folder, name).is_symlink()]
        for name in sorted(files + links):
            path = Path(folder, name).relative_to(out).as_posix()
            if path not in known and not _HARMLESS.fullmatch(name):
                yield Failure("files", "a file that loaders may take", None, file=path)


def _claims(manifest: Manifest) -> Mapping[str, TensorFact]:
    """Return what a manifest says of each tensor in its files, by the names there."""
    if manifest.adapter is None:
        return manifest.tensors
    return {
        name: TensorFact("", fact.shape, fact.dtype, ADAPTER_NAME, fact.sha256)
        for name, fact in manifest.adapter.tensors.items()
    }


def _check_entries(
    claims: Mapping[str, TensorFact], entries: Mapping[str, TensorEntry]
) -> Iterator[Failure]:
    for name, claimed in claims.items():
        entry = entries.get(name)
        if entry is None:
            yield Failure("tensors", None, f"in {claimed.file}", tensor=name)
            continue
        file, dtype = entry.path.name, entry.dtype.value
        found = replace(claimed, file=file, shape=entry.shape, dtype=dtype)
        for claim in differences(found, claimed, "file", "shape", "dtype"):
            yield Failure(*claim, tensor=name)
    for name in sorted(entries.keys() - claims.keys()):
        yield Failure("tensors", f"in {entries[name].path.name}", None, tensor=name)


def _check_adapter(out: Path) -> Iterator[Failure]:
    """Check that what PEFT will load is an adapter."""
    try:
        read_peft_config(out / ADAPTER_CONFIG_NAME)
        collect_tensors(read_header(out / ADAPTER_NAME))
    except InputError as error:
        name = ADAPTER_NAME
        yield Failure("adapter", error.what, "one that can be opened", file=name)


def _check_checkpoint(out: Path, entries: Mapping[str, TensorEntry]) -> Iterator[Failure]:
    """Check that loaders find the tensors where they are."""
    name = INDEX_NAME if (out / INDEX_NAME).is_file() else WEIGHTS_NAME
    try:
        checkpoint = open_checkpoint(out)
    except CheckpointError as error:
        yield Failure("checkpoint", error.what, "one that can be opened", file=name)
        return
    if checkpoint.tensors != entries:
        found = f"{len(checkpoint.tensors)} tensors"
        yield Failure("checkpoint", found, f"{len(entries)}, as in the files", file=name)
    metadata = (checkpoint.index or {}).get("metadata")
    if isinstance(metadata, dict) and "total_size" in metadata:
        total = sum(entry.size_bytes for entry in entries.values())
        if metadata["total_size"] != total:
            yield Failure("total_size", total, metadata["total_size"], file=name)


def _hash_tensors(
    claims: Mapping[str, TensorFact],
    entries: Mapping[str, TensorEntry],
    total: int,
    observe: Observer,
) -> Iterator[Failure]:
    names = [name for name in claims if name in entries]

    def task(number: int) -> str:
        name, digest = names[number], hashlib.sha256()
        try:
            for piece in iterate_bytes(entries[name]):
                digest.update(piece)
        except CheckpointError as error:
            return error.what
        observe(Progress("result", name, entries[name].size_bytes, total))
        return digest.hexdigest()

    with Pool(num_cores(), SPARE_BYTES) as pool:
        found = pool.map(task, [_PIECE_BYTES] * len(names))
        for name, sha256 in zip(names, found, strict=True):
            if sha256 != claims[name].sha256:
                yield Failure("sha256", sha256, claims[name].sha256, tensor=name)
