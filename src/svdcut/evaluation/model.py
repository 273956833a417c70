"""Load a model and its tokenizer by transformers, or say why it cannot be evaluated."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from svdcut.device import resolve_device
from svdcut.errors import CheckpointError, EvaluationError, SvdcutError, UsageError, listed
from svdcut.evaluation.answers import Item, Kind
from svdcut.evaluation.options import DataOptions
from svdcut.files.checkpoint import Checkpoint, open_checkpoint
from svdcut.files.jsonfile import quoted
from svdcut.shown import byte_size

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "*.tiktoken",
    "prophetnet.tokenizer",
)
"""Without any of these, transformers makes up a tokenizer that knows no word."""

_UNLIMITED = 10**12
"""Tokenizers give a larger number for "no limit"."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to be asked."""

    source: str
    """The user's name for it."""

    kind: Kind
    model: Any
    """A model of transformers, in evaluation mode."""

    tokenizer: Any


def load_model(
    source: str | Path | Checkpoint, options: DataOptions, *, quiet: bool = False
) -> LoadedModel:
    """Load a classifier or a language model from safetensors onto the device.

    Parameters
    ----------
    source : str, Path or Checkpoint
        A directory, a Hub id ``org/name[@revision]``, or an open checkpoint; no adapter.
    options : DataOptions
        `device` and `chat_template` matter here.
    quiet : bool
        Whether downloads show no progress.

    Raises
    ------
    CheckpointError, HubError
        If it is not a readable safetensors checkpoint.
    EvaluationError
        If it is not a model that can be evaluated.
    """
    device = resolve_device(options.device)
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source, quiet=quiet)
    kind = find_kind(checkpoint)
    with _quiet_transformers():
        tokenizer = _load_tokenizer(checkpoint)
        if not options.chat_template:
            tokenizer.chat_template = None
        model = _load_weights(checkpoint, kind, compute_dtype(device))
    if kind is Kind.LANGUAGE_MODEL:
        _check_causal(checkpoint, model.config)
    return LoadedModel(checkpoint.source, kind, _move(checkpoint, model, device), tokenizer)


def find_kind(checkpoint: Checkpoint) -> Kind:
    """Return what a model is before it is loaded; an adapter is what it makes of its base.

    Raises
    ------
    EvaluationError
        If its config and its small files show that it cannot be evaluated.
    UsageError
        If transformers cannot be imported.
    """
    _require_transformers()
    with _quiet_transformers():
        kind = _find_kind(checkpoint)
    _check_tokenizer_files(checkpoint)
    return kind


def compute_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype that models are evaluated in."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _require_transformers() -> None:
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"to evaluate a model needs transformers, which cannot be imported: {error}",
            hint="pip install transformers",
        ) from error


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence transformers: the warnings that matter are errors here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _find_kind(checkpoint: Checkpoint) -> Kind:
    """Return the kind that the config names."""
    from transformers.models.auto import modeling_auto

    if checkpoint.directory is None:
        raise EvaluationError(
            f"{checkpoint.source}: a file alone, without a config and a tokenizer",
            hint="Name the folder of the model.",
        )
    named = checkpoint.config.get("architectures")
    names = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    if any(name.endswith("ForSequenceClassification") for name in names):
        return Kind.CLASSIFIER
    if set(names) & set(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()):
        return Kind.LANGUAGE_MODEL
    found = ", ".join(map(quoted, names)) or "none"
    raise EvaluationError(
        f"{checkpoint.source}: config.json names the architectures: {found}",
        hint="Expected a classifier, as BertForSequenceClassification, or a causal language "
        "model, as LlamaForCausalLM, that the installed transformers knows.",
    )


def _check_tokenizer_files(checkpoint: Checkpoint) -> None:
    names = [str(name) for name in checkpoint.sidecars()]
    if not any(fnmatch.filter(names, pattern) for pattern in _TOKENIZER_FILES):
        raise EvaluationError(
            f"{checkpoint.source}: no tokenizer in it: no {', no '.join(_TOKENIZER_FILES[:4])}",
            hint="Copy the tokenizer files of the model that it was made from into the folder.",
        )


def _load_tokenizer(checkpoint: Checkpoint) -> Any:  # noqa: ANN401
    from transformers import AutoTokenizer

    with _explained(checkpoint, "its tokenizer"):
        return AutoTokenizer.from_pretrained(
            checkpoint.directory, local_files_only=True, trust_remote_code=False
        )


