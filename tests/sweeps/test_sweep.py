"""One decomposition, many ranks: rows are those of written checkpoints, and are never lost."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import re
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import svdcut
import svdcut.api
import svdcut.record.provenance
import svdcut.sweeps.decompose
import svdcut.truncation.tensor_job
import text_models
from architectures import ARCHITECTURES
from checkpoints import Pair, file_bytes
from observers import Stop
from svdcut.choose.keep import Keep
from svdcut.choose.options import Options
from svdcut.choose.ranks import parse_rule
from svdcut.errors import InputChangedError
from svdcut.evaluation.metrics import Evaluation, GroupResult, Interval, wilson_interval
from svdcut.files.header import read_header
from svdcut.pair.plan import make_plan
from svdcut.svd.certificate import Method
from svdcut.sweeps.choice import choose, explain
from svdcut.sweeps.decompose import decompose_update
from svdcut.sweeps.in_memory import SwappedModel
from svdcut.sweeps.result import BASE, ROW, ROWS_NAME, Row, Variant, read_outcome
from svdcut.truncation import preflight
from svdcut.write.journal import count_finished
from text_models import make_examples, write_csv

RULES = "0,1,2,5,energy=0.9,ratio=0.2,noise,budget=0.3,full"
FEWER = "0,2,energy=0.9,budget=0.3,full"
"""Where it matters what a cut is made of, and not how its rank is found."""


def perturbed(model, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a classifier, what it was fine-tuned from, and data."""
    folder = tmp_path_factory.mktemp("sweep")
    text_models.bert(folder / "ft", names=["0", "1"])
    model = AutoModelForSequenceClassification.from_pretrained(folder / "ft")
    text_models.save(perturbed(model, 0.1), text_models.word_tokenizer(), folder / "base")
    write_csv(folder / "data.csv", make_examples(60))
    return folder


@pytest.fixture
def pair(place):
    return Pair(place / "base", place / "ft")


def sweep(place, out, **options):
    data = None if "evaluate" in options or "eval_command" in options else place / "data.csv"
    group = ["group"] if data else []
    defaults = {"group": group, "device": "cpu", "ranks": "0,1,2,full"}
    return svdcut.sweep(place / "base", place / "ft", data, out, **(defaults | options))


IDS = torch.tensor([[2, 5, 9, 14, 3], [2, 7, 8, 20, 3]])


def logits_of(model):
    with torch.inference_mode():
        return torch.cat([model(input_ids=ids.unsqueeze(0)).logits for ids in IDS])


# Weights


def plan_of(pair, options):
    sides = map(svdcut.files.checkpoint.open_checkpoint, (pair.base, pair.finetuned))
    return make_plan(*sides, options)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"keep": "bottom"},
        {"keep": "random", "seed": 3},
        {"scale": 1.5},
        {"rest": "base"},
        {"skip": ["*embed*"], "rank_for": ["*query*=1"]},
        {"dtype": "bfloat16"},
        {"svd": "krylov"},
        {"svd": "exact"},
    ],
)
def test_swapped_weights_are_those_of_the_written_checkpoint(place, tmp_path, more):
    """To the last bit, of every tensor; logits round as the processor likes."""
    written = {"dtype": "float32", "device": "cpu"} | more
    rules = "1,2,5" if more.get("svd") == "krylov" else FEWER if more else RULES
    outs = {rule: tmp_path / rule for rule in rules.split(",")}
    svdcut.truncate_many(place / "base", place / "ft", outs, **written)
    keep = Keep(written.pop("keep", "top"))
    options = Options(**written)
    plan = plan_of(Pair(place / "base", place / "ft"), options)
    variants = [Variant(parse_rule(rule), keep) for rule in outs]
    decomposed = decompose_update(plan, variants, options, tmp_path / "kept")
    model = AutoModelForSequenceClassification.from_pretrained(place / "ft").eval()
    swapped = SwappedModel(model, plan, plan.finetuned)
    for variant, out in zip(variants, outs.values(), strict=True):
        swapped.put(decomposed, variant)
        for name, tensor in load_file(out / "model.safetensors").items():
            assert torch.equal(model.state_dict()[name], tensor.float()), (variant, name)
        fresh = AutoModelForSequenceClassification.from_pretrained(out, dtype=torch.float32)
        torch.testing.assert_close(logits_of(model), logits_of(fresh.eval()), rtol=0, atol=1e-5)
        manifest = svdcut.Manifest.loads((out / "svdcut.json").read_text())
        kept = decomposed.kept(variant)
        assert sum(kept.ranks) == manifest.totals.rank
        assert kept.full_rank == manifest.totals.full_rank
        assert kept.energy_retained == pytest.approx(manifest.totals.energy_retained)


@pytest.mark.parametrize("build", ["roberta", "gpt2_classifier", "gpt2", "llama"])
def test_swapped_weights_of_other_models(build, tmp_path):
    """Tied embeddings, transposed matrices, heads of another name."""
    finetuned = getattr(text_models, build)(tmp_path / "ft")
    is_causal = build in ("gpt2", "llama")
    loader = AutoModelForCausalLM if is_causal else AutoModelForSequenceClassification
    shutil.copytree(finetuned, tmp_path / "base")
    model = perturbed(loader.from_pretrained(finetuned), 0.1)
    model.save_pretrained(tmp_path / "base")
    options = Options(device="cpu")
    plan = plan_of(Pair(tmp_path / "base", finetuned), options)
    variants = [Variant(parse_rule(rank)) for rank in (0, 1, 3, "full")]
    outs = {str(variant): tmp_path / str(variant) for variant in variants}
    # Apart: a sweep decomposes nothing for the full rank.
    for rules in (("0", "1", "3"), ("full",)):
        some = {rule: outs[rule] for rule in rules}
        svdcut.truncate_many(tmp_path / "base", finetuned, some, device="cpu")
    decomposed = decompose_update(plan, variants, options, tmp_path / "kept")
    model = loader.from_pretrained(finetuned).eval()
    swapped = SwappedModel(model, plan, plan.finetuned)
    for variant in variants:
        swapped.put(decomposed, variant)
        fresh = loader.from_pretrained(outs[str(variant)]).eval()
        assert torch.equal(logits_of(model), logits_of(fresh)), variant


