"""Truncating an adapter: every rule, against torch's SVD of the dense update."""

from __future__ import annotations

import shutil

import pytest
import torch
from typer.testing import CliRunner

import svdcut
from adapter_cases import CASES, dense_updates, distance
from checkpoints import rewrite
from svdcut.cli.app import app
from trained_adapters import WEIGHTS, Folders, read, results

EXACT = 1e-6
KINDS = ["lora", "dora", "gpt2 without prefix", "experts", "tied embeddings"]


def cut(update, indices):
    u, s, v = torch.linalg.svd(update, full_matrices=False)
    return (u[:, indices] * s[indices]) @ v[indices]


def expected(folders, choose, *, scale=1.0, skip=()):
    """Return all tensors of a result whose updates keep the triplets that are chosen."""
    base, merged = read(folders.base), results(folders.open())
    for name, update in dense_updates(folders).items():
        if name not in skip:
            part = cut(update, choose(name, update)).reshape(base[name].shape)
            merged[name] = base[name].double() + scale * part
    return merged


def check(out, wanted):
    found = read(out)
    assert found.keys() == wanted.keys()
    worst = {name: distance(value, wanted[name]) for name, value in found.items()}
    assert max(worst.values()) < EXACT, worst


def full(folders, name, update):
    return min(update.shape) if folders.open().updates[name].magnitude else 4


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("rank", [0, 1, 2, 8])
def test_fixed_ranks(trained, tmp_path, name, rank):
    folders = trained(name)
    manifest = svdcut.truncate(folders.base, folders.adapter, tmp_path / "out", rank=rank)
    check(tmp_path / "out", expected(folders, lambda n, u: range(min(rank, full(folders, n, u)))))
    methods = {fact.truncation.svd.method for fact in manifest.tensors.values() if fact.truncation}
    assert ("factored" in methods) == (name != "dora")


@pytest.mark.parametrize("rule", ["energy=0.8", "ratio=0.2", "noise", "full"])
@pytest.mark.parametrize("name", KINDS)
def test_rules(trained, tmp_path, name, rule):
    folders = trained(name)
    svdcut.truncate(folders.base, folders.adapter, tmp_path / "out", rank=rule)

    def choose(tensor, update):
        s = torch.linalg.svdvals(update)
        most = full(folders, tensor, update)
        if rule in ("noise", "full"):
            return range(most)
        if rule == "ratio=0.2":
            return range(int((s >= 0.2 * s[0]).sum()))
        return range(int((s.square().cumsum(0) / s.square().sum() < 0.8).sum()) + 1)

    check(tmp_path / "out", expected(folders, choose))


def test_a_budget_buys_the_triplets_with_most_energy(trained, tmp_path):
    folders = trained("lora")
    manifest = svdcut.truncate(folders.base, folders.adapter, tmp_path / "out", rank="budget=0.5")
    ranks = {n: f.truncation.ranks[0] for n, f in manifest.tensors.items() if f.truncation}
    assert 0 < sum(ranks.values()) < manifest.totals.full_rank
    check(tmp_path / "out", expected(folders, lambda n, u: range(ranks[n])))
    outcome = svdcut.verify(tmp_path / "out", base=folders.base, finetuned=folders.adapter)
    assert outcome.failures == ()


def test_several_at_once(trained, tmp_path):
    folders = trained("lora")
    outs = {rank: tmp_path / rank for rank in ("1", "3", "full")}
    svdcut.truncate_many(folders.base, folders.adapter, outs)
    for rank, out in outs.items():
        check(out, expected(folders, lambda n, u, r=rank: range(4 if r == "full" else int(r))))


def test_the_least_triplets(trained, tmp_path):
    """Of those that the factors have: the null space of the update is none of its own."""
    folders = trained("lora")
    svdcut.truncate(folders.base, folders.adapter, tmp_path / "out", rank=1, keep="bottom")
    check(tmp_path / "out", expected(folders, lambda n, u: [3]))


def test_random_triplets(trained, tmp_path):
    folders = trained("lora")
    for out in ("a", "b"):
        svdcut.truncate(
            folders.base, folders.adapter, tmp_path / out, rank=2, keep="random", seed=3
        )
    first, second = read(tmp_path / "a"), read(tmp_path / "b")
    base = read(folders.base)
    for name, update in dense_updates(folders).items():
        assert torch.equal(first[name], second[name])
        kept = first[name].double() - base[name].double()
        u, s, v = torch.linalg.svd(update)
        cores = (u.T @ kept @ v.T)[:4, :4].diagonal() / s[:4]
        assert sorted(cores.tolist()) == pytest.approx([0, 0, 1, 1], abs=1e-3)


def test_a_scale(trained, tmp_path):
    folders = trained("rslora")
    svdcut.truncate(folders.base, folders.adapter, tmp_path / "out", rank="full", scale=-0.5)
    check(tmp_path / "out", expected(folders, lambda n, u: range(4), scale=-0.5))


