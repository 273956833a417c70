"""Extracted adapters as the fine-tuned side, and adapters made smaller."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

import svdcut
from adapter_cases import CASES, distance
from architectures import ARCHITECTURES
from trained_adapters import WEIGHTS, quietly, read

EXACT = 1e-6
DROPS = {
    "gpt_oss": ["*_proj_bias", "*.sinks"],
    "vit": ["*.cls_token", "*.position_embeddings"],
}
ROUNDS = ["llama", "qwen3_moe", "mixtral", "gpt_oss", "gpt2", "bert", "vit", "granitemoe"]
"""The last two have other names in memory than in their files."""


@pytest.mark.parametrize("name", ROUNDS)
def test_an_extracted_adapter_is_cut_as_its_checkpoint_is(tmp_path, name):
    pair = ARCHITECTURES[name].pair(tmp_path)
    adapter, once, twice = (tmp_path / n for n in ("adapter", "once", "twice"))
    svdcut.extract(pair.base, pair.finetuned, adapter, rank="full", drop=DROPS.get(name, []))
    svdcut.truncate(pair.base, pair.finetuned, once, rank=3, dtype="float32")
    svdcut.truncate(pair.base, adapter, twice, rank=3, dtype="float32")
    expected, found, base = read(once), read(twice), read(pair.base)
    assert found.keys() == expected.keys()
    for tensor, value in found.items():
        dropped = any(tensor.endswith(end.strip("*")) for end in DROPS.get(name, []))
        assert distance(value, (base if dropped else expected)[tensor]) < EXACT, tensor


def prefixes(path):
    return {key.removeprefix("base_model.model.").split(".")[0] for key in load_file(path)}


SMALLER = [
    "lora",
    "rslora",
    "patterns",
    "dora",
    "gpt2",
    "gpt2 without prefix",
    "lora_bias",
    "embeddings",
    "tied embeddings",
    "new head",
    "experts",
]


@pytest.mark.parametrize("name", SMALLER)
def test_a_smaller_adapter_is_the_truncated_checkpoint(trained, tmp_path, name):
    case, folders = CASES[name], trained(name)
    small, out = tmp_path / "small", tmp_path / "out"
    svdcut.extract(folders.base, folders.adapter, small, rank=2)
    svdcut.truncate(folders.base, folders.adapter, out, rank=2, dtype="float32")
    model, _ = case.load_result(folders.base)
    with quietly():
        loaded = PeftModel.from_pretrained(model, str(small))
        merged = loaded.merge_and_unload().state_dict()
    expected, info = case.load_result(out)
    assert not info["missing_keys"]
    for tensor, value in expected.state_dict().items():
        assert distance(merged[tensor], value) < EXACT, tensor


@pytest.mark.parametrize("name", SMALLER)
def test_its_keys_have_the_prefix_of_those_of_the_adapter(trained, tmp_path, name):
    folders = trained(name)
    svdcut.extract(folders.base, folders.adapter, tmp_path / "small", rank=2)
    assert prefixes(tmp_path / "small" / WEIGHTS) == prefixes(folders.adapter / WEIGHTS)


def test_all_of_an_adapter_comes_back(trained, tmp_path):
    folders = trained("experts")
    svdcut.extract(folders.base, folders.adapter, tmp_path / "again", rank="full")
    svdcut.truncate(folders.base, tmp_path / "again", tmp_path / "out", rank="full")
    merged = read(folders.merged)
    for name, value in read(tmp_path / "out").items():
        assert value.dtype is torch.float32
        assert distance(value, merged[name]) < EXACT, name