def with_experts_apart(folder):
    """Write each expert's matrices by themselves, as the files of Qwen and DeepSeek have them."""
    path, apart = folder / "model.safetensors", {}
    for name, tensor in load_file(path).items():
        experts, _, stack = name.rpartition(".")
        parts = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}.get(stack)
        for number, expert in enumerate(tensor if parts else ()):
            for part, matrix in zip(parts, expert.chunk(len(parts)), strict=True):
                apart[f"{experts}.{number}.{part}.weight"] = matrix.clone()
        if parts is None:
            apart[name] = tensor
    save_file(apart, path, metadata={"format": "pt"})


MIXTURES = [(name, "default") for name, known in ARCHITECTURES.items() if known.stacks]


@pytest.mark.parametrize(
    ("name", "layout"),
    [*MIXTURES, ("mixtral", "internal"), ("deepseek_v3", "apart"), ("gpt_neox", "default")],
)
def test_swapped_weights_of_mixtures(name, layout, tmp_path):
    """Experts in a stack of the file, or one by one; joined in memory, by other names."""
    is_apart = layout == "apart"
    pair = ARCHITECTURES[name].pair(tmp_path, layout="default" if is_apart else layout)
    for side in (pair.base, pair.finetuned) if is_apart else ():
        with_experts_apart(side)
    options = Options(device="cpu", dtype="float32")
    plan = plan_of(pair, options)
    variants = [Variant(parse_rule(rule)) for rule in FEWER.split(",")]
    outs = {str(variant): tmp_path / str(variant) for variant in variants}
    svdcut.truncate_many(pair.base, pair.finetuned, outs, device="cpu", dtype="float32")
    decomposed = decompose_update(plan, variants, options, tmp_path / "kept")
    model = AutoModelForCausalLM.from_pretrained(pair.finetuned).eval()
    swapped = SwappedModel(model, plan, plan.finetuned)
    for variant in variants:
        swapped.put(decomposed, variant)
        fresh = AutoModelForCausalLM.from_pretrained(outs[str(variant)]).eval()
        ours, theirs = model.state_dict(), fresh.state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), variant
        assert torch.equal(logits_of(model), logits_of(fresh)), variant


def test_experts_in_another_order_have_no_place(tmp_path):
    """Names and shapes fit, values do not: nothing is put where another expert is."""
    pair = ARCHITECTURES["mixtral"].pair(tmp_path)
    plan = plan_of(pair, Options())
    model = AutoModelForCausalLM.from_pretrained(pair.finetuned)
    with torch.no_grad():
        stack = model.model.layers[1].mlp.experts.gate_up_proj
        stack.copy_(stack.flip(0))
    with pytest.raises(svdcut.EvaluationError, match=r"layers\.1\..*experts\.0\.w1\.weight"):
        SwappedModel(model, plan, plan.finetuned)


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_rows_are_the_evaluations_of_written_checkpoints(place, tmp_path, dtype):
    found = sweep(place, tmp_path / "out", controls=["bottom"], dtype=dtype)
    truncated = truncate_as(found.rows, place, tmp_path, dtype=dtype)
    for row, (out, manifest) in zip(found.rows, truncated, strict=True):
        totals = manifest.totals
        undone = totals.rounding_error / totals.tail_norm if totals.tail_norm else None
        assert row.rounding_share == (undone and pytest.approx(undone))
        assert undone is None or (undone > 1e-3) is (dtype == "bfloat16")
        assert svdcut.evaluate(out, place / "data.csv", **DATA) == row.evaluation
    assert found.finetuned == svdcut.evaluate(place / "ft", place / "data.csv", **DATA)
    assert found.base == found.rows[0].evaluation


DATA = {"group": ["group"], "device": "cpu"}


def truncate_as(rows, place, folder, **options):
    """Write the checkpoints of some rows, from all triplets as controls need them."""
    found = []
    for row in rows:
        rule, keep = str(row.variant.rule), row.variant.keep.value
        outs = {name: folder / f"{keep}-{rule}-{name}" for name in dict.fromkeys((rule, "full"))}
        made = svdcut.truncate_many(
            place / "base", place / "ft", outs, keep=keep, device="cpu", **options
        )
        found.append((outs[rule], made[0]))
    return found


def test_inputs_are_left_as_they_were(place, tmp_path, pair):
    before = file_bytes(pair.finetuned) | file_bytes(pair.base)
    sweep(place, tmp_path / "out")
    assert file_bytes(pair.finetuned) | file_bytes(pair.base) == before


def test_a_tensor_that_is_no_parameter_is_refused(place, tmp_path):
    for name in ("base", "ft"):
        shutil.copytree(place / name, tmp_path / name)
        path = tmp_path / name / "model.safetensors"
        tensors = load_file(path) | {"other.weight": torch.eye(4) * (1 + (name == "ft"))}
        save_file(tensors, path, metadata={"format": "pt"})
    shutil.copy(place / "data.csv", tmp_path)
    with pytest.raises(svdcut.EvaluationError, match=r"(?s)other\.weight.*--eval-command") as error:
        sweep(tmp_path, tmp_path / "out")
    assert error.value.exit_code == 3
    assert not (tmp_path / "out" / "decomposition").exists()
    assert sweep(tmp_path, tmp_path / "out", skip=["other.weight"]).rows


