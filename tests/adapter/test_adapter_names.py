"""Names in an adapter's config, and what no adapter can hold: no model is made here."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svdcut.adapter.holding import find_unholdable
from svdcut.adapter.layout import lay_out_adapter
from svdcut.adapter.places import Change, Kind, Model, find_places
from svdcut.adapter.readers import list_limits
from svdcut.adapter.targets import shortest, shortest_raw
from svdcut.errors import UsageError

SQUARE = (8, 8)


def names(*parts):
    return [f"layers.{i}.{part}" for i in range(3) for part in parts]


def test_the_shortest_end_is_chosen():
    assert shortest(names("mlp.up"), names("mlp.down")) == ["up"]
    assert shortest(names("a.proj"), names("b.proj")) == ["a.proj"]
    assert shortest(["layers.1.a.proj"], ["layers.0.a.proj"]) == ["layers.1.a.proj"]
    assert shortest(["head.mlp.2"], ["head.mlp.0"]) == ["mlp.2"]


def test_what_is_an_end_of_another_name_is_named_in_full():
    assert shortest(["norm"], ["layers.0.norm"]) == ["norm"]


def test_raw_ends_tell_norm_from_layernorm():
    assert shortest_raw(["model.norm"], ["model.layers.0.layernorm"]) == ["model.norm"]
    assert shortest_raw(names("input_norm"), names("norm")) == ["input_norm"]


def square(name, rank):
    return Change(name, SQUARE, SQUARE, ranks=(rank,))


part = st.sampled_from(["a", "b", "ab", "0", "1", "norm", "layernorm"])
module = st.lists(part, min_size=1, max_size=4).map(".".join).filter(lambda n: not n[0].isdigit())


@given(st.dictionaries(module, st.integers(1, 3), min_size=1, max_size=12))
def test_peft_finds_every_rank(ranks):
    """By PEFT's own function, with the order of the patterns as in the config."""
    from peft.utils.other import get_pattern_key

    shapes = {f"{name}.weight": (8, 8) for name in ranks}
    cuts = [square(f"{name}.weight", rank) for name, rank in ranks.items()]
    config = lay_out_adapter(cuts, Model(shapes)).config
    for name, rank in ranks.items():
        key = get_pattern_key(config["rank_pattern"].keys(), name)
        assert config["rank_pattern"].get(key, config["r"]) == rank


@given(st.lists(module, unique=True, min_size=2, max_size=12), st.data())
def test_peft_targets_what_is_cut_and_no_more(modules, data):
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    wanted = data.draw(st.lists(st.sampled_from(modules), unique=True, min_size=1))
    shapes = {f"{name}.weight": (8, 8) for name in modules}
    cuts = [square(f"{name}.weight", 2) for name in wanted]
    config = lay_out_adapter(cuts, Model(shapes)).config
    peft = LoraConfig(target_modules=config["target_modules"])
    found = [name for name in modules if check_target_module_exists(peft, name)]
    assert sorted(map(str, found)) == sorted(wanted)


# What PEFT cannot hold


LLAMA = {
    "model.embed_tokens.weight": (40, 8),
    "model.layers.0.self_attn.q_proj.weight": SQUARE,
    "model.layers.0.self_attn.sinks": (8,),
    "model.layers.0.input_layernorm.weight": (8,),
    "model.layers.0.mlp.experts.0.gate_proj.weight": SQUARE,
    "model.layers.0.mlp.experts.0.up_proj.weight": SQUARE,
    "model.layers.0.mlp.experts.0.down_proj.weight": SQUARE,
    "model.layers.0.mlp.experts.0.down_proj.bias": (8,),
    "model.layers.0.conv.depthwise.weight": (8, 1, 3),
    "model.layers.0.mixer.A_log": (8, 4),
    "model.layers.0.mixer.B_log": (8, 4),
    "model.layers.0.mixer.gates": (2, 8, 4),
    "model.layers.0.mixer.in_proj.weight": SQUARE,
    "model.position_ids": (1, 8),
    "model.attn.in_proj_weight": (24, 8),
    "model.attn.out_proj.weight": SQUARE,
    "logit_scale": (1,),
    "final_matrix": SQUARE,
    "lm_head.weight": (40, 8),
}


def model(**config):
    return Model(LLAMA, config)


def cut(name, base_shape=None):
    return Change(name, LLAMA[name], base_shape or LLAMA[name])


def whole(name, base_shape=None, **fields):
    return Change(name, LLAMA[name], base_shape or LLAMA[name], is_cut=False, **fields)


