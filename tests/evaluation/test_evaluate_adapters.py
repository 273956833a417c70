"""``svdcut evaluate`` on adapters: as on what PEFT merges, and nothing of it stays on disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

import svdcut
import svdcut.truncation.preflight
import text_models
from checkpoints import file_bytes
from processes import run_process
from text_models import ANSWERS, make_examples, write_csv
from trained_adapters import edit_config, quietly, randomize

ASK = {"labels": ANSWERS, "prompt": "{text}\nSo:", "group": ["group"], "device": "cpu"}
METHODS = {
    "LoRA": {"lora_alpha": 6},
    "rsLoRA": {"use_rslora": True},
    "DoRA": {"use_dora": True},
}


@dataclass(frozen=True)
class Place:
    """A base, adapters of it, what PEFT merges of each, and data."""

    folder: Path

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def data(self) -> Path:
        return self.folder / "data.csv"

    def adapter(self, method: str = "LoRA") -> Path:
        return self.folder / method

    def merged(self, method: str = "LoRA") -> Path:
        return self.folder / f"{method}-merged"


def make_adapter(base: Path, adapter: Path, merged: Path, dtype: torch.dtype, **config) -> None:
    """Train an adapter of a base in a dtype, save it, merge it by PEFT, and save that."""
    with quietly():
        model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
        targets = ["q_proj", "v_proj", "down_proj"]
        lora = LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=targets, **config)
        wrapped = get_peft_model(model, lora)
        randomize(wrapped)
        wrapped.save_pretrained(adapter)
        wrapped.merge_and_unload().save_pretrained(merged)
    text_models.byte_tokenizer(begins=True).save_pretrained(merged)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    found = Place(tmp_path_factory.mktemp("adapters"))
    text_models.llama(found.base)
    write_csv(found.data, make_examples(30, labels=("0", "1", "2")))
    for method, config in METHODS.items():
        folders = (found.base, found.adapter(method), found.merged(method))
        make_adapter(*folders, torch.float32, **config)
    return found


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """An empty folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def adapter(place, tmp_path):
    """A copy that may be edited."""
    return shutil.copytree(place.adapter(), tmp_path / "adapter")


@pytest.fixture
def cli(call_cli):
    return partial(call_cli, "evaluate")


def evaluate(model, data, tmp_path, **options):
    """Return the evaluation, and the scores of every row."""
    rows = tmp_path / "rows.jsonl"
    found = svdcut.evaluate(model, data, predictions=rows, **ASK, **options)
    scores = [json.loads(line)["scores"] for line in rows.read_text().splitlines()]
    return found, torch.tensor([list(row.values()) for row in scores], dtype=torch.float64)


# Numbers


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_answers_as_what_peft_merges(place, method, tmp_path):
    ours, scores = evaluate(place.adapter(method), place.data, tmp_path)
    theirs, expected = evaluate(place.merged(method), place.data, tmp_path)
    assert ours == theirs
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-4)
    _, without = evaluate(place.base, place.data, tmp_path)
    assert float((scores - without).abs().max()) > 0.1


@pytest.mark.parametrize("method", METHODS)
def test_on_a_cpu_nothing_is_rounded_to_the_16_bits_of_base(place, method, tmp_path):
    base = tmp_path / "base"
    model = transformers.AutoModelForCausalLM.from_pretrained(place.base, dtype=torch.bfloat16)
    text_models.save(model, text_models.byte_tokenizer(begins=True), base)
    make_adapter(base, tmp_path / "lora", tmp_path / "wide", torch.float32, **METHODS[method])
    svdcut.truncate(base, tmp_path / "lora", tmp_path / "narrow", rank="full", device="cpu")
    _, scores = evaluate(tmp_path / "lora", place.data, tmp_path)
    _, expected = evaluate(tmp_path / "wide", place.data, tmp_path)
    _, rounded = evaluate(tmp_path / "narrow", place.data, tmp_path)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-4)
    assert float((rounded - expected).abs().max()) > 1e-3


def test_inputs_are_left_as_they_were(place, tmp_path):
    sides = (place.base, place.adapter())
    before = [file_bytes(side) for side in sides]
    evaluate(place.adapter(), place.data, tmp_path)
    assert [file_bytes(side) for side in sides] == before


# Which base


def test_another_base(place, adapter, tmp_path):
    """The option wins over the config, be there such a base or not."""
    other = tmp_path / "other"
    shutil.copytree(place.base, other)
    model = transformers.AutoModelForCausalLM.from_pretrained(other)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(-1)
    model.save_pretrained(other)
    own, scores = evaluate(adapter, place.data, tmp_path)
    _, others = evaluate(adapter, place.data, tmp_path, base=other)
    assert float((scores - others).abs().max()) > 0.1
    edit_config(adapter, base_model_name_or_path="/nowhere/base")
    assert evaluate(adapter, place.data, tmp_path, base=place.base)[0] == own