def _load_weights(checkpoint: Checkpoint, kind: Kind, dtype: torch.dtype) -> Any:  # noqa: ANN401
    import transformers

    loader = (
        transformers.AutoModelForSequenceClassification
        if kind is Kind.CLASSIFIER
        else transformers.AutoModelForCausalLM
    )
    with _explained(checkpoint, "the model"):
        model, found = loader.from_pretrained(
            checkpoint.directory,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    _check_complete(checkpoint, found)
    return model


def _move(checkpoint: Checkpoint, model: Any, device: torch.device) -> Any:  # noqa: ANN401
    try:
        return model.to(device).eval()
    except torch.OutOfMemoryError as error:
        size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
        raise SvdcutError(
            f"{checkpoint.source}: {byte_size(size)} of weights do not fit into the free memory "
            f"of {device}",
            hint="Free it, or compute elsewhere: --device cpu.",
        ) from error


def _check_complete(checkpoint: Checkpoint, found: Mapping[str, Any]) -> None:
    """Refuse a model if transformers would fill a part with random numbers."""
    missing = sorted(found["missing_keys"])
    if missing:
        raise EvaluationError(
            f"{checkpoint.source}: lacks weights of the model that its config names:"
            f"{listed(map(quoted, missing))}",
            hint="A head that was never trained cannot be evaluated; name the fine-tuned model.",
        )


def _check_causal(checkpoint: Checkpoint, config: Any) -> None:  # noqa: ANN401
    """Refuse a model that sees the word it is to predict, as one that fills gaps does."""
    from transformers.models.auto import modeling_auto

    fills_gaps = config.model_type in {*modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, "xlnet"}
    if fills_gaps and not getattr(config, "is_decoder", False):
        raise EvaluationError(
            f"{checkpoint.source}: a {config.model_type} model that reads texts in both "
            "directions (config.json does not say is_decoder)",
            hint="Expected a language model that reads from left to right, as LlamaForCausalLM.",
        )


@contextmanager
def _explained(checkpoint: Checkpoint, what: str) -> Iterator[None]:
    """Turn any exception of transformers into an error that names the source."""
    from transformers import __version__

    try:
        yield
    except (MemoryError, SvdcutError):  # the latter: a signal
        raise
    except Exception as error:
        lines = _named(checkpoint, str(error)).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"{checkpoint.source}: transformers {__version__} cannot load {what}: {lines[0]:.300}",
            hint="Models that bring code of their own, and quantised ones, are not evaluated."
            if "auto_map" in checkpoint.config or checkpoint.quantization
            else None,
        ) from error


def _named(checkpoint: Checkpoint, text: str) -> str:
    """Return a text with the user's name of a checkpoint in place of its folder."""
    folder = checkpoint.directory
    if folder is None or folder == Path(checkpoint.source):
        return text
    return text.replace(str(folder), checkpoint.source)


def find_max_length(config: Any, tokenizer: Any) -> int | None:  # noqa: ANN401
    """Return how many tokens a model takes: from the config, else from the tokenizer, or None.

    As lm-evaluation-harness 0.4.13 does: ``lm_eval.models.utils_hf.resolve_max_length``.
    """
    text_config = getattr(config, "text_config", None) or config
    for name in ("n_positions", "max_position_embeddings", "n_ctx"):
        value = getattr(text_config, name, None)
        if value is not None and value > 0:  # -1, as XLNet has it, is no limit
            return int(value)
    return tokenizer_limit(tokenizer)


def tokenizer_limit(tokenizer: Any) -> int | None:  # noqa: ANN401
    """Return how many tokens the model takes, as its tokenizer says, or None."""
    limit = getattr(tokenizer, "model_max_length", None)
    return None if limit is None or limit > _UNLIMITED else int(limit)


def pad(items: Sequence[Item], pad_id: int, side: str, device: torch.device) -> dict[str, Tensor]:
    """Return the inputs of a batch, padded to its longest item at the left or the right.

    Returns
    -------
    dict
        ``input_ids`` and ``attention_mask``, and ``token_type_ids`` if the items have types:
        each (items, length of the longest), int64.
    """

    def stack(rows: Iterable[Sequence[int]], filler: int) -> Tensor:
        tensors = [torch.tensor(row, dtype=torch.int64) for row in rows]
        padded = pad_sequence(tensors, batch_first=True, padding_value=filler, padding_side=side)
        return padded.to(device)

    inputs = {
        "input_ids": stack((item.ids for item in items), pad_id),
        "attention_mask": stack(([1] * len(item.ids) for item in items), 0),
    }
    types = [item.types for item in items if item.types is not None]
    return inputs | ({"token_type_ids": stack(types, 0)} if types else {})
