"""The model card of a result: inherited metadata, no local paths, numbers of the manifest."""

import json

import pytest
from huggingface_hub import ModelCard

import svdcut
from checkpoints import toy
from svdcut.card import card_metadata

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
