"""Predictions equal those of the plainest computation, and of lm-evaluation-harness."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
    XLNetConfig,
    XLNetForSequenceClassification,
)

import harness
import text_models
from svdcut.errors import (
    CheckpointError,
    EvaluationError,
    Interrupted,
    NonFiniteError,
    UsageError,
)
from svdcut.evaluation import model
from svdcut.evaluation.answers import (
    Answers,
    Kind,
    match_classes,
    match_words,
    name_labels,
    sort_labels,
)
from svdcut.evaluation.dataset import read_dataset
from svdcut.evaluation.language_model import encode_pairs
from svdcut.evaluation.options import DataOptions
from svdcut.evaluation.scoring import load_predictor
from text_models import ANSWERS, make_examples, save, word_tokenizer, write_csv

CLASSIFIERS = ("bert", "roberta", "gpt2_classifier")
LANGUAGE_MODELS = ("gpt2", "gpt2_short", "llama", "llama_chat")
COLUMNS = DataOptions(group=("group",))
WORDS = DataOptions(labels=ANSWERS, device="cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Build a model of `text_models` by its name, once."""
    built = {}

    def get(name):
        if name not in built:
            built[name] = getattr(text_models, name)(tmp_path_factory.mktemp(name))
        return built[name]

    return get


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Thirty texts of three labels."""
    path = tmp_path_factory.mktemp("data") / "data.csv"
    return read_dataset(write_csv(path, make_examples(30, labels=("0", "1", "2"))), COLUMNS)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Thirty pairs of texts of two labels."""
    path = write_csv(tmp_path_factory.mktemp("data") / "two.csv", make_examples(30))
    return read_dataset(path, DataOptions(text_pair="other"))


def options_for(name, **changes):
    options = WORDS if name in LANGUAGE_MODELS else DataOptions(device="cpu")
    return replace(options, **changes)


def predict(folder, dataset, options):
    return load_predictor(folder, dataset, options).predict()


def reorder(dataset, order):
    def pick(values):
        return tuple(values[n] for n in order)

    return replace(
        dataset,
        texts=pick(dataset.texts),
        labels=pick(dataset.labels),
        groups=pick(dataset.groups),
        rows=pick(dataset.rows),
    )


def without_pairs(dataset):
    return replace(dataset, pairs=None)


def distance(ours, theirs):
    assert len(ours) == len(theirs)
    return (torch.tensor(ours).double() - torch.tensor(theirs).double()).abs().max().item()


# Against one row at a time


def class_scores(folder, texts, pairs=None, **options):
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for n, text in enumerate(texts):
        second = None if pairs is None else pairs[n]
        inputs = tokenizer(text, second, return_tensors="pt", **options)
        with torch.no_grad():
            logits = model(**inputs).logits[0]
        found.append((logits.double() - logits.double().logsumexp(0)).tolist())
    return found


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_says_what_it_says_of_each_text_alone(name, models, dataset, two):
    data = dataset if name == "roberta" else two
    data = without_pairs(data)
    cut = {"truncation": True, "max_length": 18} if name == "roberta" else {}
    expected = class_scores(models(name), data.texts, **cut)
    found = predict(models(name), data, options_for(name, batch_size=8))
    assert found.kind is Kind.CLASSIFIER
    assert distance(found.scores, expected) < 1e-5
    best = [found.answers.labels[max(range(len(row)), key=row.__getitem__)] for row in expected]
    assert list(found.predicted) == best
    assert len(set(best)) > 1


def test_pairs_are_told_apart_by_their_types(models, two):
    expected = class_scores(models("bert"), two.texts, two.pairs)
    found = predict(models("bert"), two, DataOptions(device="cpu", batch_size=8))
    assert distance(found.scores, expected) < 1e-5
    alone = predict(models("bert"), without_pairs(two), DataOptions(device="cpu"))
    assert distance(found.scores, alone.scores) > 0.01


