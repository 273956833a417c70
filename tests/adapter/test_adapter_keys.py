"""The names in an adapter's file, and where they are in base's."""

from __future__ import annotations

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from svdcut.adapter.tensors import Key, Role, parse_key
from svdcut.errors import MismatchError, UsageError
from svdcut.files.checkpoint import open_checkpoint
from trained_adapters import (
    WEIGHTS,
    Folders,
    edit_config,
    llama,
    make,
    quietly,
    read,
    rename_keys,
    results,
)

PARTS = st.text("abcxyz_0123456789", min_size=1, max_size=6)
MODULES = st.lists(PARTS, min_size=1, max_size=6).map(".".join)
FACTORS = {
    ".lora_A": Role.A,
    ".lora_B": Role.B,
    ".lora_embedding_A": Role.EMBEDDING_A,
    ".lora_embedding_B": Role.EMBEDDING_B,
    ".lora_magnitude_vector": Role.MAGNITUDE,
}
PREFIXES = st.sampled_from(
    ["base_model.model.", "", "_orig_mod.base_model.model.", "base_model.model._orig_mod."]
)


@given(
    MODULES,
    PREFIXES,
    st.sampled_from(sorted(FACTORS)),
    st.sampled_from(["", ".weight", ".default", ".default.weight"]),
    st.integers(0, 3),
)
def test_keys_of_factors(module, prefix, part, end, level):
    key = f"{prefix}{module}{'.base_layer' * level}{part}{end}"
    assert parse_key(key) == Key(module, FACTORS[part], level)


@given(MODULES, PREFIXES, st.sampled_from(["weight", "bias", "inner.weight"]))
def test_keys_of_whole_tensors(module, prefix, name):
    whole = Key(f"{module}.{name}", Role.WHOLE)
    assert parse_key(f"{prefix}{module}.{name}") == whole
    assert parse_key(f"{prefix}{module}.base_layer.{name}") == whole
    saved = Key(f"{module}.{name}", Role.SAVED)
    assert parse_key(f"{prefix}{module}.modules_to_save.default.{name}") == saved
    assert parse_key(f"{prefix}{module}.original_module.{name}").role is Role.UNUSED


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("base_model.model.q.lora_B.bias", Key("q", Role.BIAS)),
        ("base_model.model.q.lora_B.default.bias", Key("q", Role.BIAS)),
        ("base_model.model.head.modules_to_save.weight", Key("head.weight", Role.SAVED)),
        ("base_model.model.lora_A.q.lora_B.weight", Key("lora_A.q", Role.B)),
        ("m.base_layer.gate.base_layer.lora_A.weight", Key("m.gate", Role.A, 1)),
        ("layers.0._fsdp_wrapped_module.q.lora_A.weight", Key("layers.0.q", Role.A)),
    ],
)
def test_other_keys(key, expected):
    assert parse_key(key) == expected


@pytest.mark.parametrize(
    "key",
    [
        "q.lora_A.a.b.weight",
        "q.lora_diag",
        "q.lora_diag.default",
        "e.token_adapter.x",
        "q.lora_A.a.b",
    ],
)
def test_unknown_keys(key):
    assert parse_key(key).role is Role.UNKNOWN


@given(st.text(max_size=60))
def test_any_key_is_taken_apart(key):
    parse_key(key)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    torch.manual_seed(0)
    config = LoraConfig(
        r=4, target_modules=["q_proj", "embed_tokens"], use_dora=True, modules_to_save=["lm_head"]
    )
    return make(tmp_path_factory.mktemp("made"), llama(), config)


