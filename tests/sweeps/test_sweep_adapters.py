"""Sweeps of adapters: what is swapped in is what ``svdcut truncate BASE ADAPTER`` writes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

import svdcut
import svdcut.record.provenance
import text_models
from checkpoints import file_bytes
from svdcut.adapter.reading import open_finetuned
from svdcut.choose.keep import Keep
from svdcut.choose.options import Options
from svdcut.choose.ranks import parse_rule
from svdcut.files.checkpoint import open_checkpoint
from svdcut.pair.plan import make_plan
from svdcut.sweeps.decompose import decompose_update
from svdcut.sweeps.in_memory import SwappedModel
from svdcut.sweeps.result import Variant
from svdcut.truncation.merging import loadable
from text_models import SIZES, make_examples, write_csv
from trained_adapters import quietly, randomize

RULES = "0,1,2,energy=0.9,ratio=0.2,budget=0.5,full"
CAUSAL = transformers.AutoModelForCausalLM
CLASSIFIER = transformers.AutoModelForSequenceClassification
IDS = torch.tensor([[2, 5, 9, 14, 3]])


def encoder(folder: Path) -> Path:
    config = transformers.BertConfig(**SIZES, vocab_size=64, max_position_embeddings=64)
    return text_models.save(transformers.BertModel(config), text_models.word_tokenizer(), folder)


@dataclass(frozen=True)
class Kind:
    """A base, and how PEFT trains an adapter of it."""

    base: Callable[[Path], Path]
    config: Mapping[str, object]
    loader: type = CAUSAL
    load: Mapping[str, object] = field(default_factory=dict)

    def make(self, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
        """Save base and adapter in a folder."""
        torch.manual_seed(0)
        base = self.base(folder / "base")
        with quietly():
            if dtype is not torch.float32:
                self.loader.from_pretrained(base, dtype=dtype).save_pretrained(base)
            model = get_peft_model(
                self.loader.from_pretrained(base, dtype=torch.float32, **self.load),
                LoraConfig(r=3, **self.config),
            )
            randomize(model)
            model.save_pretrained(folder / "adapter")
        write_csv(folder / "data.csv", make_examples(40))
        return folder


LAYERS = ["q_proj", "v_proj", "down_proj"]
HEAD = {"task_type": "SEQ_CLS", "target_modules": ["query", "dense"]}
KINDS = {
    "LoRA": Kind(text_models.llama, {"target_modules": LAYERS, "lora_alpha": 6}),
    "rsLoRA": Kind(
        text_models.llama, {"target_modules": [*LAYERS, "embed_tokens"], "use_rslora": True}
    ),
    "DoRA": Kind(text_models.llama, {"target_modules": LAYERS, "use_dora": True}),
    "matrices stored whole": Kind(
        text_models.llama, {"target_modules": LAYERS, "modules_to_save": ["lm_head", "up_proj"]}
    ),
    "tied embeddings": Kind(text_models.gpt2, {"target_modules": ["c_attn", "wte"]}),
    "classifier": Kind(encoder, HEAD | {"lora_bias": True}, CLASSIFIER, {"num_labels": 2}),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Make a kind of adapter, once."""
    built = {}

    def get(name, dtype=torch.float32):
        if (name, dtype) not in built:
            built[name, dtype] = KINDS[name].make(tmp_path_factory.mktemp("swept"), dtype)
        return built[name, dtype]

    return get