# Going on


class Counted:
    """A function of the model; it fails at one call."""

    def __init__(self, fail_at=None):
        self.calls, self.fail_at = [], fail_at

    def __call__(self, model):
        if len(self.calls) + 1 == self.fail_at:
            raise KeyboardInterrupt
        self.calls.append(logits_of(model))
        return {"accuracy": float(torch.sigmoid(self.calls[-1][0, 0])), "size": 10}


@pytest.fixture
def decompositions(monkeypatch):
    seen = []
    real = svdcut.truncation.tensor_job.cut_matrix
    monkeypatch.setattr(
        svdcut.truncation.tensor_job, "cut_matrix", lambda *a, **k: seen.append(1) or real(*a, **k)
    )
    return seen


def test_a_killed_sweep_repeats_no_finished_row(place, tmp_path, decompositions):
    whole = Counted()
    expected = sweep(place, tmp_path / "whole", evaluate=whole)
    assert len(whole.calls) == 4  # both ends, which are rows 0 and full, and rows 1 and 2
    num_matrices = len(decompositions)
    first = Counted(fail_at=3)
    with pytest.raises(KeyboardInterrupt):
        sweep(place, tmp_path / "out", evaluate=first)
    second = Counted()
    found = sweep(place, tmp_path / "out", evaluate=second)
    assert (len(first.calls), len(second.calls)) == (2, 2)
    assert found == expected
    assert len(decompositions) == 2 * num_matrices  # of both folders, once each
    third = Counted()
    assert sweep(place, tmp_path / "out", evaluate=third) == expected
    assert (third.calls, len(decompositions)) == ([], 2 * num_matrices)


def test_a_later_sweep_measures_new_ranks_alone(place, tmp_path):
    sweep(place, tmp_path / "out", evaluate=Counted(), ranks="0,1,2")
    later = Counted()
    found = sweep(place, tmp_path / "out", evaluate=later, ranks="1,3", tolerance=0.5)
    assert len(later.calls) == 1
    assert [str(row.variant) for row in found.rows] == ["1", "3"]


@pytest.mark.parametrize(
    ("first", "later", "is_served"),
    [
        ("0,5", "1,2,3,4", True),
        ("3", "4", False),
        ("3,full", "full,2", True),
        ("energy=0.9", "energy=0.5,ratio=0.9", True),
        ("energy=0.5", "energy=0.9", False),
        ("full", "energy=0.5", False),
        ("noise,4,energy=0.99", "1,energy=0.3", True),
        ("4,energy=0.99", "noise", False),
        ("4,energy=0.99", "budget=0.2", False),
    ],
)
def test_a_later_sweep_decomposes_only_what_is_not_stored(
    place, tmp_path, decompositions, first, later, is_served
):
    out = tmp_path / "out"
    sweep(place, out, evaluate=Counted(), ranks=first)
    count = len(decompositions)
    assert count
    found = sweep(place, out, evaluate=Counted(), ranks=later)
    # Two matrices have two triplets alone, which may all be there.
    assert is_served is (len(decompositions) == count)
    assert is_served or len(decompositions) >= 2 * count - 2
    alone = sweep(place, tmp_path / "alone", evaluate=Counted(), ranks=later)
    for row, expected in zip(found.rows, alone.rows, strict=True):
        assert (row.variant, row.rank) == (expected.variant, expected.rank)
        assert row.energy_retained == pytest.approx(expected.energy_retained, rel=1e-5)
        assert row.evaluation.accuracy == pytest.approx(expected.evaluation.accuracy, abs=1e-5)


def test_controls_that_are_not_stored_are_decomposed(place, tmp_path, decompositions):
    sweep(place, tmp_path, evaluate=Counted(), ranks="2", controls=["bottom"])
    count = len(decompositions)
    sweep(place, tmp_path, evaluate=Counted(), ranks="1", controls=["bottom"])
    assert len(decompositions) == count  # the last one is among the last two
    sweep(place, tmp_path, evaluate=Counted(), ranks="2", controls=["random"])
    assert len(decompositions) == 2 * count - 2  # of two matrices both triplets are there


def test_the_full_rank_needs_no_decomposition(place, tmp_path):
    """But the leading triplets that others need: a full one costs a hundred times as much."""
    options = Options(device="cpu", svd="krylov")
    plan = plan_of(Pair(place / "base", place / "ft"), options)
    variants = [Variant(parse_rule(rule)) for rule in ("0", "2", "full")]
    found = decompose_update(plan, variants, options, tmp_path / "kept")
    stored = [found.read(pair, n) for pair in found.pairs for n in range(len(pair.matrices))]
    wide = [matrix for matrix in stored if matrix.measured.full_rank > 10]
    assert wide
    assert {matrix.measured.method for matrix in wide} == {Method.KRYLOV}
    assert all(len(matrix.indices) == 2 for matrix in wide)
    kept = found.kept(variants[2])
    assert (kept.energy_retained, kept.ranks) == (1.0, kept.full_ranks)


def test_a_row_that_was_cut_off_is_measured_again(place, tmp_path):
    out = tmp_path / "out"
    expected = sweep(place, out, evaluate=Counted(), ranks="0,1,2")
    log = out / "rows.jsonl"
    log.write_bytes(log.read_bytes()[:-20])
    again = Counted()
    assert sweep(place, out, evaluate=again, ranks="0,1,2") == expected
    assert len(again.calls) == 1


