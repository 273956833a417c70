"""Plant low-rank updates in a real model, write them as an adapter, and let PEFT read it."""

from __future__ import annotations

import json
import math
import random
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from architectures import Architecture
from checkpoints import make_model
from svdcut.adapter.layout import AdapterLayout, Source, lay_out_adapter
from svdcut.adapter.numbers import arrange
from svdcut.adapter.places import Change, Matrix, Model
from svdcut.files.checkpoint import open_checkpoint
from svdcut.names import is_bias, is_expert_stack

Tensors = dict[str, Tensor]


@dataclass
class Planted:
    """A base on disk, and updates of known factors."""

    architecture: Architecture
    folder: Path
    base: Tensors
    expected: Tensors
    factors: Mapping[tuple[str, int], tuple[Tensor, Tensor]]
    changes: list[Change]
    config: dict
    ties: bool

    @property
    def model(self) -> Model:
        shapes = {name: tuple(value.shape) for name, value in self.expected.items()}
        return Model(shapes, self.config, self.ties)

    def lay_out(self) -> AdapterLayout:
        return lay_out_adapter(self.changes, self.model)


def plant(
    architecture: Architecture,
    folder: Path,
    *,
    rank: Callable[[str, int], int] | None = None,
    skip: Callable[[str], bool] = lambda name: False,
    unchanged: Callable[[str], bool] = lambda name: False,
    new: Iterable[str] = (),
    layout: str = "default",
) -> Planted:
    """Save a base, and plant updates: low-rank ones in matrices, any in the rest.

    `skip`ped matrices change at full rank, `new` prefixes are missing in base.
    """
    model = make_model(architecture.build)
    model.save_pretrained(folder, save_original_format=layout == "default")
    base = load_file(folder / "model.safetensors")
    choose = rank or (lambda name, number: random.Random(f"{name} {number}").randint(1, 3))
    generator = torch.Generator().manual_seed(1)
    expected, factors = dict(base), {}
    changes: list[Change] = []
    for name, value in base.items():
        if unchanged(name) or not value.is_floating_point():
            continue
        shape = tuple(value.shape)
        is_new = name.startswith(tuple(new)) if new else False
        matrices = [] if is_new or skip(name) else matrices_of(name, shape)
        if not matrices:
            expected[name] = value + 0.1 * torch.randn(shape, generator=generator)
            changes.append(Change(name, shape, None if is_new else shape, is_cut=False))
            continue
        ranks = [min(choose(name, m.number), m.rows, m.columns) for m in matrices]
        for matrix, k in zip(matrices, ranks, strict=True):
            factors[name, matrix.number] = (
                0.1 * torch.randn(matrix.rows, k, generator=generator),
                torch.randn(k, matrix.columns, generator=generator),
            )
        products = [factors[name, matrix.number] for matrix in matrices]
        update = torch.stack([left @ right for left, right in products])
        expected[name] = value + update.reshape(shape)
        changes.append(Change(name, shape, shape, ranks=tuple(ranks)))
    base = {name: value for name, value in base.items() if not name.startswith(tuple(new) or "-")}
    save_file(base, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    ties = open_checkpoint(folder).ties_embeddings
    return Planted(architecture, folder, base, expected, factors, changes, config, ties)


def matrices_of(name: str, shape: tuple[int, ...]) -> list[Matrix]:
    """Return the matrices that svdcut would cut."""
    if len(shape) < 2 or is_bias(name):
        return []
    if is_expert_stack(name, shape):
        return [Matrix(name, i, *shape[1:]) for i in range(shape[0])]
    rows, columns = shape[0], math.prod(shape[1:])
    return [Matrix(name, 0, rows, columns)] if min(rows, columns) >= 2 else []


def write(planted: Planted, layout: AdapterLayout, folder: Path) -> None:
    """Write an adapter as the command does."""
    tensors: Tensors = {}
    for slot in layout.slots:
        found = arrange(slot, lambda m: planted.factors[m.tensor, m.number], torch.float32)
        assert tuple(tuple(factor.shape) for factor in found) == slot.shapes
        tensors |= zip(slot.keys, found, strict=True)
    for stored in layout.wholes:
        values = planted.base if stored.source is Source.BASE else planted.expected
        tensors[stored.key] = values[stored.tensor].clone()
        assert tuple(values[stored.tensor].shape) == stored.shape
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(layout.config))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def load(planted: Planted, adapter: Path):
    """Load base and adapter; any warning is an error, and any key too many or too few."""
    import peft

    kind = getattr(transformers, planted.architecture.model)
    model = kind.from_pretrained(planted.folder).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # transformers' own, of a property that PEFT reads.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        loaded = peft.PeftModel.from_pretrained(model, adapter)
    again = loaded.load_adapter(adapter, "default")
    assert not again.missing_keys
    assert not again.unexpected_keys
    return loaded.eval()


def check(planted: Planted, folder: Path, *, layout: str = "default") -> AdapterLayout:
    """Write, load and merge, and compare every tensor with base plus its update."""
    laid_out = planted.lay_out()
    write(planted, laid_out, folder / "adapter")
    loaded = load(planted, folder / "adapter")
    inputs = planted.architecture.inputs()
    with torch.inference_mode():
        unmerged = loaded(**inputs)[0]
    with warnings.catch_warnings():
        # A false alarm where the model has no head to tie.
        warnings.filterwarnings("ignore", "Model with `tie_word_embeddings=True`")
        merged = loaded.merge_and_unload()
    with torch.inference_mode():
        torch.testing.assert_close(unmerged, merged(**inputs)[0], rtol=1e-3, atol=1e-3)
    merged.save_pretrained(folder / "merged", save_original_format=layout == "default")
    found = load_file(folder / "merged" / "model.safetensors")
    assert found.keys() == planted.expected.keys()
    for name, value in planted.expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=name)
    return laid_out
