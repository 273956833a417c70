"""``svdcut verify``: true results pass, and every false claim is found and named."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

import forgery
import svdcut
from checkpoints import KINDS, Pair, finetune_tensor, read_folder, rewrite, write_folder
from kinds import KINDS as CATALOGUE
from svdcut.cli.app import app
from svdcut.errors import CheckpointError, UsageError
from svdcut.svd import engine

FOUND = {"type": ["string", "number", "null", "array", "object", "boolean"]}
FINDINGS = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "tensor": {"type": "string"},
            "file": {"type": "string"},
            "claim": {"type": "string"},
            "found": FOUND,
            "expected": FOUND,
        },
        "required": ["claim", "found", "expected"],
        "oneOf": [{"required": ["tensor"]}, {"required": ["file"]}],
        "additionalProperties": False,
    },
}
OUTCOME_SCHEMA = {
    "type": "object",
    "properties": {
        "ok": {"type": "boolean"},
        "checked": {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0}},
        "failures": FINDINGS,
        "notes": FINDINGS,
    },
    "required": ["ok", "checked", "failures", "notes"],
    "additionalProperties": False,
}
UP, DOWN = "layers.0.up.weight", "layers.0.down.weight"


@pytest.fixture
def cli():
    def call(*arguments):
        environment = {"COLUMNS": "80", "TERM": "dumb", "HF_HUB_OFFLINE": "1"}
        return CliRunner().invoke(app, ["verify", *map(str, arguments)], env=environment)

    return call


@pytest.fixture(scope="module")
def results(pairs, tmp_path_factory):
    """Make a result once, and give a copy to damage."""
    made = {}

    def get(folder, kind="toy", rank=8, **options):
        key = (kind, rank, *sorted(options.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("out") / "out"
            pair = pairs(kind)
            svdcut.truncate(pair.base, pair.finetuned, made[key], rank=rank, **options)
        return Path(shutil.copytree(made[key], folder / "out"))

    return get


@pytest.fixture(params=["here", "elsewhere"])
def where(request):
    """Verify on the machine that made the result, or on one that rounds otherwise."""
    if request.param == "elsewhere":
        request.getfixturevalue("elsewhere")


def check_passes(out, pair):
    """Check that a result passes alone and with its inputs."""
    alone = svdcut.verify(out)
    assert alone.failures == ()
    assert alone.ok
    manifest = forgery.read(out)
    assert alone.checked.files == len(manifest["files"]) + 1
    assert alone.checked.tensors == len(manifest["tensors"])
    outcome = svdcut.verify(out, base=pair.base, finetuned=pair.finetuned)
    assert outcome.failures == ()
    checked, truncated = outcome.checked, manifest["totals"]["truncated"]
    assert (checked.truncated, checked.recomputed) == (truncated, truncated)


def check_fails(out, pair=None, *claims, place=None):
    """Check that a result fails, and that one of the claims is named, of the right thing."""
    sides = {} if pair is None else {"base": pair.base, "finetuned": pair.finetuned}
    outcome = svdcut.verify(out, **sides)
    assert not outcome.ok
    said = [(f.tensor if f.file is None else f.file, f.claim) for f in outcome.failures]
    for claim in claims:
        assert any(c == claim and place in (None, p) for p, c in said), said
    Draft202012Validator(OUTCOME_SCHEMA).validate(json.loads(json.dumps(outcome.to_json())))
    return outcome


def truncate(pair, out, rank=8, **options):
    svdcut.truncate(pair.base, pair.finetuned, out, rank=rank, **options)
    return out


# True results


@pytest.mark.parametrize("kind", [*KINDS, "gpt2", "mixtral", "grown_vocabulary", "toy"])
@pytest.mark.parametrize("rank", [8, "energy=0.7"])
def test_an_untouched_result_passes(pairs, tmp_path, kind, rank):
    check_passes(truncate(pairs(kind), tmp_path / "out", rank), pairs(kind))


@pytest.mark.parametrize("kind", ["single", "mixtral", "grown_vocabulary", "mixed", "toy"])
@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_an_untouched_result_passes_elsewhere(pairs, tmp_path, elsewhere, kind, dtype):
    out = truncate(pairs(kind), tmp_path / "out", dtype=dtype)
    check_passes(out, pairs(kind))


RULES = ("0", "full", "energy=0.9", "energy=1", "ratio=0.3", "noise", "budget=0.2", "budget=1")
OPTIONS = (
    {"keep": "bottom"},
    {"keep": "random", "seed": 3},
    {"scale": -0.5},
    {"scale": 0.0},
    {"dtype": "bfloat16"},
    {"dtype": "float16", "rest": "base"},
    {"rank_for": ("*.up.*=full", "embed*=0"), "skip": ("*.1.*",)},
    {"max_shard_size": "4KB"},
    {"svd": "krylov"},
    {"svd": "exact", "tolerance": 1e-9},
    {"svd": "krylov", "tolerance": 0.01},
)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["toy", "mixtral"])
def test_every_rule_passes(pairs, tmp_path, kind, rule):
    check_passes(truncate(pairs(kind), tmp_path / "out", rule), pairs(kind))


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_passes_elsewhere(pairs, tmp_path, elsewhere, rule):
    check_passes(truncate(pairs("toy"), tmp_path / "out", rule), pairs("toy"))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_passes(pairs, tmp_path, where, options):
    check_passes(truncate(pairs("toy"), tmp_path / "out", **options), pairs("toy"))


@pytest.mark.parametrize("slug", [slug for slug, kind in CATALOGUE.items() if not kind.error])
def test_every_kind_of_the_catalogue_passes(tmp_path, slug):
    kind = CATALOGUE[slug]
    pair = kind.build(tmp_path / "in")
    for rule in ("2", "budget=0.4"):
        out = truncate(pair, tmp_path / rule, rule, **kind.options)
        check_passes(out, pair)


@pytest.mark.parametrize("kind", ["tied", "untied_by_finetuning", "tied_by_finetuning"])
@pytest.mark.parametrize("rule", ["budget=0.2", "budget=0.9"])
def test_a_budget_over_tied_embeddings_passes(pairs, tmp_path, kind, rule):
    check_passes(truncate(pairs(kind), tmp_path / "out", rule), pairs(kind))


@pytest.mark.parametrize("prefixed", ["base", "finetuned"])
def test_a_prefix_passes(pairs, tmp_path, prefixed):
    pair = pairs("bert_pair", prefixed=prefixed)
    check_passes(truncate(pair, tmp_path / "out"), pair)


def test_equal_tensors_and_equal_values_pass(pairs, tmp_path):
    base = {n: stored.value for n, stored in read_folder(pairs("toy").base).items()}
    tuned = {n: stored.value for n, stored in read_folder(pairs("toy").finetuned).items()}
    tuned |= {UP: base[UP], DOWN: base[DOWN].double()}
    pair = Pair(write_folder(tmp_path / "base", base), write_folder(tmp_path / "ft", tuned))
    for rule in ("8", "budget=0.3"):
        out = truncate(pair, tmp_path / rule, rule)
        tensors = forgery.read(out)["tensors"]
        assert tensors[UP]["action"] == "unchanged"
        assert tensors[DOWN]["truncation"]["matrices"][0]["rank"] == 0
        check_passes(out, pair)


@pytest.mark.parametrize("route", ["gram", "krylov"])
def test_the_fast_routes_pass(tmp_path, elsewhere, route):
    generator = torch.Generator().manual_seed(0)
    base = {"a.weight": 0.02 * torch.randn(420, 500, generator=generator)}
    tuned = {n: finetune_tensor(n, value, 0) for n, value in base.items()}
    pair = Pair(write_folder(tmp_path / "base", base), write_folder(tmp_path / "ft", tuned))
    out = truncate(pair, tmp_path / "out", 8, svd=route)
    assert forgery.read(out)["tensors"]["a.weight"]["truncation"]["svd"]["method"] == route
    check_passes(out, pair)


def test_a_rounding_error_that_storage_cannot_make_is_forged(tmp_path):
    """Even where the triplets of the iteration may differ by more."""
    generator = torch.Generator().manual_seed(0)
    base = {"a.weight": 0.02 * torch.randn(420, 500, generator=generator)}
    tuned = {n: finetune_tensor(n, value, 0) for n, value in base.items()}
    pair = Pair(write_folder(tmp_path / "base", base), write_folder(tmp_path / "ft", tuned))
    out = truncate(pair, tmp_path / "out", 8, svd="krylov")
    edit_cut(out, "a.weight", lambda cut: cut.update(rounding_error=1e-3))
    check_fails(out, pair, "rounding_error", place="a.weight")


def test_results_of_one_pass_pass(pairs, tmp_path):
    pair = pairs("toy")
    outs = {rule: tmp_path / rule for rule in ("4", "energy=0.6", "12")}
    svdcut.truncate_many(pair.base, pair.finetuned, outs)
    for out in outs.values():
        check_passes(out, pair)


def test_results_of_one_pass_by_the_fast_route_pass(tmp_path, monkeypatch):
    """They depend on each other's ranks in the last bits: the command names them."""
    generator = torch.Generator().manual_seed(0)
    base = {"a.weight": 0.02 * torch.randn(400, 400, generator=generator)}
    tuned = {n: finetune_tensor(n, value, 0) for n, value in base.items()}
    pair = Pair(write_folder(tmp_path / "base", base), write_folder(tmp_path / "ft", tuned))
    words = ["truncate", str(pair.base), str(pair.finetuned), "-k", "8,40", "-q"]
    words += ["-o", str(tmp_path / "out-{k}")]
    monkeypatch.setattr(sys, "argv", ["svdcut", *words])
    assert CliRunner().invoke(app, words).exit_code == 0
    for rank in (8, 40):
        check_passes(tmp_path / f"out-{rank}", pair)
    # Without the command, they are checked by bounds.
    forgery.change(tmp_path / "out-8", lambda d: d.update(command=[]))
    outcome = svdcut.verify(tmp_path / "out-8", base=pair.base, finetuned=pair.finetuned)
    assert outcome.ok