FORMS = {
    "the adapter's name in it": lambda key: (
        key.replace("lora_A.", "lora_A.default.")
        .replace("lora_B.", "lora_B.default.")
        .replace("embedding_A", "embedding_A.default")
        .replace("embedding_B", "embedding_B.default")
    ),
    "no prefix": lambda key: key.removeprefix("base_model.model."),
    "compiled": lambda key: key.replace("base_model.model.", "base_model.model._orig_mod."),
    "sharded": lambda key: key.replace(".self_attn.", "._fsdp_wrapped_module.self_attn."),
    "a magnitude that is a module's": lambda key: key.replace("vector", "vector.weight"),
    "a saved module's name": lambda key: key.replace(
        "lm_head.", "lm_head.modules_to_save.default."
    ),
    "another wrapper": lambda key: key.replace("base_model.model.", "module.base_model.model."),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_forms_of_keys(made, tmp_path, form):
    tensors = load_file(made.adapter / WEIGHTS)
    expected = made.open()
    try:
        rename_keys(made.adapter, form)
        assert load_file(made.adapter / WEIGHTS).keys() != tensors.keys()
        found = made.open()
        assert made.worst() < 1e-6
    finally:
        save_file(tensors, made.adapter / WEIGHTS)
    assert found.updates.keys() == expected.updates.keys()


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model.", ""])
def test_base_whose_names_have_another_prefix(made, tmp_path, prefix):
    """As a language model that became a part of another, or was taken out of one."""
    tensors = {prefix + name.removeprefix("model."): v for name, v in read(made.base).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    found = Folders(tmp_path, made.adapter, made.merged).open()
    assert set(found.updates) <= set(tensors)
    assert len(found.updates) == 3


def test_layers_are_not_shifted(made, tmp_path):
    tensors = {name.replace("layers.1.", "layers.2."): v for name, v in read(made.base).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(MismatchError, match=r"layers.1.self_attn.q_proj.*base has no such tensor"):
        Folders(tmp_path, made.adapter, made.merged).open()


def test_renames_of_the_user(made, tmp_path):
    tensors = {name.replace("model.", "weird."): v for name, v in read(made.base).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    there = Folders(tmp_path, made.adapter, made.merged)
    with pytest.raises(MismatchError, match="base has no such tensor"):
        there.open()
    found = there.open(renames={"weird.": "model."})
    assert list(found.tensors) == list(open_checkpoint(tmp_path).tensors)
    assert "weird.layers.0.self_attn.q_proj.weight" in found.updates
    with pytest.raises(UsageError, match="--map"):
        there.open(renames={"odd.": "model."})


def test_a_new_tensor_gets_bases_prefix(made, tmp_path):
    tensors = {f"language_model.{name}": value for name, value in read(made.base).items()}
    del tensors["language_model.model.norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    ours = load_file(made.adapter / WEIGHTS)
    try:
        norm = {"base_model.model.model.norm.weight": torch.ones(32)}
        save_file(ours | norm, made.adapter / WEIGHTS)
        edit_config(made.adapter, modules_to_save=["lm_head", "norm"])
        found = Folders(tmp_path, made.adapter, made.merged).open()
    finally:
        save_file(ours, made.adapter / WEIGHTS)
        edit_config(made.adapter, modules_to_save=["lm_head"])
    assert list(found.tensors)[-1] == "language_model.model.norm.weight"
    assert found.shards["model.safetensors"][-1] == "language_model.model.norm.weight"


@pytest.mark.parametrize("part", ["embed_tokens", "lm_head"])
def test_no_second_embedding_or_head(made, tmp_path, part):
    """One that is not found in base is not new: base has it by another name."""
    other = {"embed_tokens": "wte", "lm_head": "embed_out"}[part]
    tensors = {name.replace(part, other): value for name, value in read(made.base).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(MismatchError, match=rf"{part}(.*)weight': base has no such tensor"):
        Folders(tmp_path, made.adapter, made.merged).open()


def test_attention_of_torch(tmp_path):
    """PEFT changes `in_proj_weight` of nn.MultiheadAttention by factors of the module.

    Its merge adds the update of `out_proj` twice (0.21.2); the layers compute with it once.
    """
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"attn": torch.nn.MultiheadAttention(32, 4)})
    (tmp_path / "base").mkdir()
    save_file(model.state_dict(), tmp_path / "base" / "model.safetensors")
    with quietly():
        wrapped = get_peft_model(model, LoraConfig(r=4, target_modules=["attn"]))
        for name, weight in wrapped.named_parameters():
            if "lora_" in name:
                weight.data.normal_()
        wrapped.save_pretrained(tmp_path / "adapter")
        attention = wrapped.base_model.model["attn"]
        delta = attention.base_layer.out_proj.get_delta_weight("default").detach()
        merged = wrapped.merge_and_unload().state_dict()
        merged["attn.out_proj.weight"] -= delta
    found = results(Folders(tmp_path / "base", tmp_path / "adapter", tmp_path).open())
    assert found.keys() == merged.keys()
    for name, value in merged.items():
        assert torch.allclose(found[name], value.double(), atol=1e-5), name


def test_an_adapter_of_several_names(tmp_path):
    torch.manual_seed(0)
    base = llama()
    base.save_pretrained(tmp_path / "base")
    with quietly():
        wrapped = get_peft_model(base, LoraConfig(target_modules=["q_proj"]), adapter_name="chat")
        wrapped.add_adapter("code", LoraConfig(target_modules=["k_proj"]))
        wrapped.save_pretrained(tmp_path / "adapters")
    for name, target in (("chat", "q_proj"), ("code", "k_proj")):
        folders = Folders(tmp_path / "base", tmp_path / "adapters" / name, tmp_path)
        assert all(target in key for key in folders.open().updates)


def test_peft_loads_what_the_tests_damage(made):
    """The adapter is sound: PEFT's own loader has the merged weights."""
    with quietly():
        base = transformers.LlamaForCausalLM.from_pretrained(made.base)
        merged = PeftModel.from_pretrained(base, made.adapter).merge_and_unload()
    for name, value in read(made.merged).items():
        assert torch.allclose(merged.state_dict()[name], value, atol=1e-6), name


def test_the_rank_is_the_configs(made):
    edit_config(made.adapter, r=3)
    try:
        with pytest.raises(MismatchError, match=r"rank 4, where the config says 3"):
            made.open()
    finally:
        edit_config(made.adapter, r=4)