def test_an_interrupted_decomposition_goes_on(place, tmp_path, decompositions, monkeypatch):
    monkeypatch.setattr(svdcut.sweeps.decompose, "num_workers", lambda device: 1)
    with pytest.raises(svdcut.Interrupted):
        sweep(place, tmp_path / "out", observe=Stop(5, "decompose"))
    begun = len(decompositions)
    killed = tmp_path / "out" / "decomposition" / ".00001-00000.safetensors.1.partial"
    killed.touch()
    seen = Stop(-1)
    found = sweep(place, tmp_path / "out", observe=seen)
    assert sum(p.resumed for p in seen.seen) == begun == 5
    assert not killed.exists()
    expected = sweep(place, tmp_path / "whole")
    assert found == expected


def stored_files(out):
    """The files of a decomposition that hold vectors, the last matrix last."""
    found = sorted((out / "decomposition").glob("*.safetensors"))
    return [path for path in found if all(entry.size_bytes for entry in read_header(path).entries)]


def damage(path, part):
    """Flip a bit of some vectors, change a number of what is known, or cut the file off."""
    data = bytearray(path.read_bytes())
    if part == "end":
        del data[-9:]
    elif part == "facts":
        place = data.index(b'\\"energy\\": ') + len('\\"energy\\": ')
        data[place] = ord("1") if data[place] != ord("1") else ord("2")
    else:
        (entry,) = (entry for entry in read_header(path).entries if entry.name == part)
        data[entry.offset + entry.size_bytes // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("part", ["facts", "end"])
def test_a_damaged_matrix_alone_is_decomposed_again(place, tmp_path, decompositions, part):
    out = tmp_path / "out"
    expected = sweep(place, out)
    count = len(decompositions)
    damage(stored_files(out)[-1], part)
    (out / "rows.jsonl").unlink()
    assert sweep(place, out) == expected
    assert len(decompositions) == count + 1


def test_a_decomposition_of_other_inputs_is_made_again(place, tmp_path, decompositions):
    shutil.copytree(place, tmp_path / "place")
    sweep(tmp_path / "place", tmp_path / "out")
    count = len(decompositions)
    (tmp_path / "place" / "ft" / "model.safetensors").touch()
    (tmp_path / "out" / "rows.jsonl").unlink()
    sweep(tmp_path / "place", tmp_path / "out")
    assert len(decompositions) == 2 * count


def test_a_folder_of_somebody_else_is_left_alone(place, tmp_path):
    (tmp_path / "decomposition").mkdir()
    (tmp_path / "decomposition" / "mine.safetensors").write_text("mine")
    for restart in (False, True):
        with pytest.raises(svdcut.OutputExistsError, match="no decomposition that svdcut made"):
            sweep(place, tmp_path, restart=restart)
    assert (tmp_path / "decomposition" / "mine.safetensors").read_text() == "mine"


@pytest.mark.parametrize("part", ["left", "right"])
@pytest.mark.parametrize(
    "options", [{}, {"eval_command": f"{sys.executable} -c print(0.5) {{model}}"}]
)
def test_a_flipped_bit_of_factors_is_never_evaluated(
    place, tmp_path, decompositions, part, options
):
    out = tmp_path / "out"
    sweep(place, out, ranks="3", **options)
    count = len(decompositions)
    path = stored_files(out)[-1]
    damage(path, part)
    with pytest.raises(svdcut.CheckpointError, match=f"{part} of matrix 0 of tensor") as caught:
        sweep(place, out, ranks="1", **options)
    assert str(path) in caught.value.what
    assert len(decompositions) == count
    path.unlink()  # as the hint says
    found = sweep(place, out, ranks="1,3", **options)
    assert len(decompositions) == count + 1
    assert found == sweep(place, tmp_path / "whole", ranks="1,3", **options)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"scale": 0.5}, "scale"),
        ({"limit": 30}, "DATA"),
        ({"group": []}, "DATA"),
        ({"labels": ["1=0", "0=1"]}, "labels"),
        ({"seed": 1}, "seed"),
    ],
)
def test_rows_of_other_options_are_refused(place, tmp_path, options, named):
    out = tmp_path / "out"
    sweep(place, out)
    with pytest.raises(svdcut.OutputExistsError, match=f"{named}.*\n.*--restart"):
        sweep(place, out, **options)
    assert sweep(place, out, restart=True, **options).rows


def test_rows_of_other_inputs_are_refused(place, tmp_path):
    shutil.copytree(place, tmp_path / "place")
    sweep(tmp_path / "place", tmp_path / "out")
    (tmp_path / "place" / "ft" / "model.safetensors").touch()
    with pytest.raises(svdcut.OutputExistsError, match=r"model\.safetensors of the fine-tuned"):
        sweep(tmp_path / "place", tmp_path / "out")


def test_rows_that_do_not_say_how_many_texts_were_cut_are_refused(place, tmp_path):
    """As they were before the format of the rows had a number."""
    sweep(place, tmp_path)
    log = tmp_path / "rows.jsonl"
    text = log.read_text().replace(', "the format of the rows": "4"', "")
    log.write_text(text.replace('"num_truncated": 0, ', ""))
    with pytest.raises(svdcut.OutputExistsError, match=r"format of the rows was absent, is 4"):
        sweep(place, tmp_path)


