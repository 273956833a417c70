"""The real pair from end to end: numbers, prefix, and what transformers makes of it."""

import json
import warnings

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import BertForSequenceClassification, BertModel

import svdcut
from checkpoints import read_folder

RULES = ("1", "16", "64", "full")
TOKENS = torch.arange(5, 45).reshape(2, 20)


@pytest.fixture(scope="module", params=["finetuned", "finetuned_encoder"])
def cut(request, real_pair, tmp_path_factory):
    """Return the two sides' folders, and manifest and folder of each rule."""
    finetuned = getattr(real_pair, request.param)
    folder = tmp_path_factory.mktemp(request.param)
    outs = {rule: folder / rule for rule in RULES}
    manifests = svdcut.truncate_many(real_pair.base, finetuned, outs)
    return finetuned, dict(zip(RULES, manifests, strict=True)), outs


def load(kind, path):
    model, info = kind.from_pretrained(path, output_loading_info=True)
    assert not info["missing_keys"] or kind is BertModel
    assert not info["unexpected_keys"] or kind is BertModel
    return model.eval()


def outputs(model):
    with torch.no_grad():
        return model(input_ids=TOKENS)[0]


def test_the_prefix_is_found_where_there_is_one(cut):
    finetuned, manifests, _ = cut
    expected = "bert." if finetuned.name.endswith("encoder") else None
    for manifest in manifests.values():
        assert manifest.base.prefix == expected
        assert manifest.finetuned.prefix is None
        assert manifest.totals.truncated >= 72


@pytest.mark.parametrize("rule", RULES)
def test_against_a_float64_svd(cut, real_pair, rule):
    finetuned, manifests, outs = cut
    manifest, result = manifests[rule], read_folder(outs[rule])
    base, tuned = read_folder(real_pair.base), read_folder(finetuned)
    prefix = manifest.base.prefix or ""
    for name, fact in manifest.tensors.items():
        assert fact.sha256 == result[name].sha256
        if fact.truncation is None:
            assert result[name].raw == tuned[name].raw
            continue
        theirs, ours = base[prefix + name].value, tuned[name].value
        update = (ours - theirs).double()
        s = torch.linalg.svdvals(update)
        t, (matrix,) = fact.truncation, fact.truncation.matrices
        k = matrix.rank
        assert k == (len(s) if rule == "full" else min(int(rule), len(s)))
        assert t.svd.certified
        assert matrix.sigma_first == pytest.approx(float(s[0]), rel=1e-5)
        floor = 1e-13 * float(s[0])
        assert matrix.sigma_last_kept == pytest.approx(float(s[k - 1]), rel=1e-5, abs=floor)
        if k < len(s):
            assert matrix.sigma_next == pytest.approx(float(s[k]), rel=1e-5, abs=floor)
        best = float(s[k:].norm())
        norm = float(s.norm())
        assert t.update_norm == pytest.approx(norm, rel=1e-6)
        assert t.tail_norm == pytest.approx(best, rel=1e-5, abs=1e-8 * norm)
        # Storage in float32 adds its own rounding, at any angle: the manifest says how much.
        error = float((result[name].value.double() - theirs.double() - update).norm())
        assert error <= best * (1 + 1e-6) + t.rounding_error + 2.0**-24 * norm


def test_all_of_it_gives_the_logits_of_the_finetuned_model(cut):
    finetuned, _, outs = cut
    kind = BertModel if finetuned.name.endswith("encoder") else BertForSequenceClassification
    here, there = (outputs(load(kind, path)) for path in (outs["full"], finetuned))
    assert torch.equal(here, there)
    assert not torch.equal(outputs(load(kind, outs["16"])), there)


def test_nothing_of_it_gives_the_encoder_of_base(real_pair, tmp_path):
    out = tmp_path / "out"
    svdcut.truncate(real_pair.base, real_pair.finetuned_encoder, out, rank=0, rest="base")
    here, there = (outputs(load(BertModel, path)) for path in (out, real_pair.base))
    assert torch.equal(here, there)


def test_peft_merges_the_adapter_into_what_truncate_writes(real_pair, tmp_path):
    svdcut.extract(real_pair.base, real_pair.finetuned, tmp_path / "adapter", rank=16)
    out = tmp_path / "out"
    svdcut.truncate(real_pair.base, real_pair.finetuned, out, rank=16, dtype="float32")
    base = BertForSequenceClassification.from_pretrained(real_pair.base, num_labels=50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, about PEFT itself
        model = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    merged = model.merge_and_unload().state_dict()
    expected = load_file(out / "model.safetensors")
    assert merged.keys() == expected.keys()
    for name, values in expected.items():
        difference = (merged[name].double() - values.double()).norm()
        assert difference <= 1e-6 * values.double().norm(), name


def test_an_adapter_of_the_pair_has_its_labels_and_is_evaluated(real_pair, tmp_path):
    lora, data = tmp_path / "lora", tmp_path / "data.csv"
    svdcut.extract(real_pair.base, real_pair.finetuned, lora, rank="full")
    labels = json.loads((real_pair.finetuned / "config.json").read_text())["id2label"].values()
    texts = ["CCO", "CC(=O)O", "c1ccccc1>>N", "BrCC=O"] * len(labels)
    rows = [f"{text},{label}" for text, label in zip(texts, 4 * list(labels), strict=True)]
    data.write_text("\n".join(["text,label", *rows]))
    found = [
        svdcut.evaluate(model, data, predictions=tmp_path / f"{n}.csv", device="cpu")
        for n, model in enumerate((lora, real_pair.finetuned))
    ]
    assert found[0] == found[1]
    predicted = [(tmp_path / f"{n}.csv").read_text().splitlines() for n in (0, 1)]
    names = [[line.split(",")[:3] for line in lines] for lines in predicted]
    assert names[0] == names[1]
    svdcut.truncate(real_pair.base, lora, tmp_path / "out", rank="full")
    configs = [
        json.loads((folder / "config.json").read_text())
        for folder in (tmp_path / "out", real_pair.finetuned)
    ]
    assert configs[0] == configs[1]