def test_a_relative_base_is_relative_to_where_the_command_runs(place, adapter, tmp_path, cli):
    edit_config(adapter, base_model_name_or_path="models/base", revision="main")
    shutil.copytree(place.base, tmp_path / "models" / "base")
    words = ["--labels", ",".join(ANSWERS), "-q", "--device", "cpu"]
    refused = cli(adapter, place.data, *words)
    assert refused.exit_code == 3
    assert "names the base 'models/base@main', which cannot be had" in refused.stderr
    before = Path.cwd()
    try:
        os.chdir(tmp_path)
        assert cli("adapter", place.data, *words).exit_code == 0
    finally:
        os.chdir(before)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"base_model_name_or_path": "/nowhere/base"},
            "adapter_config.json names the base '/nowhere/base', which cannot be had: "
            "/nowhere/base: no such file or directory",
        ),
        (
            {"base_model_name_or_path": "org/base", "revision": "v2"},
            "names the base 'org/base@v2', which cannot be had: org/base@v2 is not in the cache",
        ),
        ({"base_model_name_or_path": None}, "adapter_config.json names no base"),
        ({"base_model_name_or_path": ""}, "adapter_config.json names no base"),
        ({"base_model_name_or_path": ["base"]}, "adapter_config.json names no base"),
    ],
)
def test_without_a_base_the_option_is_named(place, adapter, fields, message, cli):
    edit_config(adapter, **fields)
    result = cli(adapter, place.data)
    assert (result.exit_code, result.stdout) == (3, "")
    assert message in result.stderr
    assert f"svdcut: {adapter}: " in result.stderr
    assert "--base BASE" in result.stderr


def test_a_base_of_another_model_is_refused_with_the_way_out(place, adapter, tmp_path, cli):
    other = text_models.gpt2(tmp_path / "other")
    result = cli(adapter, place.data, "--base", other)
    assert (result.exit_code, result.stdout) == (3, "")
    assert "do not fit" in result.stderr
    assert "--base BASE" in result.stderr
    assert "--map" not in result.stderr


def test_a_quantised_base_is_refused_with_the_way_out(place, adapter, tmp_path, cli):
    base = shutil.copytree(place.base, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes"}
    (base / "config.json").write_text(json.dumps(config))
    edit_config(adapter, base_model_name_or_path=str(base))
    result = cli(adapter, place.data)
    assert result.exit_code == 3
    assert "which is quantised (bitsandbytes)" in result.stderr
    assert "--base BASE" in result.stderr


def test_only_an_adapter_has_a_base(place):
    with pytest.raises(svdcut.UsageError, match=r"base .*no PEFT adapter"):
        svdcut.evaluate(place.base, place.data, base=place.base, **ASK)


def test_all_that_is_refused_by_headers_needs_no_torch(place, adapter):
    edit_config(adapter, base_model_name_or_path="/nowhere/base")
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "sys.argv[0] = 'svdcut'\n"
        "from svdcut.__main__ import main; main()"
    )
    refused = run_process(code, "evaluate", adapter, place.data)
    assert refused.returncode == 3, refused.stderr
    assert "cannot be had" in refused.stderr


# A model and an adapter in one folder


@pytest.fixture
def both(place, tmp_path):
    """A model with an adapter of it, which transformers applies."""
    folder = shutil.copytree(place.base, tmp_path / "both")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(place.adapter() / name, folder / name)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert any("lora" in name for name, _ in loaded.named_parameters())
    return folder


def test_the_weights_of_a_model_win_over_an_adapter_beside_them(place, both, tmp_path, temporary):
    found, scores = evaluate(both, place.data, tmp_path)
    model, expected = evaluate(place.base, place.data, tmp_path)
    assert found == model
    assert torch.equal(scores, expected)
    assert names(temporary) == []
    svdcut.truncate(place.base, both, tmp_path / "out", rank="full", device="cpu")
    assert (
        file_bytes(tmp_path / "out")["model.safetensors"]
        == (file_bytes(place.base)["model.safetensors"])
    )


COMMANDS = {
    "evaluate": ["evaluate", "{both}", "{data}", "--labels", ",".join(ANSWERS)],
    "truncate": ["truncate", "{base}", "{both}", "-k", "1", "-o", "{out}", "-q"],
    "extract": ["extract", "{both}", "{merged}", "-k", "1", "-o", "{out}", "-q"],
    "spectrum": ["spectrum", "{both}", "-q"],
    "compare": ["spectrum", "{base}", "{both}", "--compare", "{merged}", "-q"],
}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_it_is_said_that_an_adapter_is_left_out(words, place, both, tmp_path, call_cli):
    paths = {"base": place.base, "both": both, "merged": place.merged(), "data": place.data}
    result = call_cli(*(word.format(out=tmp_path / "out", **paths) for word in words))
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("without it") == 1
    assert f"svdcut: warning: {both}: holds an adapter too, adapter_config.json" in result.stderr


