"""What an extracted adapter is made of: files, manifest, card; and that it comes whole."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from jsonschema import Draft202012Validator
from safetensors.torch import load_file

import forgery
import svdcut
import svdcut.truncation.run
import svdcut.truncation.tensor_output
from architectures import ARCHITECTURES
from checkpoints import Pair, file_bytes, rewrite
from observers import Stop
from svdcut.api.truncation import carry_out, plan_extraction
from svdcut.record.manifest import SCHEMA_PATH, Manifest
from svdcut.write.destination import partial_path

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Pair:
    return ARCHITECTURES["llama"].pair(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def adapter(llama, tmp_path_factory):
    out = tmp_path_factory.mktemp("extracted") / "adapter"
    return out, svdcut.extract(llama.base, llama.finetuned, out, rank=4)


@pytest.fixture
def one_worker(monkeypatch):
    monkeypatch.setattr(svdcut.truncation.run, "num_workers", lambda *_: 1)


def weights_of(pair: Pair, name: str) -> list[torch.Tensor]:
    sides = (pair.base, pair.finetuned)
    return [load_file(side / "model.safetensors")[name].double() for side in sides]


def config_of(out) -> dict:
    return json.loads((out / CONFIG).read_text())


def comparable(out) -> dict[str, bytes]:
    """Return every file but the manifest, whose date differs."""
    return {name: data for name, data in file_bytes(out).items() if name != "svdcut.json"}


def test_files(adapter):
    out, manifest = adapter
    assert {path.name for path in out.iterdir()} == {WEIGHTS, CONFIG, "README.md", "svdcut.json"}
    assert manifest.files.keys() == {WEIGHTS, CONFIG, "README.md"}
    document = json.loads((out / "svdcut.json").read_text())
    schema = json.loads(SCHEMA_PATH.read_text())
    assert not list(Draft202012Validator(schema).iter_errors(document))
    assert Manifest.loads((out / "svdcut.json").read_text()) == manifest
    assert manifest.adapter.tensors.keys() == load_file(out / WEIGHTS).keys()


def test_factors_share_the_singular_values(adapter, llama):
    out, manifest = adapter
    stored = load_file(out / WEIGHTS)
    name = "model.layers.0.mlp.down_proj"
    a = stored[f"base_model.model.{name}.lora_A.weight"].double()
    b = stored[f"base_model.model.{name}.lora_B.weight"].double()
    base, tuned = weights_of(llama, f"{name}.weight")
    s = torch.linalg.svdvals(tuned - base)[:4]
    assert torch.allclose(a @ a.T, torch.diag(s), atol=1e-6 * float(s[0]))
    assert torch.allclose(b.T @ b, torch.diag(s), atol=1e-6 * float(s[0]))
    fact = manifest.tensors[f"{name}.weight"].truncation
    assert fact.matrices[0].sigma_first == pytest.approx(float(s[0]), rel=1e-6)
    assert 0 < fact.rounding_error < 1e-6 * fact.update_norm


def test_first_rows_of_a_larger_adapter_are_the_smaller_one(llama, tmp_path):
    options = svdcut.ExtractOptions(
        llama.base, llama.finetuned, tmp_path / "{k}", rank=[2, 6], skip="*embed*"
    )
    carry_out(plan_extraction(options))
    small, large = (load_file(tmp_path / k / WEIGHTS) for k in "26")
    assert small.keys() == large.keys()
    for key, values in small.items():
        if "lora_A" in key:
            assert torch.equal(values, large[key][:2])
        elif "lora_B" in key:
            assert torch.equal(values, large[key][:, :2])


def test_ranks_that_differ(llama, tmp_path):
    out = tmp_path / "adapter"
    manifest = svdcut.extract(
        llama.base, llama.finetuned, out, rank="energy=0.8", rank_for=["*layers.1.mlp*=2"]
    )
    config, stored = config_of(out), load_file(out / WEIGHTS)
    ranks = {n: f.truncation.ranks[0] for n, f in manifest.tensors.items() if f.truncation}
    assert len(set(ranks.values())) > 1
    assert config["r"] == config["lora_alpha"] == max(ranks.values())
    assert config["rank_pattern"] == config["alpha_pattern"] != {}
    for name, rank in ranks.items():
        key = f"base_model.model.{name.removesuffix('.weight')}.lora_A.weight"
        assert key not in stored or len(stored[key]) == rank


def test_both_results_of_one_decomposition(llama, adapter, tmp_path):
    out, also = tmp_path / "out", tmp_path / "also"
    svdcut.truncate(llama.base, llama.finetuned, out, rank=4, also_adapter=also, dtype="float32")
    assert comparable(also) == comparable(adapter[0])
    svdcut.truncate(llama.base, llama.finetuned, tmp_path / "alone", rank=4, dtype="float32")
    assert comparable(out) == comparable(tmp_path / "alone")
    assert svdcut.verify(also, base=llama.base, finetuned=llama.finetuned).ok
    assert svdcut.verify(out, base=llama.base, finetuned=llama.finetuned).ok


def test_threads_and_shards_change_no_byte(llama, adapter, tmp_path, one_worker):
    svdcut.extract(llama.base, llama.finetuned, tmp_path / "adapter", rank=4)
    assert comparable(tmp_path / "adapter") == comparable(adapter[0])


@pytest.mark.parametrize("number", [1, 7, 15])
def test_resumed_run_equals_an_undisturbed_one(llama, adapter, tmp_path, one_worker, number):
    out = tmp_path / "adapter"
    with pytest.raises(svdcut.Interrupted):
        svdcut.extract(llama.base, llama.finetuned, out, rank=4, observe=Stop(number))
    assert not out.exists()
    seen = Stop(-1)
    svdcut.extract(llama.base, llama.finetuned, out, rank=4, observe=seen)
    assert sum(progress.resumed for progress in seen.seen) == number
    assert comparable(out) == comparable(adapter[0])
    assert not partial_path(out).exists()


def test_lost_factors_are_made_again(llama, adapter, tmp_path, one_worker):
    out = tmp_path / "adapter"
    with pytest.raises(svdcut.Interrupted):
        svdcut.extract(llama.base, llama.finetuned, out, rank=4, observe=Stop(15))
    spool = partial_path(out) / "staging-0"
    spool.write_bytes(b"\0" * 8 + spool.read_bytes()[8:-8])
    seen = Stop(-1)
    svdcut.extract(llama.base, llama.finetuned, out, rank=4, observe=seen)
    assert sum(progress.resumed for progress in seen.seen) == 13
    assert comparable(out) == comparable(adapter[0])


def test_unfinished_checkpoint_is_not_taken_for_an_adapter(llama, tmp_path, one_worker):
    out = tmp_path / "out"
    with pytest.raises(svdcut.Interrupted):
        svdcut.truncate(llama.base, llama.finetuned, out, rank=4, observe=Stop(3))
    with pytest.raises(svdcut.OutputExistsError, match="the result was checkpoint, is adapter"):
        svdcut.extract(llama.base, llama.finetuned, out, rank=4)


def test_rank_zero_holds_nothing(llama, tmp_path):
    with pytest.raises(svdcut.UsageError, match="rank 0 holds nothing"):
        svdcut.extract(llama.base, llama.finetuned, tmp_path / "adapter", rank=0)
    assert not list(tmp_path.iterdir())


def test_unchanged_tensors_are_left_out(llama, tmp_path):
    base, tuned = tmp_path / "base", tmp_path / "tuned"
    shutil.copytree(llama.base, base)
    shutil.copytree(llama.base, tuned)
    name = "model.layers.1.self_attn.q_proj.weight"
    rewrite(tuned / "model.safetensors", lambda t: {**t, name: t[name] + 0.01 * t[name].sin()})
    manifest = svdcut.extract(base, tuned, tmp_path / "adapter", rank=3)
    stored = load_file(tmp_path / "adapter" / WEIGHTS)
    assert {key.split(".lora_")[0] for key in stored} == {
        f"base_model.model.{name.removesuffix('.weight')}"
    }
    others = {fact.action for n, fact in manifest.tensors.items() if n != name}
    assert others == {"unchanged"}
    assert config_of(tmp_path / "adapter")["modules_to_save"] is None


def test_dropped_tensors_are_said_to_be_dropped(llama, tmp_path):
    out = tmp_path / "adapter"
    manifest = svdcut.extract(llama.base, llama.finetuned, out, rank=3, drop=["*norm*", "*embed*"])
    dropped = {name for name, fact in manifest.tensors.items() if fact.action == "drop"}
    assert dropped == {n for n in manifest.tensors if "norm" in n or "embed" in n}
    assert not [key for key in load_file(out / WEIGHTS) if "norm" in key or "embed" in key]
    with pytest.raises(svdcut.UsageError, match="--drop 'nothing' matches no tensor"):
        svdcut.extract(llama.base, llama.finetuned, tmp_path / "b", rank=3, drop=["nothing"])


def test_card_names_base_and_no_path(llama, tmp_path):
    tuned = tmp_path / "tuned"
    shutil.copytree(llama.finetuned, tuned)
    card = "---\nlicense: apache-2.0\nbase_model: org/base\nlibrary_name: transformers\n---\n"
    (tuned / "README.md").write_text(card)
    svdcut.extract(llama.base, tuned, tmp_path / "adapter", rank=3)
    text = (tmp_path / "adapter" / "README.md").read_text()
    for line in ("license: apache-2.0", "- org/base", "library_name: peft"):
        assert f"{line}\n" in text
    assert "base_model_relation: adapter" in text
    assert "LlamaForCausalLM.from_pretrained" in text
    assert str(tmp_path) not in text
    assert str(llama.base) not in text


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_factors_of_other_dtypes(llama, tmp_path, dtype):
    manifest = svdcut.extract(llama.base, llama.finetuned, tmp_path / "a", rank=4, dtype=dtype)
    stored = load_file(tmp_path / "a" / WEIGHTS)
    factors = {str(v.dtype) for k, v in stored.items() if "lora_" in k}
    assert factors == {f"torch.{dtype}"}
    fact = manifest.tensors["model.layers.0.mlp.down_proj.weight"].truncation
    a, b = (
        stored[f"base_model.model.model.layers.0.mlp.down_proj.lora_{side}.weight"].double()
        for side in "AB"
    )
    base, tuned = weights_of(llama, "model.layers.0.mlp.down_proj.weight")
    u, s, vh = torch.linalg.svd(tuned - base, full_matrices=False)
    error = float((b @ a - (u[:, :4] * s[:4]) @ vh[:4]).norm())
    assert fact.rounding_error == pytest.approx(error, rel=1e-3)


def test_tampering_is_found(adapter, llama, tmp_path):
    out = tmp_path / "adapter"
    shutil.copytree(adapter[0], out)
    assert svdcut.verify(out).ok
    rewrite(out / WEIGHTS, lambda t: {k: v + 1e-3 if "q_proj" in k else v for k, v in t.items()})
    found = svdcut.verify(out)
    assert {failure.claim for failure in found.failures} >= {"sha256"}
    shutil.copy(adapter[0] / WEIGHTS, out / WEIGHTS)
    config = config_of(out) | {"lora_alpha": 8}
    (out / CONFIG).write_text(json.dumps(config))
    assert [failure.file for failure in svdcut.verify(out).failures] == [CONFIG]


def test_another_adapter_under_an_honest_manifest_is_found(adapter, llama, tmp_path):
    """All hashes agree, but the factors are not those of the inputs."""
    out = tmp_path / "adapter"
    shutil.copytree(adapter[0], out)
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    rewrite(out / WEIGHTS, lambda t: {**t, key: t[key] * 1.001})
    forgery.rehash_adapter(out)
    assert svdcut.verify(out).ok
    found = svdcut.verify(out, base=llama.base, finetuned=llama.finetuned)
    assert {f.tensor for f in found.failures} == {"model.layers.0.self_attn.q_proj.weight"}
    assert found.failures[0].claim == "result"


def test_another_task_under_an_honest_manifest_is_found(adapter, llama, tmp_path):
    out = tmp_path / "adapter"
    shutil.copytree(adapter[0], out)
    config = {"id2label": {"0": "bad", "1": "good"}}
    forgery.change(out, lambda document: document["adapter"].update(config=config))
    assert svdcut.verify(out).ok
    found = svdcut.verify(out, base=llama.base, finetuned=llama.finetuned)
    assert [(f.file, f.claim) for f in found.failures] == [("svdcut.json", "adapter.config")]


def test_another_version_may_turn_signs(adapter, llama, tmp_path):
    """A run elsewhere rounds otherwise: what counts is the product."""
    out = tmp_path / "adapter"
    shutil.copytree(adapter[0], out)
    rewrite(out / WEIGHTS, lambda t: {k: flip(k, v) for k, v in t.items()})
    forgery.rehash_adapter(out)
    found = svdcut.verify(out, base=llama.base, finetuned=llama.finetuned)
    assert found.ok, found.failures
    assert found.checked.recomputed == found.checked.truncated


def flip(key: str, values: torch.Tensor) -> torch.Tensor:
    """Turn the sign of every triplet, as another library may."""
    return -values if "lora_" in key else values


def test_factors_that_are_not_the_update_are_refused(llama, tmp_path, monkeypatch):
    """Both results of one decomposition are checked against each other."""
    difference = svdcut.truncation.tensor_output.product_difference

    def of_another(intended, stored):
        return difference(intended, (stored[0], stored[1] * 1.0001))

    monkeypatch.setattr(svdcut.truncation.tensor_output, "product_difference", of_another)
    with pytest.raises(svdcut.SvdcutError, match="away from the truncated update"):
        svdcut.extract(llama.base, llama.finetuned, tmp_path / "adapter", rank=4)
