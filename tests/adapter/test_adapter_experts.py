"""Adapters of stacked experts, against what PEFT merges of them."""

from __future__ import annotations

import pytest
import torch
import transformers
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from svdcut.errors import CheckpointError, MismatchError
from trained_adapters import SIZES, WEIGHTS, edit_config, make, read, results

EXACT = 1e-6
BOTH = ["experts.gate_up_proj", "experts.down_proj"]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def mixtral(**more):
    config = transformers.MixtralConfig(num_local_experts=4, **(SIZES | more))
    return transformers.MixtralForCausalLM(config)


def qwen(**more):
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8}
    return transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**(SIZES | sizes | more)))


def gpt_oss(**more):
    config = transformers.GptOssConfig(num_local_experts=4, head_dim=8, **(SIZES | more))
    return transformers.GptOssForCausalLM(config)


CASES = {
    "of Mixtral, whose file has them apart": (mixtral, {}, BOTH, 24),
    "and its router": (mixtral, {}, [*BOTH, "mlp.gate.weight"], 26),
    "one of the two": (mixtral, {}, ["experts.down_proj"], 8),
    "named without their module": (mixtral, {}, ["gate_up_proj"], 16),
    "of Qwen": (qwen, {}, BOTH, 24),
    "of Qwen, square": (qwen, {"moe_intermediate_size": 32}, BOTH, 24),
    "of GPT-OSS, stored as in by out": (gpt_oss, {}, BOTH, 4),
    "of GPT-OSS, square": (gpt_oss, {"intermediate_size": 32}, BOTH, 4),
    "and their biases": (gpt_oss, {}, [*BOTH, "gate_up_proj_bias"], 6),
}


@pytest.mark.parametrize(("model", "sizes", "targets", "count"), CASES.values(), ids=CASES)
def test_stacked_experts(tmp_path, model, sizes, targets, count):
    config = LoraConfig(
        r=2,
        lora_alpha=3,
        target_modules=["q_proj"],
        target_parameters=targets,
        rank_pattern={"experts.gate_up_proj": 3, "gate.weight": 1},
    )
    made = make(tmp_path, model(**sizes), config)
    found = made.open()
    assert made.worst() < EXACT
    assert len(found.updates) == count + 2


def test_which_experts_and_rows(tmp_path):
    config = LoraConfig(r=2, target_modules=[], target_parameters=BOTH)
    found = make(tmp_path, mixtral(), config).open()
    experts = "model.layers.1.block_sparse_moe.experts"
    up = found.updates[f"{experts}.3.w3.weight"]
    assert (up.experts, up.first_expert, up.rows, up.rank) == (4, 3, (48, 96), 2)
    down = found.updates[f"{experts}.2.w2.weight"]
    assert (down.experts, down.first_expert, down.rows) == (4, 2, None)
    assert down.a is found.updates[f"{experts}.0.w2.weight"].a


@pytest.mark.parametrize("model", [mixtral, qwen])
def test_experts_adapted_one_by_one(tmp_path, model):
    """As with transformers 4, where each was a module: the same deltas, in factors of each."""
    config = LoraConfig(r=2, target_modules=[], target_parameters=BOTH)
    made = make(tmp_path, model(num_hidden_layers=1), config)
    found = made.open()
    factors = {}
    for name, update in found.updates.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        a, b = (load_file(made.adapter / WEIGHTS)[entry.name] for entry in (update.a, update.b))
        number, rank = update.first_expert, update.rank
        rows = slice(*(update.rows or (None,)))
        factors[f"{module}.lora_A.weight"] = a[number * rank : (number + 1) * rank].clone()
        factors[f"{module}.lora_B.weight"] = b[rows, number::4].clone()
    save_file(factors, made.adapter / WEIGHTS)
    edit_config(made.adapter, target_parameters=None)
    assert all(update.experts == 1 for update in made.open().updates.values())
    assert made.worst() < EXACT


def other_way_round(folder, names):
    """Transpose every delta, as other versions of PEFT have it."""
    tensors = load_file(folder / WEIGHTS)
    for name in names:
        a, b = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
        out, rank = len(b), len(a) // 4
        stacked = b.reshape(out, rank, 4).permute(2, 1, 0).reshape(4 * rank, out)
        tensors[f"{name}.lora_A.weight"] = stacked.contiguous()
        flat = a.reshape(4, rank, -1).permute(2, 1, 0).reshape(-1, 4 * rank)
        tensors[f"{name}.lora_B.weight"] = flat.contiguous()
    save_file(tensors, folder / WEIGHTS)


