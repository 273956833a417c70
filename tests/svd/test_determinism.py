"""Same inputs, same options, same bytes: whatever the threads, workers and base's files."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

import svdcut
from checkpoints import Pair, file_bytes, planted_update, write_folder

PASSES = (("6", "20"), ("energy=0.8", "budget=0.1"))
"""Fixed ranks let the engine iterate; the others make it take whole spectra."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Matrices for every route of the engine, several at a time."""
    generator = torch.Generator().manual_seed(3)
    shapes = {
        "fast.weight": (1200, 1100),
        "wide.weight": (390, 500),
        "small.weight": (200, 310),
        "tall.weight": (600, 60),
        "moe.experts.up": (3, 90, 70),
        "conv.weight": (40, 10, 3, 3),
        "norm.weight": (100,),
    }
    base = {n: 0.02 * torch.randn(shape, generator=generator) for n, shape in shapes.items()}
    tuned = {}
    for name, value in base.items():
        if value.dim() == 1:
            tuned[name] = value + 1
            continue
        matrices = value if value.dim() == 3 else value.reshape(1, len(value), -1)
        moved = [planted_update(*matrix.shape, generator).float() for matrix in matrices]
        tuned[name] = value + torch.stack(moved).reshape(value.shape)
    folder = tmp_path_factory.mktemp("pair")
    return Pair(
        write_folder(folder / "base", {n: w.bfloat16() for n, w in base.items()}),
        write_folder(folder / "ft", {n: w.bfloat16() for n, w in tuned.items()}),
    )


def comparable(out):
    """Return the files of a result, without what may differ: time, command, base's files."""
    files = file_bytes(out)
    manifest = json.loads(files.pop("svdcut.json"))
    del manifest["created"], manifest["command"], manifest["base"], manifest["digest"]
    del manifest["totals"]["seconds"]
    return files | {"svdcut.json": json.dumps(manifest)}


def run(pair, folder, **options):
    found = {}
    for rules in PASSES:
        outs = {rule: folder / rule for rule in rules}
        svdcut.truncate_many(
            pair.base, pair.finetuned, outs, dtype="float32", device="cpu", **options
        )
        found |= {rule: comparable(out) for rule, out in outs.items()}
    return found


@pytest.fixture(scope="module")
def reference(pair, tmp_path_factory):
    return run(pair, tmp_path_factory.mktemp("reference"))


def test_the_pair_takes_more_than_one_route(reference):
    facts = json.loads(reference["6"]["svdcut.json"])["tensors"].values()
    cuts = [fact["truncation"] for fact in facts if fact["truncation"]]
    assert {cut["svd"]["method"] for cut in cuts} >= {"gram", "krylov"}


def test_twice(pair, reference, tmp_path):
    assert run(pair, tmp_path) == reference


@pytest.mark.parametrize("options", [{"keep": "random", "seed": 7}, {"svd": "krylov"}], ids=str)
def test_twice_with_random_numbers(pair, tmp_path, options):
    torch.manual_seed(1)
    first = run(pair, tmp_path / "first", **options)
    torch.manual_seed(2)
    assert run(pair, tmp_path / "second", **options) == first


def test_random_numbers_of_the_caller_are_left_alone(pair, tmp_path):
    state = torch.random.get_rng_state()
    svdcut.truncate(pair.base, pair.finetuned, tmp_path / "out", rank=6, keep="random")
    assert torch.equal(torch.random.get_rng_state(), state)


def test_precision_of_the_callers_products(pair, reference, tmp_path):
    """On some processors they are rounded to bfloat16."""
    torch.set_float32_matmul_precision("medium")
    try:
        assert run(pair, tmp_path) == reference
    finally:
        torch.set_float32_matmul_precision("highest")


def test_the_callers_default_dtype(pair, reference, tmp_path):
    torch.set_default_dtype(torch.float64)
    try:
        assert run(pair, tmp_path) == reference
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_number_of_workers(pair, reference, tmp_path, monkeypatch, workers):
    monkeypatch.setattr("svdcut.truncation.run.num_workers", lambda *_: workers)
    assert run(pair, tmp_path) == reference


@pytest.mark.parametrize("threads", [1, 2])
def test_number_of_threads(pair, reference, tmp_path, threads):
    """In a process of its own: libraries read the variables once."""
    passes = [{rule: str(tmp_path / rule) for rule in rules} for rules in PASSES]
    code = "import sys, json, svdcut; base, tuned, passes = json.loads(sys.argv[1])\n"
    code += "for outs in passes:"
    code += " svdcut.truncate_many(base, tuned, outs, dtype='float32', device='cpu')"
    arguments = json.dumps([str(pair.base), str(pair.finetuned), passes])
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    env = os.environ | dict.fromkeys(names, str(threads))
    subprocess.run([sys.executable, "-c", code, arguments], env=env, check=True)
    assert {rule: comparable(tmp_path / rule) for rule in reference} == reference


def test_files_of_base(pairs, tmp_path):
    tuned = pairs("sharded").finetuned
    kinds = ("single", "sharded", "base_sharded_differently")
    bases = [pairs(kind).base for kind in kinds]
    assert len({len(list(base.glob("*.safetensors"))) for base in bases}) == 3
    results = [
        run(Pair(base, tuned), tmp_path / kind) for kind, base in zip(kinds, bases, strict=True)
    ]
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("rules", PASSES, ids=str)
def test_order_of_several_ranks(pair, reference, tmp_path, rules):
    """What the results are called, and in which order, changes none of them."""
    outs = {rule: tmp_path / f"x{number}" for number, rule in enumerate(reversed(rules))}
    svdcut.truncate_many(pair.base, pair.finetuned, outs, dtype="float32", device="cpu")
    for rule, out in outs.items():
        assert comparable(out) == reference[rule]