def test_a_file_of_somebody_else_is_left_alone(place, tmp_path):
    (tmp_path / "rows.jsonl").write_text("mine\n")
    for restart in (False, True):
        with pytest.raises(svdcut.OutputExistsError, match="holds no rows of svdcut"):
            sweep(place, tmp_path, restart=restart)
    assert (tmp_path / "rows.jsonl").read_text() == "mine\n"


# Files


EVALUATION = {
    "accuracy",
    "size",
    "num_truncated",
    "chat_template",
    "groups",
    "worst_group",
    "worst_group_accuracy",
    "gap",
    "intervals",
}


def test_the_document(place, tmp_path):
    found = sweep(place, tmp_path, controls=["bottom", "random"], ranks="0,1,full")
    document = json.loads((tmp_path / "sweep.json").read_text())
    assert document == json.loads(json.dumps(found.to_json()))
    assert set(document) == {
        "schema",
        "base",
        "finetuned",
        "rows",
        "tolerance",
        "chosen",
        "chosen_with_groups",
        "answer",
    }
    assert document["schema"] == "svdcut/sweep/1"
    cut = {"rule", "keep", "rank", "full_rank", "energy_retained", "rounding_share"}
    row_keys = EVALUATION | cut
    assert set(document["base"]) == set(document["finetuned"]) == EVALUATION
    assert all(set(row) == row_keys for row in document["rows"])
    kept = [(row["rule"], row["keep"]) for row in document["rows"]]
    tops = [("0", "top"), ("1", "top"), ("full", "top")]
    assert kept == [*tops, ("1", "bottom"), ("1", "random")]
    for name, needed in (("chosen", False), ("chosen_with_groups", True)):
        choice = dict(document[name])
        assert choice.pop("needs_group_labels") is needed
        assert choice in document["rows"]
    assert document["rows"][0]["rank"] == 0
    assert document["rows"][2]["rank"] == document["rows"][2]["full_rank"]
    assert all(Row.from_json(row).to_json() == row for row in document["rows"])


