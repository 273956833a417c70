"""The model card of a result: inherited metadata, no local paths, true numbers, code that runs."""

import json
import re

import pytest
import torch
import transformers
from huggingface_hub import ModelCard

import svdcut
import text_models
from architectures import ARCHITECTURES
from checkpoints import toy
from svdcut.record.card import card_metadata
from text_models import SIZES
from trained_adapters import quietly

FINETUNED_CARD = """---
license: mit
language:
- en
- de
pipeline_tag: text-classification
base_model: org/base
tags:
- toxicity
---
# Tuned
"""


@pytest.fixture
def pair(tmp_path):
    return toy(tmp_path / "pair")


def card_of(out):
    text = (out / "README.md").read_text(encoding="utf-8")
    return text, ModelCard(text).data.to_dict()


def test_metadata_comes_from_the_finetuned_card(pair, tmp_path):
    (pair.finetuned / "README.md").write_text(FINETUNED_CARD)
    (pair.base / "README.md").write_text("---\nlicense: gpl-3.0\nlibrary_name: transformers\n---\n")
    svdcut.truncate(pair.base, pair.finetuned, tmp_path / "out", rank=4)
    _, data = card_of(tmp_path / "out")
    assert data["license"] == "mit"
    assert data["language"] == ["en", "de"]
    assert data["library_name"] == "transformers"  # the fine-tuned card names none
    assert data["base_model"] == ["org/base"]
    assert data["tags"] == ["toxicity", "svdcut"]


