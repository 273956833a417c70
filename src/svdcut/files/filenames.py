"""The files of a model: their names, and whether they are there, its own, and can be read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Set
from fnmatch import fnmatchcase
from pathlib import Path

from svdcut.errors import CheckpointError
from svdcut.files.jsonfile import Bounds, check_regular, quoted, read_value

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
ADAPTER_NAME = "adapter_model.safetensors"
ADAPTER_CONFIG_NAME = "adapter_config.json"
CARD_NAME = "README.md"
MANIFEST_NAME = "svdcut.json"
CONFIG_NAME = "config.json"
MODULES_NAME = "modules.json"

SIDECARS = (
    "*.json",
    "*.txt",
    "*.model",
    "*.jinja",
    "*.py",
    "*.tiktoken",
    "*.spm",
    "*.vocab",
    "*.bpe",
    "*.codes",
    "*.tokenizer",
    "LICEN[CS]E*",
    "[Ll]icen[cs]e*",
    "COPYING*",
    "NOTICE*",
)
"""Names of small files that go along with the weights: what loaders read, and licences."""

SIDECAR_FOLDERS = {
    "additional_chat_templates": ("*.jinja",),
    "*_tokenizer": SIDECARS,
    "custom_generate": SIDECARS,
}
"""Folders that transformers reads beside the weights, and what it takes of each."""

_NOT_SIDECARS = (
    "*.index.json",
    MANIFEST_NAME,
    "trainer_state.json",
    "*_results.json",
    ADAPTER_CONFIG_NAME,
)

TOKENIZER_FILES = (
    *("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
    *("tekken.json", "*.model", "*.tiktoken", "*.spm", "*.vocab", "*.bpe", "*.codes", "*.jinja"),
)
"""Names of those sidecars that a tokenizer is made of."""

MAX_TENSORS = 250_000
"""Bounds the memory; the largest models have a quarter of that."""

_MODULE = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)
"""A folder beneath; what leads elsewhere is none."""

_GITS_OWN = re.compile(r"(^|/)\.git/(?!annex/)", re.IGNORECASE)
"""Git's own folder, which may hold an address with a password; git-annex keeps files there."""

CONFIG_BOUNDS = Bounds(num_bytes=16_000_000, num_values=1_000_000)
INCOMPLETE = "The checkpoint is incomplete; fetch or save it again."


def is_there(path: Path) -> bool:
    """Whether a name is taken, if only by a link that leads nowhere."""
    return os.path.lexists(path)


def _is_sidecar(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a file of this name goes along with the weights."""
    return any(fnmatchcase(name, pattern) for pattern in patterns) and not any(
        fnmatchcase(name, pattern) for pattern in _NOT_SIDECARS
    )


def module_folders(folder: Path) -> list[str]:
    """Return the folders of the modules that sentence-transformers loads, as it names them.

    Raises
    ------
    CheckpointError
        If the file that lists them, or one of them, is not the folder's own.
    """
    path = folder / MODULES_NAME
    if not is_there(path):
        return []
    check_own(path, folder)
    listed = read_value(path, CONFIG_BOUNDS)
    modules = listed if isinstance(listed, list) else []
    paths = [str(module.get("path")) for module in modules if isinstance(module, dict)]
    names = [name for name in paths if _MODULE.fullmatch(name)]
    for name in names:
        _check_within(folder / name, folder)
    return names


def sidecars(folder: Path | None) -> dict[Path, Path]:
    """Return the small files that loading needs, by their names relative to the folder.

    Raises
    ------
    CheckpointError
        If one cannot be read, would not end, as a pipe, or is a link out of its folder.
    """
    if folder is None:
        return {}
    try:
        found = [
            path
            for place, patterns in _places(folder)
            for path in place
            if _is_sidecar(path.name, patterns) and not path.is_dir()
        ]
    except OSError as error:
        raise unreadable(folder, error) from error
    for path in found:
        check_own(path, folder)
    return {path.relative_to(folder): path for path in found}


def _places(folder: Path) -> Iterator[tuple[Iterable[Path], tuple[str, ...]]]:
    """Yield what lies where loaders look, and the names of what they take of it."""
    yield folder.iterdir(), SIDECARS
    for pattern, names in SIDECAR_FOLDERS.items():
        yield folder.glob(f"{pattern}/*"), names
    for name in module_folders(folder):
        yield (folder / name).rglob("*"), (*SIDECARS, "*.safetensors")


def left_in(folder: Path, taken: Set[Path], within: Path = Path()) -> Iterator[str]:
    """Yield what lies in a folder beside the files that are taken; folders end in a slash."""
    parents = {parent for path in taken for parent in path.parents}
    for path in (folder / within).iterdir():
        name = within / path.name
        if name in taken or path.name.startswith("."):
            continue
        if path.is_dir() and name in parents:
            yield from left_in(folder, taken, name)
        else:
            yield f"{name.as_posix()}/" if path.is_dir() else name.as_posix()


def check_own(path: Path, folder: Path) -> None:
    """Raise if a file cannot be read, would not end, or is no file of its folder.

    Parameters
    ----------
    path : Path
        A small file, whose content may be copied into a result.
    folder : Path
        Of the model.

    Raises
    ------
    CheckpointError
        If it is a link that leads out of the folder: a stranger's link would put a file of the
        user's into what the user publishes. A snapshot in the cache of the Hub may link to the
        files of that cache.
    """
    try:
        path.stat()  # whether it is there at all
        _check_within(path, folder)
        check_regular(path)
        with path.open("rb"):
            pass
    except OSError as error:
        raise unreadable(path, error) from error


def _check_within(path: Path, folder: Path) -> None:
    if not is_own(path, folder):
        raise CheckpointError(
            f"{path}: a link to {quoted(os.path.realpath(path))}, which is no file of this folder: "
            "its content could end up in what you publish",
            hint="If it shall, put a copy in place of the link.",
        )


def is_own(path: Path, folder: Path) -> bool:
    """Whether a file is the folder's own, or of the Hub's cache where that is a snapshot."""
    # realpath: to it, a loop of links is no error.
    target, home = (Path(os.path.realpath(place)) for place in (path, folder))
    if target.is_relative_to(home):
        return _GITS_OWN.search(target.relative_to(home).as_posix()) is None
    return any(
        target.is_relative_to(place.parent / "blobs")
        for place in home.parents
        if place.name == "snapshots" and place.parent.name.startswith("models--")
    )


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """Return the error of a file that the system does not give."""
    if path.is_symlink() and not path.exists():
        target = quoted(str(path.readlink()))
        return CheckpointError(f"{path}: a link to {target}, which is not there", hint=INCOMPLETE)
    return CheckpointError(f"{path}: cannot be read: {error.strerror}")