WIDTHS = {"none square": 24, "one square": 32}
EXPERTS = "base_model.model.model.layers.0.mlp.experts"
VERSIONS = ["0.18.1", "0.19.0", "0.19.1", "0.19.1.dev0", None]


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("version", VERSIONS)
def test_stacks_that_are_not_square_show_how_all_are(tmp_path, width, version):
    """Whatever version the config names: another one may have saved the adapter again."""
    config = LoraConfig(r=2, target_modules=[], target_parameters=BOTH)
    made = make(tmp_path, qwen(num_hidden_layers=1, moe_intermediate_size=width), config)
    edit_config(made.adapter, peft_version=version)
    assert made.worst() < EXACT
    other_way_round(made.adapter, [EXPERTS, f"{EXPERTS}.base_layer"])
    assert made.worst() < EXACT


def square(folder, model, version):
    """Make an adapter of square stacks alone, as a version of PEFT does."""
    size = {"moe_intermediate_size" if model is qwen else "intermediate_size": 16}
    config = LoraConfig(r=2, target_modules=[], target_parameters=["experts.gate_up_proj"])
    made = make(folder, model(num_hidden_layers=1, **size), config)
    edit_config(made.adapter, peft_version=version)
    return made


@pytest.mark.parametrize("version", ["0.19.1", "0.20.0"])
@pytest.mark.parametrize("model", [qwen, gpt_oss])
def test_square_stacks_as_peft_has_them(tmp_path, model, version):
    assert square(tmp_path, model, version).worst() < EXACT


# PEFT before 0.19 took all stacks for (experts, in, out); 0.19.0 did so of those that are not.
@pytest.mark.parametrize(
    ("model", "version"),
    [(qwen, "0.17.0"), (qwen, "0.18.1"), (qwen, "0.19.0"), (gpt_oss, "0.19.0")],
)
def test_square_stacks_as_peft_had_them(tmp_path, model, version):
    made = square(tmp_path, model, version)
    other_way_round(made.adapter, [EXPERTS])
    assert made.worst() < EXACT


@pytest.mark.parametrize("version", [None, "0.19.1.dev0", "of yesterday"])
def test_square_stacks_of_an_unknown_version(tmp_path, version):
    made = square(tmp_path, qwen, version)
    with pytest.raises(CheckpointError, match="nothing tells which way round") as error:
        made.open()
    assert "peft_version" in error.value.hint


def test_a_base_that_is_stacked_in_its_file(tmp_path):
    config = LoraConfig(r=2, target_modules=[], target_parameters=BOTH)
    made = make(tmp_path, qwen(num_hidden_layers=1), config)
    apart = read(made.base)
    experts = "model.layers.0.mlp.experts"

    def stack(part):
        return torch.stack([apart.pop(f"{experts}.{number}.{part}.weight") for number in range(4)])

    gate_up = torch.cat([stack("gate_proj"), stack("up_proj")], 1)
    stacked = {f"{experts}.gate_up_proj": gate_up, f"{experts}.down_proj": stack("down_proj")}
    save_file({**apart, **stacked}, made.base / "model.safetensors")
    found = results(made.open())
    merged = read(made.merged)
    for number in range(4):
        gate = merged[f"{experts}.{number}.gate_proj.weight"].double()
        assert torch.allclose(found[f"{experts}.gate_up_proj"][number, :24], gate, atol=1e-7)
        down = merged[f"{experts}.{number}.down_proj.weight"].double()
        assert torch.allclose(found[f"{experts}.down_proj"][number], down, atol=1e-7)


def test_parameters_that_nothing_tells_apart(tmp_path):
    config = LoraConfig(r=2, target_modules=[], target_parameters=BOTH)
    made = make(tmp_path, qwen(num_hidden_layers=1), config)
    edit_config(made.adapter, target_parameters=["experts.down_proj"])
    with pytest.raises(MismatchError, match="nothing tells which"):
        made.open()


def test_an_expert_that_base_lacks(tmp_path):
    config = LoraConfig(r=2, target_modules=[], target_parameters=["experts.down_proj"])
    made = make(tmp_path, qwen(num_hidden_layers=1), config)
    tensors = read(made.base)
    del tensors["model.layers.0.mlp.experts.2.down_proj.weight"]
    save_file(tensors, made.base / "model.safetensors")
    with pytest.raises(MismatchError, match="base has no such tensor"):
        made.open()