def test_the_table_and_the_picture(place, tmp_path, drawn):
    found = sweep(place, tmp_path)
    with (tmp_path / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["rule"] for row in rows] == ["base", "finetuned", "0", "1", "2", "full"]
    for row, measured in zip(rows[2:], found.rows, strict=True):
        assert float(row["accuracy"]) == measured.evaluation.accuracy
        assert float(row["gap_best_worst"]) == measured.evaluation.gap.best_worst
        assert float(row["accuracy:group=g0"]) == measured.evaluation.groups["group=g0"].accuracy
    picture = (tmp_path / "sweep.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    (tmp_path / "sweep.png").unlink()
    sweep(place, tmp_path)
    assert (tmp_path / "sweep.png").read_bytes() == picture


def test_without_groups(place, tmp_path, drawn):
    found = sweep(place, tmp_path, group=[])
    assert found.chosen_with_groups is None
    assert found.answer[-1] == "There are no groups, so nothing is known of the gap."
    assert (tmp_path / "sweep.png").is_file()


# Room on the disk


@pytest.mark.parametrize(
    ("rules", "keeps", "more"),
    [
        ("0,1,2,full", "top", {}),
        ("1,3", "top,bottom", {}),
        ("4", "top,random", {}),
        ("9", "bottom,top", {}),
        ("2,full", "top", {"scale": 0.5}),
        ("2", "top", {"svd": "krylov"}),
        ("1", "top", {"rank_for": ["*query*=5"], "skip": ["*embed*"]}),
    ],
)
def test_factors_take_no_less_than_they_are_said_to(
    pair, tmp_path, monkeypatch, rules, keeps, more
):
    monkeypatch.setattr(preflight, "_small_bytes", lambda plan: 0)
    options = Options(device="cpu", **more)
    plan = plan_of(pair, options)
    cuts = [
        (parse_rule(rule), Keep(keep)) for keep in keeps.split(",") for rule in rules.split(",")
    ]
    needed = preflight.check_factors(
        plan, [rule for rule, _ in cuts], options, tmp_path / "kept"
    ).needed_bytes
    made = decompose_update(plan, [Variant(*cut) for cut in cuts], options, tmp_path / "kept")
    files = [made.path(pair, n) for pair in made.pairs for n in range(len(pair.matrices))]
    written = sum(entry.size_bytes for path in files for entry in read_header(path).entries)
    assert 0 < needed <= written


def test_no_room_for_factors_is_refused_before_any_work(place, pair, tmp_path, monkeypatch):
    options, out = Options(), tmp_path / "out"
    rules = [parse_rule(rule) for rule in ("0", "2")]
    plan = plan_of(pair, options)
    needed = preflight.check_factors(plan, rules, options, out / "decomposition").needed_bytes
    monkeypatch.setattr(preflight, "free_space", lambda path: (1, needed - 1))
    counted = Counted()
    message = r"out/decomposition: [\d.]+ MB to write, but only [\d.]+ MB free there"
    with pytest.raises(svdcut.OutputError, match=message) as caught:
        sweep(place, out, evaluate=counted, ranks="2")
    assert (caught.value.exit_code, counted.calls) == (1, [])
    assert [path.name for path in out.iterdir()] == ["rows.jsonl"]
    # What a rule of the spectrum will take is not known.
    small = preflight.check_factors(plan, rules[:1], options, out / "decomposition").needed_bytes
    monkeypatch.setattr(preflight, "free_space", lambda path: (1, small))
    assert sweep(place, tmp_path / "energy", evaluate=counted, ranks="energy=0.9").rows
    monkeypatch.setattr(preflight, "free_space", lambda path: (1, needed))
    expected = sweep(place, out, evaluate=counted, ranks="2")
    monkeypatch.setattr(preflight, "free_space", lambda path: (1, 0))
    assert sweep(place, out, evaluate=counted, ranks="2") == expected


def test_no_room_for_a_checkpoint_is_refused_before_any_work(place, pair, tmp_path, monkeypatch):
    out, log = tmp_path / "out", tmp_path / "log"
    command = f"sh -c 'touch {log}; echo 0.5' {{model}}"
    plan = plan_of(pair, Options())
    needed = preflight.check_checkpoint(plan, out / "checkpoint").needed_bytes
    monkeypatch.setattr(preflight, "free_space", lambda path: (1, needed - 1))
    with pytest.raises(svdcut.OutputError, match=r"out/checkpoint: .* to write, but only"):
        sweep(place, out, eval_command=command, ranks="1")
    assert not log.exists()
    # What a run that was killed left there is replaced.
    (out / "checkpoint").mkdir()
    (out / "checkpoint" / "model.safetensors").write_bytes(bytes(100_000))
    assert sweep(place, out, eval_command=command, ranks="1").rows
    assert log.exists()


def test_a_disk_that_is_full_at_once(place, tmp_path, monkeypatch):
    def full(self, identity):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(svdcut.write.journal.Journal, "begin", full)
    with pytest.raises(svdcut.OutputError, match="No space left on device"):
        sweep(place, tmp_path)


# Evaluators of the user's own


def test_a_function_may_return_a_number_or_an_evaluation(place, tmp_path):
    assert sweep(place, tmp_path / "a", evaluate=lambda model: 0.5).finetuned.accuracy == 0.5
    known = evaluation(0.75, 0.5)
    assert sweep(place, tmp_path / "b", evaluate=lambda model: known).finetuned == known
    with pytest.raises(svdcut.EvaluationError, match="no evaluation"):
        sweep(place, tmp_path / "c", evaluate=lambda model: "good")


def test_outcomes():
    groups = {"b": {"accuracy": 0.5, "size": 4}, "a": {"accuracy": 1}}
    found = read_outcome({"accuracy": 0.75, "size": 8, "groups": groups}, "x")
    assert (found.worst_group, found.gap.best_worst, found.gap.average_worst) == ("b", 0.5, 0.25)
    assert found.interval == wilson_interval(6, 8)
    assert found.groups["a"].interval == Interval(0.0, 1.0)
    assert read_outcome(found.to_json(), "x") == found
    for bad in (None, "x", {}, 2.0, float("nan"), {"accuracy": 0.5, "size": -1}, {"groups": 3}):
        with pytest.raises(svdcut.EvaluationError, match="Expected an accuracy"):
            read_outcome(bad, "x")


SCRIPT = """
import hashlib, json, sys, pathlib
data = pathlib.Path(sys.argv[1], "model.safetensors").read_bytes()
pathlib.Path(sys.argv[2]).open("a").write(hashlib.sha256(data).hexdigest() + "\\n")
print(json.dumps({"accuracy": 0.5}))
"""


def test_a_command_evaluates_written_checkpoints(place, tmp_path):
    script, log = tmp_path / "my eval.py", tmp_path / "log"
    script.write_text(SCRIPT)
    command = f"{sys.executable} '{script}' {{model}} {log}"
    found = sweep(place, tmp_path / "out", eval_command=command, ranks="1,2", controls=["bottom"])
    assert [str(row.variant) for row in found.rows] == ["1", "2", "bottom 1", "bottom 2"]
    seen = log.read_text().splitlines()
    base = replace(found.rows[0], variant=BASE)
    cuts = truncate_as([base, *found.rows], place, tmp_path)
    expected = [place / "ft", *(out for out, _ in cuts)]
    files = [(out / "model.safetensors").read_bytes() for out in expected]
    assert seen == [hashlib.sha256(data).hexdigest() for data in files]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "rows.jsonl",
        "sweep.json",
        "sweep.csv",
        "decomposition",
    }


def test_a_command_sees_manifests_of_the_one_decomposition(place, tmp_path, decompositions):
    """With the numbers that a truncation has, to what float32 can tell."""
    script = tmp_path / "keep.py"
    script.write_text(
        "import json, sys, pathlib, shutil\n"
        "manifest = pathlib.Path(sys.argv[1], 'svdcut.json')\n"
        "seen = len(list(pathlib.Path(sys.argv[2]).iterdir()))\n"
        "manifest.is_file() and shutil.copy(manifest, f'{sys.argv[2]}/{seen}.json')\n"
        "print(0.5)\n"
    )
    (tmp_path / "seen").mkdir()
    command = f"{sys.executable} {script} {{model}} {tmp_path / 'seen'}"
    sweep(place, tmp_path / "out", eval_command=command, ranks="1,energy=0.9,ratio=0.5,full")
    pair = Pair(place / "base", place / "ft")
    plan = plan_of(pair, Options())
    assert len(decompositions) == sum(
        len(tensor.pair.matrices) for tensor in plan.tensors if tensor.pair.action == "truncate"
    )
    seen = [svdcut.Manifest.loads(p.read_text()) for p in sorted((tmp_path / "seen").iterdir())]
    for manifest, rule in zip(seen, ("0", "1", "energy=0.9", "ratio=0.5"), strict=True):
        expected = svdcut.truncate(pair.base, pair.finetuned, tmp_path / rule, rank=rule)
        assert [fact.action for fact in manifest.tensors.values()] == [
            fact.action for fact in expected.tensors.values()
        ]
        for name, fact in manifest.tensors.items():
            ours, theirs = fact.truncation, expected.tensors[name].truncation
            if theirs is None:
                assert fact == expected.tensors[name]
                continue
            assert (ours.ranks, ours.rule, ours.svd.certified) == (theirs.ranks, theirs.rule, True)
            for key in ("update_norm", "tail_norm", "energy_retained"):
                assert getattr(ours, key) == pytest.approx(getattr(theirs, key), rel=1e-5)
            firsts = [[matrix.sigma_first for matrix in cut.matrices] for cut in (ours, theirs)]
            assert firsts[0] == pytest.approx(firsts[1], rel=1e-5)