def test_a_resumed_run_passes(pairs, tmp_path):
    pair, done = pairs("single"), []

    def stop(progress):
        done.append(progress)
        if len(done) == 5:
            raise svdcut.Interrupted(signal.SIGINT)

    with pytest.raises(svdcut.Interrupted):
        truncate(pair, tmp_path / "out", observe=stop)
    resumed = []
    truncate(pair, tmp_path / "out", observe=lambda progress: resumed.append(progress.resumed))
    assert any(resumed)
    check_passes(tmp_path / "out", pair)


@pytest.mark.parametrize("side", ["finetuned", "finetuned_encoder"])
def test_the_real_pair_passes(real_pair, tmp_path, side):
    pair = Pair(real_pair.base, getattr(real_pair, side))
    check_passes(truncate(pair, tmp_path / "out", 16), pair)


def test_bare_files_pass(pairs, tmp_path):
    pair = Pair(
        *(path / "model.safetensors" for path in (pairs("toy").base, pairs("toy").finetuned))
    )
    check_passes(truncate(pair, tmp_path / "out"), pair)


ADDED = (
    *("notes.txt", "LICENSE", "LICENSE.txt", "NOTICE", "CITATION.cff", "USAGE.md", "plot.png"),
    *("eval_results.json", "eval/results_2026-01-01.json", "eval/samples.jsonl"),
    *("train_metrics.json", "trainer_state.json", "runs/events.out.tfevents.1700000000.host.7.0"),
    *("mergekit_config.yml", "requirements.txt", "images/a.jpeg"),
)


