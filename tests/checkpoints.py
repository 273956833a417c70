"""Builders of small checkpoint pairs, and a reader of what comes out.

The models are real ones of transformers with random weights. Every matrix of the
fine-tuned side gets a planted update: a power-law head of low rank over a flat
tail of full rank, so that all of its singular values are apart and none vanishes.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import deserialize
from safetensors.torch import save_file
from torch import Tensor

TORCH_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
HEAD_RANK = 24


@dataclass(frozen=True)
class Pair:
    """Two checkpoint folders."""

    base: Path
    finetuned: Path


@dataclass(frozen=True)
class Stored:
    """One tensor as it lies in a file."""

    value: Tensor
    raw: bytes
    dtype: str
    file: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.raw).hexdigest()


def read_folder(path: Path) -> dict[str, Stored]:
    """Read all tensors of a folder, or of one file, with the safetensors library."""
    found: dict[str, Stored] = {}
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        for name, fields in deserialize(file.read_bytes()):
            assert name not in found
            raw = bytes(fields["data"])
            dtype = TORCH_DTYPES[fields["dtype"]]
            value = torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0)
            value = value.to(dtype).reshape(fields["shape"])
            found[name] = Stored(value, raw, fields["dtype"], file.name)
    return found


def file_bytes(path: Path) -> dict[str, bytes]:
    """Return the content of every file of a folder."""
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def planted_update(m: int, n: int, generator: torch.Generator, *, size: float = 1.0) -> Tensor:
    """Return a float64 matrix of known spectrum: ``i ** -1`` for a few, then a flat tail."""
    r = min(m, n)
    left, right = (
        torch.linalg.qr(torch.randn(rows, r, generator=generator, dtype=torch.float64))[0]
        for rows in (m, n)
    )
    place = torch.arange(1, r + 1, dtype=torch.float64)
    s = 0.15 * (1 - 0.5 * place / r) + (place <= HEAD_RANK) / place
    # Tensors of one shape must not have one spectrum: a budget would meet ties.
    s *= size * 0.02 * math.sqrt(r) * (0.8 + 0.4 * torch.rand(1, generator=generator).item())
    return (left * s) @ right.T


def finetune_tensor(name: str, value: Tensor, seed: int) -> Tensor:
    """Return a tensor that was "trained": moved by a planted update."""
    if not value.is_floating_point() or value.numel() == 0:
        return value
    digest = hashlib.sha256(f"{name} {seed}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:6], "little"))
    if value.dim() < 2:
        moved = 0.01 * torch.randn(value.shape, generator=generator, dtype=torch.float64)
    elif value.dim() == 3:
        stack = [planted_update(*value.shape[1:], generator) for _ in value]
        moved = torch.stack(stack)
    else:
        matrix = value.reshape(len(value), -1)
        moved = planted_update(*matrix.shape, generator).reshape(value.shape)
    return (value.double() + moved).to(value.dtype)


# Models of transformers


def _llama(**changes):
    from transformers import LlamaConfig, LlamaForCausalLM

    fields = {
        "vocab_size": 144,
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 20,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
    }
    return LlamaForCausalLM(LlamaConfig(**(fields | changes)))


def _gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=112,
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_positions=48,
        bos_token_id=1,
        eos_token_id=2,
    )
    return GPT2LMHeadModel(config)


def bert(kind: str, *, labels: int = 3):
    """Return a model, ``encoder`` (names without a prefix) or ``classifier`` (``bert.``)."""
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    config = BertConfig(
        vocab_size=112,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=48,
        num_labels=labels,
    )
    return BertModel(config) if kind == "encoder" else BertForSequenceClassification(config)


def _mixtral():
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=112,
        hidden_size=64,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=3,
        max_position_embeddings=48,
    )
    return MixtralForCausalLM(config)


def make_model(build: Callable, dtype: torch.dtype = torch.float32, *, seed: int = 0):
    """Return a model with random weights that depend on the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build()
    return model.eval().to(dtype)


def finetune(model, *, seed: int = 0):
    """Return a copy of a model, every parameter moved."""
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            parameter.copy_(finetune_tensor(name, parameter, seed))
    return tuned


def save_pair(base, tuned, folder: Path, *, shard_base=None, shard_tuned=None, **options) -> Pair:
    """Save two models as ``folder/base`` and ``folder/ft``."""
    pair = Pair(folder / "base", folder / "ft")
    for model, path, size in (
        (base, pair.base, shard_base),
        (tuned, pair.finetuned, shard_tuned),
    ):
        model.save_pretrained(path, max_shard_size=size or "1GB", **options)
    return pair


