"""Open a directory, a file or a Hub id as one checkpoint.

Reads headers, index and config; no weights. It decides nothing about pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from svdcut.errors import CheckpointError
from svdcut.files import hub
from svdcut.files.filenames import (
    ADAPTER_CONFIG_NAME,
    CARD_NAME,
    CONFIG_BOUNDS,
    CONFIG_NAME,
    INDEX_NAME,
    MANIFEST_NAME,
    MAX_TENSORS,
    SIDECAR_FOLDERS,
    SIDECARS,
    WEIGHTS_NAME,
    check_own,
    is_sidecar,
    is_there,
    module_folders,
    unreadable,
)
from svdcut.files.header import read_header
from svdcut.files.jsonfile import quoted, read_json
from svdcut.files.lora_factors import LowRankEntry
from svdcut.files.shards import check_index, read_index
from svdcut.files.tensorfile import TensorEntry, TensorFile
from svdcut.files.wrong_input import no_weights, not_safetensors, not_there

_CARD_BYTES = 1_000_000
_OF_TOKENIZER = (
    *("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
    *("tekken.json", "*.model", "*.tiktoken", "*.spm", "*.vocab", "*.bpe", "*.codes", "*.jinja"),
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model on disk: what its headers, index and config say."""

    source: str
    """As the user named it."""

    revision: str | None
    """The Hub commit, for a Hub id."""

    directory: Path | None
    """Where config, tokenizer and card are; None for a bare file."""

    files: tuple[TensorFile, ...]
    """All that decides on the tensors; in the order of the index."""

    tensors: Mapping[str, TensorEntry]
    """By name, in the order of the files and of the bytes in them."""

    shards: Mapping[str, tuple[str, ...]]
    """Names of the tensors in each file of a checkpoint that is laid out like this one."""

    metadata: Mapping[str, str]
    """Of the first of these files."""

    index: Mapping[str, Any] | None
    """The index file, where there is one."""

    config: Mapping[str, Any]
    """config.json, or empty."""

    updates: Mapping[str, LowRankEntry] = field(default_factory=dict)
    """Of an adapter: what is to be added to tensors, which are base's own mostly."""

    under: Path | None = None
    """Of an adapter: base's directory, for the small files that it does not bring itself."""

    model_names: Mapping[str, str] = field(default_factory=dict)
    """Of an adapter: names with the prefix that its keys have, and base's file may not."""

    is_adapter: bool = False
    """Whether it is base under an adapter."""

    rewrites_config: bool = False
    """Whether `config` is not what its file says: an adapter may have added tokens."""

    @property
    def ignores_adapter(self) -> bool:
        """Whether its folder holds an adapter too, which the weights win over."""
        folder = self.directory
        return folder is not None and not self.is_adapter and is_there(folder / ADAPTER_CONFIG_NAME)

    @property
    def ties_embeddings(self) -> bool:
        """Whether the config says that the head is the embedding.

        By saying nothing, a config of transformers says so: that was its default.
        """
        said = [config.get("tie_word_embeddings") for config in self._configs()]
        if any(word is True for word in said):
            return True
        return "model_type" in self.config and all(word is not False for word in said)

    @property
    def vocab_size(self) -> int | None:
        """The number of tokens that the config names."""
        sizes = (config.get("vocab_size") for config in self._configs())
        return next((size for size in sizes if isinstance(size, int)), None)

    @property
    def quantization(self) -> str | None:
        """The quantisation that the config names."""
        for config in self._configs():
            for key in ("quantization_config", "compression_config"):
                found = config.get(key)
                if found:
                    method = found.get("quant_method") if isinstance(found, dict) else found
                    return method if isinstance(method, str) else key
        return None

    @property
    def model_types(self) -> frozenset[str]:
        """What transformers calls the model, and its language model where it has parts."""
        found = (config.get("model_type") for config in self._configs())
        return frozenset(kind for kind in found if isinstance(kind, str))

    def _configs(self) -> list[Mapping[str, Any]]:
        """Return the config, and that of its language model where it has parts."""
        text = self.config.get("text_config")
        return [self.config, text] if isinstance(text, dict) else [self.config]

    def sidecars(self) -> dict[Path, Path]:
        """Return the small files that loading needs, by relative names, sorted.

        Config, tokenizer, chat templates and code; the folders of sentence-transformers' modules.

        Raises
        ------
        CheckpointError
            If one cannot be read, would not end, as a pipe, or is a link out of its folder.
        """
        found = _sidecars(self.directory)
        if self.under is not None:
            # The config is base's: that beside an adapter often tells of how base was loaded.
            found.pop(Path(CONFIG_NAME), None)
            found = _sidecars(self.under) | found
        return dict(sorted(found.items()))

    def left_behind(self) -> list[str]:
        """Return what lies in the folder and goes into no result; folders end in a slash."""
        if self.directory is None:
            return []
        taken = {*self.sidecars(), *(Path(file.path.name) for file in self.files)}
        taken |= {Path(name) for name in (CARD_NAME, INDEX_NAME, MANIFEST_NAME)}
        return sorted(_left_in(self.directory, taken))

    def tokenizer_files(self) -> dict[Path, Path]:
        """Return those of `sidecars` that a tokenizer is made of."""
        return {
            name: path
            for name, path in self.sidecars().items()
            if any(fnmatchcase(name.name, pattern) for pattern in _OF_TOKENIZER)
        }

    def card(self) -> str | None:
        """Return the text of its model card, or the start of a long one.

        Raises
        ------
        CheckpointError
            If it cannot be read.
        """
        if self.directory is None or not is_there(self.directory / CARD_NAME):
            return None
        path = self.directory / CARD_NAME
        check_own(path, self.directory)
        with path.open("rb") as file:
            return file.read(_CARD_BYTES).decode("utf-8", errors="replace")