def test_what_users_and_git_add_is_no_failure(results, tmp_path):
    out = results(tmp_path)
    (out / ".git").mkdir()
    (out / ".git" / "model.safetensors").write_bytes(b"x")
    (out / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    for name in ADDED:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("mine\n")
    (out / ".cache").symlink_to("..")
    assert svdcut.verify(out).ok


def check_card(outcome):
    """Check that an edited card is told of, and makes nothing false."""
    (note,) = outcome.notes
    assert outcome.failures == ()
    assert outcome.ok
    assert note.file == "README.md"
    Draft202012Validator(OUTCOME_SCHEMA).validate(json.loads(json.dumps(outcome.to_json())))


@pytest.mark.parametrize("size", ["same", "other"])
def test_an_edited_card(cli, results, pairs, tmp_path, size):
    out, pair = results(tmp_path), pairs("toy")
    card = (out / "README.md").read_text()
    edited = card.replace("svdcut", "SVDCUT")
    (out / "README.md").write_text(edited + ("More.\n" if size == "other" else ""))
    check_card(svdcut.verify(out))
    check_card(svdcut.verify(out, base=pair.base, finetuned=pair.finetuned))
    done = cli(out)
    assert done.exit_code == 0
    assert "README.md: the card was edited" in done.stdout
    (out / "vocab.txt").write_text("a\n")
    check_fails(out, None, "files", place="vocab.txt")


# Damage, found without the inputs


@pytest.fixture(scope="module")
def whole(pairs, tmp_path_factory):
    """A result with every kind of file: shards, index, tokenizer, code, licence."""
    folder = tmp_path_factory.mktemp("whole")
    pair = Pair(folder / "base", folder / "ft")
    for name in ("base", "ft"):
        side = pairs("sharded").base if name == "base" else pairs("sharded").finetuned
        shutil.copytree(side, folder / name)
    (pair.finetuned / "tokenizer.json").write_text('{"version": "1.0"}\n')
    (pair.finetuned / "modeling_toy.py").write_text("x = 1\n")
    (pair.finetuned / "LICENSE").write_text("Free.\n")
    return truncate(pair, folder / "out")


def check_flip(out, path, position, bit):
    data = path.read_bytes()
    damaged = bytearray(data)
    damaged[position] ^= 1 << bit
    path.write_bytes(damaged)
    try:
        outcome = svdcut.verify(out)
    finally:
        path.write_bytes(data)
    name = str(path.relative_to(out))
    assert outcome.ok is (name == "README.md"), (name, position, bit)
    assert bool(outcome.notes) is (name == "README.md")
    if name == "svdcut.json":
        # What it says of other files may then be false too.
        assert outcome.failures[0].file == name
        return
    tensors = forgery.read(out)["tensors"]
    for failure in outcome.failures + outcome.notes:
        where = failure.file or tensors.get(failure.tensor, {"file": name})["file"]
        assert where == name, failure


def test_every_file_of_a_result_is_covered(whole):
    files = sorted(path for path in whole.rglob("*") if path.is_file())
    assert {path.name for path in files} > {
        "LICENSE",
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "modeling_toy.py",
        "svdcut.json",
        "tokenizer.json",
    }
    generator = random.Random(0)
    for path in files:
        size = path.stat().st_size
        places = {0, 7, 8, 9, size - 1, *(generator.randrange(size) for _ in range(5))}
        for position in sorted(place for place in places if place < size):
            check_flip(whole, path, position, generator.randrange(8))
    assert svdcut.verify(whole).ok


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_flipped_bit_is_found(whole, data):
    path = data.draw(st.sampled_from(sorted(p for p in whole.rglob("*") if p.is_file())))
    position = data.draw(st.integers(0, path.stat().st_size - 1))
    check_flip(whole, path, position, data.draw(st.integers(0, 7)))


EDITS = {
    "a space at the end": lambda text: text + " ",
    "no newline": lambda text: text.rstrip("\n"),
    "CRLF": lambda text: text.replace("\n", "\r\n"),
    "deeper": lambda text: text.replace("\n ", "\n  "),
    "compact": lambda text: json.dumps(json.loads(text)),
    "a byte order mark": lambda text: "\ufeff" + text,
    "another number of the same value": lambda text: text.replace('"scale": 1.0', '"scale": 1.00'),
    "a key twice": lambda text: text.replace('"scale": 1.0', '"scale": 2.0,\n  "scale": 1.0'),
    "an escape": lambda text: text.replace('"top"', '"\\u0074op"'),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_the_text_of_the_manifest_is_what_svdcut_writes(results, tmp_path, edit):
    out = results(tmp_path)
    path = out / "svdcut.json"
    text = path.read_bytes().decode()
    assert edit(text) != text
    path.write_bytes(edit(text).encode())
    check_fails(out, place="svdcut.json")


def test_the_digest_is_named(results, tmp_path):
    out = results(tmp_path)
    path = out / "svdcut.json"
    text = path.read_text()
    path.write_text(text.replace('"seed": 0', '"seed": 1'))
    outcome = check_fails(out, None, "digest", place="svdcut.json")
    (failure,) = outcome.failures
    assert failure.expected == json.loads(text)["digest"] != failure.found


def test_an_edited_text_with_a_digest_that_fits(results, tmp_path):
    out = results(tmp_path)
    path = out / "svdcut.json"
    text = path.read_text()
    digest = json.loads(text)["digest"]
    edited = text.replace("\n ", "\n  ").replace(digest, "0" * 64)
    path.write_text(edited.replace("0" * 64, hashlib.sha256(edited.encode()).hexdigest()))
    check_fails(out, None, "text", place="svdcut.json")


@pytest.mark.parametrize("name", ["config.json", "README.md", "model.safetensors"])
def test_a_missing_file(results, tmp_path, name):
    out = results(tmp_path)
    (out / name).unlink()
    check_fails(out, None, "files", place=name)


@pytest.mark.parametrize(
    "name", ["model-00001-of-00002.safetensors", "model.safetensors.index.json",
             "adapter_model.safetensors", "adapter_config.json", "pytorch_model.bin",
             "LICENSE.safetensors", "onnx/model.onnx", "model.gguf", "chat_template.jinja",
             "generation_config.json", "tokenizer.model", "vocab.txt", "entity_vocab.txt",
             "modeling_x.py", "custom_generate/generate.py", "modules.json",
             "1_Pooling/config.json", "additional_chat_templates/tool.jinja",
             "events.out.tfevents.1.bin", "results.bin"]
)  # fmt: skip
def test_files_that_loaders_would_take(results, tmp_path, name):
    out = results(tmp_path)
    (out / name).parent.mkdir(exist_ok=True)
    shutil.copy(out / "model.safetensors", out / name)
    check_fails(out, None, "files", place=name)


def test_a_link_to_a_folder_that_loaders_would_take(results, tmp_path):
    out = results(tmp_path)
    (out / "1_Pooling").symlink_to("/")
    check_fails(out, None, "files", place="1_Pooling")


@pytest.mark.parametrize("name", ["config.json", "README.md", "svdcut.json"])
def test_a_link_out_of_the_folder(results, tmp_path, name):
    """To a file of the right bytes, as long as nobody changes it."""
    out = results(tmp_path)
    (out / name).rename(tmp_path / name)
    (out / name).symlink_to(f"../{name}")
    if name == "svdcut.json":
        with pytest.raises(CheckpointError, match="a link to"):
            svdcut.verify(out)
    else:
        check_fails(out, None, "files", place=name)


def test_a_result_in_the_cache_of_the_hub(results, tmp_path):
    cache = tmp_path / "models--org--out"
    cache.mkdir()
    results(tmp_path).rename(cache / "blobs")
    snapshot = cache / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for path in (cache / "blobs").iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert svdcut.verify(snapshot).ok


def test_weights_that_were_put_on_another_disk(results, tmp_path):
    out = results(tmp_path)
    (out / "model.safetensors").rename(tmp_path / "weights")
    (out / "model.safetensors").symlink_to("../weights")
    assert svdcut.verify(out).ok


def test_a_tensor_more_and_a_tensor_less(results, tmp_path):
    out = results(tmp_path)
    rewrite(out / "model.safetensors", lambda t: {("new" if n == UP else n): t[n] for n in t})
    outcome = check_fails(out, None, "tensors", place="new")
    assert any(f.tensor == UP and f.claim == "tensors" for f in outcome.failures)


def test_an_index_that_names_another_file(results, tmp_path):
    out = results(tmp_path, "sharded")
    index = json.loads((out / "model.safetensors.index.json").read_text())
    name = next(iter(index["weight_map"]))
    others = {*index["weight_map"].values()} - {index["weight_map"][name]}
    index["weight_map"][name] = min(others)
    forgery.replace_file(out, "model.safetensors.index.json", json.dumps(index).encode())
    check_fails(out, None, "checkpoint", place="model.safetensors.index.json")


def order(matrix):
    matrix["sigma_next"] = matrix["sigma_last_kept"] * 1.1


CONTRADICTIONS = {
    "rank": ("rank", lambda t: t["matrices"][0].update(rank=9)),
    "more than all of the rank": ("rank", lambda t: t["matrices"][0].update(rank=40)),
    "rule": ("rule", lambda t: t.update(rule="9")),
    "keep": ("keep", lambda t: t.update(keep="bottom")),
    "energy": ("energy_retained", lambda t: t.update(energy_retained=0.999)),
    "tail": ("energy_retained", lambda t: t.update(tail_norm=t["tail_norm"] * 1.001)),
    "order": ("sigma_next", lambda t: order(t["matrices"][0])),
    "no last": ("sigma_last_kept", lambda t: t["matrices"][0].update(sigma_last_kept=None)),
    "no next": ("sigma_next", lambda t: t["matrices"][0].update(sigma_next=None)),
    "certified": ("svd.certified", lambda t: t["svd"].update(certified=False)),
    "bound": ("svd.excess_bound", lambda t: t["svd"].update(excess_bound=1e-3)),
    "proof": ("svd.proof", lambda t: t["svd"].update(proof="random_start")),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_claims_that_contradict_each_other(results, tmp_path, case):
    claim, edit = CONTRADICTIONS[case]
    out = results(tmp_path)
    edit_cut(out, UP, edit)
    check_fails(out, None, claim, place=UP)


@pytest.mark.parametrize(
    "key", ["tensors", "truncated", "copied", "rank", "full_rank", "parameters_kept",
            "energy_retained", "tail_norm", "rounding_error"]
)  # fmt: skip
def test_totals_follow_from_the_tensors(results, tmp_path, monkeypatch, key):
    out = results(tmp_path)
    monkeypatch.setattr(forgery, "retotal", lambda document: None)

    def edit(document):
        value = document["totals"][key]
        document["totals"][key] = value + 1 if isinstance(value, int) else value * (1 - 1e-6)

    forgery.change(out, edit)
    check_fails(out, None, f"totals.{key}", place="svdcut.json")


# Forgeries, found with the inputs: every hash fits


def edit_cut(out, name, edit):
    forgery.change(out, lambda document: edit(document["tensors"][name]["truncation"]))


def edit_number(key, factor):
    def edit(cut):
        facts = cut if key in cut else cut["matrices"][0]
        facts[key] *= factor
        cut["energy_retained"] = 1 - (cut["tail_norm"] / cut["update_norm"]) ** 2

    return edit


def as_rank(rank):
    """Claim another rank everywhere, the rule that gives it included."""

    def edit(document):
        document["options"]["rank"] = str(rank)
        for cut in forgery.truncations(document):
            cut["rule"] = str(rank)
            for matrix in cut["matrices"]:
                matrix["rank"] = min(rank, cut["full_rank"])

    return edit


FORGED_NUMBERS = {
    "update_norm": edit_number("update_norm", 1 + 1e-7),
    "tail_norm": edit_number("tail_norm", 1 - 1e-5),
    "energy_retained": edit_number("tail_norm", 0.9),
    "sigma_first": edit_number("sigma_first", 1 + 5e-5),
    "sigma_last_kept": edit_number("sigma_last_kept", 1 + 5e-5),
    "sigma_next": edit_number("sigma_next", 1 - 5e-5),
    "zero_fraction": lambda fact: fact.update(zero_fraction=fact["zero_fraction"] + 1e-9),
}


@pytest.mark.parametrize("claim", FORGED_NUMBERS)
def test_a_forged_number(results, pairs, tmp_path, where, claim):
    out = results(tmp_path)
    edit_cut(out, UP, FORGED_NUMBERS[claim])
    assert svdcut.verify(out).ok
    check_fails(out, pairs("toy"), claim, place=UP)


def test_a_claim_does_not_widen_its_own_tolerance(results, pairs, tmp_path):
    out = results(tmp_path)

    def edit(cut):
        cut["svd"] |= {"value_bound": 1.0, "certified": False}
        cut["matrices"][0]["sigma_first"] *= 1 + 5e-5

    edit_cut(out, UP, edit)
    check_fails(out, pairs("toy"), "sigma_first", place=UP)


@pytest.mark.parametrize("factor", [0.5, 0.99, 1.01, 0.0, 2.0])
def test_a_forged_rounding_error(results, pairs, tmp_path, where, factor):
    out = results(tmp_path, dtype="bfloat16")
    edit_cut(out, UP, edit_number("rounding_error", factor))
    assert svdcut.verify(out).ok
    check_fails(out, pairs("toy"), "rounding_error", place=UP)


def test_a_forged_noise_edge(results, pairs, tmp_path):
    out = results(tmp_path, "single", "noise")
    name = "model.embed_tokens.weight"
    edit_cut(out, name, edit_number("noise_edge", 1 + 5e-5))
    check_fails(out, pairs("single"), "noise_edge", place=name)


FORGED_FACTS = {
    "full_rank": lambda t: t.update(full_rank=23),
    "rows": lambda t: t.update(rows=33),
    "noise_edge": lambda t: t["matrices"][0].update(noise_edge=1.0),
    "matrices": lambda t: t["matrices"].append(t["matrices"][0]),
}


@pytest.mark.parametrize("claim", FORGED_FACTS)
def test_a_forged_fact(results, pairs, tmp_path, claim):
    out = results(tmp_path)
    edit_cut(out, UP, FORGED_FACTS[claim])
    check_fails(out, pairs("toy"), claim, place=UP)


@pytest.mark.parametrize("rank", [7, 9, 0, 24])
def test_a_forged_rank(results, pairs, tmp_path, where, rank):
    """The rule, all ranks and totals agree; the values and the bytes do not."""
    out = results(tmp_path)

    def edit(document):
        as_rank(rank)(document)
        for cut in forgery.truncations(document):
            (matrix,) = cut["matrices"]
            if matrix["rank"] == cut["full_rank"]:
                matrix["sigma_next"] = None
                cut.update(tail_norm=0.0, energy_retained=1.0)
            if matrix["rank"] == 0:
                matrix["sigma_last_kept"] = None
                cut.update(tail_norm=cut["update_norm"], energy_retained=0.0)

    forgery.change(out, edit)
    assert svdcut.verify(out).ok or rank == 24
    outcome = check_fails(out, pairs("toy"))
    assert {f.tensor for f in outcome.failures} >= {UP, DOWN, "conv.weight"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("rank", [2, 7, 9, 16])
def test_a_result_of_another_rank_under_this_manifest(results, pairs, tmp_path, rank, dtype):
    out = results(tmp_path, dtype=dtype)
    other = truncate(pairs("toy"), tmp_path / "other", rank, dtype=dtype)
    forgery.replace_tensor(out, UP, read_folder(other)[UP].raw)
    assert svdcut.verify(out).ok
    check_fails(out, pairs("toy"), "result", place=UP)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rank", [2, 16, "full", 0])
def test_another_rank_shows_in_the_error_too(results, pairs, tmp_path, rank, dtype):
    out = results(tmp_path, dtype=dtype)
    other = truncate(pairs("toy"), tmp_path / "other", rank, dtype=dtype)
    forgery.replace_tensor(out, UP, read_folder(other)[UP].raw)
    check_fails(out, pairs("toy"), "error", place=UP)


@pytest.mark.parametrize("kind", ["toy", "single", "mixtral"])
def test_the_finetuned_tensors_instead(results, pairs, tmp_path, kind):
    """Where rounding in storage is larger than the tail, too."""
    out, tuned = results(tmp_path, kind), read_folder(pairs(kind).finetuned)
    facts = forgery.read(out)["tensors"]
    cuts = {name: fact["truncation"] for name, fact in facts.items() if fact["truncation"]}
    names = [n for n, c in cuts.items() if any(m["rank"] != c["full_rank"] for m in c["matrices"])]
    for name in names:
        forgery.replace_tensor(out, name, tuned[name].raw)
    assert svdcut.verify(out).ok
    outcome = check_fails(out, pairs(kind), "result")
    assert {f.tensor for f in outcome.failures if f.claim == "result"} == set(names)


def cut_to(pair, name, indices):
    """Return base plus the chosen triplets of a tensor's update, in float64."""
    base, tuned = (read_folder(side)[name].value.double() for side in (pair.base, pair.finetuned))
    u, s, vh = torch.linalg.svd(tuned - base, full_matrices=False)
    return base + (u[:, indices] * s[indices]) @ vh[indices]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_swapped_triplet(results, pairs, tmp_path, dtype):
    """The ninth in place of the eighth."""
    out = results(tmp_path, dtype=str(dtype).removeprefix("torch."))
    swapped = cut_to(pairs("toy"), UP, [*range(7), 8]).to(dtype)
    forgery.replace_tensor(out, UP, bytes(swapped.contiguous().view(torch.uint8).numpy()))
    assert svdcut.verify(out).ok
    check_fails(out, pairs("toy"), "result", place=UP)


def without_third(found):
    """Return what a route found as if its third triplet were not there."""
    left = [i for i in range(len(found.triplets.squares)) if i != 2]
    kept = {
        item.name: value if value is None else value[..., left]
        for item in fields(found.triplets)
        for value in [getattr(found.triplets, item.name)]
    }
    return replace(found, triplets=type(found.triplets)(**kept))


@pytest.mark.parametrize("route", ["gram", "krylov"])
def test_a_wrong_certificate(tmp_path, monkeypatch, route):
    """A route that misses a triplet, and is certain that it does not."""
    generator = torch.Generator().manual_seed(0)
    base = {"a.weight": 0.02 * torch.randn(420, 500, generator=generator)}
    tuned = {n: finetune_tensor(n, value, 0) for n, value in base.items()}
    pair = Pair(write_folder(tmp_path / "base", base), write_folder(tmp_path / "ft", tuned))
    real = engine.leading_triplets

    def wrong(matrix, k, find, **options):
        return without_third(real(matrix, k + 1, find, **options))

    with monkeypatch.context() as patch:
        patch.setattr(engine, "leading_triplets", wrong)
        out = truncate(pair, tmp_path / "out", 8, svd=route)
    claimed = forgery.read(out)["tensors"]["a.weight"]["truncation"]["svd"]
    assert (claimed["method"], claimed["certified"]) == (route, True)
    assert svdcut.verify(out).ok
    check_fails(out, pair, place="a.weight")


def test_a_tensor_of_another_shape(results, pairs, tmp_path):
    """In its file and in the manifest alike."""
    out = results(tmp_path)
    rewrite(out / "model.safetensors", lambda t: {n: v[:5] if n == UP else v for n, v in t.items()})
    forge_header(out)
    raw = read_folder(out)[UP].raw
    digest = hashlib.sha256(raw).hexdigest()
    forgery.change(out, lambda d: d["tensors"][UP].update(shape=[5, 24], sha256=digest))
    check_fails(out, pairs("toy"), "shape", place=UP)


def test_the_update_of_another_tensor(results, pairs, tmp_path):
    out = results(tmp_path)
    tensors, base = read_folder(out), read_folder(pairs("toy").base)
    other = "layers.1.up.weight"
    moved = base[UP].value + tensors[other].value - base[other].value
    forgery.replace_tensor(out, UP, moved.numpy().tobytes())
    assert svdcut.verify(out).ok
    check_fails(out, pairs("toy"), "result", place=UP)


@pytest.mark.parametrize("kind", ["toy", "single"])
def test_one_number_changed_by_little(results, pairs, tmp_path, kind):
    """Two units in the last place of one entry."""
    out = results(tmp_path, kind)
    name = UP if kind == "toy" else "lm_head.weight"
    raw = bytearray(read_folder(out)[name].raw)
    raw[100] = (raw[100] + 2) % 256
    forgery.replace_tensor(out, name, bytes(raw))
    outcome = svdcut.verify(out, base=pairs(kind).base, finetuned=pairs(kind).finetuned)
    if kind == "single":
        assert [(f.tensor, f.claim) for f in outcome.failures] == [(name, "result")]


@pytest.mark.parametrize("name", ["layers.0.norm.weight", "position_ids", "scale"])
def test_a_copied_tensor_that_is_another(results, pairs, tmp_path, name):
    out = results(tmp_path)
    raw = bytearray(read_folder(out)[name].raw)
    raw[0] ^= 1
    forgery.replace_tensor(out, name, bytes(raw))
    assert svdcut.verify(out).ok
    check_fails(out, pairs("toy"), "result", place=name)


def test_new_rows_that_are_others(results, pairs, tmp_path):
    out = results(tmp_path, "grown_vocabulary")
    name = "model.embed_tokens.weight"
    raw = bytearray(read_folder(out)[name].raw)
    raw[-2] ^= 1
    forgery.replace_tensor(out, name, bytes(raw))
    check_fails(out, pairs("grown_vocabulary"), "result", place=name)


@pytest.mark.parametrize("side", ["base", "finetuned"])
def test_a_swapped_side(results, pairs, tmp_path, side):
    out, pair = results(tmp_path), pairs("toy")
    shutil.copytree(getattr(pair, side), tmp_path / "swapped")
    rewrite(
        tmp_path / "swapped" / "model.safetensors",
        lambda tensors: {n: t + 1e-3 if n == UP else t for n, t in tensors.items()},
    )
    swapped = replace(pair, **{side: tmp_path / "swapped"})
    outcome = check_fails(out, swapped, f"{side}.files", place="model.safetensors")
    # It goes on, and says which tensor it is.
    assert {f.tensor for f in outcome.failures if f.tensor} == {UP}


def test_a_side_in_other_files(results, pairs, tmp_path):
    out, pair = results(tmp_path, "sharded"), pairs("sharded")
    other = replace(pair, base=pairs("single").base)
    outcome = check_fails(out, other, "base.files", place="model.safetensors")
    assert {f.claim for f in outcome.failures} == {"base.files"}
    assert outcome.checked.recomputed == outcome.checked.truncated


def test_the_sides_the_wrong_way_round(results, pairs, tmp_path):
    """That alone is said: every number would be another's."""
    pair = pairs("toy")
    outcome = check_fails(results(tmp_path), Pair(pair.finetuned, pair.base), "sides")
    assert len(outcome.failures) == 1
    assert outcome.checked.recomputed == 0


def test_sides_that_fit_nothing(results, pairs, tmp_path):
    nothing_shared = Pair(pairs("toy").base, pairs("single").finetuned)
    check_fails(results(tmp_path), nothing_shared, "finetuned.files", "options")


OTHER_OPTIONS = {
    "rank": ("rule", {"rank": "9"}),
    "rank_for": ("rule", {"rank_for": ["*.up.*=9"]}),
    "no such pattern": ("options", {"rank_for": ["nothing=9"]}),
    "no rule": ("options", {"rank": "many"}),
    "keep": ("keep", {"keep": "bottom"}),
    "only": ("action", {"only": ["*.down.*"]}),
    "skip": ("action", {"skip": [UP]}),
    "rest": ("action", {"rest": "base"}),
    "scale": ("error", {"scale": 1.5}),
    "dtype": ("dtype", {"dtype": "bfloat16"}),
    "map": ("options", {"map": {"x.": "y."}}),
    "max_shard_size": ("file", {"max_shard_size": "4KB"}),
    "tolerance": ("svd.excess_bound", {"tolerance": 1e-30}),
}


@pytest.mark.parametrize("case", OTHER_OPTIONS)
def test_a_changed_option(results, pairs, tmp_path, case):
    claim, options = OTHER_OPTIONS[case]
    out = results(tmp_path)
    forgery.change(out, lambda d: d["options"].update(options))
    check_fails(out, pairs("toy"), claim)


def test_a_changed_seed(results, pairs, tmp_path):
    out = results(tmp_path, keep="random", seed=3)
    forgery.change(out, lambda d: d["options"].update(seed=4))
    check_fails(out, pairs("toy"), "tail_norm", place=UP)


def test_a_changed_action(results, pairs, tmp_path):
    out = results(tmp_path)

    def edit(document):
        document["tensors"][UP] |= {"action": "copy_finetuned", "truncation": None}

    forgery.change(out, edit)
    assert svdcut.verify(out).ok
    check_fails(out, pairs("toy"), "action", place=UP)
    forgery.change(out, lambda d: d["tensors"][UP].update(action="unchanged"))
    check_fails(out, pairs("toy"), "action", place=UP)


def test_a_tensor_left_out_everywhere(results, pairs, tmp_path):
    out = results(tmp_path)
    rewrite(out / "model.safetensors", lambda t: {n: t[n] for n in t if n != UP})
    forge_header(out)
    forgery.change(out, lambda d: d["tensors"].pop(UP))
    assert svdcut.verify(out).ok
    check_fails(out, pairs("toy"), "tensors", place=UP)


def forge_header(out):
    data = (out / "model.safetensors").read_bytes()
    length = 8 + int.from_bytes(data[:8], "little")
    fact = {"size": len(data), "header_sha256": hashlib.sha256(data[:length]).hexdigest()}
    forgery.change(out, lambda d: d["files"].update({"model.safetensors": fact}))


@pytest.mark.parametrize("key", ["base", "finetuned"])
def test_a_changed_prefix(results, pairs, tmp_path, key):
    out = results(tmp_path)
    forgery.change(out, lambda d: d[key].update(prefix="model."))
    check_fails(out, pairs("toy"), f"{key}.prefix", place="svdcut.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("renames", [{"base": "x.", "finetuned": "", "tensors": 3}]),
        ("wrappers", ["x"]),
        ("unmatched", [UP]),
    ],
)
def test_a_changed_matching(results, pairs, tmp_path, key, value):
    out = results(tmp_path)
    forgery.change(out, lambda d: d["matching"].update({key: value}))
    outcome = check_fails(out, pairs("toy"), f"matching.{key}", place="svdcut.json")
    (failure,) = outcome.to_json()["failures"]
    assert failure["expected"] == value


def test_names_only_in_base(results, pairs, tmp_path):
    out = results(tmp_path)
    forgery.change(out, lambda d: d.update(base_only=["nothing"]))
    check_fails(out, pairs("toy"), "base_only", place="svdcut.json")


def test_a_config_that_is_not_the_finetuned_sides(results, pairs, tmp_path):
    out = results(tmp_path)
    forgery.replace_file(out, "config.json", b'{"model_type": "other"}')
    assert svdcut.verify(out).ok
    check_fails(out, pairs("toy"), "files", place="config.json")


def test_code_that_the_finetuned_side_has_not(results, pairs, tmp_path):
    out = results(tmp_path)
    forgery.replace_file(out, "modeling_toy.py", b"import os\n")
    assert svdcut.verify(out).ok
    check_fails(out, pairs("toy"), "files", place="modeling_toy.py")


@pytest.mark.parametrize("move", [(1, -1), (2, -1), (-1, 1), (-1, 0)])
def test_a_budget_spent_otherwise(pairs, tmp_path, move):
    """A result that is true to its ranks, where a budget would have given others."""
    pair = pairs("toy")
    out = truncate(pair, tmp_path / "out", "budget=0.3")
    cuts = {name: fact["truncation"] for name, fact in forgery.read(out)["tensors"].items()}
    ranks = {name: cut["matrices"][0]["rank"] for name, cut in cuts.items() if cut}
    moved = {UP: ranks[UP] + move[0], "layers.1.up.weight": ranks["layers.1.up.weight"] + move[1]}
    fixed = tuple(f"{name}={rank}" for name, rank in (ranks | moved).items())
    other = truncate(pair, tmp_path / "other", "budget=0.3", rank_for=fixed)

    def edit(document):
        document["options"]["rank_for"] = []
        for cut in forgery.truncations(document):
            cut["rule"] = "budget=0.3"

    forgery.change(other, edit)
    assert svdcut.verify(other).ok
    outcome = check_fails(other, pair, "rank")
    assert {f.claim for f in outcome.failures} == {"rank"}


# Samples


def test_a_sample(pairs, results, tmp_path):
    out, pair = results(tmp_path, "single"), pairs("single")
    sides = {"base": pair.base, "finetuned": pair.finetuned}
    outcome = svdcut.verify(out, **sides, sample=5)
    assert outcome.ok
    assert (outcome.checked.recomputed, outcome.checked.truncated) == (5, 16)
    assert svdcut.verify(out, **sides, sample=99).checked.recomputed == 16


def test_a_sample_depends_on_the_seed_alone(pairs, results, tmp_path):
    out, pair = results(tmp_path, "single"), pairs("single")
    sizes = {n: len(stored.raw) for n, stored in read_folder(out).items()}

    def chosen(seed):
        names = []

        def observe(done):
            if done.stage == "recompute" and done.facts[0].truncation:
                names.append(done.name)

        svdcut.verify(
            out, base=pair.base, finetuned=pair.finetuned, sample=4, seed=seed, observe=observe
        )
        return sorted(names)

    found = [chosen(seed) for seed in range(6)]
    assert found[0] == chosen(0)
    assert len({tuple(names) for names in found}) > 1
    # Of the two largest weights, which are one in eight, and of the smallest, one in four.
    for names in found:
        ordered = sorted(sizes[name] for name in names)
        assert ordered[0] < ordered[-1]


def test_a_sample_leaves_nothing_else_out(pairs, results, tmp_path):
    out = results(tmp_path)
    name = "position_ids"
    raw = bytearray(read_folder(out)[name].raw)
    raw[0] ^= 1
    forgery.replace_tensor(out, name, bytes(raw))
    pair = pairs("toy")
    outcome = svdcut.verify(out, base=pair.base, finetuned=pair.finetuned, sample=1)
    assert [(f.tensor, f.claim) for f in outcome.failures] == [(name, "result")]


# Hostile manifests


def is_accepted(out, pair=None):
    """Verify; raise whatever is raised beside the error for what cannot be read."""
    sides = {} if pair is None else {"base": pair.base, "finetuned": pair.finetuned}
    try:
        outcome = svdcut.verify(out, **sides)
    except CheckpointError:
        return False
    json.dumps(outcome.to_json(), allow_nan=False)
    return outcome.ok


@pytest.mark.parametrize(
    "raw",
    [b"", b"{}", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b"NaN",
     b'{"schema": "svdcut/manifest/1", "tensors": {}}', b"9" * 10_000, b"1e999"],
    ids=lambda raw: repr(raw[:20]),
)  # fmt: skip
def test_what_is_no_manifest(results, tmp_path, raw):
    out = results(tmp_path)
    (out / "svdcut.json").write_bytes(raw)
    check_fails(out, None, "schema", place="svdcut.json")


def leaves(value, path=()):
    """Yield the path of everything in a document."""
    yield path
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, item in items:
        yield from leaves(item, (*path, key))


ODD = [None, True, -1, 0, 10**30, 2**63, 1e308, 1e-320, -0.5, 1e999, float("nan"), "", "x" * 5000,
       "\ud800", "\x00", "../../x", [], [1], {}, {"x": 1}, "1" * 64]  # fmt: skip


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_odd_values_anywhere(pairs, results, tmp_path_factory, data):
    out = results(tmp_path_factory.mktemp("odd"))
    document = forgery.read(out)
    path = data.draw(st.sampled_from([p for p in leaves(document) if p]))
    target = document
    for key in path[:-1]:
        target = target[key]
    value = data.draw(st.sampled_from(ODD))
    if target[path[-1]] == value:
        return
    target[path[-1]] = value
    try:
        from svdcut.record.manifest import Manifest

        text = Manifest.loads(json.dumps(document)).dumps()
        forged = True
    except (ValueError, RecursionError, OverflowError, TypeError):
        text = json.dumps(document)
        forged = False
    (out / "svdcut.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    for pair in (None, pairs("toy")):
        assert not is_accepted(out, pair) or forged


@pytest.mark.parametrize("name", ["../secret", "/{tmp}/secret", "sub/../../secret"])
def test_nothing_outside_of_the_folder_is_read(results, tmp_path, name):
    """The file is there, and its size and hash are right."""
    out = results(tmp_path)
    (tmp_path / "secret").write_bytes(b"secret")
    (out / "sub").mkdir()
    name = name.replace("/{tmp}", str(tmp_path))
    fact = {"size": 6, "sha256": hashlib.sha256(b"secret").hexdigest()}
    forgery.change(out, lambda d: d["files"].update({name: fact}))
    outcome = check_fails(out, None, "files", place=name)
    assert len(outcome.failures) == 1


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "svdcut.json"])
@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_what_is_no_regular_file(results, tmp_path, name, kind):
    out = results(tmp_path)
    (out / name).unlink()
    if kind == "fifo":
        os.mkfifo(out / name)
    elif kind == "folder":
        (out / name).mkdir()
    else:
        (out / name).symlink_to("/dev/zero")
    assert not is_accepted(out)


def test_no_result(tmp_path, pairs):
    for path in (
        tmp_path / "nothing",
        tmp_path,
        pairs("toy").base,
        pairs("toy").base / "config.json",
    ):
        with pytest.raises(CheckpointError):
            svdcut.verify(path)


def test_wrong_usage_of_the_api(results, pairs, tmp_path):
    out, pair = results(tmp_path), pairs("toy")
    for options in (
        {"base": pair.base},
        {"finetuned": pair.finetuned},
        {"sample": 3},
        {"base": pair.base, "finetuned": pair.finetuned, "sample": 0},
        {"base": pair.base, "finetuned": pair.finetuned, "device": "toaster"},
    ):
        with pytest.raises(UsageError):
            svdcut.verify(out, **options)


def test_nothing_is_written(results, pairs, tmp_path):
    out, pair = results(tmp_path), pairs("toy")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    svdcut.verify(out, base=pair.base, finetuned=pair.finetuned)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


# The command


def test_screen(cli, results, pairs, tmp_path):
    out, pair = results(tmp_path), pairs("toy")
    done = cli(out)
    assert (done.exit_code, done.stderr) == (0, "")
    assert "10 tensors, 4 files" in done.stdout
    assert "OK: matches its manifest" in done.stdout
    done = cli(out, "--base", pair.base, "--ft", pair.finetuned, "--sample", 2)
    assert (done.exit_code, done.stderr) == (0, "")
    assert "2 of 6 truncated tensors" in done.stdout


def test_screen_of_a_failure(cli, results, tmp_path):
    out = results(tmp_path)
    (out / "config.json").write_text("{}")
    done = cli(out)
    assert (done.exit_code, done.stderr) == (4, "")
    assert "config.json: size: expected " in done.stdout
    assert "1 false claim" in done.stdout
    quiet = cli(out, "-q")
    assert (quiet.exit_code, quiet.stdout) == (4, "")
    assert "config.json: size" in quiet.stderr
    assert cli(out, "-q", "--json").exit_code == 4


def test_a_long_list_is_cut_unless_all_is_asked_for(cli, results, tmp_path):
    out = results(tmp_path, "single")
    (out / "model.safetensors").unlink()
    few, all_of_it = cli(out), cli(out, "-v")
    assert "... and 2 more; -v shows all." in few.stdout
    assert len(all_of_it.stdout.splitlines()) == len(few.stdout.splitlines()) + 1


@pytest.mark.parametrize("damage", [False, True])
def test_json(cli, results, pairs, tmp_path, damage):
    out, pair = results(tmp_path), pairs("toy")
    if damage:
        edit_cut(out, UP, edit_number("sigma_first", 1.1))
    done = cli(out, "--base", pair.base, "--ft", pair.finetuned, "--json")
    assert done.exit_code == (4 if damage else 0)
    document = json.loads(done.stdout)
    Draft202012Validator(OUTCOME_SCHEMA).validate(document)
    outcome = svdcut.verify(out, base=pair.base, finetuned=pair.finetuned)
    assert document == outcome.to_json()
    if damage:
        (failure,) = document["failures"]
        assert failure["expected"] == pytest.approx(failure["found"] * 1.1)
        assert (failure["tensor"], failure["claim"]) == (UP, "sigma_first")


@pytest.mark.parametrize(
    ("words", "code"),
    [(["--base", "b"], 2), (["--ft", "f"], 2), (["--sample", "3"], 2), (["--sample", "0"], 2),
     (["--base", "/no/b", "--ft", "/no/f"], 3)],
    ids=str,
)  # fmt: skip
def test_errors(cli, results, tmp_path, words, code):
    done = cli(results(tmp_path), *words)
    assert (done.exit_code, done.stdout) == (code, "")
    assert "Traceback" not in done.stderr


def test_no_result_on_the_command_line(cli, tmp_path):
    done = cli(tmp_path)
    assert (done.exit_code, done.stdout) == (3, "")
    assert "svdcut.json" in done.stderr


def test_names_are_escaped(cli, results, tmp_path):
    out = results(tmp_path)
    name = "bad\x1b[31m\nname.safetensors"
    shutil.copy(out / "model.safetensors", out / name)
    done = cli(out)
    assert done.exit_code == 4
    assert "\x1b" not in done.stdout
    assert "bad\\x1b[31m\\nname.safetensors" in done.stdout


def test_a_line_for_each_tensor(cli, results, pairs, tmp_path):
    pair = pairs("toy")
    done = cli(results(tmp_path), "--base", pair.base, "--ft", pair.finetuned, "-v")
    assert f"{UP}: rank 8 of 24" in done.stderr