def test_license_comes_from_base_where_the_finetuned_side_has_no_card(pair, tmp_path):
    (pair.base / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    svdcut.truncate(pair.base, pair.finetuned, tmp_path / "out", rank=4)
    assert card_of(tmp_path / "out")[1]["license"] == "apache-2.0"


def test_no_local_path_is_told(pair, tmp_path):
    svdcut.truncate(pair.base, pair.finetuned, tmp_path / "out", rank=4)
    text, data = card_of(tmp_path / "out")
    assert str(tmp_path) not in text
    assert "base_model" not in data


def test_the_numbers_are_those_of_the_manifest(pair, tmp_path):
    manifest = svdcut.truncate(pair.base, pair.finetuned, tmp_path / "out", rank=4)
    text, _ = card_of(tmp_path / "out")
    totals = manifest.totals
    assert f"| rank kept | {totals.rank} of {totals.full_rank} |" in text
    assert f"| tensors truncated | {totals.truncated} of {totals.tensors} |" in text
    assert f"{totals.energy_retained:.2%}" in text


@pytest.mark.parametrize("card", ["---\n: [\n---\n", "no front matter", "", "---\n- a list\n---\n"])
def test_a_broken_card_loses_nothing_but_itself(pair, tmp_path, card):
    (pair.finetuned / "README.md").write_text(card)
    svdcut.truncate(pair.base, pair.finetuned, tmp_path / "out", rank=4)
    assert card_of(tmp_path / "out")[1]["tags"] == ["svdcut"]
    assert card_metadata(card) == {} or isinstance(card_metadata(card), dict)


def test_both_sides_from_the_hub(hub, pair, tmp_path):
    (pair.finetuned / "README.md").write_text(FINETUNED_CARD)
    base_commit = hub.add("org/base", pair.base)
    tuned_commit = hub.add("org/tuned", pair.finetuned, "v2")
    out = tmp_path / "out"
    manifest = svdcut.truncate("org/base", "org/tuned@v2", out, rank=4, quiet=True)
    assert (manifest.base.revision, manifest.finetuned.revision) == (base_commit, tuned_commit)
    assert json.loads((out / "svdcut.json").read_text())["finetuned"]["source"] == "org/tuned@v2"
    text, data = card_of(out)
    assert data["base_model"] == ["org/base", "org/tuned"]
    assert data["base_model_relation"] == "merge"
    assert tuned_commit in text
    local = svdcut.truncate(pair.base, pair.finetuned, tmp_path / "local", rank=4)
    assert [fact.sha256 for fact in manifest.tensors.values()] == [
        fact.sha256 for fact in local.tensors.values()
    ]


# The code of a card

LABELS = ("bad", 'it\'s "fine"', "```great")


def classifier(folder):
    """A classifier of three labels, and a language model whose encoder it has."""
    numbers = {label: number for number, label in enumerate(LABELS)}
    tuned = text_models.bert(folder / "ft", names=LABELS, label2id=numbers)
    config = transformers.BertConfig(vocab_size=64, max_position_embeddings=64, **SIZES)
    base = transformers.BertForPreTraining(config)
    text_models.save(base, text_models.word_tokenizer(), folder / "base")
    return folder / "base", tuned


def language_model(folder):
    tuned = text_models.llama_chat(folder / "ft")
    model = transformers.AutoModelForCausalLM.from_pretrained(tuned)
    with torch.no_grad():
        for weight in model.model.layers.parameters():
            weight.mul_(0.9)
    return text_models.save(model, None, folder / "base"), tuned


def mixture(folder):
    pair = ARCHITECTURES["qwen3_moe"].pair(folder)
    return pair.base, pair.finetuned


PAIRS = {"classifier": classifier, "language model": language_model, "mixture": mixture}


@pytest.fixture(params=PAIRS.values(), ids=PAIRS, scope="module")
def sides(request, tmp_path_factory):
    with quietly():
        return request.param(tmp_path_factory.mktemp("sides"))


def run_code(out, base=None):
    """Run the code of a card; return what it defines, and the model's numbers."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", card_of(out)[0], re.DOTALL | re.MULTILINE)
    code = code.replace('"BASE_PATH_OR_ID"', repr(str(base))).replace(
        '"PATH_OR_ID"', repr(str(out))
    )
    found = {}
    with quietly():
        exec(code, found)
    return found, found["model"].state_dict()


def test_the_code_of_a_checkpoint_loads_it(sides, tmp_path):
    base, tuned = sides
    svdcut.truncate(base, tuned, tmp_path / "out", rank="full", dtype="float32")
    found, weights = run_code(tmp_path / "out")
    expected = type(found["model"]).from_pretrained(tuned)
    assert found["model"].config.architectures == expected.config.architectures
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=1e-5, atol=1e-5)


def test_the_code_of_an_adapter_loads_it_with_labels_and_tokenizer(sides, tmp_path):
    base, tuned = sides
    svdcut.extract(base, tuned, tmp_path / "lora", rank="full")
    found, weights = run_code(tmp_path / "lora", base)
    expected = type(found["model"]).from_pretrained(tuned)
    assert found["model"].config.id2label == expected.config.id2label
    assert found["model"].config.label2id == expected.config.label2id
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-4)
    if (tuned / "tokenizer.json").exists():
        ours, theirs = (
            t("the film was not good") for t in (found["tokenizer"], tokenizer_of(tuned))
        )
        assert ours == theirs
        assert found["tokenizer"].chat_template == tokenizer_of(tuned).chat_template
    else:
        assert "tokenizer" not in found


def tokenizer_of(folder):
    return transformers.AutoTokenizer.from_pretrained(folder)


def test_a_class_of_nobody_is_named_by_none(pair, tmp_path):
    for named in (None, [], ["import os"], [3], "Bert"):
        (pair.finetuned / "config.json").write_text(json.dumps({"architectures": named}))
        svdcut.extract(
            pair.base, pair.finetuned, tmp_path / "out", rank=4, force=True, drop=["scale"]
        )
        assert "from transformers import AutoModel\n" in card_of(tmp_path / "out")[0]


def test_a_file_alone_has_no_code(pair, tmp_path):
    sides = [side / "model.safetensors" for side in (pair.base, pair.finetuned)]
    svdcut.truncate(*sides, tmp_path / "out", rank=4)
    assert card_of(tmp_path / "out")[0].endswith("with the same class and tokenizer.\n")


def test_labels_too_many_for_a_card_are_counted(pair, tmp_path):
    config = {"architectures": ["BertForSequenceClassification"]}
    config["id2label"] = {str(number): f"class {number}" for number in range(2000)}
    (pair.finetuned / "config.json").write_text(json.dumps(config))
    svdcut.extract(pair.base, pair.finetuned, tmp_path / "out", rank=4, drop=["scale"])
    text, _ = card_of(tmp_path / "out")
    assert '"BASE_PATH_OR_ID", num_labels=2000)' in text
    assert len(text) < 5000
