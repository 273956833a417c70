"""``svdcut verify`` of results whose fine-tuned side was an adapter."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import svdcut
from checkpoints import rewrite
from svdcut.cli.app import app
from svdcut.svd import engine
from trained_adapters import CONFIG, WEIGHTS, edit_config, read

KINDS = ["lora", "dora", "gpt2 without prefix", "lora_bias", "new head", "experts", "more tokens"]
Q = "model.layers.0.self_attn.q_proj"


def truncate(folders, out, **options):
    return svdcut.truncate(folders.base, folders.adapter, out, **({"rank": 2} | options))


def verify(folders, out):
    return svdcut.verify(out, base=folders.base, finetuned=folders.adapter)


def check_passes(folders, out):
    assert svdcut.verify(out).failures == ()
    outcome = verify(folders, out)
    assert outcome.failures == ()
    assert outcome.checked.recomputed == outcome.checked.truncated > 0


def failed(outcome):
    return {(failure.tensor or failure.file, failure.claim) for failure in outcome.failures}


@pytest.mark.parametrize("rank", [1, "full", "energy=0.8", "noise", "budget=0.4"])
@pytest.mark.parametrize("name", KINDS)
def test_an_untouched_result_passes(trained, tmp_path, name, rank):
    folders = trained(name, torch.bfloat16)
    truncate(folders, tmp_path / "out", rank=rank)
    check_passes(folders, tmp_path / "out")


@pytest.mark.parametrize(
    "options",
    [
        {"keep": "bottom"},
        {"keep": "random"},
        {"scale": 0.5},
        {"dtype": "float32"},
        {"skip": [f"{Q}.weight"]},
        {"rest": "base", "skip": [f"{Q}.weight"]},
        {"svd": "exact"},
        {"max_shard_size": "20KB"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_every_option_passes(trained, tmp_path, options):
    folders = trained("lora", torch.bfloat16)
    truncate(folders, tmp_path / "out", **options)
    check_passes(folders, tmp_path / "out")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["lora", "dora", "experts", "more tokens, adapted"])
def test_an_untouched_result_passes_elsewhere(trained, tmp_path, elsewhere, name, dtype):
    folders = trained(name, dtype)
    truncate(folders, tmp_path / "out")
    outcome = verify(folders, tmp_path / "out")
    assert outcome.failures == ()
    assert outcome.checked.recomputed == outcome.checked.truncated > 0


def test_names_that_were_mapped(trained, tmp_path):
    """The adapter is opened with the renames that the manifest knows."""
    folders = trained("lora")
    base = tmp_path / "base"
    shutil.copytree(folders.base, base)
    rewrite(base / "model.safetensors", lambda tensors: {f"old.{n}": v for n, v in tensors.items()})
    renames = {"old.model.": "model.", "old.lm_head.": "lm_head."}
    svdcut.truncate(base, folders.adapter, tmp_path / "out", rank=2, map=renames)
    outcome = svdcut.verify(tmp_path / "out", base=base, finetuned=folders.adapter)
    assert outcome.failures == ()
    svdcut.truncate(folders.base, folders.adapter, tmp_path / "plain", rank=2)
    plain = read(tmp_path / "plain")
    for name, value in read(tmp_path / "out").items():
        assert torch.equal(value, plain[name.removeprefix("old.")])


def test_renames_that_base_has_nothing_of_are_no_crash(adapted, trained, tmp_path):
    base = tmp_path / "renamed"
    shutil.copytree(adapted.base, base)
    rewrite(base / "model.safetensors", lambda tensors: {f"old.{n}": v for n, v in tensors.items()})
    renames = {"old.model.": "model.", "old.lm_head.": "lm_head."}
    svdcut.truncate(base, adapted.adapter, tmp_path / "out", rank=2, map=renames)
    assert ("svdcut.json", "options") in failed(verify(adapted, tmp_path / "out"))


def test_a_changed_factor(adapted, tmp_path):
    truncate(adapted, tmp_path / "out")
    tensors = load_file(adapted.adapter / WEIGHTS)
    tensors[f"base_model.model.{Q}.lora_B.weight"][0, 0] += 0.01
    save_file(tensors, adapted.adapter / WEIGHTS)
    found = failed(verify(adapted, tmp_path / "out"))
    assert (WEIGHTS, "finetuned.files") in found
    assert {name for name, _ in found} == {WEIGHTS, f"{Q}.weight"}


def test_a_changed_scale(adapted, tmp_path):
    truncate(adapted, tmp_path / "out")
    edit_config(adapted.adapter, lora_alpha=7)
    found = failed(verify(adapted, tmp_path / "out"))
    assert (CONFIG, "finetuned.files") in found
    assert (f"{Q}.weight", "update_norm") in found
    assert len({name for name, _ in found}) == 7


def test_a_changed_result(adapted, tmp_path):
    truncate(adapted, tmp_path / "out")

    def change(tensors):
        tensors[f"{Q}.weight"][0, 0] += 0.01
        return tensors

    rewrite(tmp_path / "out" / "model.safetensors", change)
    assert (f"{Q}.weight", "sha256") in failed(svdcut.verify(tmp_path / "out"))
    assert {f"{Q}.weight"} == {name for name, _ in failed(verify(adapted, tmp_path / "out"))}


def test_on_the_command_line(adapted, tmp_path):
    truncate(adapted, tmp_path / "out")
    words = [tmp_path / "out", "--base", adapted.base, "--ft", adapted.adapter, "--json"]
    result = CliRunner().invoke(app, ["verify", *map(str, words)])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["ok"]
    edit_config(adapted.adapter, use_rslora=True)
    assert CliRunner().invoke(app, ["verify", *map(str, words)]).exit_code != 0


def test_the_exact_route_of_an_adapter_passes(adapted, tmp_path, monkeypatch):
    """Where the factors' own route misses its bound, the product is formed."""
    with monkeypatch.context() as patch:
        patch.setattr(engine, "factored_triplets", fail)
        manifest = truncate(adapted, tmp_path / "out")
    facts = [fact.truncation for fact in manifest.tensors.values() if fact.truncation]
    assert {(fact.svd.method, fact.full_rank) for fact in facts} == {("exact", 4)}
    assert svdcut.verify(tmp_path / "out").failures == ()
    assert verify(adapted, tmp_path / "out").failures == ()


def fail(product):
    raise torch.linalg.LinAlgError("did not converge")
