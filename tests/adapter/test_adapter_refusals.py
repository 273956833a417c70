"""Adapters that are refused: each by what is wrong with it, and with what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftType
from safetensors.torch import load_file, save_file

from svdcut.adapter.numbers import read_factors
from svdcut.adapter.peft_config import read_peft_config
from svdcut.adapter.reading import open_finetuned
from svdcut.errors import CheckpointError, MismatchError, NonFiniteError, QuantizedError
from svdcut.files.checkpoint import open_checkpoint
from trained_adapters import CONFIG, WEIGHTS, Folders, edit_config

A, B = (f"base_model.model.layers.0.up.lora_{part}.weight" for part in "AB")


@pytest.fixture
def made(tmp_path):
    """Write a base of two layers and an adapter of one, without PEFT."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    adapter.mkdir()
    sizes = {"up.weight": (12, 8), "up.bias": (12,), "down.weight": (8, 12)}
    tensors = {f"layers.{n}.{name}": torch.ones(*s) for n in range(2) for name, s in sizes.items()}
    save_file(tensors, base / "model.safetensors")
    (base / "config.json").write_text('{"model_type": "toy"}')
    save_file({A: torch.ones(2, 8), B: torch.ones(12, 2)}, adapter / WEIGHTS)
    (adapter / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    return Folders(base, adapter, tmp_path)


def test_the_adapter_is_sound(made):
    update = made.open().updates["layers.0.up.weight"]
    left, right = read_factors(update, 0, torch.device("cpu"))
    assert torch.equal(left @ right, torch.full((12, 8), 4.0, dtype=torch.float64))


FIELDS = {
    "another method": ({"peft_type": "LOHA"}, "an adapter of 'LOHA'"),
    "no method": ({"peft_type": None}, "names no 'peft_type'"),
    "a method that is no text": ({"peft_type": [1]}, r"an adapter of \[1\]"),
    "QALoRA": ({"use_qalora": True}, "'use_qalora' asks for QALoRA"),
    "BD-LoRA": ({"use_bdlora": {"nblocks": 2}}, "'use_bdlora' asks for BD-LoRA"),
    "KaSA": ({"kasa_config": {"beta": 1.0}}, "'kasa_config' asks for KaSA"),
    "Arrow": ({"arrow_config": {"top_k": 2}}, "'arrow_config' asks for Arrow"),
    "aLoRA": ({"alora_invocation_tokens": [5]}, "it cannot be merged"),
    "more layers": ({"layer_replication": [[0, 2], [1, 2]]}, "more layers than base"),
    "single rows": ({"trainable_token_indices": [1]}, "replaces single rows"),
    "Megatron": ({"megatron_config": {"tp": 2}}, "layers of Megatron"),
    "PiSSA": ({"init_lora_weights": "pissa_niter_4"}, "'init_lora_weights' is 'pissa_niter_4'"),
    "OLoRA": ({"init_lora_weights": "olora"}, "that its training took from base"),
    "CorDA": ({"init_lora_weights": "corda"}, "that its training took from base"),
    "LoftQ": ({"init_lora_weights": "loftq"}, "that its training took from base"),
    "LoRA-GA": ({"init_lora_weights": "lora_ga"}, "that its training took from base"),
    "something new that is on": ({"use_more": True}, "'use_more' is True, which is not known"),
    "a new object": ({"more_config": {"a": 1}}, "'more_config' is {'a': 1}, which is not known"),
    "a rank of nothing": ({"r": 0}, "'r' is 0, not a rank"),
    "a rank that is a text": ({"r": "2"}, "'r' is '2', not a rank"),
    "a rank that is true": ({"r": True}, "'r' is True, not a rank"),
    "a rank too large": ({"r": 10**300}, "not a rank"),
    "an alpha that is none": ({"lora_alpha": "4"}, "'lora_alpha' is '4', not a number"),
    "an infinite alpha": ({"lora_alpha": float("inf")}, "'lora_alpha' is inf, not a number"),
    "an alpha that is no number": ({"lora_alpha": float("nan")}, "'lora_alpha' is nan"),
    "a switch that is a number": ({"use_rslora": 1.5}, "'use_rslora' is 1.5, not true or false"),
    "patterns in a list": ({"rank_pattern": ["up"]}, r"'rank_pattern' is \['up'\], not an object"),
    "a pattern's rank that is none": ({"rank_pattern": {"up": 1.5}}, "is 1.5, not a rank"),
    "a pattern that is none": ({"alpha_pattern": {"(up": 1}}, "an expression that cannot be read"),
    "a pattern that looks back": ({"rank_pattern": {r"(u)\1": 1}}, "an expression that cannot"),
    "too many patterns": ({"rank_pattern": {f"a*{n}": 1 for n in range(300)}}, "more than 200"),
    "too many names": ({"rank_pattern": {f"a{n}": 1 for n in range(20_001)}}, "20000 names"),
    "parameters in a text": (
        {"target_parameters": "up"},
        "'target_parameters' is 'up', not a list",
    ),
}


@pytest.mark.parametrize(("fields", "message"), FIELDS.values(), ids=FIELDS)
def test_refused_configs(made, fields, message):
    edit_config(made.adapter, **fields)
    with pytest.raises(CheckpointError, match=message) as caught:
        made.open()
    assert CONFIG in str(caught.value)


NEUTRAL = {
    "use_qalora": False,
    "kasa_config": None,
    "layer_replication": [],
    "init_lora_weights": True,
    "velora_config": {"num_groups": 2},
    "qalora_group_size": 16,
    "some_size": 3,
    "some_text": "none",
    "some_list": [],
    "some_switch": False,
    "rank_pattern": {},
}


def test_neutral_values_are_let_through(made):
    edit_config(made.adapter, **NEUTRAL)
    assert made.open().updates


def test_every_other_method_of_peft_is_refused(made):
    for kind in PeftType:
        edit_config(made.adapter, peft_type=kind.value)
        if kind is not PeftType.LORA:
            with pytest.raises(CheckpointError, match=f"an adapter of '{kind.value}'"):
                made.open()


def with_tensors(**changes: torch.Tensor | None) -> Callable[[Path], None]:
    """Return a function that changes tensors; A and B are the factors, "__" is a dot."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        for key, value in changes.items():
            name = {"A": A, "B": B}.get(key, key.replace("__", "."))
            tensors.pop(name, None)
            if value is not None:
                tensors[name] = value
        save_file(tensors, folder / WEIGHTS)

    return change


def ones(*shape, dtype=torch.float32):
    return torch.ones(*shape, dtype=dtype)


TENSORS = {
    "A alone": (with_tensors(B=None), CheckpointError, "no lora_B beside it"),
    "B alone": (with_tensors(A=None), CheckpointError, "no lora_A beside it"),
    "ranks that differ": (with_tensors(A=ones(3, 8)), CheckpointError, "differ in their rank"),
    "shards of ZeRO-3": (with_tensors(A=ones(0)), CheckpointError, "it is empty"),
    "a flat factor": (with_tensors(A=ones(16)), CheckpointError, "it is empty"),
    "integers": (with_tensors(A=ones(2, 8, dtype=torch.int8)), QuantizedError, "holds I8"),
    "8-bit floats": (
        with_tensors(A=ones(2, 8).to(torch.float8_e4m3fn)),
        QuantizedError,
        "holds F8_E4M3",
    ),
    "another rank": (
        with_tensors(A=ones(3, 8), B=ones(12, 3)),
        MismatchError,
        "rank 3, where the config says 2",
    ),
    "another width": (
        with_tensors(A=ones(2, 9)),
        MismatchError,
        r"base \[12, 8\], adapter \[12, 9\]",
    ),
    "a layer too many": (
        with_tensors(layers__7__up__lora_A=ones(2, 8), layers__7__up__lora_B=ones(12, 2)),
        MismatchError,
        r"'layers.7.up.lora_A': base has no such tensor",
    ),
    "a whole tensor too many": (
        with_tensors(layers__7__up__weight=ones(2, 8)),
        MismatchError,
        r"'layers.7.up.weight': base has no such tensor",
    ),
    "a norm without DoRA": (
        with_tensors(layers__0__up__lora_magnitude_vector=ones(12)),
        MismatchError,
        "the config does not say DoRA",
    ),
    "another kind of LoRA": (
        with_tensors(layers__0__up__lora_diag=ones(2)),
        CheckpointError,
        "a kind of LoRA not known here",
    ),
    "two adapters in one file": (
        with_tensors(layers__0__up__lora_A__other__weight=ones(2, 8)),
        CheckpointError,
        "mean the same",
    ),
    "an adapter's bias where base has none": (
        with_tensors(
            layers__0__down__lora_A__weight=ones(2, 12),
            layers__0__down__lora_B__weight=ones(8, 2),
            layers__0__down__lora_B__bias=ones(8),
        ),
        MismatchError,
        r"'layers.0.down.lora_B.bias': base has no such tensor",
    ),
}


@pytest.mark.parametrize(("damage", "error", "message"), TENSORS.values(), ids=TENSORS)
def test_refused_tensors(made, damage, error, message):
    damage(made.adapter)
    with pytest.raises(error, match=message):
        made.open()


def test_dora_without_its_norms(made):
    edit_config(made.adapter, use_dora=True)
    with pytest.raises(MismatchError, match="no lora_magnitude_vector"):
        made.open()
    with_tensors(layers__0__up__lora_magnitude_vector=ones(8))(made.adapter)
    with pytest.raises(MismatchError, match=r"shape \[8\]"):
        made.open()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none(made, value):
    with_tensors(A=torch.full((2, 8), value))(made.adapter)
    update = made.open().updates["layers.0.up.weight"]
    with pytest.raises(NonFiniteError, match=r"adapter_model.safetensors: '.*lora_A.weight'"):
        read_factors(update, 0, torch.device("cpu"))
    with pytest.raises(NonFiniteError):
        read_factors(replace(update, a=None, b=update.a), 0, torch.device("cpu"))


def test_many_problems_are_listed_by_kind(made):
    layers = {f"layers__{n}__up__lora_{p}": ones(2, 2) for n in range(90) for p in "AB"}
    with_tensors(A=None, B=None, **layers)(made.adapter)
    with pytest.raises(MismatchError) as caught:
        made.open()
    assert "90 tensors do not fit" in str(caught.value)
    assert "'layers.*.up.lora_A' (88 tensors): base has no such tensor" in str(caught.value)
    assert len(str(caught.value).splitlines()) < 8


class TestFolders:
    """What lies where an adapter should."""

    def test_no_config(self, made):
        (made.adapter / CONFIG).unlink()
        with pytest.raises(CheckpointError, match=f"no {CONFIG}"):
            made.open()

    def test_pickled(self, made):
        (made.adapter / WEIGHTS).rename(made.adapter / "adapter_model.bin")
        with pytest.raises(CheckpointError, match=r"pickled(.|\n)*convert it: python -c"):
            made.open()

    def test_the_file_in_place_of_its_folder(self, made):
        with pytest.raises(CheckpointError, match="Name the folder that holds both"):
            open_finetuned(made.adapter / WEIGHTS, open_checkpoint(made.base))

    def test_adapters_beneath(self, made):
        for name in ("code", "chat"):
            shutil.copytree(made.adapter, made.merged / "several" / name)
        with pytest.raises(CheckpointError, match=r"beneath: 'chat', 'code'"):
            open_finetuned(made.merged / "several", open_checkpoint(made.base))

    def test_as_base(self, made):
        with pytest.raises(CheckpointError, match="Name it second"):
            open_checkpoint(made.adapter)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)
KEYS = ["r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_dora", "target_parameters"]
KEYS += ["modules_to_save", "init_lora_weights", "peft_version", "bias", "fan_in_fan_out"]


@settings(max_examples=200)
@given(fields=st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=8), VALUES))
def test_any_config_is_read_or_refused(tmp_path_factory, fields):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps({"peft_type": "LORA"} | fields))
    try:
        config = read_peft_config(path)
    except CheckpointError:
        return
    assert config.rank_of("a.b") >= 1
    assert abs(config.scale_of("a.b")) <= 2**31


def test_a_hub_id(made, hub):
    commit = hub.add("org/lora", made.adapter)
    found = open_finetuned("org/lora", open_checkpoint(made.base))
    assert (found.source, found.revision) == ("org/lora", commit)
    assert list(found.updates) == ["layers.0.up.weight"]
    assert hub.files_fetched() == [CONFIG, WEIGHTS]


def test_a_hub_id_of_a_pickled_adapter(made, hub):
    (made.adapter / WEIGHTS).rename(made.adapter / "adapter_model.bin")
    hub.add("org/lora", made.adapter)
    with pytest.raises(CheckpointError, match=r"hf download org/lora(.|\n)*adapter_model.bin"):
        open_finetuned("org/lora", open_checkpoint(made.base))