@pytest.fixture
def hashed(monkeypatch):
    """Paths of the inputs' files, as often as their bytes are hashed."""
    seen = []
    real = svdcut.record.provenance.hash_file
    monkeypatch.setattr(
        svdcut.record.provenance,
        "hash_file",
        lambda path, stop: seen.append(path) or real(path, stop),
    )
    return seen


def test_a_command_costs_one_hash_of_each_input(place, pair, tmp_path, hashed):
    """The manifest of each checkpoint has it."""
    script = tmp_path / "keep.py"
    script.write_text(
        "import pathlib, sys\n"
        "manifest = pathlib.Path(sys.argv[1], 'svdcut.json')\n"
        "if manifest.is_file():\n"
        "    open(sys.argv[2], 'ab').write(manifest.read_bytes())\n"
        "print(0.5)\n"
    )
    command = f"{sys.executable} {script} {{model}} {tmp_path / 'seen'}"
    sweep(place, tmp_path / "out", eval_command=command, ranks="1,2,3")
    files = [side / "model.safetensors" for side in (pair.base, pair.finetuned)]
    assert hashed == files
    said = (tmp_path / "seen").read_text()
    for file in files:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        assert said.count(f'"sha256": "{digest}"') == 4  # base, and three ranks


@pytest.mark.parametrize("side", ["base", "ft"])
def test_an_input_that_changes_between_checkpoints_is_found(place, tmp_path, side):
    for name in ("base", "ft"):
        shutil.copytree(place / name, tmp_path / name)
    file = tmp_path / side / "model.safetensors"
    script = tmp_path / "touch.py"
    script.write_text(
        "import os, pathlib, sys\n"
        "manifest = pathlib.Path(sys.argv[1], 'svdcut.json')\n"
        'if manifest.is_file() and \'"rank": "1"\' in manifest.read_text():\n'
        f"    os.utime({str(file)!r})\n"
        "print(0.5)\n"
    )
    command = f"{sys.executable} {script} {{model}}"
    with pytest.raises(InputChangedError, match=re.escape(str(file))):
        sweep(tmp_path, tmp_path / "out", eval_command=command, ranks="1,2")
    assert count_finished(tmp_path / "out", ROW, ROWS_NAME) == 2  # base, and rank 1


# The choice


def evaluation(accuracy, gap=None, size=10**7, *, of_gap=0.0):
    """Return an evaluation; the interval of its gap reaches so far to both sides."""
    if gap is None:
        return Evaluation(accuracy, size)
    groups = {"a": GroupResult(gap, 50), "b": GroupResult(0.0, 50)}
    interval = Interval(gap - of_gap, gap + of_gap)
    return Evaluation(accuracy, size, groups, intervals={"best_worst": interval})


def row(rank, accuracy, gap=None, *, keep="top", full_rank=100, put_back=None, **more):
    variant = Variant(parse_rule(rank), Keep(keep))
    energy = None if put_back is None else 0.5
    found = evaluation(accuracy, gap, **more)
    return Row(variant, rank, full_rank, energy, put_back, found)


shares = st.integers(0, 100).map(lambda n: n / 100)
rows_of = st.lists(
    st.builds(
        row,
        st.integers(0, 100),
        shares,
        st.none() | shares,
        keep=st.sampled_from(["top", "bottom", "random"]),
    ),
    max_size=12,
)


@given(rows_of, shares, shares, shares)
def test_choice(rows, accuracy, gap, tolerance):
    finetuned = evaluation(accuracy, gap)
    choice = choose(rows, finetuned, tolerance)
    within = [
        r
        for r in rows
        if r.variant.keep is Keep.TOP
        and r.rank < 100
        and round(100 * r.evaluation.accuracy) >= round(100 * (accuracy - tolerance))
    ]
    if choice.by_accuracy is None:
        assert not within
    else:
        assert choice.by_accuracy in within
        assert choice.by_accuracy.rank == min(r.rank for r in within)
    gaps = [(r.evaluation.gap.best_worst, r.rank) for r in within]
    gaps = [item for item in gaps if item[0] is not None]
    best = choice.by_gap
    assert (best is None) == (not gaps)
    if best is not None:
        assert (best.evaluation.gap.best_worst, best.rank) == min(gaps)
    sentences = list(explain(rows, finetuned, tolerance, choice))
    assert all(sentence.endswith((".", "random.", "bottom.")) for sentence in sentences)
    assert sentences[0].startswith("Use -k " if within else "No rank is within")


@given(rows_of, shares, shares)
def test_no_group_label_is_looked_at_for_the_choice(rows, accuracy, tolerance):
    without = [row(r.rank, r.evaluation.accuracy, keep=r.variant.keep.value) for r in rows]
    chosen, blind = (choose(some, evaluation(accuracy), tolerance) for some in (rows, without))
    assert (chosen.by_accuracy is None) == (blind.by_accuracy is None)
    if chosen.by_accuracy is not None:
        assert chosen.by_accuracy.variant == blind.by_accuracy.variant


def said(rows, finetuned, tolerance=0.02):
    return list(explain(rows, finetuned, tolerance, choose(rows, finetuned, tolerance)))


