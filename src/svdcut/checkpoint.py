"""Open a directory, a file or a Hub id as one checkpoint.

Reads headers, index and config; no weights. It decides nothing about pairs.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from svdcut import hub
from svdcut.conversion import adapter_conversion_hint, conversion_hint
from svdcut.errors import CheckpointError
from svdcut.header import read_header
from svdcut.jsonfile import Bounds, check_regular, quoted, read_json
from svdcut.lowrank import UpdateEntry
from svdcut.tensorfile import TensorEntry, TensorFile

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
ADAPTER_NAME = "adapter_model.safetensors"
CARD_NAME = "README.md"
_CONFIG_NAME = "config.json"

_MAX_TENSORS = 250_000
"""Bounds the memory; the largest models have a quarter of that."""

_INDEX_BOUNDS = Bounds(num_bytes=100_000_000, num_values=2 * _MAX_TENSORS)
_CONFIG_BOUNDS = Bounds(num_bytes=16_000_000, num_values=1_000_000)
_CARD_BYTES = 1_000_000
_WRONG_INDEX = "The index is damaged or not of this checkpoint; fetch or save it again."
_INCOMPLETE = "The checkpoint is incomplete; fetch or save it again."

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_SIDECARS = (
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
    "LICEN[CS]E*",
    "[Ll]icen[cs]e*",
    "COPYING*",
    "NOTICE*",
    "additional_chat_templates/*.jinja",
)
_NOT_SIDECARS = (
    "*.index.json",
    "svdcut.json",
    "trainer_state.json",
    "*_results.json",
    "adapter_config.json",
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

    updates: Mapping[str, UpdateEntry] = field(default_factory=dict)
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
        """Return config, tokenizer, chat template and code files, by relative names, sorted.

        Raises
        ------
        CheckpointError
            If one cannot be read, or would not end, as a pipe.
        """
        found = _sidecars(self.directory)
        if self.under is not None:
            # The config is base's: that beside an adapter often tells of how base was loaded.
            found.pop(Path(_CONFIG_NAME), None)
            found = _sidecars(self.under) | found
        for path in found.values():
            _check_readable(path)
        return dict(sorted(found.items()))

    def card(self) -> str | None:
        """Return the text of its model card, or the start of a long one.

        Raises
        ------
        CheckpointError
            If it cannot be read.
        """
        if self.directory is None or not _is_there(self.directory / CARD_NAME):
            return None
        path = self.directory / CARD_NAME
        _check_readable(path)
        with path.open("rb") as file:
            return file.read(_CARD_BYTES).decode("utf-8", errors="replace")


def _sidecars(folder: Path | None) -> dict[Path, Path]:
    if folder is None:
        return {}
    return {
        path.relative_to(folder): path
        for pattern in _SIDECARS
        for path in folder.glob(pattern)
        if not (path.is_dir() or any(fnmatchcase(path.name, p) for p in _NOT_SIDECARS))
    }


def _is_there(path: Path) -> bool:
    """Whether a name is taken, if only by a link that leads nowhere."""
    return os.path.lexists(path)


def _check_readable(path: Path) -> None:
    try:
        check_regular(path)
        with path.open("rb"):
            pass
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path | str, error: OSError) -> CheckpointError:
    if isinstance(path, Path) and path.is_symlink() and not path.exists():
        target = quoted(str(path.readlink()))
        return CheckpointError(f"{path}: a link to {target}, which is not there", hint=_INCOMPLETE)
    return CheckpointError(f"{path}: cannot be read: {error.strerror}")


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
    return _is_there(folder / INDEX_NAME) or _is_there(folder / WEIGHTS_NAME)


def open_located(location: Location) -> Checkpoint:
    """Open a checkpoint that is there; raises as `open_checkpoint`, and `OSError`."""
    source, path, revision = location.source, location.path, location.revision
    if path.is_file():
        if path.suffix != ".safetensors":
            raise _not_safetensors(source, path)
        return _assemble(source, revision, None, [path.name], path.parent, None)
    if not path.is_dir():
        raise _not_there(source, path)
    if _is_there(path / INDEX_NAME):
        index = read_json(path / INDEX_NAME, _INDEX_BOUNDS, strict=True)
        names = _shard_names(path / INDEX_NAME, index)
        checkpoint = _assemble(source, revision, path, names, path, index)
        _check_index(path / INDEX_NAME, index["weight_map"], checkpoint)
        return checkpoint
    if _is_there(path / WEIGHTS_NAME):
        return _assemble(source, revision, path, [WEIGHTS_NAME], path, None)
    raise _no_weights(source, path)


def _not_there(source: str, path: Path) -> CheckpointError:
    if path.is_symlink():
        return CheckpointError(f"{source}: a link that leads nowhere")
    if _is_there(path):
        return CheckpointError(f"{source}: neither a file nor a folder")
    return CheckpointError(f"{source}: no such file or directory")


def _not_safetensors(source: str, path: Path) -> CheckpointError:
    if path.suffix == ".incomplete":
        return CheckpointError(f"{source}: a download that did not finish", hint=_INCOMPLETE)
    if path.name == INDEX_NAME:
        hint = f"Name the folder that holds it: {shlex.quote(str(path.parent))}"
    elif any(path.match(pattern) for pattern in _PICKLES):
        return CheckpointError(
            f"{source}: pickled weights, and a pickle can run any code: never opened",
            hint=conversion_hint(str(path.parent), _read_config(path.parent)),
        )
    else:
        hint = _OTHER_FORMATS.get(path.suffix.lower(), "Name a folder or a .safetensors file.")
    return CheckpointError(f"{source}: not a .safetensors file", hint=hint)


def _read_config(folder: Path) -> Mapping[str, Any]:
    """Return config.json as far as it helps to word a hint."""
    try:
        return read_json(folder / _CONFIG_NAME, _CONFIG_BOUNDS)
    except CheckpointError:
        return {}


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
            raise _unreadable(path, FileNotFoundError())
        file = read_header(path)
        files.append(file)
        if len(tensors) + len(file.entries) > _MAX_TENSORS:
            raise CheckpointError(f"{source}: more than {_MAX_TENSORS} tensors")
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
    if directory is not None and _is_there(directory / _CONFIG_NAME):
        config = read_json(directory / _CONFIG_NAME, _CONFIG_BOUNDS)
    # A bare file becomes a folder, where loaders look for this name.
    shards = {
        file.path.name if directory else WEIGHTS_NAME: tuple(e.name for e in file.entries)
        for file in files
    }
    metadata = files[0].metadata
    return Checkpoint(
        source, revision, directory, tuple(files), tensors, shards, metadata, index, config
    )


def _shard_names(path: Path, index: Mapping[str, Any]) -> list[str]:
    weight_map, metadata = index.get("weight_map"), index.get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        raise CheckpointError(f"{path}: 'metadata' is not an object", hint=_WRONG_INDEX)
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: has no 'weight_map'", hint=_WRONG_INDEX)
    for name in weight_map.values():
        beside = isinstance(name, str) and Path(name).name == name
        if not (beside and name.endswith(".safetensors")):
            raise CheckpointError(
                f"{path}: names {quoted(name)}, which is not a .safetensors file beside it",
                hint=_WRONG_INDEX,
            )
    names = sorted(set(weight_map.values()))
    for name in names:
        if not _is_there(path.parent / name):
            raise _missing_shard(path, name)
    return names


def _missing_shard(path: Path, name: str) -> CheckpointError:
    unfinished = [found.name for found in path.parent.glob("*.incomplete")]
    more = f"; {quoted(unfinished[0])} is a download that did not finish" if unfinished else ""
    return CheckpointError(
        f"{path}: names {quoted(name)}, which is not there{more}", hint=_INCOMPLETE
    )


def _check_index(path: Path, weight_map: Mapping[str, str], checkpoint: Checkpoint) -> None:
    actual = {name: entry.path.name for name, entry in checkpoint.tensors.items()}
    wrong = [
        name
        for name in weight_map.keys() | actual.keys()
        if weight_map.get(name) != actual.get(name)
    ]
    if wrong:
        name = min(wrong)
        raise CheckpointError(
            f"{path}: tensors that are not where it says: {len(wrong)}, as {quoted(name)} "
            f"(index: {weight_map.get(name, 'nowhere')}, found: {actual.get(name, 'nowhere')})",
            hint="Shards of different saves lie in one folder; fetch or save it again.",
        )


_OTHER_FORMATS = {
    ".gguf": "GGUF holds quantised weights; use the safetensors checkpoint that it was made from.",
    ".h5": "TensorFlow weights; save the model as safetensors.",
    ".msgpack": "Flax weights; save the model as safetensors.",
    ".onnx": "An exported model; use the checkpoint that it was made from.",
    ".incomplete": "A download did not finish; fetch it again.",
}


def _adapter_alone(source: str, path: Path) -> CheckpointError | None:
    """Return the error of a folder that has no weights of a model, but those of an adapter."""
    if (path / ADAPTER_NAME).is_file():
        return CheckpointError(
            f"{source}: a PEFT adapter, which is no model by itself",
            hint="Name it second, after the base that it was trained on: "
            f"svdcut truncate BASE {shlex.quote(source)} ...",
        )
    if (path / "adapter_model.bin").is_file():
        return CheckpointError(
            f"{source}: a PEFT adapter whose weights are pickled, and a pickle can run any code: "
            "never opened",
            hint=adapter_conversion_hint(source),
        )
    below = sorted(found.parent.name for found in path.glob(f"*/{ADAPTER_NAME}"))
    if below:
        names = ", ".join(map(quoted, below[:5])) + (", ..." if len(below) > 5 else "")
        return CheckpointError(
            f"{source}: no weights in it, but adapters in folders beneath: {names}",
            hint=f"Name one of them: {shlex.quote(str(Path(source) / below[0]))}",
        )
    return None


def _no_weights(source: str, path: Path) -> CheckpointError:
    if error := _adapter_alone(source, path):
        return error
    none = f"{source}: no {WEIGHTS_NAME} and no {INDEX_NAME} in it"
    if (path / "model_index.json").is_file():
        found = sorted(path.glob("*/*.safetensors"))
        hint = f"Name one of its parts: {shlex.quote(str(found[0]))}" if found else None
        return CheckpointError(f"{none}, but model_index.json: a pipeline of diffusers", hint=hint)
    if any(found for pattern in _PICKLES for found in path.glob(pattern)):
        return CheckpointError(
            f"{source}: its weights are pickled, and a pickle can run any code: never opened",
            hint=conversion_hint(source, _read_config(path)),
        )
    others = sorted(found.name for found in path.glob("*.safetensors"))
    if others:
        names = ", ".join(map(quoted, others[:3]))
        named = shlex.quote(str(Path(source) / others[0]))
        return CheckpointError(f"{none}, but {names}", hint=f"Name the file itself: {named}")
    for suffix, hint in _OTHER_FORMATS.items():
        if found := sorted(path.glob(f"*{suffix}")):
            return CheckpointError(f"{none}, but {quoted(found[0].name)}", hint=hint)
    hint = None if any(path.iterdir()) else "The folder is empty."
    return CheckpointError(none, hint=hint)
