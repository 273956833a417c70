"""Extracted adapters: PEFT loads them, and merging gives what `truncate` writes."""

from __future__ import annotations

import re
import warnings
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from test_architectures import CASES

import svdcut
from architectures import ARCHITECTURES, Architecture
from checkpoints import Pair, read_folder

RANK = 3
DROPS: dict[str, list[str]] = {
    "gpt_oss": ["*_proj_bias", "*.sinks"],
    "llava": ["*.class_embedding"],
    "mamba": ["*.A_log", "*.D", "*.conv1d.weight", "*.out_proj.weight"],
    "vit": ["*.cls_token", "*.embeddings.position_embeddings"],
    "wav2vec2": ["*.original?", "*.masked_spec_embed"],
    "whisper": ["*.encoder.conv?.weight", "*.encoder.embed_positions.weight"],
}
"""What PEFT has no place for, by architecture."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Build a pair of one architecture in one layout, once."""
    built: dict[tuple[str, str], Pair] = {}

    def get(name: str, layout: str = "default") -> Pair:
        if (name, layout) not in built:
            folder = tmp_path_factory.mktemp(name)
            built[name, layout] = ARCHITECTURES[name].pair(folder, layout=layout)
        return built[name, layout]

    return get


def load(architecture: Architecture, folder: Path):
    kind = getattr(transformers, architecture.model)
    return kind.from_pretrained(folder, dtype=torch.float32).eval()


def adapted(architecture: Architecture, base: Path, adapter: Path):
    """Return base under an adapter; a word of PEFT about keys or targets is a failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, about PEFT itself
        # Of a pattern that PEFT itself adds where it joins experts.
        warnings.filterwarnings("ignore", r"The following \w+_pattern keys.*gate_up_proj'\]")
        return PeftModel.from_pretrained(load(architecture, base), str(adapter)).eval()


def find_differences(found, expected) -> set[str]:
    ours, theirs = found.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()

    def differs(a: torch.Tensor, b: torch.Tensor) -> bool:
        return float((a.double() - b.double()).norm()) > 1e-6 * float(b.double().norm())

    return {name for name in theirs if differs(ours[name], theirs[name])}


def logits(model, architecture: Architecture) -> torch.Tensor:
    with torch.inference_mode():
        return model(**architecture.inputs())[0]


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_merging_an_adapter_gives_what_truncate_writes(saved, tmp_path, name, layout):
    architecture, pair = ARCHITECTURES[name], saved(name, layout)
    drop = DROPS.get(name, [])
    out, adapter = tmp_path / "out", tmp_path / "adapter"
    manifest = svdcut.extract(pair.base, pair.finetuned, adapter, rank=RANK, drop=drop)
    svdcut.truncate(pair.base, pair.finetuned, out, rank=RANK, dtype="float32")
    model = adapted(architecture, pair.base, adapter)
    expected = load(architecture, out)
    before = logits(model, architecture)
    merged = model.merge_and_unload()
    after = logits(merged, architecture)
    assert torch.allclose(before, after, rtol=1e-3, atol=1e-4)
    different = find_differences(merged, expected)
    dropped = [name for name, fact in manifest.tensors.items() if fact.action == "drop"]
    assert len(different) == len(dropped)
    assert not different & find_differences(merged, load(architecture, pair.base))
    assert svdcut.verify(adapter, base=pair.base, finetuned=pair.finetuned).failures == ()


MIXTURES = ["mixtral", "qwen3_moe", "deepseek_v3"]


@pytest.mark.parametrize("some", [[], ["*layers.1*experts.2.*"]], ids=["all", "one expert"])
@pytest.mark.parametrize("name", MIXTURES)
def test_peft_joins_experts_that_are_apart(saved, tmp_path, name, some):
    architecture, pair = ARCHITECTURES[name], saved(name)
    out, adapter = tmp_path / "out", tmp_path / "adapter"
    options = {"rank": "energy=0.7", "only": some, "rest": "base" if some else "ft"}
    svdcut.extract(pair.base, pair.finetuned, adapter, experts="separate", **options)
    svdcut.truncate(pair.base, pair.finetuned, out, dtype="float32", **options)
    keys = {key for key in load_file(adapter / "adapter_model.safetensors") if ".experts." in key}
    assert all(re.search(r"\.experts\.\d+\.\w+\.lora_[AB]\.weight$", key) for key in keys)
    model = adapted(architecture, pair.base, adapter)
    expected = load(architecture, out)
    before = logits(model, architecture)
    merged = model.merge_and_unload()
    assert torch.allclose(before, logits(merged, architecture), rtol=1e-3, atol=1e-4)
    assert not find_differences(merged, expected)
    assert find_differences(merged, load(architecture, pair.base))
    verified = svdcut.verify(adapter, base=pair.base, finetuned=pair.finetuned)
    assert verified.ok
    svdcut.truncate(pair.base, adapter, tmp_path / "again", rank="full", dtype="float32")
    assert not find_differences(load(architecture, tmp_path / "again"), expected)


@pytest.mark.parametrize("name", DROPS)
def test_what_peft_cannot_hold_is_refused_by_name(saved, tmp_path, name):
    pair = saved(name)
    with pytest.raises(svdcut.UnholdableError) as refused:
        svdcut.extract(pair.base, pair.finetuned, tmp_path / "adapter", rank=RANK)
    listed = {line.split("'")[1] for line in str(refused.value).splitlines() if ": " in line[4:]}
    names = [n for n in read_folder(pair.finetuned) if any(fnmatch(n, p) for p in DROPS[name])]
    assert listed
    assert listed <= set(names)
    assert not list(tmp_path.iterdir())
