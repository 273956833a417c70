"""Adapters that PEFT makes and merges, on small random models, and what svdcut reads of them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from svdcut.adapter.numbers import dora_update, read_factors, read_magnitude
from svdcut.adapter.reading import open_finetuned
from svdcut.files.checkpoint import Checkpoint, open_checkpoint
from svdcut.files.lora_factors import LowRankEntry
from svdcut.files.tensorfile import TensorEntry

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
CPU = torch.device("cpu")
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def llama(**more: object) -> transformers.LlamaForCausalLM:
    sizes = {**SIZES, "tie_word_embeddings": False, **more}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))


def gpt2(**more: object) -> transformers.GPT2LMHeadModel:
    config = transformers.GPT2Config(
        vocab_size=64, n_embd=32, n_layer=1, n_head=4, n_positions=32, **more
    )
    return transformers.GPT2LMHeadModel(config)


def bert(head: type = transformers.BertForSequenceClassification):
    config = transformers.BertConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=32,
    )
    return head(config)


@contextmanager
def quietly() -> Iterator[None]:
    """Let PEFT and transformers warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@dataclass(frozen=True)
class Folders:
    """A base, an adapter, and the two merged by PEFT."""

    base: Path
    adapter: Path
    merged: Path

    def open(self, **options: object) -> Checkpoint:
        return open_finetuned(self.adapter, open_checkpoint(self.base), **options)

    def worst(self) -> float:
        """Return the largest relative difference of a tensor to PEFT's."""
        ours, theirs = results(self.open()), read(self.merged)
        assert ours.keys() == theirs.keys()
        return max(
            float((ours[name] - value).norm() / value.norm().clamp_min(1e-9))
            for name, value in ((name, value.double()) for name, value in theirs.items())
        )


def make(
    folder: Path,
    model: torch.nn.Module,
    config: LoraConfig,
    *,
    base: torch.nn.Module | None = None,
    tokens: int | None = None,
    train: Callable[[PeftModel], None] | None = None,
    named: bool = False,
) -> Folders:
    """Save a base, and an adapter of it with random weights; merge them."""
    found = Folders(folder / "base", folder / "adapter", folder / "merged")
    with quietly():
        (model if base is None else base).save_pretrained(found.base)
        if named:
            config.base_model_name_or_path = model.name_or_path = str(found.base)
            model.config._name_or_path = str(found.base)
        if tokens:
            model.resize_token_embeddings(tokens, mean_resizing=False)
        wrapped = get_peft_model(model, config)
        (train or randomize)(wrapped)
        wrapped.save_pretrained(found.adapter)
        wrapped.merge_and_unload().save_pretrained(found.merged)
    return found


def randomize(model: PeftModel) -> None:
    """Give every trained weight another value, in place: what is tied stays so."""
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        noise = torch.randn(weight.shape, generator=generator).to(weight.dtype)
        with torch.no_grad():
            if "lora_" in name and "magnitude" not in name:
                weight.copy_(0.2 * noise)
            else:
                weight.add_(0.1 * noise)


def read(folder: Path) -> dict[str, Tensor]:
    return {
        name: value
        for path in folder.glob("*.safetensors")
        for name, value in load_file(path).items()
    }


def stored(entry: TensorEntry) -> Tensor:
    """Return what a file has at an entry, whatever it calls it."""
    for name, value in load_file(entry.path).items():
        where = next(e for e in _entries(entry.path) if e.name == name)
        if where.offset == entry.offset:
            return value.double()
    raise AssertionError(entry)


def _entries(path: Path) -> tuple[TensorEntry, ...]:
    from svdcut.files.header import read_header

    return read_header(path).entries


def results(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return all tensors of an adapter on its base, in float64."""
    return {
        name: changed(stored(entry), checkpoint.updates.get(name))
        for name, entry in checkpoint.tensors.items()
    }


def changed(value: Tensor, update: LowRankEntry | None) -> Tensor:
    """Return a tensor with its update."""
    if update is None:
        return value
    if value.dim() == 3 and update.experts > 1:
        pairs = (read_factors(update, number, CPU) for number in range(len(value)))
        return value + torch.stack([left @ right for left, right in pairs])
    return _changed_matrix(value, update)


def _changed_matrix(value: Tensor, update: LowRankEntry) -> Tensor:
    left, right = read_factors(update, 0, CPU)
    matrix = value.reshape(len(left), -1)
    magnitude = read_magnitude(update, CPU)
    moved = left @ right if magnitude is None else dora_update(matrix, left, right, magnitude)
    return (matrix + moved).reshape(value.shape)


def edit_config(folder: Path, **fields: object) -> None:
    """Change fields of an adapter's config; None takes one out."""
    path = folder / CONFIG
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def rename_keys(folder: Path, change: Callable[[str], str]) -> None:
    """Write an adapter's tensors under other keys."""
    tensors = load_file(folder / WEIGHTS)
    save_file({change(key): value for key, value in tensors.items()}, folder / WEIGHTS)
