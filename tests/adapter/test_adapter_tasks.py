"""Adapters of classifiers, trained by PEFT on what was no classifier yet."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

import svdcut
import text_models
from adapter_cases import optimise
from svdcut.adapter.reading import open_finetuned
from svdcut.files.checkpoint import open_checkpoint
from text_models import SIZES, make_examples, write_csv
from trained_adapters import edit_config, quietly

NUM_LABELS = 3
IDS = torch.arange(3, 15).reshape(1, 12)


WIDE = {"initializer_range": 0.5}
"""So that what an adapter adds is seen in the logits."""


def bert(head: type) -> torch.nn.Module:
    sizes = {"vocab_size": 64, "max_position_embeddings": 64}
    return head(transformers.BertConfig(**SIZES, **sizes, **WIDE))


def roberta() -> torch.nn.Module:
    config = transformers.RobertaConfig(**SIZES, **WIDE, vocab_size=64, max_position_embeddings=64)
    return transformers.RobertaForMaskedLM(config)


def llama(**more: object) -> torch.nn.Module:
    sizes = {"vocab_size": 404, "max_position_embeddings": 160, "num_key_value_heads": 1}
    more = {"pad_token_id": 1, "tie_word_embeddings": False, **WIDE, **more}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **sizes, **more))


def gpt2() -> torch.nn.Module:
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 160}
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=404, pad_token_id=1, **sizes, **WIDE)
    )


@dataclass(frozen=True)
class Kind:
    """A base, and how PEFT trains it to classify."""

    base: Callable[[], torch.nn.Module]
    targets: tuple[str, ...]
    result: str
    """The class that the result must name."""

    tokenizer: Callable[[], object] = text_models.word_tokenizer


KINDS = {
    "encoder": Kind(
        lambda: bert(transformers.BertModel), ("query",), "BertForSequenceClassification"
    ),
    "encoder with two layers of head": Kind(
        roberta, ("query", "value"), "RobertaForSequenceClassification"
    ),
    "language model": Kind(
        llama, ("q_proj",), "LlamaForSequenceClassification", text_models.byte_tokenizer
    ),
    "tied language model": Kind(
        lambda: llama(tie_word_embeddings=True),
        ("q_proj",),
        "LlamaForSequenceClassification",
        text_models.byte_tokenizer,
    ),
    "gpt2": Kind(gpt2, ("c_attn",), "GPT2ForSequenceClassification", text_models.byte_tokenizer),
}


@dataclass(frozen=True)
class Trained:
    """A base and an adapter on disk, and PEFT's model of them."""

    base: Path
    adapter: Path
    model: PeftModel


def train(
    folder: Path,
    base: torch.nn.Module,
    loader: type,
    config: LoraConfig,
    *,
    num_labels: int = NUM_LABELS,
    tokenizer: object | None = None,
) -> Trained:
    """Save a base; load it as a classifier, train that by PEFT, and save the adapter."""
    torch.manual_seed(0)
    text_models.save(base, tokenizer, folder / "base")
    with quietly():
        model = loader.from_pretrained(folder / "base", num_labels=num_labels)
        trained = get_peft_model(model, config)
        optimise(trained)
        trained.save_pretrained(folder / "adapter")
    return Trained(folder / "base", folder / "adapter", trained.eval())


def train_kind(folder: Path, kind: Kind) -> Trained:
    torch.manual_seed(0)
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=list(kind.targets))
    loader = transformers.AutoModelForSequenceClassification
    return train(folder, kind.base(), loader, config, tokenizer=kind.tokenizer())