def check_swapped(place, kind, tmp_path, more, rules=RULES):
    """Compare every weight of a swapped model with the file that truncate writes, by bits."""
    written = {"dtype": "float32", "device": "cpu"} | more
    outs = {rule: tmp_path / rule for rule in rules.split(",")}
    svdcut.truncate_many(place / "base", place / "adapter", outs, **written)
    keep = Keep(written.pop("keep", "top"))
    options = Options(**written)
    base = open_checkpoint(place / "base")
    plan = make_plan(base, open_finetuned(place / "adapter", base), options)
    variants = [Variant(parse_rule(rule), keep) for rule in outs]
    decomposed = decompose_update(plan, variants, options, tmp_path / "kept")
    with loadable(base, plan.finetuned, options, within=tmp_path) as loaded, quietly():
        model = kind.loader.from_pretrained(loaded.directory, dtype=torch.float32).eval()
        swapped = SwappedModel(model, plan, loaded)
    state = model.state_dict()
    prefix = f"{model.base_model_prefix}."
    for variant, out in zip(variants, outs.values(), strict=True):
        swapped.put(decomposed, variant)
        for name, tensor in load_file(out / "model.safetensors").items():
            ours = state[name if name in state else prefix + name]
            assert torch.equal(ours, tensor.float()), (variant, name)
        with quietly(), torch.inference_mode():
            fresh = kind.loader.from_pretrained(out, dtype=torch.float32).eval()
            assert torch.equal(model(input_ids=IDS).logits, fresh(input_ids=IDS).logits), variant


@pytest.mark.parametrize("name", KINDS)
def test_swapped_weights_are_those_of_the_written_checkpoint(made, name, tmp_path):
    check_swapped(made(name), KINDS[name], tmp_path, {})


@pytest.mark.parametrize(
    "more",
    [
        {"keep": "bottom"},
        {"keep": "random", "seed": 3},
        {"scale": 1.5},
        {"rest": "base", "skip": ["*q_proj*"]},
        {"skip": ["*.0.*"], "rank_for": ["*v_proj*=1"]},
        {"dtype": "bfloat16"},
        {"dtype": "auto"},
    ],
)
def test_with_other_options(made, more, tmp_path):
    check_swapped(made("LoRA"), KINDS["LoRA"], tmp_path, more)


@pytest.mark.parametrize("name", ["LoRA", "DoRA"])
@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_on_a_base_of_16_bits(made, name, dtype, tmp_path):
    place = made(name, torch.bfloat16)
    check_swapped(place, KINDS[name], tmp_path, {"dtype": dtype}, "0,1,energy=0.9,full")


# The command


def sweep(place, out, **options):
    group = [] if {"evaluate", "eval_command"} & set(options) else ["group"]
    defaults = {"group": group, "device": "cpu", "ranks": "0,1,2,full"}
    data = None if "evaluate" in options or "eval_command" in options else place / "data.csv"
    return svdcut.sweep(place / "base", place / "adapter", data, out, **(defaults | options))


WORDS = {"labels": ["bad", "great"], "prompt": "{text} It was"}
ASKED = {"LoRA": WORDS, "DoRA": WORDS, "classifier": {}}


def leftovers(folder):
    return [path.name for path in folder.iterdir() if "merged" in path.name]


@pytest.mark.parametrize("name", ASKED)
def test_rows_are_the_evaluations_of_written_checkpoints(made, name, tmp_path):
    place, asked = made(name), ASKED[name]
    before = [file_bytes(place / side) for side in ("base", "adapter")]
    found = sweep(place, tmp_path / "out", controls=["bottom"], **asked)
    data = {"group": ["group"], "device": "cpu", **asked}
    for row in found.rows:
        out = tmp_path / str(row.variant)
        keep = row.variant.keep.value
        rule = str(row.variant.rule)
        svdcut.truncate(place / "base", place / "adapter", out, rank=rule, keep=keep, device="cpu")
        assert svdcut.evaluate(out, place / "data.csv", **data) == row.evaluation
    assert found.finetuned == svdcut.evaluate(place / "adapter", place / "data.csv", **data)
    assert [file_bytes(place / side) for side in ("base", "adapter")] == before
    assert leftovers(tmp_path / "out") == []


def test_the_fine_tuned_end_is_the_adapter_itself(made, tmp_path):
    """Whatever the cuts leave of it: no scale, no matrix of base."""
    seen = []

    def evaluate(model):
        with torch.inference_mode():
            seen.append(model(input_ids=IDS).logits)
        return 0.5

    place = made("LoRA")
    options = {"scale": 2.0, "rank_for": ["*q_proj*=0"], "rest": "base", "dtype": "float32"}
    sweep(place, tmp_path / "out", evaluate=evaluate, ranks="1", **options)
    svdcut.truncate(place / "base", place / "adapter", tmp_path / "m", rank="full", dtype="float32")
    with quietly(), torch.inference_mode():
        expected = CAUSAL.from_pretrained(tmp_path / "m").eval()(input_ids=IDS).logits
    torch.testing.assert_close(seen[0], expected, rtol=1e-5, atol=1e-5)
    assert len(seen) == 3