def single(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Pair:
    """Llama, one file on each side."""
    base = make_model(_llama, dtype)
    return save_pair(base, finetune(base), folder)


def sharded(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Pair:
    """Llama, the same four files on each side."""
    base = make_model(_llama, dtype)
    return save_pair(base, finetune(base), folder, shard_base="120KB", shard_tuned="120KB")


def base_sharded_differently(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Pair:
    """Llama, other files on base's side."""
    base = make_model(_llama, dtype)
    return save_pair(base, finetune(base), folder, shard_base="70KB", shard_tuned="120KB")


def tied(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Pair:
    """Llama whose head is its embedding, which neither side stores."""
    base = make_model(lambda: _llama(tie_word_embeddings=True), dtype)
    return save_pair(base, finetune(base), folder)


def _untie(model):
    untied = make_model(_llama, model.dtype)
    state = model.state_dict()
    untied.load_state_dict(state | {"lm_head.weight": state["model.embed_tokens.weight"].clone()})
    return untied


def untied_by_finetuning(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Pair:
    """Base ties its head; the fine-tuned side stores both."""
    base = make_model(lambda: _llama(tie_word_embeddings=True), dtype)
    return save_pair(base, finetune(_untie(base)), folder)


def tied_by_finetuning(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Pair:
    """Base stores both; the fine-tuned side ties its head."""
    tuned = make_model(lambda: _llama(tie_word_embeddings=True), dtype)
    return save_pair(_untie(tuned), finetune(tuned), folder)


def mixed(folder: Path, *, integers: bool = True) -> Pair:
    """Llama, base in bfloat16, fine-tuned in float32 with some float16 and float64."""
    base = make_model(_llama, torch.bfloat16)
    tuned = finetune(make_model(_llama, torch.bfloat16).to(torch.float32))
    pair = save_pair(base, tuned, folder)
    extra = {"steps": torch.arange(12).reshape(3, 4), "seen": torch.tensor(7, dtype=torch.int32)}
    extra = extra if integers else {}
    rewrite(
        pair.finetuned / "model.safetensors",
        lambda tensors: {
            **{
                name: value.half()
                if ".0.mlp." in name
                else value.double()
                if ".1.mlp." in name
                else value
                for name, value in tensors.items()
            },
            **extra,
        },
    )
    rewrite(
        pair.base / "model.safetensors",
        lambda tensors: {
            **{
                name: value.float() if "o_proj" in name else value
                for name, value in tensors.items()
            },
            **{name: value + 1 for name, value in extra.items()},
        },
    )
    return pair


KINDS: Mapping[str, Callable[[Path], Pair]] = {
    "single": single,
    "sharded": sharded,
    "base_sharded_differently": base_sharded_differently,
    "tied": tied,
    "mixed": mixed,
}
"""The five kinds of pairs that everything must hold for."""


def gpt2(folder: Path, dtype: torch.dtype = torch.float32) -> Pair:
    """GPT-2: transposed linear layers, tied head."""
    base = make_model(_gpt2, dtype)
    return save_pair(base, finetune(base), folder)


def mixtral(folder: Path, dtype: torch.dtype = torch.float32, *, fused: bool = True) -> Pair:
    """Mixtral, its experts in 3-D stacks as transformers 5 holds them, or one by one."""
    base = make_model(_mixtral, dtype)
    return save_pair(base, finetune(base), folder, save_original_format=not fused)


def grown_vocabulary(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Pair:
    """Llama with nine more tokens on the fine-tuned side."""
    base = make_model(_llama, dtype)
    grown = make_model(lambda: _llama(vocab_size=153), dtype, seed=1)
    state = grown.state_dict()
    with torch.no_grad():
        for name, value in base.state_dict().items():
            state[name][: len(value)] = value
    return save_pair(base, finetune(grown), folder)


def bert_pair(folder: Path, *, prefixed: str, dtype: torch.dtype = torch.float32) -> Pair:
    """BERT where one side alone (``base`` or ``finetuned``) has the prefix ``bert.``."""
    encoder = make_model(lambda: bert("encoder"), dtype)
    classifier = make_model(lambda: bert("classifier"), dtype)
    classifier.bert.load_state_dict(encoder.state_dict())
    if prefixed == "base":
        return save_pair(classifier, finetune(encoder), folder)
    return save_pair(encoder, finetune(classifier), folder)


# Pairs by hand


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]) -> None:
    """Rewrite a safetensors file; tensors go in and come out by name."""
    tensors = {name: stored.value.clone() for name, stored in read_folder(path).items()}
    save_file(dict(change(tensors)), path, metadata={"format": "pt"})


def write_folder(
    path: Path, tensors: Mapping[str, Tensor], config: Mapping[str, object] | None = None
) -> Path:
    """Write ``model.safetensors`` and ``config.json``."""
    path.mkdir(parents=True)
    save_file(dict(tensors), path / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": "toy", "dtype": "float32"} if config is None else config
    (path / "config.json").write_text(json.dumps(config))
    return path


def toy_tensors(dtype: torch.dtype = torch.float32, *, layers: int = 2) -> dict[str, Tensor]:
    """Return a few small tensors: matrices, a convolution, vectors and integers."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return (0.02 * torch.randn(shape, generator=generator)).to(dtype)

    tensors = {"embed.weight": normal(40, 24), "conv.weight": normal(12, 4, 3, 3)}
    for layer in range(layers):
        tensors[f"layers.{layer}.up.weight"] = normal(32, 24)
        tensors[f"layers.{layer}.down.weight"] = normal(24, 32)
        tensors[f"layers.{layer}.norm.weight"] = 1 + normal(24)
    tensors["position_ids"] = torch.arange(24).reshape(2, 12)
    tensors["scale"] = torch.tensor(0.5, dtype=dtype)
    return tensors


def toy(folder: Path, dtype: torch.dtype = torch.float32, *, layers: int = 2) -> Pair:
    """Toy tensors and their fine-tuned version, in one file each."""
    base = toy_tensors(dtype, layers=layers)
    tuned = {name: finetune_tensor(name, value, 0) for name, value in base.items()}
    return Pair(write_folder(folder / "base", base), write_folder(folder / "ft", tuned))