def word_scores(folder, dataset, template):
    """The sum of log-probabilities of the tokens of a word, one pass each."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    limit = model.config.max_position_embeddings
    rows = []
    for text in dataset.texts:
        context, row = template.format(text=text), []
        for word in ANSWERS:
            start = len(tokenizer.encode(context))
            ids = tokenizer.encode(f"{context} {word}")
            size = len(ids) - start
            ids = ids[-(limit + 1) :]
            with torch.no_grad():
                logits = model(torch.tensor([ids[:-1]])).logits[0, -size:].double()
            logprobs = logits.log_softmax(-1)
            row.append(sum(logprobs[n, token].item() for n, token in enumerate(ids[-size:])))
        rows.append(row)
    return rows


@pytest.mark.parametrize("name", ["gpt2", "gpt2_short", "llama"])
def test_a_language_model_scores_words_as_one_at_a_time(name, models, dataset):
    template = "{text}\nSentiment:"
    expected = word_scores(models(name), dataset, template)
    found = predict(models(name), dataset, replace(WORDS, prompt=template, batch_size=8))
    assert found.kind is Kind.LANGUAGE_MODEL
    assert distance(found.scores, expected) < 1e-4
    assert found.answers == Answers(("0", "1", "2"), ANSWERS)
    assert (found.num_truncated > 0) is (name == "gpt2_short")


@pytest.mark.parametrize("name", [*CLASSIFIERS, *LANGUAGE_MODELS])
def test_neither_batch_size_nor_order_changes_anything(name, models, dataset, two):
    data = without_pairs(two) if name in ("bert", "gpt2_classifier") else dataset
    folder = models(name)
    first = predict(folder, data, options_for(name, batch_size=1))
    for size in (3, 64):
        other = predict(folder, data, options_for(name, batch_size=size))
        assert distance(first.scores, other.scores) < 1e-5
        assert first.predicted == other.predicted
    order = torch.randperm(len(data.rows), generator=torch.Generator().manual_seed(1)).tolist()
    shuffled = predict(folder, reorder(data, order), options_for(name, batch_size=4))
    assert distance([first.scores[n] for n in order], shuffled.scores) < 1e-5
    assert [first.predicted[n] for n in order] == list(shuffled.predicted)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_twice_the_same_is_the_same_to_the_bit(name, models, dataset, two):
    data = dataset if name == "llama" else two
    predictor = load_predictor(models(name), data, options_for(name))
    predictor.model.train()
    first = predictor.predict()
    assert predictor.predict() == first
    assert predict(models(name), data, options_for(name)) == first


# Against lm-evaluation-harness

GOLDEN = json.loads(harness.GOLDEN.read_text(encoding="utf-8"))["cases"]


@pytest.fixture(scope="module")
def awkward(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "awkward.csv"
    return read_dataset(write_csv(path, harness.examples()), COLUMNS)


@pytest.mark.parametrize("case", harness.CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("normalize", [False, True], ids=["acc", "acc_norm"])
def test_log_likelihoods_are_those_of_the_harness(case, normalize, models, awkward):
    rows = GOLDEN[case.name]["rows"]
    asked = replace(WORDS, prompt=case.prompt, chat_template=case.chat)
    options = replace(asked, batch_size=7, normalize=normalize)
    found = predict(models(case.model), awkward, options)
    lengths = [len(word) if normalize else 1 for word in ANSWERS]
    expected = [
        [score / n for score, n in zip(row["loglikelihoods"], lengths, strict=True)] for row in rows
    ]
    assert distance(found.scores, expected) < 1e-4
    metric = "acc_norm" if normalize else "acc"
    assert found.matches(awkward.labels) == [row[metric] == 1 for row in rows]
    assert found.chat_template is case.chat


def test_the_golden_numbers_tell_the_definitions_apart():
    for found in GOLDEN.values():
        assert any(row["acc"] != row["acc_norm"] for row in found["rows"])
    best = [
        max(range(3), key=row["loglikelihoods"].__getitem__)
        for found in GOLDEN.values()
        for row in found["rows"]
    ]
    assert 20 < best.count(1) < len(best) - 20


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed")
def test_the_golden_numbers_are_what_the_harness_measures(tmp_path):
    script, target = Path(harness.__file__), tmp_path / "harness.json"
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache")}
    subprocess.run(
        [sys.executable, str(script), str(target)],
        check=True,
        capture_output=True,
        env=environment,
    )
    fresh = json.loads(target.read_text(encoding="utf-8"))["cases"]
    assert fresh.keys() == GOLDEN.keys()
    for name, found in fresh.items():
        for ours, theirs in zip(GOLDEN[name]["rows"], found["rows"], strict=True):
            assert distance(ours.pop("loglikelihoods"), theirs.pop("loglikelihoods")) < 1e-4
            assert ours == theirs


# Labels


def test_labels_are_sorted_as_numbers_if_they_are():
    assert sort_labels(["10", "2", "2", "-1"]) == ["-1", "2", "10"]
    assert sort_labels(["10", "2", "b"]) == ["10", "2", "b"]


@pytest.mark.parametrize(
    ("labels", "words", "names", "expected"),
    [
        (["0", "1"], [], ["LABEL_0", "LABEL_1"], ["0", "1"]),
        (["positive", "negative"], [], ["NEGATIVE", "POSITIVE"], ["negative", "positive"]),
        (["0", "1"], ["no", "yes"], ["yes", "no"], ["1", "0"]),
        (["0", "1"], ["1=0", "0=1"], ["a", "b"], ["1", "0"]),
        (["0", "1"], [], ["1", "0"], ["1", "0"]),
        (["a", "c"], [], ["a", "b", "c"], ["a", "b", "c"]),
        (["0", "1"], [], ["x", "y", "0"], ["0", "1", "class 2"]),
        (["a", "A"], [], ["A", "a"], ["A", "a"]),
    ],
)
def test_classes_are_found_by_name_or_number(labels, words, names, expected):
    found = match_classes(labels, words, names)
    assert found == Answers(tuple(expected), tuple(names))


@pytest.mark.parametrize(
    ("labels", "words", "names", "message"),
    [
        (
            ["0", "2"],
            [],
            ["no", "yes"],
            r"labels are '0', '2', .*\n +0: 'no'\n +1: 'yes'\n.*LABEL=",
        ),
        (["a", "1"], [], ["a", "b"], "labels are '1', 'a', and not all are classes"),
        (["0", "1"], ["no", "maybe"], ["no", "yes"], "--labels calls .* 'no', 'maybe', and not"),
        (["A", "a"], [], ["a", "b"], "not all are classes"),
        (["01", "0"], [], ["a", "b"], "not all are classes"),
    ],
)
def test_classes_that_do_not_match_are_listed(labels, words, names, message):
    with pytest.raises(EvaluationError, match=rf"(?s){message}"):
        match_classes(labels, words, names)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["no"], EvaluationError, "1 words, 'no', for 2 labels of the data, '0', '1'"),
        (["0=no"], EvaluationError, "no word for '1' of the data's labels"),
        (["0=no", "yes"], UsageError, "some words name their label"),
        (["0=no", "0=yes"], UsageError, "a label twice"),
        (["no", "no"], UsageError, "one word for two labels"),
        (["no", " "], UsageError, "an empty word"),
    ],
)
def test_words_that_cannot_be_meant_are_refused(words, error, message):
    with pytest.raises(error, match=message):
        name_labels(["1", "0"], words)


def test_words_may_name_labels_that_no_row_has():
    found = match_words(["1", "1"], ["1=yes", "0=no"])
    assert found == Answers(("1", "0"), ("yes", "no"))
    with pytest.raises(EvaluationError, match="only one label, '1'"):
        match_words(["1", "1"], [])


# Prompts


def test_the_default_prompt_is_the_text_and_a_new_line():
    assert DataOptions().template() == "{text}\n"
    assert DataOptions(text_pair="other").template() == "{text}\n{text_pair}\n"


@pytest.mark.parametrize(
    ("prompt", "text_pair", "message"),
    [
        ("Is it good?", None, r"has no \{text\} in it"),
        ("{text}", "other", r"has no \{text_pair\} in it"),
        ("{text} {text_pair}", None, r"\{text_pair\} needs pairs"),
    ],
)
def test_a_prompt_without_a_place_for_texts_is_refused(prompt, text_pair, message):
    with pytest.raises(UsageError, match=message):
        DataOptions(prompt=prompt, text_pair=text_pair).template()


def test_a_chat_template_gets_its_mark_once(models, dataset):
    predictor = load_predictor(models("llama_chat"), dataset, WORDS)
    ids = [item.ids for batch in predictor.batches for item in batch]
    assert {found.count(0) for found in ids} == {1}
    assert {found[0] for found in ids} == {0}


def test_words_of_one_token_share_a_pass(models, dataset):
    predictor = load_predictor(models("gpt2"), dataset, replace(WORDS, prompt="{text}\nSentiment:"))
    counts = sorted(len(item.continuations) for batch in predictor.batches for item in batch)
    assert counts == [1] * len(dataset.rows) + [2] * len(dataset.rows)


def test_the_longest_come_first(models, dataset):
    predictor = load_predictor(models("roberta"), dataset, DataOptions(device="cpu"))
    sizes = [len(item.ids) for batch in predictor.batches for item in batch]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("begins", [False, True])
def test_an_empty_text_follows_the_mark_that_begins_texts(begins):
    tokenizer = text_models.byte_tokenizer(begins=begins)
    (((before, after),),) = encode_pairs(["\n"], ["bad"], tokenizer)
    assert before == [0]
    assert tokenizer.decode(after) == "\nbad"


def test_a_word_that_merges_with_the_prompt_is_refused():
    tokenizer = text_models.byte_tokenizer()
    with pytest.raises(EvaluationError, match=r"no tokens of its own for 't' after 'grea'"):
        list(encode_pairs(["grea"], [" t", "t"], tokenizer))


# Swapped weights, progress, numbers


def test_weights_may_be_swapped_in_place(models, dataset, tmp_path):
    predictor = load_predictor(models("roberta"), dataset, DataOptions(device="cpu"))
    before = predictor.predict()
    changed = {name: value + 0.1 for name, value in predictor.model.state_dict().items()}
    with torch.no_grad():
        for name, value in predictor.model.state_dict().items():
            value.copy_(changed[name])
    after = predictor.predict()
    assert distance(before.scores, after.scores) > 0.01
    predictor.model.save_pretrained(tmp_path / "changed")
    predictor_tokenizer = AutoTokenizer.from_pretrained(models("roberta"))
    predictor_tokenizer.save_pretrained(tmp_path / "changed")
    assert predict(tmp_path / "changed", dataset, DataOptions(device="cpu")) == after


def test_progress_adds_up(models, dataset):
    seen = []
    predictor = load_predictor(models("gpt2"), dataset, replace(WORDS, batch_size=7))
    predictor.predict(seen.append)
    assert len(seen) == len(predictor.batches)
    assert {(done.stage, done.total) for done in seen} == {("evaluate", len(dataset.texts))}
    assert sum(done.size for done in seen) == len(dataset.texts)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_dtypes_come_near(dtype, models, dataset, monkeypatch):
    exact = predict(models("llama"), dataset, WORDS)
    monkeypatch.setattr(model, "compute_dtype", lambda device: getattr(torch, dtype))
    found = predict(models("llama"), dataset, WORDS)
    assert (exact.dtype, found.dtype) == ("float32", dtype)
    assert 0 < distance(exact.scores, found.scores) < 1


def test_what_is_too_long_is_counted(models, two):
    texts = ("film " * 100, *two.texts[1:])
    long = without_pairs(replace(two, texts=texts))
    found = predict(models("bert"), long, DataOptions(device="cpu"))
    assert found.num_truncated == 1
    expected = class_scores(models("bert"), long.texts, truncation=True, max_length=64)
    assert distance(found.scores, expected) < 1e-5


# Refusals


def refuse(folder, dataset, error=EvaluationError, **changes):
    with pytest.raises(error) as caught:
        load_predictor(folder, dataset, replace(DataOptions(device="cpu"), **changes))
    return str(caught.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "special_tokens_map.json"])
def test_a_pipe_in_place_of_a_tokenizer_is_not_opened(two, tmp_path, name):
    folder = text_models.bert(tmp_path / "model")
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    assert f"{name}: cannot be read: not a regular file" in refuse(folder, two, CheckpointError)


def test_a_model_without_a_tokenizer_is_refused(two, tmp_path):
    folder = text_models.bert(tmp_path / "model")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert "no tokenizer in it: no tokenizer.json" in refuse(folder, two)


def test_a_head_that_was_never_trained_is_refused(two, tmp_path):
    folder = text_models.bert(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    rest = {name: value for name, value in weights.items() if not name.startswith("classifier")}
    save_file(rest, folder / "model.safetensors", {"format": "pt"})
    message = refuse(folder, two)
    assert "'classifier.bias'\n    'classifier.weight'" in message
    assert "never trained" in message


def test_a_head_that_is_a_number_is_refused(two, tmp_path):
    folder = text_models.bert(tmp_path / "model", names=["score"])
    assert "its head has one class" in refuse(folder, two)


def test_a_head_of_independent_labels_is_refused(two, tmp_path):
    kind = "multi_label_classification"
    folder = text_models.bert(tmp_path / "model", problem_type=kind)
    assert kind in refuse(folder, two)


def test_a_label_that_the_head_lacks_is_refused(models, dataset):
    message = refuse(models("bert"), dataset)
    assert "the data's labels are '0', '1', '2'" in message
    assert "1: 'LABEL_1'" in message


def test_an_architecture_that_is_neither_is_refused(two, tmp_path):
    config = T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    folder = save(T5ForConditionalGeneration(config), word_tokenizer(), tmp_path / "model")
    message = refuse(folder, two)
    assert "architectures: 'T5ForConditionalGeneration'" in message
    assert "LlamaForCausalLM" in message


@pytest.mark.parametrize("is_decoder", [False, True])
def test_a_model_that_sees_what_it_predicts_is_refused(is_decoder, dataset, tmp_path):
    fields = {"vocab_size": 404, "max_position_embeddings": 64, "is_decoder": is_decoder}
    model = BertLMHeadModel(BertConfig(**text_models.SIZES, **fields))
    folder = save(model, text_models.byte_tokenizer(), tmp_path / "model")
    if is_decoder:
        assert len(load_predictor(folder, dataset, WORDS).predict().predicted) == len(dataset.rows)
    else:
        assert "in both directions" in refuse(folder, dataset, labels=ANSWERS)


def test_a_model_that_looks_at_the_last_place_is_filled_up_at_the_left(two, tmp_path):
    config = XLNetConfig(vocab_size=64, d_model=16, n_layer=1, n_head=2, d_inner=24)
    folder = save(XLNetForSequenceClassification(config), word_tokenizer(), tmp_path / "model")
    data = without_pairs(two)
    alone = predict(folder, data, DataOptions(device="cpu", batch_size=1))
    found = predict(folder, data, DataOptions(device="cpu", batch_size=8))
    assert distance(alone.scores, found.scores) < 1e-5


def test_a_bare_file_is_refused(models, two):
    message = refuse(models("bert") / "model.safetensors", two)
    assert "without a config and a tokenizer" in message


def test_what_transformers_cannot_load_is_named(two, tmp_path):
    folder = text_models.bert(tmp_path / "model")
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"hidden_size": 16', '"hidden_size": 15'))
    message = refuse(folder, two, CheckpointError)
    assert f"{folder}: transformers" in message
    assert "cannot load the model: " in message
    path.write_text(path.read_text().replace('"model_type": "bert"', '"model_type": "strange"'))
    assert "cannot load" in refuse(folder, two, CheckpointError)


@pytest.mark.parametrize("model_type", ["bert", "strange"])
def test_code_beside_a_model_is_never_run(model_type, two, tmp_path):
    folder = text_models.bert(tmp_path / "model")
    ran = tmp_path / "ran"
    (folder / "modeling_own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Model: pass\n")
    names = ("AutoConfig", "AutoModelForSequenceClassification", "AutoTokenizer")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    own = {"model_type": model_type, "auto_map": dict.fromkeys(names, "modeling_own.Model")}
    path.write_text(json.dumps(config | own))
    if model_type == "bert":
        assert len(predict(folder, two, DataOptions(device="cpu")).predicted) == len(two.rows)
    else:
        message = refuse(folder, two, CheckpointError)
        assert "code of their own" in message
    assert not ran.exists()


def test_a_signal_while_a_model_is_loaded_is_no_fault_of_the_model(models, two, monkeypatch):
    def interrupt(*words, **options):
        raise Interrupted(2)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", interrupt)
    with pytest.raises(Interrupted):
        load_predictor(models("bert"), two, DataOptions(device="cpu"))


def test_a_model_of_the_hub_is_that_of_its_folder(hub, models, two):
    hub.add("org/toy", models("bert"))
    found = predict("org/toy", two, DataOptions(device="cpu"))
    assert found == predict(models("bert"), two, DataOptions(device="cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["roberta", "llama"])
def test_cuda_says_what_the_cpu_says(name, models, dataset, monkeypatch):
    here = predict(models(name), dataset, options_for(name))
    narrow = predict(models(name), dataset, options_for(name, device="cuda"))
    assert narrow.dtype == "bfloat16"
    assert distance(here.scores, narrow.scores) < 1
    monkeypatch.setattr(model, "compute_dtype", lambda device: torch.float32)
    there = predict(models(name), dataset, options_for(name, device="cuda"))
    assert distance(here.scores, there.scores) < 1e-3


@pytest.mark.parametrize(
    "changes", [{"prompt": "{text}"}, {"normalize": True}, {"chat_template": False}]
)
def test_options_of_language_models_are_refused_for_classifiers(changes, models, two):
    assert "is for language models" in refuse(models("bert"), two, UsageError, **changes)


def test_nan_is_never_a_prediction(models, dataset):
    predictor = load_predictor(models("llama"), dataset, WORDS)
    with torch.no_grad():
        predictor.model.lm_head.weight[5] = math.nan
    with pytest.raises(NonFiniteError, match="NaN or infinity for row 1 of the data"):
        predictor.predict()


def test_too_little_memory_names_a_smaller_batch(models, dataset, monkeypatch):
    predictor = load_predictor(models("llama"), dataset, replace(WORDS, batch_size=8))

    def full(*words, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(predictor.model, "forward", full)
    with pytest.raises(Exception, match="--batch-size 2"):
        predictor.predict()