def test_the_merged_model_is_gone_as_soon_as_it_is_loaded(made, tmp_path):
    (tmp_path / "svdcut-merged-killed" / "model").mkdir(parents=True)  # by a run before
    stages = {}

    def observe(progress):
        stages.setdefault(progress.stage, leftovers(tmp_path))

    sweep(made("classifier"), tmp_path, observe=observe)
    assert len(stages["merge"]) == 1
    assert "svdcut-merged-killed" not in stages["merge"]
    assert stages["sweep"] == stages["decompose"] == []


def test_it_is_gone_after_a_signal_and_rows_are_not_measured_again(made, tmp_path):
    place = made("classifier")

    def observe(progress):
        raise svdcut.Interrupted(15)

    with pytest.raises(svdcut.Interrupted):
        sweep(place, tmp_path, observe=observe)
    assert leftovers(tmp_path) == []
    expected = sweep(place, tmp_path)
    stages = []
    found = sweep(place, tmp_path, observe=lambda progress: stages.append(progress.stage))
    assert (found, stages) == (expected, [])


COMMAND = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
with open(sys.argv[2], "a") as log:
    print(folder, file=log)
assert (folder / "config.json").is_file()
assert (folder / "model.safetensors").is_file()
if sys.argv[3:] and "merged" in str(folder):
    sys.exit(7)
print(json.dumps({"accuracy": 0.5}))
"""


def command(tmp_path, *more):
    script = tmp_path / "evaluate.py"
    script.write_text(COMMAND)
    return " ".join([sys.executable, str(script), "{model}", str(tmp_path / "log"), *more])


def test_a_command_gets_the_merged_model_as_the_fine_tuned_end(made, tmp_path):
    out = tmp_path / "out"
    sweep(made("LoRA"), out, eval_command=command(tmp_path), ranks="0,1")
    first, *cuts = (tmp_path / "log").read_text().splitlines()
    assert first.startswith(f"{out}/svdcut-merged-")
    assert cuts == [f"{out}/checkpoint"] * 2
    assert not Path(first).exists()
    assert leftovers(out) == []


def test_a_command_costs_one_hash_of_each_input(made, tmp_path, monkeypatch):
    """What is merged for the fine-tuned end is made of the same files."""
    seen = []
    real = svdcut.record.provenance.hash_file
    monkeypatch.setattr(
        svdcut.record.provenance,
        "hash_file",
        lambda path, stop: seen.append(path) or real(path, stop),
    )
    sweep(made("LoRA"), tmp_path / "out", eval_command=command(tmp_path), ranks="0,1,2")
    assert sorted(path.name for path in seen) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "model.safetensors",
    ]


def test_a_command_that_fails_is_told_of_by_the_name_of_the_adapter(made, tmp_path):
    place = made("LoRA")
    with pytest.raises(svdcut.EvaluationError, match=f"on {place / 'adapter'}: exit code 7"):
        sweep(place, tmp_path / "out", eval_command=command(tmp_path, "fail"))
    assert leftovers(tmp_path / "out") == []


def test_rows_of_another_adapter_are_refused(made, tmp_path):
    place = made("classifier")
    sweep(place, tmp_path)
    (place / "adapter" / "adapter_config.json").touch()
    with pytest.raises(svdcut.OutputExistsError, match=r"adapter_config\.json of the fine-tuned"):
        sweep(place, tmp_path)


def test_the_document_names_no_temporary_folder(made, tmp_path):
    sweep(made("classifier"), tmp_path)
    assert "svdcut-merged" not in (tmp_path / "sweep.json").read_text()
    assert json.loads((tmp_path / "sweep.json").read_text())["rows"]
