"""Spectra of an adapter: those of the dense update that PEFT merges."""

from __future__ import annotations

import csv
import json
import math
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

import svdcut
from adapter_cases import dense_updates

EXACT = 1e-6
NAMES = ["lora", "dora", "gpt2 without prefix", "embeddings", "experts", "lora_bias"]


@pytest.fixture
def cli(call_cli):
    return partial(call_cli, "spectrum", columns=120)


def close(ours, theirs, within=EXACT):
    return ours == pytest.approx(theirs, rel=within)


def facts(update, rank):
    """Return the facts of a dense update of a known rank, by torch."""
    s = torch.linalg.svdvals(update)[:rank]
    energy = (s / s.norm()).square().cumsum(0)
    shares = s / s.sum()
    return {
        "singular_values": s.tolist(),
        "norm": float(s.norm()),
        "stable_rank": float((s.norm() / s[0]) ** 2),
        "effective_rank": math.exp(-float(torch.xlogy(shares, shares).sum())),
        "rank_90": int((energy < 0.9).sum()) + 1,
        "rank_99": int((energy < 0.99).sum()) + 1,
    }


@pytest.mark.parametrize("name", NAMES)
def test_all_facts_are_those_of_the_dense_update(trained, name):
    folders = trained(name)
    found = svdcut.spectrum(folders.base, folders.adapter).tensors
    dense = dense_updates(folders)
    assert found.keys() == dense.keys()
    for tensor, update in dense.items():
        (matrix,) = found[tensor].matrices
        assert matrix.full_rank == (min(update.shape) if name == "dora" else 4)
        for fact, value in facts(update, matrix.full_rank).items():
            assert close(
                list(getattr(matrix, fact)) if fact == "singular_values" else getattr(matrix, fact),
                value,
            ), (tensor, fact)
        assert matrix.method == ("factored" if name != "dora" else matrix.method)
        # Nothing was rounded: all that float64 tells from zero is above the edge.
        assert matrix.noise_edge < 1e-12 * matrix.singular_values[0]
        assert matrix.above_noise_edge == matrix.full_rank
        assert matrix.base_norm > 0


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_leading_values(trained, name):
    folders = trained(name)
    found = svdcut.spectrum(folders.base, folders.adapter, top=2).tensors
    for tensor, update in dense_updates(folders).items():
        (matrix,) = found[tensor].matrices
        assert close(list(matrix.singular_values), torch.linalg.svdvals(update)[:2].tolist())


def test_intruders_are_those_of_the_merged_model(trained):
    folders = trained("lora")
    ours, theirs = (
        svdcut.spectrum(folders.base, side, intruders=True, only=["*proj*"]).tensors
        for side in (folders.adapter, folders.merged)
    )
    for name, found in ours.items():
        cosines = found.matrices[0].intruders.cosines
        assert cosines == pytest.approx(theirs[name].matrices[0].intruders.cosines, abs=1e-3)


def test_two_adapters_of_one_base(trained, cli, tmp_path):
    one, other = trained("lora"), trained("rslora")
    again = svdcut.compare_spectra(one.base, one.adapter, one.adapter, rank=4)
    assert all(overlap[0].left_overlap == pytest.approx(1) for overlap in again.overlaps.values())
    found = svdcut.compare_spectra(one.base, one.adapter, other.adapter, rank=2)
    dense = dense_updates(one), dense_updates(other)
    assert found.overlaps.keys() == dense[0].keys()
    for name, (overlap,) in found.overlaps.items():
        u, v = (torch.linalg.svd(update[name])[0][:, :2] for update in dense)
        assert overlap.left_overlap == pytest.approx(float((u.T @ v).square().sum()) / 2, abs=1e-6)
    picture = tmp_path / "picture.svg"
    result = cli(one.base, one.adapter, "--compare", other.adapter, "--plot", picture)
    assert result.exit_code == 0, result.output
    assert picture.exists()
    assert "Leading left spaces overlap by" in result.stdout
    document = json.loads(cli(one.base, one.adapter, "--compare", other.adapter, "--json").stdout)
    assert document["partners"].keys() == dense[0].keys()


def test_every_form_of_output(trained, cli, tmp_path):
    folders = trained("experts")
    expected = svdcut.spectrum(folders.base, folders.adapter)
    found = json.loads(cli(folders.base, folders.adapter, "--json").stdout)
    assert found["tensors"] == json.loads(json.dumps(expected.to_json()))["tensors"]
    rows = csv.DictReader(cli(folders.base, folders.adapter, "--csv").stdout.splitlines())
    assert {row["tensor"] for row in rows} == expected.tensors.keys()
    page, values = tmp_path / "s.html", tmp_path / "s.safetensors"
    result = cli(folders.base, folders.adapter, "--html", page, "--save", values)
    assert result.exit_code == 0, result.output
    assert page.stat().st_size > 10_000
    saved = load_file(values)
    assert all(len(saved[name]) == 4 for name in expected.tensors)


def test_the_screen(trained, cli):
    folders = trained("lora")
    result = cli(folders.base, folders.adapter)
    assert result.exit_code == 0
    assert "6 matrices, 15 tensors without one." in result.stdout
    assert "24 of 24 singular values" in result.stdout
    (row,) = [line for line in result.stdout.splitlines() if line.startswith("0.self_attn.q_proj")]
    assert "32x32" in row
    assert "nan" not in result.stdout.lower()