LAYER = "model.layers.0."
REFUSED = {
    "rows": ([cut("lm_head.weight", (36, 8))], "adds none"),
    "rows of a skipped one": ([whole("lm_head.weight", (36, 8))], "adds none"),
    "integers": ([whole("model.position_ids", is_float=False)], "integers"),
    "a scale of the model": ([whole("logit_scale")], "no module but the model itself"),
    "a matrix of the model": ([cut("final_matrix")], "no module but the model itself"),
    "depthwise": ([cut(LAYER + "conv.depthwise.weight")], "convolution by groups"),
    "three dimensions": ([cut(LAYER + "mixer.gates")], "3 dimensions"),
    "torch's attention": (
        [cut("model.attn.in_proj_weight")],
        "an attention of torch's own",
    ),
    "its other matrix": ([cut("model.attn.out_proj.weight")], "an attention of torch's own"),
    "around a cut": (
        [cut(LAYER + "mixer.A_log"), cut(LAYER + "mixer.in_proj.weight")],
        "in_proj.weight, which is cut too",
    ),
    "two of one module": (
        [cut(LAYER + "mixer.A_log"), cut(LAYER + "mixer.B_log")],
        "one of several matrices",
    ),
    "beside a cut": (
        [cut(LAYER + "self_attn.q_proj.weight"), whole(LAYER + "self_attn.sinks")],
        "q_proj.weight, which is cut",
    ),
    "an expert by itself": (
        [whole(LAYER + "mlp.experts.0.up_proj.weight")],
        "the stack that transformers makes",
    ),
    "a bias of an expert": (
        [whole(LAYER + "mlp.experts.0.down_proj.bias")],
        "a bias of each expert",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_held_is_named(name):
    changes, reason = REFUSED[name]
    found = find_unholdable(changes, model())
    assert found
    assert {name for name, _ in found} <= {change.name for change in changes}
    assert all(reason in words for _, words in found)
    with pytest.raises(UsageError, match="an adapter cannot hold:\n    "):
        lay_out_adapter(changes, model())


def test_one_that_cannot_be_held_does_not_stand_in_the_way_of_others():
    wholes = [whole(LAYER + "self_attn.sinks"), whole(LAYER + "input_layernorm.weight")]
    found = find_unholdable([cut(LAYER + "self_attn.q_proj.weight"), *wholes], model())
    assert [name for name, _ in found] == [LAYER + "self_attn.sinks"]


def test_mamba_and_whisper():
    name = "backbone.layers.0.mixer.out_proj.weight"
    shapes = {name: SQUARE, "model.encoder.conv1.weight": (8, 8, 3)}
    for tensor, kind, reason in [
        (name, "mamba", "which refuses it"),
        ("model.encoder.conv1.weight", "whisper", "attributes the model reads"),
    ]:
        cuts = [Change(tensor, shapes[tensor], shapes[tensor])]
        ((_, words),) = find_unholdable(cuts, Model(shapes, {"model_type": kind}))
        assert reason in words
        assert find_unholdable(cuts, Model(shapes)) == []


def test_what_keeps_nothing_conflicts_with_nothing():
    name = LAYER + "self_attn.q_proj.weight"
    changes = [square(name, 0), whole(LAYER + "self_attn.sinks")]
    assert find_unholdable(changes, model()) == []


# Kinds


def test_dense_parts_of_a_mixture_are_targeted_as_parameters():
    """PEFT takes a module of that name for a part of the experts, whatever is around it."""
    name = "model.layers.1.mlp.gate_proj.weight"
    alone, mixture = Model({name: SQUARE}), Model(LLAMA | {name: SQUARE})
    assert find_places([square(name, 2)], alone)[0].kind is Kind.LINEAR
    assert find_places([square(name, 2)], mixture)[0].kind is Kind.PARAMETER


def test_no_end_of_a_saved_norm_is_that_of_others():
    """A top-level `norm` cannot be told from others: they are saved with it, unchanged."""
    shapes = {"norm.weight": (8,), "layers.0.q_norm.weight": (8,), "layers.0.q.weight": SQUARE}
    changes = [square("layers.0.q.weight", 2), Change("norm.weight", (8,), (8,), is_cut=False)]
    layout = lay_out_adapter(changes, Model(shapes))
    assert {s.tensor: s.source.value for s in layout.wholes} == {
        "norm.weight": "finetuned",
        "layers.0.q_norm.weight": "base",
    }


# Other readers


def test_what_vllm_and_sglang_say():
    name = LAYER + "self_attn.q_proj.weight"
    cuts = [square(name, 3)]
    plain = lay_out_adapter(cuts, model())
    assert list_limits(plain) == ["vLLM needs --max-lora-rank 8 (config/lora.py)"]
    norms = lay_out_adapter([*cuts, whole(LAYER + "input_layernorm.weight")], model())
    assert "vLLM refuses tensors stored whole, here 1" in list_limits(norms)[1]
    assert "SGLang refuses what is neither a linear layer" in list_limits(norms)[2]
    score = Change("score.weight", (3, 8), None, is_cut=False)
    head = lay_out_adapter([*cuts, score], Model({**LLAMA, "score.weight": (3, 8)}))
    assert "vLLM" not in " ".join(list_limits(head)[1:])


def test_what_they_say_of_experts():
    said = list_limits(experts())
    assert any("--enable-mixed-moe-lora-format" in limit for limit in said)
    assert any("is_3d_lora_weight" in limit for limit in said)
    assert any("--experts separate" in limit for limit in said)
    assert list_limits(experts(apart=True)) == ["vLLM needs --max-lora-rank 8 (config/lora.py)"]


def experts(**options):
    """Lay out the update of one of two experts."""
    parts = ("gate_proj", "up_proj", "down_proj")
    shapes = {f"{LAYER}mlp.experts.{n}.{part}.weight": SQUARE for n in (0, 1) for part in parts}
    cuts = [square(name, 2) for name in list(shapes)[:2]]
    return lay_out_adapter(cuts, Model(shapes), **options)


def test_experts_apart_are_all_there_with_one_rank():
    layout = experts(apart=True)
    assert len(layout.slots) == 6
    assert {slot.rank for slot in layout.slots} == {2}
    assert sum(slot.place.experts[0][0].rank for slot in layout.slots) == 2 * 2
    config = layout.config
    assert set(config["target_modules"]) == {"gate_proj", "up_proj", "down_proj"}
    assert (config["rank_pattern"], config["target_parameters"]) == ({}, None)