@pytest.mark.parametrize("name", ["lora", "dora", "experts", "more tokens, adapted"])
def test_what_is_skipped_keeps_all_of_its_update(trained, tmp_path, name):
    folders = trained(name)
    skip = next(iter(folders.open().updates))
    svdcut.truncate(folders.base, folders.adapter, tmp_path / "out", rank=1, skip=[skip])
    found, whole = read(tmp_path / "out"), results(folders.open())
    assert distance(found[skip], whole[skip]) < EXACT
    others = [n for n in folders.open().updates if n != skip and whole[n].dim() > 1]
    assert all(distance(found[n], whole[n]) > EXACT for n in others)


def test_the_rest_from_base(trained, tmp_path):
    folders = trained("lora_bias")
    out = tmp_path / "out"
    svdcut.truncate(
        folders.base, folders.adapter, out, rank="full", rest="base", skip=["*.0.*query.weight"]
    )
    found, base, whole = read(out), read(folders.base), results(folders.open())
    for name, value in found.items():
        cut = name.endswith("dense.weight")
        assert distance(value, (whole if cut else base)[name]) < EXACT, name


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_another_dtype(trained, tmp_path, dtype):
    folders = trained("lora", torch.bfloat16)
    svdcut.truncate(folders.base, folders.adapter, tmp_path / "out", rank=2, dtype=dtype)
    found, wanted = read(tmp_path / "out"), expected(folders, lambda n, u: range(2))
    for name in folders.open().updates:
        assert str(found[name].dtype) == f"torch.{dtype}"
        unit = torch.finfo(found[name].dtype).eps
        assert distance(found[name], wanted[name]) < max(unit, EXACT)


def test_an_embedding_that_is_bases_in_more_bits(trained, tmp_path):
    """Training in 4 bits saves it so; its factors are all of its update."""
    made = trained("embeddings", torch.bfloat16)
    folders = Folders(made.base, tmp_path / "adapter", made.merged)
    shutil.copytree(made.adapter, folders.adapter)
    whole = "base_model.model.model.embed_tokens.base_layer.weight"

    def widen(tensors):
        return tensors | {whole: tensors[whole].float()}

    rewrite(folders.adapter / WEIGHTS, widen)
    manifest = svdcut.truncate(folders.base, folders.adapter, tmp_path / "out", rank=2)
    fact = manifest.tensors["model.embed_tokens.weight"]
    assert (fact.dtype, fact.truncation.svd.method) == ("BF16", "factored")

    def change(tensors):
        tensors[whole][1, 1] += 1
        return tensors

    rewrite(folders.adapter / WEIGHTS, change)
    manifest = svdcut.truncate(folders.base, folders.adapter, tmp_path / "out2", rank="full")
    fact = manifest.tensors["model.embed_tokens.weight"]
    assert (fact.dtype, fact.truncation.full_rank) == ("F32", 32)
    sums = results(folders.open())
    found = read(tmp_path / "out2")
    assert all(distance(value, sums[name]) < 2**-8 for name, value in found.items())


def test_both_forms_of_a_result(trained, tmp_path):
    folders, out, small = trained("lora"), tmp_path / "out", tmp_path / "small"
    svdcut.truncate(folders.base, folders.adapter, out, rank=2, also_adapter=small)
    svdcut.truncate(folders.base, small, tmp_path / "again", rank="full")
    again = read(tmp_path / "again")
    assert all(distance(value, again[name]) < EXACT for name, value in read(out).items())


def test_the_screen(trained, tmp_path):
    folders = trained("lora")
    words = ["truncate", folders.base, folders.adapter, "-k", "2", "-o", tmp_path / "out"]
    environment = {"COLUMNS": "100", "TERM": "dumb"}
    for more, count in ((["--dry-run"], "6"), ([], "6 of 21 tensors truncated: rank 12 of 24")):
        result = CliRunner().invoke(app, [*map(str, words), *more], env=environment)
        assert result.exit_code == 0, result.output
        assert count in result.output
    assert "6 by factored" in result.output


def test_more_tokens_and_factors_of_them(trained, tmp_path):
    """Rows that base lacks are whole; of the others the update is cut."""
    folders, out = trained("more tokens, adapted"), tmp_path / "out"
    svdcut.truncate(folders.base, folders.adapter, out, rank=2)
    base, whole, found = read(folders.base), results(folders.open()), read(out)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = len(base[name])
        assert distance(found[name][rows:], whole[name][rows:]) < EXACT
        part = cut(whole[name][:rows] - base[name].double(), range(2))
        assert distance(found[name][:rows], base[name].double() + part) < EXACT
    model, _ = CASES["more tokens, adapted"].load_result(out)
    assert model.config.vocab_size == 70
    outcome = svdcut.verify(out, base=folders.base, finetuned=folders.adapter)
    assert outcome.failures == ()
