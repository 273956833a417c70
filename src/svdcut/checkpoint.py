"""Open a directory, a file or a Hub id as one checkpoint.

Reads headers, index and config; no weights. It decides nothing about pairs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from svdcut import hub
from svdcut.conversion import conversion_hint
from svdcut.errors import CheckpointError
from svdcut.tensorfile import TensorEntry, TensorFile, read_header

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
CARD_NAME = "README.md"

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
    """In the order of the index."""

    tensors: Mapping[str, TensorEntry]
    """By name, in the order of the files and of the bytes in them."""

    index: Mapping[str, Any] | None
    """The index file, where there is one."""

    config: Mapping[str, Any]
    """config.json, or empty."""

    @property
    def ties_embeddings(self) -> bool:
        """Whether the config says that the head is the embedding.

        By saying nothing, a config of transformers says so: that was its default.
        """
        said = {config.get("tie_word_embeddings") for config in self._configs()}
        return True in said or (False not in said and "model_type" in self.config)

    @property
    def vocab_size(self) -> int | None:
        """The number of tokens that the config names."""
        sizes = (config.get("vocab_size") for config in self._configs())
        return next((size for size in sizes if isinstance(size, int)), None)

    @property
    def quantization(self) -> str | None:
        """The quantisation that the config names."""
        for config in self._configs():
            found = config.get("quantization_config")
            if isinstance(found, dict):
                return str(found.get("quant_method", "quantization_config"))
        return None

    def _configs(self) -> list[Mapping[str, Any]]:
        """Return the config, and that of its language model where it has parts."""
        text = self.config.get("text_config")
        return [self.config, text] if isinstance(text, dict) else [self.config]

    def sidecars(self) -> list[Path]:
        """Return config, tokenizer, chat template and code files, relative, sorted."""
        if self.directory is None:
            return []
        found = {
            path.relative_to(self.directory)
            for pattern in _SIDECARS
            for path in self.directory.glob(pattern)
            if path.is_file()
        }
        return sorted(
            path for path in found if not any(fnmatchcase(path.name, p) for p in _NOT_SIDECARS)
        )

    def card(self) -> str | None:
        """Return the text of its model card."""
        if self.directory is None or not (self.directory / CARD_NAME).is_file():
            return None
        return (self.directory / CARD_NAME).read_text(encoding="utf-8", errors="replace")


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
    text = str(source)
    if isinstance(source, Path) or hub.is_local(text):
        return _open_path(text, Path(text).expanduser(), None)
    snapshot = hub.fetch_snapshot(text, quiet=quiet)
    return _open_path(text, snapshot.path, snapshot.revision)


def _open_path(source: str, path: Path, revision: str | None) -> Checkpoint:
    if path.is_file():
        if path.suffix != ".safetensors":
            raise CheckpointError(
                f"{source}: not a .safetensors file",
                hint=conversion_hint(
                    str(path.parent), _read_json(path.parent / "config.json") or {}
                ),
            )
        return _assemble(source, revision, None, [path.name], path.parent, None)
    if not path.is_dir():
        raise CheckpointError(f"{source}: no such file or directory")
    index = _read_json(path / INDEX_NAME)
    if index is not None:
        names = _shard_names(path / INDEX_NAME, index.get("weight_map"))
        checkpoint = _assemble(source, revision, path, names, path, index)
        _check_index(path / INDEX_NAME, index["weight_map"], checkpoint)
        return checkpoint
    if (path / WEIGHTS_NAME).is_file():
        return _assemble(source, revision, path, [WEIGHTS_NAME], path, None)
    raise _no_weights(source, path)


def _assemble(
    source: str,
    revision: str | None,
    directory: Path | None,
    names: list[str],
    folder: Path,
    index: Mapping[str, Any] | None,
) -> Checkpoint:
    files = tuple(read_header(folder / name) for name in names)
    tensors: dict[str, TensorEntry] = {}
    for file in files:
        for entry in file.entries:
            if entry.name in tensors:
                raise CheckpointError(
                    f"{source}: tensor {entry.name!r} is in two files: "
                    f"{tensors[entry.name].path.name} and {file.path.name}"
                )
            tensors[entry.name] = entry
    if not tensors:
        raise CheckpointError(f"{source}: holds no tensors")
    config = None if directory is None else _read_json(directory / "config.json")
    return Checkpoint(source, revision, directory, files, tensors, index, config or {})


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return value


def _shard_names(path: Path, weight_map: object) -> list[str]:
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: has no 'weight_map'")
    for name in weight_map.values():
        beside = isinstance(name, str) and Path(name).name == name
        if not (beside and name.endswith(".safetensors")):
            raise CheckpointError(
                f"{path}: names {name!r}, which is not a .safetensors file beside it"
            )
    names = sorted(set(weight_map.values()))
    for name in names:
        if not (path.parent / name).is_file():
            raise CheckpointError(
                f"{path}: names {name!r}, which is not there",
                hint="The checkpoint is incomplete; fetch or save it again.",
            )
    return names


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
            f"{path}: {len(wrong)} tensors are not where it says, as {name!r}: index "
            f"{weight_map.get(name, 'nowhere')}, files {actual.get(name, 'nowhere')}",
            hint="Shards of different saves lie in one folder; fetch or save it again.",
        )


def _no_weights(source: str, path: Path) -> CheckpointError:
    if (path / "adapter_model.safetensors").is_file():
        return CheckpointError(
            f"{source}: a PEFT adapter, which this version cannot read",
            hint="Merge it into its base first: PeftModel.merge_and_unload(), save_pretrained().",
        )
    if any(found for pattern in _PICKLES for found in path.glob(pattern)):
        return CheckpointError(
            f"{source}: its weights are pickled, and a pickle can run any code: never opened",
            hint=conversion_hint(source, _read_json(path / "config.json") or {}),
        )
    others = sorted(found.name for found in path.glob("*.safetensors"))
    if others:
        return CheckpointError(
            f"{source}: has no {WEIGHTS_NAME} and no {INDEX_NAME}, but {', '.join(others[:3])}",
            hint=f"Name the file itself: {Path(source) / others[0]}",
        )
    return CheckpointError(f"{source}: no {WEIGHTS_NAME} and no {INDEX_NAME} in it")