def merge(trained: Trained, out: Path) -> dict:
    """Merge by svdcut, and return the config of the result."""
    svdcut.truncate(trained.base, trained.adapter, out, rank="full", dtype="float32", device="cpu")
    return json.loads((out / "config.json").read_text())


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_merge_is_the_classifier_that_was_trained(kind, tmp_path):
    trained = train_kind(tmp_path, kind)
    config = merge(trained, tmp_path / "out")
    assert config["architectures"] == [kind.result]
    assert config["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    loader = transformers.AutoModelForSequenceClassification
    with quietly():
        model, found = loader.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(model).__name__ == kind.result
    assert not any(found.values())
    with torch.inference_mode():
        ours, theirs = (m(input_ids=IDS).logits for m in (model.eval(), trained.model))
    assert ours.shape == (1, NUM_LABELS)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


MANIFESTS = {
    "{": svdcut.CheckpointError,
    "[]": svdcut.CheckpointError,
    "{}": None,
    '{"adapter": null}': None,
    '{"adapter": {"config": ["bert"]}}': None,
    '{"adapter": {"config": {"id2label": 3, "architectures": "x", "auto_map": {}}}}': None,
    '{"adapter": {"config": {"id2label": {"0": "a", "1": "b", "2": "c"}}}}': ["a", "b", "c"],
}


@pytest.mark.parametrize("text", MANIFESTS)
def test_the_manifest_beside_an_adapter_may_be_anything(tmp_path, text):
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    loader = transformers.AutoModelForSequenceClassification
    trained = train(tmp_path, bert(transformers.BertModel), loader, config, num_labels=3)
    (trained.adapter / "svdcut.json").write_text(text)
    expected = MANIFESTS[text]
    if expected is svdcut.CheckpointError:
        with pytest.raises(svdcut.CheckpointError, match=r"svdcut\.json"):
            opened(trained)
        return
    found = opened(trained).config
    assert list(found["id2label"].values()) == (expected or ["LABEL_0", "LABEL_1", "LABEL_2"])
    assert "auto_map" not in found


def test_the_labels_of_tokens(tmp_path):
    config = LoraConfig(task_type="TOKEN_CLS", r=2, target_modules=["query"])
    loader = transformers.AutoModelForTokenClassification
    base = bert(transformers.BertForMaskedLM)
    trained = train(tmp_path, base, loader, config, num_labels=5)
    written = merge(trained, tmp_path / "out")
    assert written["architectures"] == ["BertForTokenClassification"]
    with quietly():
        model, found = loader.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(found.values())
    with torch.inference_mode():
        ours, theirs = (m(input_ids=IDS).logits for m in (model.eval(), trained.model))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


def opened(trained: Trained):
    return open_finetuned(trained.adapter, open_checkpoint(trained.base))


def test_a_base_that_is_the_classifier_keeps_its_config(tmp_path):
    """Its class and the names of its labels are right already."""
    base = text_models.bert(tmp_path / "model", names=["bad", "fair", "good"])
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    loader = transformers.AutoModelForSequenceClassification
    trained = train(tmp_path, loader.from_pretrained(base), loader, config)
    assert not opened(trained).rewrites_config
    assert opened(trained).config["id2label"] == {"0": "bad", "1": "fair", "2": "good"}


def test_two_labels_are_what_a_config_says_by_saying_nothing(tmp_path):
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    loader = transformers.AutoModelForSequenceClassification
    trained = train(tmp_path, bert(transformers.BertModel), loader, config, num_labels=2)
    found = opened(trained).config
    assert found["architectures"] == ["BertForSequenceClassification"]
    assert "id2label" not in found


@pytest.mark.parametrize("task", [None, "CAUSAL_LM", "FEATURE_EXTRACTION", 7])
def test_other_tasks_leave_the_config_alone(task, tmp_path):
    trained = train_kind(tmp_path, KINDS["language model"])
    edit_config(trained.adapter, task_type=task)
    found = opened(trained)
    assert not found.rewrites_config
    assert "lm_head.weight" in found.tensors


def test_a_head_that_guesses_words_is_named_as_only_in_base(tmp_path):
    """It has no place in the class of the result, and it is not lost in silence."""
    trained = train_kind(tmp_path, KINDS["language model"])
    merge(trained, tmp_path / "out")
    manifest = svdcut.Manifest.loads((tmp_path / "out" / "svdcut.json").read_text())
    assert manifest.base_only == ("lm_head.weight",)


def test_a_file_of_nothing_but_that_head_is_none_of_the_result(tmp_path):
    trained = train_kind(tmp_path, KINDS["language model"])
    with quietly():
        model = transformers.LlamaForCausalLM.from_pretrained(trained.base)
        (trained.base / "model.safetensors").unlink()
        model.save_pretrained(trained.base, max_shard_size="30KB")
    files = open_checkpoint(trained.base).shards
    assert ("lm_head.weight",) in files.values()
    merge(trained, tmp_path / "out")
    written = open_checkpoint(tmp_path / "out")
    assert len(written.shards) == len(files) - 1
    assert {"score.weight"} <= set(written.tensors)


@pytest.mark.parametrize("kind", ["encoder", "language model"])
def test_evaluate_answers_as_pefts_model(kind, tmp_path):
    kind = KINDS[kind]
    trained = train_kind(tmp_path, kind)
    examples = make_examples(20, labels=("0", "1", "2"))
    data = write_csv(tmp_path / "data.csv", examples)
    rows = tmp_path / "rows.jsonl"
    svdcut.evaluate(
        trained.adapter, data, base=trained.base, predictions=rows, device="cpu", batch_size=1
    )
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    tokenizer = kind.tokenizer()
    with torch.inference_mode():
        logits = torch.cat(
            [trained.model(**tokenizer(e.text, return_tensors="pt")).logits for e in examples]
        )
    assert [row["predicted"] for row in found] == [str(int(label)) for label in logits.argmax(-1)]
    assert len({row["predicted"] for row in found}) > 1
    scores = torch.tensor([list(row["scores"].values()) for row in found])
    torch.testing.assert_close(scores, logits.log_softmax(-1), rtol=1e-5, atol=1e-4)