def _sidecars(folder: Path | None) -> dict[Path, Path]:
    if folder is None:
        return {}
    try:
        found = [
            path
            for place, patterns in _places(folder)
            for path in place
            if is_sidecar(path.name, patterns) and not path.is_dir()
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


def _left_in(folder: Path, taken: Set[Path], within: Path = Path()) -> Iterator[str]:
    parents = {parent for path in taken for parent in path.parents}
    for path in (folder / within).iterdir():
        name = within / path.name
        if name in taken or path.name.startswith("."):
            continue
        if path.is_dir() and name in parents:
            yield from _left_in(folder, taken, name)
        else:
            yield f"{name.as_posix()}/" if path.is_dir() else name.as_posix()


@dataclass(frozen=True, slots=True)
class Location:
    """Where a source lies, once fetched."""

    source: str
    """As the user named it."""

    path: Path
    revision: str | None
    """The Hub commit, for a Hub id."""


def open_checkpoint(source: str | Path, *, quiet: bool = False) -> Checkpoint:
    """Open a checkpoint by its headers.

    Parameters
    ----------
    source : str or Path
        A directory, a ``.safetensors`` file, or a Hub id ``org/name[@revision]``.
        What exists as a path, or looks like one, never reaches the Hub.
    quiet : bool
        Whether downloads show no progress.

    Returns
    -------
    Checkpoint
        Its tensors and files.

    Raises
    ------
    CheckpointError
        If it is not a readable safetensors checkpoint.
    HubError
        If it could not be had from the Hub.
    """
    location = locate(source, quiet=quiet)
    with reading(location):
        return open_located(location)


def locate(source: str | Path, *, quiet: bool = False) -> Location:
    """Return where a source lies; fetch it, if it is a Hub id. Raises as `open_checkpoint`."""
    text = str(source)
    if isinstance(source, Path) or hub.is_local(text):
        try:
            return Location(text, Path(text).expanduser(), None)
        except RuntimeError as error:  # of expanduser
            raise CheckpointError(f"{text}: there is no such user") from error
    snapshot = hub.fetch_snapshot(text, quiet=quiet)
    return Location(text, snapshot.path, snapshot.revision)


@contextmanager
def reading(location: Location) -> Iterator[None]:
    """Turn the system's errors into those that name a source."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{location.source}: cannot be read: {error.strerror}") from error


def holds_model(folder: Path) -> bool:
    """Whether a folder has the weights of a model, or should."""
    return is_there(folder / INDEX_NAME) or is_there(folder / WEIGHTS_NAME)


def open_located(location: Location) -> Checkpoint:
    """Open a checkpoint that is there; raises as `open_checkpoint`, and `OSError`."""
    source, path, revision = location.source, location.path, location.revision
    if path.is_file():
        if path.suffix != ".safetensors":
            raise not_safetensors(source, path)
        return _assemble(source, revision, None, [path.name], path.parent, None)
    if not path.is_dir():
        raise not_there(source, path)
    if is_there(path / INDEX_NAME):
        index, names = read_index(path / INDEX_NAME)
        checkpoint = _assemble(source, revision, path, names, path, index)
        actual = {name: entry.path.name for name, entry in checkpoint.tensors.items()}
        check_index(path / INDEX_NAME, index, actual)
        return checkpoint
    if is_there(path / WEIGHTS_NAME):
        return _assemble(source, revision, path, [WEIGHTS_NAME], path, None)
    raise no_weights(source, path)


def _assemble(
    source: str,
    revision: str | None,
    directory: Path | None,
    names: list[str],
    folder: Path,
    index: Mapping[str, Any] | None,
) -> Checkpoint:
    files: list[TensorFile] = []
    tensors: dict[str, TensorEntry] = {}
    for name in names:
        path = folder / name
        if path.is_symlink() and not path.exists():
            raise unreadable(path, FileNotFoundError())
        file = read_header(path)
        files.append(file)
        if len(tensors) + len(file.entries) > MAX_TENSORS:
            raise CheckpointError(f"{source}: more than {MAX_TENSORS} tensors")
        for entry in file.entries:
            if entry.name in tensors:
                raise CheckpointError(
                    f"{source}: tensor {quoted(entry.name)} is in two files: "
                    f"{tensors[entry.name].path.name} and {file.path.name}"
                )
            tensors[entry.name] = entry
    if not tensors:
        raise CheckpointError(f"{source}: holds no tensors")
    config: Mapping[str, Any] = {}
    if directory is not None and is_there(directory / CONFIG_NAME):
        check_own(directory / CONFIG_NAME, directory)
        config = read_json(directory / CONFIG_NAME, CONFIG_BOUNDS)
    # A bare file becomes a folder, where loaders look for this name.
    shards = {
        file.path.name if directory else WEIGHTS_NAME: tuple(e.name for e in file.entries)
        for file in files
    }
    metadata = files[0].metadata
    return Checkpoint(
        source, revision, directory, tuple(files), tensors, shards, metadata, index, config
    )
