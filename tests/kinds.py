"""A catalogue of kinds of checkpoints, each with the expected result.

`docs/kinds.md` is made from it, and `test_kinds` checks every entry.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import checkpoints
from checkpoints import Pair, finetune_tensor, rewrite, write_folder

CUT, FT, BASE, SAME = "truncate", "copy_finetuned", "copy_base", "unchanged"
Tensors = Mapping[str, Tensor]
RANK = 2


@dataclass(frozen=True)
class Kind:
    """One kind of checkpoint, and the expected result at rank `RANK`."""

    slug: str
    title: str
    build: Callable[[Path], Pair]
    note: str
    """One or two sentences for docs/kinds.md."""

    actions: Mapping[str, str] = field(default_factory=dict)
    """Action for every tensor; numbers in names are ``*``."""

    base_only: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    """Part of the error message; None if the pair is accepted."""

    warning: str | None = None
    """Part of a warning on the command line, if there is one."""


def values(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.02 * torch.randn(shape, generator=generator)


def tuned(tensors: Tensors) -> dict[str, Tensor]:
    return {name: finetune_tensor(name, value, 0) for name, value in tensors.items()}


def write(
    folder: Path,
    base: Tensors,
    finetuned: Tensors | None = None,
    config: Mapping[str, object] | None = None,
) -> Pair:
    """Write a pair; the fine-tuned side is base moved, and what is given over it."""
    ours = tuned(base) if finetuned is None else finetuned
    return Pair(
        write_folder(folder / "base", base, config), write_folder(folder / "ft", ours, config)
    )


LAYER = {"layers.0.up.weight": values(12, 8), "layers.0.norm.weight": values(8)}
LAYER_ACTIONS = {"layers.*.up.weight": CUT, "layers.*.norm.weight": FT}


def added(base: Tensors, finetuned: Tensors | None = None, **options: Any):
    """Return a builder of a layer with more tensors on both sides."""

    def build(folder: Path) -> Pair:
        theirs = {**LAYER, **base}
        ours = tuned(theirs) if finetuned is None else {**tuned(LAYER), **finetuned}
        return write(folder, theirs, ours, **options)

    return build


def renamed(base: Callable[[str], str] | None, finetuned: Callable[[str], str] | None):
    """Return a builder of a pair whose sides name the same tensors otherwise."""
    tensors = {"embed.weight": values(20, 8), **LAYER}

    def build(folder: Path) -> Pair:
        sides = [
            {(change or str)(name): value for name, value in side.items()}
            for side, change in ((tensors, base), (tuned(tensors), finetuned))
        ]
        return write(folder, *sides)

    return build


def with_nan(value: Tensor) -> Tensor:
    value = value.clone()
    value.view(-1)[0] = math.nan
    return value


def quantized(folder: Path) -> Pair:
    pair = write(folder, LAYER)
    config = {"quantization_config": {"quant_method": "gptq"}}
    (pair.base / "config.json").write_text(json.dumps(config))
    return pair


def with_modules(folder: Path) -> Pair:
    """Write what sentence-transformers saves, beside the weights."""
    pair = write(folder, LAYER)
    for side in (pair.base, pair.finetuned):
        modules = [{"idx": i, "path": path} for i, path in enumerate(("", "1_Pooling", "2_Dense"))]
        (side / "modules.json").write_text(json.dumps(modules))
        (side / "1_Pooling").mkdir()
        (side / "1_Pooling" / "config.json").write_text("{}")
        write_folder(side / "2_Dense", {"linear.weight": values(4, 8)})
    return pair


def pickled(folder: Path) -> Pair:
    pair = write(folder, LAYER)
    (pair.base / "model.safetensors").rename(pair.base / "pytorch_model.bin")
    return pair


def unsigned(folder: Path) -> Pair:
    extra = {
        f"counts.{bits}": torch.tensor([[1, 2], [3, 4]], dtype=getattr(torch, f"uint{bits}"))
        for bits in (16, 32, 64)
    }
    return write(folder, {**LAYER, **extra}, {**tuned(LAYER), **extra})


def mixed(folder: Path) -> Pair:
    base = {
        "half.weight": values(12, 8).half(),
        "brain.weight": values(12, 8, seed=1).bfloat16(),
        "single.weight": values(12, 8, seed=2),
        "double.weight": values(12, 8, seed=3).double(),
    }
    others = dict(zip(base, (torch.double, torch.float, torch.half, torch.bfloat16), strict=True))
    moved = tuned({name: value.double() for name, value in base.items()})
    return write(folder, base, {name: moved[name].to(dtype) for name, dtype in others.items()})


def experts_in_two_layouts(folder: Path) -> Pair:
    one_by_one = {f"layers.0.mlp.experts.{i}.down.weight": values(6, 8, seed=i) for i in range(3)}
    stack = {"layers.0.mlp.experts.down": torch.stack(list(tuned(one_by_one).values()))}
    return write(folder, {**LAYER, **one_by_one}, {**tuned(LAYER), **stack})


def both_copies(folder: Path) -> Pair:
    table = values(20, 8)
    names = ("model.embed_tokens.weight", "lm_head.weight")
    moved = finetune_tensor("table", table, 0)
    sides = [{**side, **{n: t.clone() for n in names}} for side, t in ((LAYER, table),)]
    ours = {**tuned(LAYER), **{name: moved.clone() for name in names}}
    return write(folder, *sides, ours, {"model_type": "toy", "tie_word_embeddings": True})


def head_that_base_leaves_out(folder: Path) -> Pair:
    base = {**LAYER, "model.embed_tokens.weight": values(20, 8)}
    head = finetune_tensor("head", base["model.embed_tokens.weight"], 0)
    config = {"model_type": "toy", "tie_word_embeddings": True}
    pair = write(folder, base, {**tuned(base), "lm_head.weight": head}, config)
    (pair.finetuned / "config.json").write_text('{"tie_word_embeddings": false}')
    return pair


def equal_sides(folder: Path) -> Pair:
    base = {**LAYER, "layers.1.up.weight": values(12, 8, seed=1)}
    return write(folder, base, {**tuned(base), "layers.1.up.weight": base["layers.1.up.weight"]})


def bare_files(folder: Path) -> Pair:
    pair = write(folder, LAYER)
    return Pair(*(side / "model.safetensors" for side in (pair.base, pair.finetuned)))


def missing_shard(folder: Path) -> Pair:
    pair = checkpoints.sharded(folder)
    min(pair.base.glob("*.safetensors")).unlink()
    return pair


def adapter(folder: Path) -> Pair:
    pair = write(folder, LAYER)
    weights = pair.finetuned / "model.safetensors"
    weights.rename(pair.finetuned / "adapter_model.safetensors")
    (pair.finetuned / "adapter_config.json").write_text('{"peft_type": "LOHA"}')
    return pair


def replaced(name: str, value: Tensor, *, side: str) -> Callable[[Path], Pair]:
    def build(folder: Path) -> Pair:
        pair = write(folder, LAYER)
        path = (pair.base if side == "base" else pair.finetuned) / "model.safetensors"
        rewrite(path, lambda tensors: tensors | {name: value})
        return pair

    return build


LLAMA = {
    "model.layers.*.self_attn.q_proj.weight": CUT,
    "model.layers.*.self_attn.k_proj.weight": CUT,
    "model.layers.*.self_attn.v_proj.weight": CUT,
    "model.layers.*.self_attn.o_proj.weight": CUT,
    "model.layers.*.mlp.gate_proj.weight": CUT,
    "model.layers.*.mlp.up_proj.weight": CUT,
    "model.layers.*.mlp.down_proj.weight": CUT,
    "model.embed_tokens.weight": CUT,
    "model.layers.*.input_layernorm.weight": FT,
    "model.layers.*.post_attention_layernorm.weight": FT,
    "model.norm.weight": FT,
}
UNTIED = LLAMA | {"lm_head.weight": CUT}

FILES = (
    Kind(
        "sharded",
        "Several files with an index",
        checkpoints.sharded,
        "The result has the same files as the fine-tuned side.",
        UNTIED,
    ),
    Kind(
        "sharded-otherwise",
        "Base is split into other files than the fine-tuned side",
        checkpoints.base_sharded_differently,
        "How base is split does not matter.",
        UNTIED,
    ),
    Kind(
        "bare-files",
        "Two bare .safetensors files",
        bare_files,
        "The result is a folder without a config.",
        LAYER_ACTIONS,
    ),
    Kind(
        "modules",
        "A sentence-transformers model",
        with_modules,
        "Folders that `modules.json` names are copied, with their weights: see "
        "[below](#beside-the-weights).",
        LAYER_ACTIONS,
    ),
    Kind(
        "missing-shard",
        "A file that the index names is missing",
        missing_shard,
        "Nothing is written.",
        error="which is not there",
    ),
    Kind(
        "pickled",
        "Pickled weights (.bin, .pt)",
        pickled,
        "The error shows how to convert them.",
        error="its weights are pickled",
    ),
    Kind(
        "adapter",
        "A PEFT adapter that is not LoRA or DoRA",
        adapter,
        "Merge it into its base first. LoRA and DoRA adapters are read: [adapters](adapters.md).",
        error="LOHA",
    ),
    Kind(
        "quantized",
        "Quantised weights (GPTQ, AWQ, bitsandbytes, fp8)",
        quantized,
        "Use the checkpoint in bfloat16, float16 or float32.",
        error="is quantised (gptq",
    ),
)

NUMBERS = (
    Kind(
        "mixed-dtypes",
        "float16, bfloat16, float32 and float64, different on each side",
        mixed,
        "Each tensor keeps the dtype of the fine-tuned side, unless `--dtype` says otherwise.",
        {f"{name}.weight": CUT for name in ("half", "brain", "single", "double")},
    ),
    Kind(
        "integers",
        "Integers and booleans",
        added(
            {"mask": torch.tensor([[True, False], [False, True]]), "ids": torch.arange(6)},
            {"mask": torch.tensor([[True, True], [False, True]]), "ids": torch.arange(6) + 1},
        ),
        "They have no update.",
        LAYER_ACTIONS | {"mask": FT, "ids": FT},
    ),
    Kind(
        "integers-from-base",
        "Integers and booleans, with `--rest base`",
        added(
            {"mask": torch.tensor([[True, False], [False, True]]), "ids": torch.arange(6)},
            {"mask": torch.tensor([[True, True], [False, True]]), "ids": torch.arange(6) + 1},
        ),
        "Tensors that are not truncated are base's.",
        LAYER_ACTIONS | {"mask": BASE, "ids": BASE, "layers.*.norm.weight": BASE},
        options={"rest": "base"},
    ),
    Kind(
        "unsigned",
        "Unsigned integers of 16, 32 and 64 bits",
        unsigned,
        "They have no update.",
        LAYER_ACTIONS | {f"counts.{bits}": FT for bits in (16, 32, 64)},
    ),
    Kind(
        "complex",
        "Complex numbers",
        added({"phases": torch.complex(values(4, 4), values(4, 4, seed=1))}),
        "Only real numbers are cut.",
        LAYER_ACTIONS | {"phases": FT},
    ),
    Kind(
        "nan",
        "NaN or infinity in a matrix",
        replaced("layers.0.up.weight", with_nan(values(12, 8)), side="base"),
        "The same on either side. Nothing is published.",
        error="tensor 'layers.0.up.weight' of base holds NaN or infinity",
    ),
    Kind(
        "nan-copied",
        "NaN or infinity in a tensor that is copied",
        replaced("layers.0.norm.weight", with_nan(values(8)), side="ft"),
        "Nothing is published.",
        error="tensor 'layers.0.norm.weight' of the fine-tuned side holds NaN or infinity",
    ),
    Kind(
        "nan-complex",
        "NaN or infinity in complex numbers",
        replaced("phases", with_nan(torch.ones(2, 2, dtype=torch.complex64)), side="ft"),
        "Nothing is published.",
        error="tensor 'phases' of the fine-tuned side holds NaN or infinity",
    ),
    Kind(
        "nan-unused",
        "NaN or infinity in a tensor of base that is not used",
        replaced("extra.weight", with_nan(values(4, 4)), side="base"),
        "It does not reach the result, so it is not checked.",
        LAYER_ACTIONS,
        base_only=("extra.weight",),
    ),
)

SHAPES = (
    Kind(
        "small-tensors",
        "Vectors, scalars, empty tensors, a single row or column",
        added(
            {
                "scale": torch.tensor(0.5),
                "empty": torch.zeros(0, 8),
                "row.weight": values(1, 8),
                "column.weight": values(8, 1),
            }
        ),
        "They have no rank to cut.",
        LAYER_ACTIONS | dict.fromkeys(("scale", "empty", "row.weight", "column.weight"), FT),
    ),
    Kind(
        "convolutions",
        "Convolutions in one, two and three dimensions",
        added(
            {
                "conv1.weight": values(6, 4, 3),
                "conv2.weight": values(6, 4, 3, 3),
                "conv3.weight": values(6, 4, 3, 3, 3),
                "depthwise.weight": values(6, 1, 3),
            }
        ),
        "Each is cut as a matrix (first dimension, product of the others).",
        LAYER_ACTIONS
        | dict.fromkeys(("conv1.weight", "conv2.weight", "conv3.weight", "depthwise.weight"), CUT),
    ),
    Kind(
        "equal",
        "A matrix that fine-tuning did not change",
        equal_sides,
        "Its rank is 0.",
        LAYER_ACTIONS | {"layers.1.up.weight": SAME},
    ),
    Kind(
        "vocabulary-grew",
        "More tokens on the fine-tuned side",
        added(
            {"model.embed_tokens.weight": values(20, 8), "lm_head.weight": values(20, 8)},
            {
                "model.embed_tokens.weight": values(23, 8, seed=7),
                "lm_head.weight": values(23, 8, seed=8),
            },
        ),
        "The rows that both sides have are cut. New rows are copied from the fine-tuned side.",
        LAYER_ACTIONS | {"model.embed_tokens.weight": CUT, "lm_head.weight": CUT},
    ),
    Kind(
        "vocabulary-shrank",
        "Fewer tokens on the fine-tuned side",
        added(
            {"model.embed_tokens.weight": values(20, 8)},
            {"model.embed_tokens.weight": values(17, 8, seed=7)},
        ),
        "The remaining rows are cut.",
        LAYER_ACTIONS | {"model.embed_tokens.weight": CUT},
    ),
    Kind(
        "other-labels",
        "A classification head with another number of labels",
        added(
            {"classifier.weight": values(2, 8), "classifier.bias": values(2)},
            {"classifier.weight": values(3, 8), "classifier.bias": values(3)},
        ),
        "The head is for another task, so base's is not used.",
        LAYER_ACTIONS | {"classifier.weight": FT, "classifier.bias": FT},
        base_only=("classifier.weight", "classifier.bias"),
    ),
    Kind(
        "new-head",
        "A head that base lacks",
        added({}, {"classifier.weight": values(3, 8), "classifier.bias": values(3)}),
        "There is nothing to compare it with.",
        LAYER_ACTIONS | {"classifier.weight": FT, "classifier.bias": FT},
    ),
    Kind(
        "new-matrices",
        "Matrices of a layer that base lacks",
        added({}, {"layers.1.up.weight": values(12, 8)}),
        "A warning says how many, which share of the weights, and what to do.",
        LAYER_ACTIONS | {"layers.1.up.weight": FT},
        warning="1 matrix is copied whole, 48.0% of the weights: base has no tensor of that name",
    ),
    Kind(
        "only-in-base",
        "Tensors that only base has",
        added({"pooler.weight": values(8, 8)}, {}),
        "They are listed, but not written.",
        LAYER_ACTIONS,
        base_only=("pooler.weight",),
    ),
    Kind(
        "other-shape",
        "Matrices of other shapes",
        added({"layers.1.up.weight": values(12, 8)}, {"layers.1.up.weight": values(12, 9)}),
        "Checked before any work. Layers that differ alike share one line of the message.",
        error="1 tensor differs in shape",
    ),
    Kind(
        "other-shape-skipped",
        "Matrices of other shapes, with `--skip`",
        added({"layers.1.up.weight": values(12, 8)}, {"layers.1.up.weight": values(12, 9)}),
        "A skipped tensor need not fit.",
        LAYER_ACTIONS | {"layers.1.up.weight": FT},
        options={"skip": ["layers.1.*"]},
    ),
)

EXPERTS = (
    Kind(
        "expert-stack",
        "Expert matrices in one stack, (experts, rows, columns)",
        added({"layers.0.mlp.experts.down_proj": values(3, 6, 8)}),
        "Each expert gets a rank of its own.",
        LAYER_ACTIONS | {"layers.*.mlp.experts.down_proj": CUT},
    ),
    Kind(
        "expert-biases",
        "Expert biases in one table, (experts, width)",
        added({"layers.0.mlp.experts.down_proj_bias": values(3, 8)}),
        "Each row is the bias of one expert, a vector.",
        LAYER_ACTIONS | {"layers.*.mlp.experts.down_proj_bias": FT},
    ),
    Kind(
        "empty-stack",
        "A stack without experts, or with empty matrices",
        added(
            {
                "layers.0.mlp.experts.up_proj": torch.zeros(0, 6, 8),
                "layers.0.mlp.experts.down_proj": torch.zeros(3, 0, 8),
            }
        ),
        "There is nothing to cut.",
        LAYER_ACTIONS | {"layers.*.mlp.experts.up_proj": FT, "layers.*.mlp.experts.down_proj": FT},
    ),
    Kind(
        "two-layouts",
        "Experts one by one in base, in a stack on the fine-tuned side",
        experts_in_two_layouts,
        "A warning says so. Save both sides with the same version of transformers.",
        LAYER_ACTIONS | {"layers.*.mlp.experts.down": FT},
        base_only=tuple(f"layers.0.mlp.experts.{i}.down.weight" for i in range(3)),
        warning="Base may store its experts in another layout",
    ),
)

TIES = (
    Kind(
        "tied",
        "The head is the embedding, stored once",
        checkpoints.tied,
        "It is cut once.",
        LLAMA,
    ),
    Kind(
        "tied-twice",
        "The head is the embedding, stored twice",
        both_copies,
        "Both copies are equal in the result, to the byte.",
        LAYER_ACTIONS | {"model.embed_tokens.weight": CUT, "lm_head.weight": CUT},
    ),
    Kind(
        "untied",
        "Only the fine-tuned side has its own head; base's head is its embedding",
        head_that_base_leaves_out,
        "The head's update is the difference from base's embedding.",
        LAYER_ACTIONS | {"model.embed_tokens.weight": CUT, "lm_head.weight": CUT},
    ),
)

NAMES = (
    Kind(
        "prefix",
        "One side puts a prefix before every name (`bert.`, `model.`, `transformer.`, ...)",
        renamed(None, "bert.{}".format),
        "The prefix is found from names and shapes, and reported.",
        {"bert.embed.weight": CUT} | {f"bert.{n}": a for n, a in LAYER_ACTIONS.items()},
    ),
    Kind(
        "wrapped",
        "A model that was compiled, or saved by DDP, DeepSpeed or FSDP",
        renamed(None, lambda name: f"module.{name.replace('.0.', '.0._fsdp_wrapped_module.')}"),
        "Wrappers are ignored, in front of names and in the middle.",
        {
            "module.embed.weight": CUT,
            "module.layers.*._fsdp_wrapped_module.up.weight": CUT,
            "module.layers.*._fsdp_wrapped_module.norm.weight": FT,
        },
    ),
    Kind(
        "moved-parts",
        "Parts of the model were renamed (vision-language models of transformers 4 and 5)",
        renamed(
            lambda name: f"language_model.model.{name}" if "layers" in name else f"visual.{name}",
            lambda name: f"model.{'language_model' if 'layers' in name else 'visual'}.{name}",
        ),
        "Several prefixes may be found; each is reported.",
        {"model.visual.embed.weight": CUT}
        | {f"model.language_model.{n}": a for n, a in LAYER_ACTIONS.items()},
    ),
    Kind(
        "mapped",
        "Other differences in names, with `--map old.=layers.`",
        renamed(lambda name: name.replace("layers.", "old."), None),
        "Base's tensors are renamed first.",
        {"embed.weight": CUT} | LAYER_ACTIONS,
        options={"map": {"old.": "layers."}},
    ),
    Kind(
        "nothing-shared",
        "No name in common",
        renamed(lambda name: name.replace("weight", "w"), None),
        "`--map OLD=NEW` may help.",
        error="share no tensor",
    ),
)

CATALOGUE: Mapping[str, tuple[Kind, ...]] = {
    "Files": FILES,
    "Numbers": NUMBERS,
    "Shapes": SHAPES,
    "Experts": EXPERTS,
    "Tied weights": TIES,
    "Names": NAMES,
}
KINDS = {kind.slug: kind for kinds in CATALOGUE.values() for kind in kinds}
