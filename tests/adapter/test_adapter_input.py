"""An adapter as the fine-tuned side: all of it is what PEFT merges."""

from __future__ import annotations

import json

import pytest
import torch

import svdcut
from adapter_cases import CASES, distance
from trained_adapters import read, results

EXACT = 1e-6


def in_memory(name, folder):
    model, info = CASES[name].load_result(folder)
    return model.state_dict(), info


@pytest.mark.parametrize("name", CASES)
def test_all_of_an_adapter_is_what_peft_merges(trained, tmp_path, name):
    folders, out = trained(name), tmp_path / "out"
    svdcut.truncate(folders.base, folders.adapter, out, rank="full")
    ours, info = in_memory(name, out)
    theirs, _ = in_memory(name, folders.merged)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert ours.keys() == theirs.keys()
    worst = {key: distance(value, theirs[key]) for key, value in ours.items()}
    assert max(worst.values()) < EXACT, worst


@pytest.mark.parametrize("name", CASES)
def test_in_16_bits_it_is_the_sum_in_float64_rounded_once(trained, tmp_path, name):
    folders, out = trained(name, torch.bfloat16), tmp_path / "out"
    svdcut.truncate(folders.base, folders.adapter, out, rank="full")
    ours, sums = read(out), results(folders.open())
    assert ours.keys() == sums.keys()
    for key, value in ours.items():
        half_unit = 2**-8 * sums[key].abs() + 1e-7  # summed in float32
        assert value.dtype is torch.bfloat16
        assert bool(((value.double() - sums[key]).abs() <= half_unit).all()), key


@pytest.mark.parametrize("name", ["lora", "rslora", "dora", "gpt2", "lora_bias", "new head"])
def test_in_16_bits_it_is_within_a_unit_of_pefts(trained, tmp_path, name):
    """Not of embeddings and experts: PEFT rounds their updates before it adds them."""
    folders, out = trained(name, torch.bfloat16), tmp_path / "out"
    svdcut.truncate(folders.base, folders.adapter, out, rank="full")
    (ours, _), (theirs, _) = (in_memory(name, folder) for folder in (out, folders.merged))
    for key, value in ours.items():
        assert value.dtype is theirs[key].dtype
        far = (value.double() - theirs[key].double()).abs() > 2**-7 * theirs[key].abs() + 1e-6
        assert float(far.double().mean()) < 1e-3, key


def test_the_result_has_bases_files_and_the_adapters_tokenizer(trained, tmp_path):
    folders, out = trained("lora"), tmp_path / "out"
    svdcut.truncate(folders.base, folders.adapter, out, rank=2)
    names = {path.name for path in out.iterdir()}
    base = {path.name for path in folders.base.iterdir()}
    assert names == base | {"svdcut.json", "README.md"}
    assert json.loads((out / "tokenizer_config.json").read_text()) == {"from": "adapter"}
    assert (out / "config.json").read_text() == (folders.base / "config.json").read_text()
    assert read(out).keys() == read(folders.base).keys()
