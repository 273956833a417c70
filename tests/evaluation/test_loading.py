"""Results are complete checkpoints: transformers loads them, and computes what it must."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers
from safetensors import safe_open

import svdcut
from checkpoints import HEAD_RANK, mixed, read_folder, rewrite
from svdcut.api.truncation import carry_out, plan_truncation
from svdcut.choose.options import StoredDtype
from svdcut.record.publication import with_dtype

# Everything that the builders in `checkpoints` make, with their options.
MODELS = {
    "single": {},
    "sharded": {},
    "base_sharded_differently": {},
    "tied": {},
    "mixed": {"integers": False},
    "gpt2": {},
    "mixtral": {"fused": True},
    "mixtral-one-by-one": {"fused": False},
    "bert_pair": {"prefixed": "finetuned"},
    "bert_pair-encoder": {"prefixed": "base"},
    "untied_by_finetuning": {},
    "tied_by_finetuning": {},
    "grown_vocabulary": {},
}
SIDECARS = {
    "tokenizer.json": "{}",
    "tokenizer_config.json": "{}",
    "special_tokens_map.json": "{}",
    "vocab.txt": "[PAD]\n",
    "merges.txt": "a b\n",
    "spiece.model": "\x00\x01",
    "bpe.codes": "a b 1\n",
    "chat_template.jinja": "{{ messages }}",
    "additional_chat_templates/tool_use.jinja": "{{ tools }}",
    "preprocessor_config.json": "{}",
    "modeling_toy.py": "x = 1\n",
    "LICENSE": "free",
    "LICENSE.md": "free",
    "NOTICE": "note",
}
LEFT_BEHIND = {
    "pytorch_model.bin": "pickled",
    "pytorch_model.bin.index.json": "{}",
    "tf_model.h5": "",
    "flax_model.msgpack": "",
    "model.onnx": "",
    "model.gguf": "",
    "model.fp16.safetensors": "",
    "consolidated.safetensors": "",
    "optimizer.pt": "",
    "training_args.bin": "",
    "trainer_state.json": "{}",
    "eval_results.json": "{}",
    "events.out.tfevents.1": "",
    "checkpoint-500/config.json": "{}",
    "onnx/model.onnx": "",
    "svdcut.json": "{}",
    ".gitattributes": "",
    "README.md": "# The old card",
}


def load(folder, **options):
    """Load a checkpoint with the class that its config names, and nothing left over."""
    config = transformers.AutoConfig.from_pretrained(folder)
    kind = getattr(transformers, config.architectures[0])
    model, info = kind.from_pretrained(folder, output_loading_info=True, **options)
    assert {key: list(value) for key, value in info.items() if value} == {}
    return model.eval()


def outputs(model) -> torch.Tensor:
    """Return logits, or the last hidden state of a model without a head."""
    ids = torch.arange(60).remainder(97).reshape(2, 30)
    with torch.inference_mode():
        return model(input_ids=ids)[0]


@pytest.fixture
def pair_of(pairs):
    return lambda kind: pairs(kind.partition("-")[0], **MODELS[kind])


@pytest.mark.parametrize("kind", MODELS)
def test_all_of_the_rank_computes_what_the_finetuned_model_does(pair_of, tmp_path, kind):
    pair = pair_of(kind)
    svdcut.truncate(pair.base, pair.finetuned, tmp_path / "out", rank="full")
    wanted, found = outputs(load(pair.finetuned)), outputs(load(tmp_path / "out"))
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("kind", MODELS)
def test_rank_zero_with_the_rest_of_base_computes_what_base_does(pair_of, tmp_path, kind):
    pair = pair_of(kind)
    # In float32 also where the fine-tuned side is narrower than base in places.
    options = {"dtype": "float32"} if kind == "mixed" else {}
    svdcut.truncate(pair.base, pair.finetuned, tmp_path / "out", rank=0, rest="base", **options)
    wide = {"dtype": torch.float32} if kind == "mixed" else {}
    base, result = load(pair.base, **wide), load(tmp_path / "out")
    if kind == "bert_pair":
        result = result.bert  # the head is the fine-tuned side's own
    if kind == "bert_pair-encoder":
        base = base.bert
    if kind == "grown_vocabulary":
        grown, result = result.state_dict(), load(pair.finetuned.parent / "base")
        result.load_state_dict({n: grown[n][: len(v)] for n, v in result.state_dict().items()})
    assert torch.equal(outputs(result), outputs(base))


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", MODELS)
def test_truncated_weights_are_loaded_as_they_are_stored(pair_of, tmp_path, kind, dtype):
    pair = pair_of(kind)
    out = tmp_path / "out"
    svdcut.truncate(pair.base, pair.finetuned, out, rank=HEAD_RANK, dtype=dtype)
    model = load(out)
    config = json.loads((out / "config.json").read_text())
    if dtype != "auto":
        assert config["dtype"] == dtype
        assert model.dtype == getattr(torch, dtype)
    stored, state = read_folder(out), model.state_dict()
    if kind == "mixtral-one-by-one":  # transformers joins the experts
        stored = {name: value for name, value in stored.items() if "moe" not in name}
    assert stored.keys() <= state.keys()
    for name, tensor in stored.items():
        if dtype == "float32" or kind != "mixed":
            assert torch.equal(state[name], tensor.value.to(state[name].dtype))
        if dtype == "float32":
            assert state[name].dtype == torch.float32
    logits = outputs(model).float()
    base, tuned = (outputs(load(side)).float() for side in (pair.base, pair.finetuned))
    assert torch.isfinite(logits).all()
    if base.shape == tuned.shape:
        assert (logits - tuned).norm() < (base - tuned).norm()


def test_config_without_a_dtype_gets_one(pairs, tmp_path):
    """A loader would take that of the first tensor, a vector in bfloat16 here."""
    pair = pairs("bert_pair", prefixed="finetuned", dtype=torch.bfloat16)
    tuned = tmp_path / "ft"
    shutil.copytree(pair.finetuned, tuned)
    config = json.loads((tuned / "config.json").read_text())
    del config["dtype"]
    (tuned / "config.json").write_text(json.dumps(config))
    svdcut.truncate(pair.base, tuned, tmp_path / "out", rank=8, dtype="float32")
    model = load(tmp_path / "out")
    assert model.dtype == torch.float32
    weight = "bert.encoder.layer.1.output.dense.weight"
    assert torch.equal(model.state_dict()[weight], read_folder(tmp_path / "out")[weight].value)
    svdcut.truncate(pair.base, tuned, tmp_path / "auto", rank=8)
    assert "dtype" not in json.loads((tmp_path / "auto" / "config.json").read_text())


def test_dtype_of_every_part_of_a_config():
    parts = {"text_config": {"dtype": "bfloat16", "n": 1}, "torch_dtype": "float16", "n": 2}
    assert with_dtype(parts, StoredDtype.FLOAT32) == {
        "text_config": {"dtype": "float32", "n": 1},
        "torch_dtype": "float32",
        "n": 2,
    }
    assert parts["text_config"]["dtype"] == "bfloat16"


@pytest.mark.parametrize("size", [None, "50KB", "1GB"])
@pytest.mark.parametrize("kind", ["single", "sharded", "base_sharded_differently", "gpt2"])
def test_files_and_index(pair_of, tmp_path, kind, size):
    pair, out = pair_of(kind), tmp_path / "out"
    svdcut.truncate(pair.base, pair.finetuned, out, rank=16, max_shard_size=size)
    where, total = {}, 0
    for path in out.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name)
                where[name] = path.name
                total += tensor.numel() * tensor.element_size()
    index = out / "model.safetensors.index.json"
    sharded = (pair.finetuned / index.name).exists()
    assert index.exists() is (sharded or size == "50KB")
    if index.exists():
        found = json.loads(index.read_text())
        assert found["metadata"]["total_size"] == total
        assert found["weight_map"] == where
    if size is None:
        theirs = {path.name for path in pair.finetuned.glob("*.safetensors*")}
        assert {path.name for path in out.glob("*.safetensors*")} == theirs
        if sharded:
            assert found == json.loads((pair.finetuned / index.name).read_text())
    load(out)


def test_float32_changes_the_total_size_in_the_index(pair_of, tmp_path):
    pair, out = pair_of("sharded"), tmp_path / "out"
    svdcut.truncate(pair.base, pair.finetuned, out, rank=16, dtype="float32")
    index = json.loads((out / "model.safetensors.index.json").read_text())
    sizes = [len(tensor.raw) for tensor in read_folder(out).values()]
    assert index["metadata"]["total_size"] == sum(sizes)


def test_what_lies_beside_the_weights(pairs, tmp_path):
    pair = pairs("sharded")
    tuned, out = tmp_path / "ft", tmp_path / "out"
    shutil.copytree(pair.finetuned, tuned)
    for name, text in (SIDECARS | LEFT_BEHIND).items():
        path = tuned / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    svdcut.truncate(pair.base, tuned, out, rank=4)
    weights = {path.name for path in pair.finetuned.iterdir()}
    assert {"config.json", "generation_config.json"} < weights
    found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert found == SIDECARS.keys() | weights | {"svdcut.json", "README.md"}
    for name in [*SIDECARS, "config.json", "generation_config.json"]:
        assert (out / name).read_bytes() == (tuned / name).read_bytes()
    assert "old card" not in (out / "README.md").read_text()


def test_folders_of_modules_and_tokenizers(pairs, tmp_path):
    """As sentence-transformers and processors with two tokenizers lay them out."""
    pair = pairs("sharded")
    tuned, out = tmp_path / "ft", tmp_path / "out"
    shutil.copytree(pair.finetuned, tuned)
    paths = ["", "1_Pooling", "2_Dense", "3_Router"]
    taken = {
        "modules.json": json.dumps([{"idx": i, "path": path} for i, path in enumerate(paths)]),
        "config_sentence_transformers.json": "{}",
        "1_Pooling/config.json": '{"pooling_mode_mean_tokens": true}',
        "2_Dense/config.json": "{}",
        "2_Dense/model.safetensors": "weights",
        "3_Router/query/model.safetensors": "weights",
        "3_Router/query/tokenizer.json": "{}",
        "qformer_tokenizer/vocab.txt": "a",
        "custom_generate/generate.py": "x = 1",
    }
    left = {
        "1_Pooling/notes.md": "1_Pooling/notes.md",
        "2_Dense/pytorch_model.bin": "2_Dense/pytorch_model.bin",
        "4_Old/config.json": "4_Old/",
        "onnx/model.onnx": "onnx/",
        "runs/a/events.out.tfevents.1": "runs/",
        "optimizer.pt": "optimizer.pt",
        "rng_state_0.pth": "rng_state_0.pth",
        "trainer_state.json": "trainer_state.json",
    }
    for name in (*taken, *left, ".git/config"):
        (tuned / name).parent.mkdir(parents=True, exist_ok=True)
        (tuned / name).write_text(taken.get(name, ""))
    request = plan_truncation(svdcut.TruncateOptions(pair.base, tuned, out, rank=4))
    assert request.left_behind == tuple(sorted(left.values()))
    carry_out(request)
    own = {path.name for path in pair.finetuned.iterdir()} | {"svdcut.json", "README.md"}
    found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert found == taken.keys() | own
    for name, text in taken.items():
        assert (out / name).read_text() == text
    assert svdcut.verify(out, base=pair.base, finetuned=tuned).ok


def test_tokenizer_and_generation_config_are_those_of_the_finetuned_side(pairs, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    pair = pairs("single")
    tuned, out = tmp_path / "ft", tmp_path / "out"
    shutil.copytree(pair.finetuned, tuned)
    plain = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "tail": 2}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(tuned)
    transformers.GenerationConfig(temperature=0.25, do_sample=True).save_pretrained(tuned)
    svdcut.truncate(pair.base, tuned, out, rank=4)
    loaded = transformers.AutoTokenizer.from_pretrained(out)
    assert loaded("a tail z").input_ids == [1, 2, 0]
    messages = [{"role": "user", "content": "tail"}]
    assert loaded.apply_chat_template(messages, tokenize=False) == "tail"
    assert transformers.GenerationConfig.from_pretrained(out).temperature == 0.25


def test_integers_in_a_checkpoint_stay_what_they_are(tmp_path):
    pair = mixed(tmp_path)
    rewrite(
        pair.finetuned / "model.safetensors",
        lambda tensors: tensors | {"huge": torch.tensor([2**62 + 1, -1])},
    )
    svdcut.truncate(pair.base, pair.finetuned, tmp_path / "out", rank=4, dtype="float16")
    result = read_folder(tmp_path / "out")
    assert result["huge"].value.tolist() == [2**62 + 1, -1]
    assert result["seen"].dtype == "I32"