def test_a_shortcut_in_the_tail():
    rows = [row(1, 0.7, 0.1), row(4, 0.9, 0.2), row(8, 0.91, 0.15), row(16, 0.9, 0.16)]
    assert said(rows, evaluation(0.91, 0.4)) == [
        "Use -k 4: the smallest rank within 2 points of the fine-tuned accuracy, 90.0% against "
        "91.0%; no group label was needed for that.",
        "-k 8 has the smallest gap between the best and the worst group, 15.0 points against "
        "40.0; this choice uses group labels.",
    ]


def test_a_shortcut_in_the_head():
    rows = [row(1, 0.9, 0.5), row(4, 0.9, 0.4)]
    finetuned = evaluation(0.9, 0.4)
    start = "No cut of the tail within the tolerance shrinks the gap of 40.0 points"
    sentences = said(rows, finetuned)
    assert sentences[1].startswith(start)
    assert "not tried: --controls bottom" in sentences[2]
    assert "not tried: --controls random" in sentences[3]
    controls = [
        row(4, 0.89, 0.1, keep="bottom"),
        row(4, 0.9, 0.6, keep="random"),
        row(1, 0.2, 0.0, keep="random"),
    ]
    assert said([*rows, *controls], finetuned)[2:] == [
        "Dropping the head of the spectrum instead (bottom) does better: at rank 4 the gap is "
        "10.0 points, with an accuracy of 89.0%.",
        "Keeping a random set instead does not shrink it either.",
    ]
    lost = [row(4, 0.1, 0.0, keep="bottom"), row(4, 0.1, 0.0, keep="random")]
    assert all("never keeps the accuracy" in text for text in said([*rows, *lost], finetuned)[2:])


def test_a_choice_within_noise_says_so():
    rows = [row(rank, share, size=100) for rank, share in ((1, 0.86), (2, 0.7), (4, 0.9))]
    assert said(rows, evaluation(0.91, size=100))[1:-1] == [
        "On 100 texts its 95 % interval is 82.6 to 94.5, so that it may cost more than that.",
        "-k 1 fell short, but the 95 % intervals overlap with its own: these texts do not tell "
        "them apart.",
    ]
    unknown = said([row(4, 0.9, size=0)], evaluation(0.91, size=0))
    assert unknown[1].startswith("How much of that is chance is not known")
    assert len(said([row(4, 0.9)], evaluation(0.91))) == 2


def test_gaps_that_overlap_are_not_told_apart():
    ends = {"of_gap": 0.15}
    rows = [row(1, 0.9, 0.3, **ends), row(2, 0.9, 0.1), row(4, 0.9, 0.2, **ends)]
    apart, near = evaluation(0.9, 0.5, **ends), evaluation(0.9, 0.25, **ends)
    end = ": these texts do not tell them apart."
    start = "Its 95 % interval, 10.0 to 10.0, overlaps with that of "
    assert said(rows, apart)[2] == f"{start}-k 4{end}"
    assert said(rows, near)[2] == f"{start}the fine-tuned model, -k 4{end}"
    control = [row(1, 0.9, 0.5), row(1, 0.9, 0.2, keep="bottom", **ends)]
    assert "(bottom) has a smaller gap: at rank 1" in said(control, near)[2]
    assert said(control, near)[2].endswith(end)
    assert "(bottom) does better" in said(control, evaluation(0.9, 0.5))[2]
    none = replace(evaluation(0.9, 0.1), intervals={})
    blind = [replace(rows[0], evaluation=none)]
    assert said(blind, near)[2].startswith("How much of that is chance is not known")


def test_small_groups_are_named():
    finetuned = evaluation(0.9, 0.4)
    sizes = {"a": (0.9, 14), "b": (0.5, 2), "c": (0.8, 30), "d": (0.8, 0)}
    sizes = {name: GroupResult(*group) for name, group in sizes.items()}
    sentences = said([row(4, 0.9, 0.4)], replace(finetuned, groups=sizes))
    assert sentences[1] == (
        "2 of 4 groups have fewer than 30 texts ('b': 2, 'a': 14): their accuracies, and gaps "
        "from them, are mostly chance."
    )


def test_what_storage_puts_back_is_said():
    rows = [row(1, 0.8, put_back=0.9), row(4, 0.9, put_back=0.75), row(8, 0.9, put_back=0.05)]
    back = "Rounding in storage puts back {} cuts: --dtype float32 avoids it, and so does an "
    assert said(rows, evaluation(0.9))[1].startswith(back.format("75% of what -k 4"))
    assert said(rows[:1], evaluation(0.9))[1].startswith(back.format("90% of what -k 1"))
    assert not any("puts back" in text for text in said(rows[2:], evaluation(0.9)))


def test_nothing_within():
    sentences = said([row(1, 0.5, 0.1), row(4, 0.7, 0.3), row(100, 0.9, 0.4)], evaluation(0.9, 0.4))
    assert sentences[0] == (
        "No rank is within 2 points of the fine-tuned accuracy, 90.0%: the closest is -k 4, "
        "with 70.0%."
    )
    assert "none was tried" in said([row(100, 0.9)], evaluation(0.9))[0]


# What is refused: see tests/refusals.py too


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranks": "1,1"}, "the same rule twice"),
        ({"controls": "top"}, "--controls 'top': expected bottom or random"),
        ({"evaluate": len, "eval_command": "a {model}"}, "one way to evaluate"),
    ],
)
def test_wrong_usage(place, tmp_path, options, message):
    with pytest.raises(svdcut.UsageError, match=message):
        sweep(place, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
