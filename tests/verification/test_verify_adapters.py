"""``svdcut verify`` of extracted adapters: true ones pass, and every false claim is found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import forgery
import svdcut
from architectures import ARCHITECTURES
from checkpoints import rewrite

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
Q = "model.layers.0.self_attn.q_proj"
KEY_A, KEY_B = (f"base_model.model.{Q}.lora_{side}.weight" for side in "AB")
RANK = 4


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return ARCHITECTURES["llama"].pair(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def extract(llama, tmp_path_factory):
    """Extract an adapter once, and give a copy to damage."""
    made = {}

    def get(folder, rank=RANK, **options):
        key = (rank, *sorted(options.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("made") / "adapter"
            svdcut.extract(llama.base, llama.finetuned, made[key], rank=rank, **options)
        return Path(shutil.copytree(made[key], folder / "adapter"))

    return get


def verify(pair, out):
    return svdcut.verify(out, base=pair.base, finetuned=pair.finetuned)


def check_fails(pair, out, *claims):
    """Check that only the inputs show what is wrong, and where."""
    assert svdcut.verify(out).failures == ()
    failures = verify(pair, out).failures
    assert {failure.tensor for failure in failures} == {f"{Q}.weight"}
    assert {failure.claim for failure in failures} >= set(claims)


def forge(out, edit):
    """Change the factors of one matrix, and make every hash fit."""
    rewrite(out / WEIGHTS, lambda t: t | dict(zip((KEY_A, KEY_B), edit(t), strict=True)))
    forgery.rehash_adapter(out)


OPTIONS = (
    {},
    {"rank": "energy=0.7"},
    {"rank": "budget=0.2"},
    {"rank": "noise"},
    {"keep": "bottom"},
    {"keep": "random", "seed": 3},
    {"scale": -0.5},
    {"dtype": "bfloat16"},
    {"dtype": "float16", "rank": 8},
    {"svd": "krylov"},
)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_passes(llama, extract, tmp_path, options):
    outcome = verify(llama, extract(tmp_path, **options))
    assert outcome.failures == ()
    assert outcome.checked.recomputed == outcome.checked.truncated > 0


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_passes_elsewhere(llama, extract, tmp_path, elsewhere, options):
    assert verify(llama, extract(tmp_path, **options)).failures == ()


@pytest.mark.parametrize("rank", ["4", "budget=0.2"])
@pytest.mark.parametrize(
    "kind", ["tied", "untied_by_finetuning", "tied_by_finetuning", "gpt2", "mixtral", "single"]
)
def test_every_kind_passes(pairs, tmp_path, kind, rank):
    pair = pairs(kind)
    svdcut.extract(pair.base, pair.finetuned, tmp_path / "adapter", rank=rank)
    assert verify(pair, tmp_path / "adapter").failures == ()


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, "svdcut.json"])
def test_a_flipped_bit(extract, tmp_path, name):
    out = extract(tmp_path)
    data = bytearray((out / name).read_bytes())
    data[len(data) // 2] ^= 1
    (out / name).write_bytes(data)
    assert not svdcut.verify(out).ok


@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16"}], ids=str)
def test_another_rank(llama, extract, tmp_path, options):
    """The last triplet is left out."""
    out = extract(tmp_path, **options)
    forge(out, lambda t: (t[KEY_A], torch.cat([t[KEY_B][:, :-1], 0 * t[KEY_B][:, -1:]], 1)))
    check_fails(llama, out, "result", "error")


@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16"}], ids=str)
def test_a_swapped_triplet(llama, extract, tmp_path, options):
    out = extract(tmp_path, **options)
    (tmp_path / "more").mkdir()
    other = load_file(extract(tmp_path / "more", rank=RANK + 1, **options) / WEIGHTS)
    kept = [*range(RANK - 1), RANK]
    forge(out, lambda _: (other[KEY_A][kept], other[KEY_B][:, kept].contiguous()))
    check_fails(llama, out, "result")


def test_values_that_rounding_does_not_explain(llama, extract, tmp_path):
    out = extract(tmp_path)
    forge(out, lambda t: (t[KEY_A], t[KEY_B] * (1 + 1e-5)))
    check_fails(llama, out, "result")


def test_another_scale_in_the_config(llama, extract, tmp_path):
    """The tensors are true: it is what a loader makes of them that is not."""
    out = extract(tmp_path)
    config = json.loads((out / CONFIG).read_text())
    config["lora_alpha"] *= 2
    forgery.replace_file(out, CONFIG, json.dumps(config).encode())
    assert svdcut.verify(out).ok
    failures = verify(llama, out).failures
    truncated = [n for n, f in forgery.read(out)["tensors"].items() if f["truncation"]]
    assert {f.tensor for f in failures if f.claim == "result"} == set(truncated)


@pytest.mark.parametrize("claim", ["tail_norm", "update_norm", "sigma_first", "rounding_error"])
def test_a_forged_number(llama, extract, tmp_path, claim):
    out = extract(tmp_path, dtype="bfloat16")

    def edit(document):
        cut = document["tensors"][f"{Q}.weight"]["truncation"]
        fact = cut if claim in cut else cut["matrices"][0]
        fact[claim] *= 0.99 if claim == "rounding_error" else 1 - 5e-5
        cut["energy_retained"] = 1 - (cut["tail_norm"] / cut["update_norm"]) ** 2

    forgery.change(out, edit)
    check_fails(llama, out, claim)


def test_ranks_that_a_budget_gives_to_others(llama, extract, tmp_path):
    out = extract(tmp_path, "budget=0.2")
    cuts = {n: f["truncation"] for n, f in forgery.read(out)["tensors"].items() if f["truncation"]}
    ranks = {name: cut["matrices"][0]["rank"] for name, cut in cuts.items()}
    richest = max(ranks, key=lambda name: ranks[name])
    fixed = tuple(f"{name}={rank - (name == richest)}" for name, rank in ranks.items())
    (tmp_path / "other").mkdir()
    other = extract(tmp_path / "other", "budget=0.2", rank_for=fixed)

    def edit(document):
        document["options"]["rank_for"] = []
        for cut in forgery.truncations(document):
            cut["rule"] = "budget=0.2"

    forgery.change(other, edit)
    assert svdcut.verify(other).ok
    assert [(f.tensor, f.claim) for f in verify(llama, other).failures] == [(richest, "rank")]


@pytest.mark.parametrize("side", ["base", "finetuned"])
def test_a_swapped_side(llama, extract, tmp_path, side):
    out = extract(tmp_path)
    sides = {"base": llama.base, "finetuned": llama.finetuned}
    other = shutil.copytree(sides[side], tmp_path / "other")
    rewrite(other / "model.safetensors", lambda t: t | {f"{Q}.weight": t[f"{Q}.weight"] + 1e-2})
    found = svdcut.verify(out, **(sides | {side: other})).failures
    assert {f.tensor or f.claim for f in found} == {f"{side}.files", f"{Q}.weight"}


def test_a_planted_file(extract, tmp_path):
    out = extract(tmp_path)
    (out / "chat_template.jinja").write_text("x")
    assert [f.file for f in svdcut.verify(out).failures] == ["chat_template.jinja"]


def test_a_norm_that_is_not_the_finetuned_sides(llama, extract, tmp_path):
    """What is stored whole beside the factors."""
    out = extract(tmp_path)
    whole = [n for n in load_file(out / WEIGHTS) if "lora_" not in n]
    if not whole:
        pytest.skip("nothing is stored whole")
    rewrite(out / WEIGHTS, lambda t: t | {whole[0]: t[whole[0]] * 2})
    forgery.rehash_adapter(out)
    assert svdcut.verify(out).ok
    (failure,) = verify(llama, out).failures
    assert failure.claim == "result"
