"""Open a directory, a file or a Hub id as one checkpoint.

Reads headers, index and config; no weights. It decides nothing about pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import Any

from svdcut.errors import CheckpointError
from svdcut.files import hub
from svdcut.files.filenames import (
    ADAPTER_CONFIG_NAME,
    CARD_NAME,
    CONFIG_BOUNDS,
    CONFIG_NAME,
    INCOMPLETE,
    INDEX_NAME,
    MANIFEST_NAME,
    MAX_TENSORS,
    TOKENIZER_FILES,
    WEIGHTS_NAME,
    check_own,
    is_there,
    left_in,
    sidecars,
    unreadable,
)
from svdcut.files.header import check_index, read_header, read_index
from svdcut.files.hub import Location
from svdcut.files.jsonfile import quoted, read_json
from svdcut.files.lora_factors import LowRankEntry
from svdcut.files.tensorfile import TensorEntry, TensorFile
from svdcut.files.wrong_input import no_weights, not_safetensors, not_there

_CARD_BYTES = 1_000_000


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
    """Tensors by name, in the order of the files and of the bytes in them."""

    shards: Mapping[str, tuple[str, ...]]
    """Names of the tensors in each file of a checkpoint that is laid out like this one."""

    metadata: Mapping[str, str]
    """Metadata of the first file's header, which a result keeps."""

    index: Mapping[str, Any] | None
    """The index file, where there is one."""

    config: Mapping[str, Any]
    """config.json, or empty."""

    updates: Mapping[str, LowRankEntry] = field(default_factory=dict)
    """Only for an adapter: what it adds to tensors, most of which are base's own."""

    under: Path | None = None
    """Only for an adapter: base's directory, for small files that the adapter lacks."""

    model_names: Mapping[str, str] = field(default_factory=dict)
    """Only for an adapter: base's names, with the prefix that the adapter's keys have."""

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
        """Return the model types that the config names: of the model, and of its language model."""
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
        found = sidecars(self.directory)
        if self.under is not None:
            # The config is base's: that beside an adapter often tells of how base was loaded.
            found.pop(Path(CONFIG_NAME), None)
            found = sidecars(self.under) | found
        return dict(sorted(found.items()))

    def left_behind(self) -> list[str]:
        """Return what lies in the folder and goes into no result; folders end in a slash."""
        if self.directory is None:
            return []
        taken = {*self.sidecars(), *(Path(file.path.name) for file in self.files)}
        taken |= {Path(name) for name in (CARD_NAME, INDEX_NAME, MANIFEST_NAME)}
        return sorted(left_in(self.directory, taken))

    def tokenizer_files(self) -> dict[Path, Path]:
        """Return those of `sidecars` that a tokenizer is made of."""
        return {
            name: path
            for name, path in self.sidecars().items()
            if any(fnmatchcase(name.name, pattern) for pattern in TOKENIZER_FILES)
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
    location = hub.locate(source, quiet=quiet)
    with reading(location):
        return open_located(location)


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
    source, path = location.source, location.path
    if path.is_file():
        if path.suffix != ".safetensors":
            raise not_safetensors(source, path)
        return _assemble(location, None, [path])
    if not path.is_dir():
        raise not_there(source, path)
    if is_there(path / INDEX_NAME):
        index, names = read_index(path / INDEX_NAME)
        return _assemble(location, index, [path / name for name in names])
    if is_there(path / WEIGHTS_NAME):
        return _assemble(location, None, [path / WEIGHTS_NAME])
    raise no_weights(source, path)


def _assemble(
    location: Location, index: Mapping[str, Any] | None, paths: Sequence[Path]
) -> Checkpoint:
    folder = location.path if location.path.is_dir() else None
    for path in paths:
        if not path.exists():
            raise _missing_file(path)
    files = tuple(map(read_header, paths))
    tensors = _tensors(files, location.source)
    if index is not None:
        check_index(paths[0].parent / INDEX_NAME, index, tensors)
    config: Mapping[str, Any] = {}
    if folder is not None and is_there(folder / CONFIG_NAME):
        check_own(folder / CONFIG_NAME, folder)
        config = read_json(folder / CONFIG_NAME, CONFIG_BOUNDS)
    return Checkpoint(
        source=location.source,
        revision=location.revision,
        directory=folder,
        files=files,
        tensors=tensors,
        # A bare file becomes a folder, where loaders look for this name.
        shards={
            file.path.name if folder else WEIGHTS_NAME: tuple(entry.name for entry in file.entries)
            for file in files
        },
        metadata=files[0].metadata,
        index=index,
        config=config,
    )


def _missing_file(path: Path) -> CheckpointError:
    """Return the error of a file of weights that is not there, and is expected to be."""
    if path.is_symlink():
        return unreadable(path, FileNotFoundError())
    unfinished = [found.name for found in path.parent.glob("*.incomplete")]
    more = f"; {quoted(unfinished[0])} is a download that did not finish" if unfinished else ""
    return CheckpointError(
        f"{path.parent / INDEX_NAME}: names {quoted(path.name)}, which is not there{more}",
        hint=INCOMPLETE,
    )


def _tensors(files: Sequence[TensorFile], source: str) -> Mapping[str, TensorEntry]:
    """Return the tensors of all files; refuse none, too many, and two of one name."""
    tensors: dict[str, TensorEntry] = {}
    for entry in chain.from_iterable(file.entries for file in files):
        other = tensors.setdefault(entry.name, entry)
        if other is not entry:
            raise CheckpointError(
                f"{source}: tensor {quoted(entry.name)} is in two files: "
                f"{other.path.name} and {entry.path.name}"
            )
        if len(tensors) > MAX_TENSORS:
            raise CheckpointError(f"{source}: more than {MAX_TENSORS} tensors")
    if not tensors:
        raise CheckpointError(f"{source}: holds no tensors")
    return tensors