def test_a_command_of_a_sweep_finds_no_adapter_beside_the_model(place, both, tmp_path):
    program = tmp_path / "evaluate.py"
    program.write_text(
        "import os, sys; print(int('adapter_config.json' not in os.listdir(sys.argv[1])))"
    )
    found = svdcut.sweep(
        place.base,
        both,
        None,
        tmp_path / "sweep",
        ranks="full",
        eval_command=f"{sys.executable} {program} {{model}}",
        device="cpu",
        quiet=True,
    )
    assert found.finetuned.accuracy == 1


# What is left behind


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_the_merged_model_is_gone_as_soon_as_it_is_loaded(place, temporary):
    seen = {}

    def observe(progress):
        seen.setdefault(progress.stage, names(temporary))

    svdcut.evaluate(place.adapter(), place.data, observe=observe, **ASK)
    assert list(seen) == ["merge", "load", "evaluate"]
    (folder,) = seen["merge"]
    assert folder.startswith("svdcut-merged-")
    assert seen["evaluate"] == names(temporary) == []


def test_it_is_gone_after_a_signal(place, temporary):
    def observe(progress):
        assert names(temporary)
        raise svdcut.Interrupted(15)

    with pytest.raises(svdcut.Interrupted):
        svdcut.evaluate(place.adapter(), place.data, observe=observe, **ASK)
    assert names(temporary) == []


SIGNALLED = """
import os, signal, sys
import svdcut.evaluation.model as model
load = model._load_weights
def loading(*arguments):
    assert os.listdir(os.environ["TMPDIR"])
    os.kill(os.getpid(), int(os.environ["SIGNAL"]))
    return load(*arguments)
model._load_weights = loading
sys.argv[0] = "svdcut"
from svdcut.__main__ import main; main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_it_is_gone_after_a_signal_while_the_model_is_loaded(place, temporary, monkeypatch, number):
    monkeypatch.setenv("SIGNAL", str(int(number)))
    monkeypatch.setenv("TMPDIR", str(temporary))
    words = ("--labels", ",".join(ANSWERS), "--device", "cpu")
    stopped = run_process(SIGNALLED, "evaluate", place.adapter(), place.data, *words)
    assert (stopped.returncode, stopped.stderr) == (128 + number, "svdcut: interrupted\n")
    assert names(temporary) == []


def test_it_is_gone_after_an_error_that_names_the_adapter(place, adapter, temporary, cli):
    (adapter / "tokenizer.json").write_text("{")
    result = cli(adapter, place.data, "--labels", ",".join(ANSWERS))
    assert result.exit_code == 3
    assert f"svdcut: {adapter}: transformers" in result.stderr
    assert "svdcut-merged" not in result.stderr
    assert names(temporary) == []


def test_a_model_that_cannot_be_evaluated_is_not_merged(place, adapter, tmp_path, temporary):
    base = shutil.copytree(place.base, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaModel"]}))
    seen = []
    with pytest.raises(svdcut.EvaluationError, match=f"{adapter}: .*LlamaModel"):
        svdcut.evaluate(adapter, place.data, base=base, observe=seen.append, **ASK)
    assert seen == names(temporary) == []


def test_no_room_for_it(place, temporary, monkeypatch, cli):
    monkeypatch.setattr(svdcut.truncation.preflight, "free_space", lambda path: (1, 1000))
    result = cli(place.adapter(), place.data, "--labels", ",".join(ANSWERS))
    assert result.exit_code == 1
    said = " ".join(result.stderr.split())
    assert f"{temporary}/svdcut-merged: 1." in said
    assert " MB to write, but only 0.0 MB free there" in said
    assert f"{place.adapter()} is merged there with its base, {place.base}" in said
    assert "TMPDIR" in said
    assert names(temporary) == []


# Files


def test_predictions_of_an_adapter(place, adapter, tmp_path, cli):
    rows = tmp_path / "rows.csv"
    words = ["--labels", ",".join(ANSWERS), "--predictions", rows, "--device", "cpu"]
    result = cli(adapter, place.data, *words)
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"{adapter} on {place.data}: 30 texts" in result.stdout
    assert len(rows.read_text().splitlines()) == 31


@pytest.mark.parametrize("named", [True, False])
def test_predictions_never_replace_a_file_of_the_base(named, place, adapter, tmp_path, cli):
    base = shutil.copytree(place.base, tmp_path / "base")
    edit_config(adapter, base_model_name_or_path=str(base))
    (base / "notes.csv").write_text("mine")
    option = ["--base", base] if named else []
    result = cli(adapter, place.data, *option, "--predictions", base / "notes.csv")
    assert result.exit_code == 2
    assert f"a file of the input {base}" in result.stderr
    assert (base / "notes.csv").read_text() == "mine"
