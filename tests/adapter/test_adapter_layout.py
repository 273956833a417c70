"""Adapters of real models: PEFT loads them without a word, and merges to base plus update."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from adapters import check, plant
from architectures import ARCHITECTURES, GROUPED, TEXT, Architecture
from svdcut.adapter.layout import Source
from svdcut.adapter.places import Kind
from svdcut.errors import UsageError

UNHOLDABLE = {
    "deepseek_v3": "e_score_correction_bias",
    "gpt_oss": "proj_bias|sinks",
    "vit": "cls_token|position_embeddings",
    "llava": "class_embedding",
    "mamba": "out_proj|conv1d|A_log|mixer.D",
    "wav2vec2": "masked_spec_embed|pos_conv_embed",
    "whisper": r"encoder\.(conv[12]|embed_positions)\.weight",
    "bart": "final_logits_bias",
}
"""What changes in no test of the architecture, as no adapter can hold it beside the rest."""


def unchanged(name):
    pattern = re.compile(UNHOLDABLE.get(name, "^$"))
    return lambda tensor: bool(pattern.search(tensor))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture(tmp_path, name):
    planted = plant(ARCHITECTURES[name], tmp_path / "base", unchanged=unchanged(name))
    layout = check(planted, tmp_path)
    assert layout.config["alpha_pattern"] == layout.config["rank_pattern"]
    assert layout.config["lora_alpha"] == layout.config["r"] == max(s.rank for s in layout.slots)


@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral", "granitemoe", "qwen2_vl", "vit"])
def test_layout_as_it_is_in_memory(tmp_path, name):
    architecture = ARCHITECTURES[name]
    planted = plant(architecture, tmp_path / "base", unchanged=unchanged(name), layout="internal")
    check(planted, tmp_path, layout="internal")


def text_model(model, config, fields=TEXT):
    return Architecture(model, config, fields, "")


MORE = {
    "tied llama": text_model(
        "LlamaForCausalLM", "LlamaConfig", GROUPED | {"tie_word_embeddings": True}
    ),
    "qwen3_moe with biases": replace(
        ARCHITECTURES["qwen3_moe"],
        fields=ARCHITECTURES["qwen3_moe"].fields | {"attention_bias": True, "mlp_only_layers": [1]},
    ),
    "olmoe": text_model(
        "OlmoeForCausalLM",
        "OlmoeConfig",
        TEXT | {"num_key_value_heads": 2, "num_experts": 3, "num_experts_per_tok": 2},
    ),
    "qwen2_moe": text_model(
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        TEXT
        | {"num_key_value_heads": 2, "num_experts": 3, "num_experts_per_tok": 2}
        | {"moe_intermediate_size": 12, "shared_expert_intermediate_size": 8},
    ),
    "untied gpt2": replace(
        ARCHITECTURES["gpt2"], fields=ARCHITECTURES["gpt2"].fields | {"tie_word_embeddings": False}
    ),
    "untied t5": replace(
        ARCHITECTURES["t5"], fields=ARCHITECTURES["t5"].fields | {"tie_word_embeddings": False}
    ),
    "opt": text_model(
        "OPTForCausalLM", "OPTConfig", TEXT | {"ffn_dim": 24, "word_embed_proj_dim": 16}
    ),
    "bart": text_model(
        "BartForConditionalGeneration",
        "BartConfig",
        {"vocab_size": 40, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1}
        | {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24}
        | {"decoder_ffn_dim": 24, "max_position_embeddings": 32},
    ),
    "distilbert": text_model(
        "DistilBertForMaskedLM",
        "DistilBertConfig",
        {"vocab_size": 40, "dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2}
        | {"max_position_embeddings": 32},
    ),
    "roberta": text_model("RobertaForMaskedLM", "RobertaConfig"),
    "llama without a head": text_model(
        "LlamaModel", "LlamaConfig", GROUPED | {"tie_word_embeddings": True}
    ),
    "tied llama with a score": text_model(
        "LlamaForSequenceClassification",
        "LlamaConfig",
        GROUPED | {"tie_word_embeddings": True},
    ),
}


@pytest.mark.parametrize("name", MORE)
def test_more_architectures(tmp_path, name):
    check(plant(MORE[name], tmp_path / "base", unchanged=unchanged(name)), tmp_path)


HEADS = {
    "BertForSequenceClassification": ("bert", ["classifier"], "SEQ_CLS"),
    "BertForTokenClassification": ("bert", ["classifier"], "TOKEN_CLS"),
    "BertForQuestionAnswering": ("bert", ["qa_outputs"], "QUESTION_ANS"),
    "BertForMaskedLM": ("bert", ["cls"], None),
    "RobertaForSequenceClassification": ("roberta", ["classifier"], "SEQ_CLS"),
    "DistilBertForSequenceClassification": (
        "distilbert",
        ["pre_classifier", "classifier"],
        "SEQ_CLS",
    ),
    "LlamaForSequenceClassification": ("llama", ["score"], "SEQ_CLS"),
    "GPT2ForSequenceClassification": ("gpt2", ["score"], "SEQ_CLS"),
}


@pytest.mark.parametrize("model", HEADS)
@pytest.mark.parametrize("in_base", [False, True])
def test_heads(tmp_path, model, in_base):
    kind, heads, task = HEADS[model]
    architecture = replace(MORE.get(kind) or ARCHITECTURES[kind], model=model)
    architecture = replace(architecture, fields=architecture.fields | {"pad_token_id": 0})
    planted = plant(architecture, tmp_path / "base", new=() if in_base else heads)
    layout = check(planted, tmp_path)
    assert layout.config["task_type"] == (None if in_base else task)
    targets = [s.place.target for s in layout.slots]
    assert any(t.startswith(tuple(heads)) for t in targets) is in_base


def test_ranks_of_experts_differ(tmp_path):
    """The largest counts, the rest is zeros; an expert may have none at all."""
    planted = plant(
        ARCHITECTURES["qwen3_moe"],
        tmp_path / "base",
        rank=lambda name, _: sum(map(int, re.findall(r"\d+", name))) % 4,
    )
    layout = check(planted, tmp_path)
    stacks = {s.place.target: s for s in layout.slots if s.place.kind is Kind.STACK}
    slot = stacks["model.layers.1.mlp.experts.gate_up_proj"]
    assert [[matrix.rank for matrix in expert] for expert in slot.place.experts] == [
        [1, 1],
        [2, 2],
        [3, 3],
    ]
    assert slot.rank == 6
    assert slot.shapes[0] == (18, 16)
    assert slot.keys[0].endswith("mlp.experts.base_layer.lora_A.weight")


@pytest.mark.parametrize("part", ["gate_up_proj", "down_proj"])
def test_one_of_two_stacks(tmp_path, part):
    planted = plant(
        ARCHITECTURES["gpt_oss"],
        tmp_path / "base",
        unchanged=unchanged("gpt_oss"),
        rank=lambda name, _: 2 * ("experts" not in name or part in name or "layers.0" in name),
    )
    layout = check(planted, tmp_path)
    assert {s.place.kind for s in layout.slots if "experts" in s.place.target} == {
        Kind.TRANSPOSED_STACK
    }
    keys = {s.place.target: s.keys[0] for s in layout.slots}
    assert "base_layer" not in keys[f"model.layers.1.mlp.experts.{part}"]
    assert len([k for k in keys.values() if "experts" in k]) == 3


def test_experts_alone(tmp_path):
    """PEFT warns of ranks by pattern where no module has an update: one rank for all."""
    planted = plant(
        ARCHITECTURES["mixtral"],
        tmp_path / "base",
        rank=lambda name, _: 0 if ".experts." not in name else 1 + ("layers.1" in name),
    )
    layout = check(planted, tmp_path)
    assert layout.config["rank_pattern"] == {}
    assert layout.config["target_modules"] == []
    assert layout.config["target_parameters"] == ["gate_up_proj", "down_proj"]


def test_skipped_matrices_are_saved_whole(tmp_path):
    planted = plant(ARCHITECTURES["qwen2"], tmp_path / "base", skip=lambda name: "q_proj" in name)
    layout = check(planted, tmp_path)
    assert "q_proj" in layout.config["modules_to_save"]
    assert "q_proj" not in layout.config["target_modules"]


def test_patch_embedding_saved_with_the_class_token(tmp_path):
    planted = plant(
        ARCHITECTURES["vit"],
        tmp_path / "base",
        skip=lambda name: "patch_embeddings" in name,
        unchanged=lambda name: name.endswith("projection.bias"),
    )
    layout = check(planted, tmp_path)
    sources = {s.tensor: s.source for s in layout.wholes}
    assert sources["vit.embeddings.cls_token"] is Source.FINETUNED
    assert sources["vit.embeddings.patch_embeddings.projection.bias"] is Source.BASE


@pytest.mark.parametrize("name", ["tied llama", "gpt2", "bert", "t5"])
def test_tied_embeddings_are_stored_whole(tmp_path, name):
    """PEFT 0.21.2 has no way to tie low-rank factors and to merge them but once."""
    planted = plant(MORE.get(name) or ARCHITECTURES[name], tmp_path / "base")
    layout = check(planted, tmp_path)
    truncated = [s.tensor for s in layout.wholes if s.source is Source.TRUNCATED]
    assert len(truncated) == 1


def test_rank_0_holds_nothing(tmp_path):
    planted = plant(ARCHITECTURES["llama"], tmp_path / "base", rank=lambda *_: 0)
    with pytest.raises(UsageError, match="rank 0 holds nothing"):
        planted.lay_out()


def test_a_norm_whose_name_is_an_end_of_others(tmp_path):
    """PEFT takes `norm` for every layer norm too, and demands all of them."""
    planted = plant(
        MORE["llama without a head"],
        tmp_path / "base",
        unchanged=lambda name: name.endswith("layernorm.weight"),
    )
    layout = check(planted, tmp_path)
    assert sum(s.source is Source.BASE for s in layout.wholes) == 4


def test_layers_without_an_update_are_not_targets(tmp_path):
    planted = plant(
        ARCHITECTURES["llama"],
        tmp_path / "base",
        rank=lambda name, _: 0 if "layers.0.self_attn" in name else 2,
        unchanged=lambda name: name.endswith("norm.weight"),
    )
    layout = check(planted, tmp_path)
    assert "down_proj" in layout.config["target_modules"]
    assert "layers.1.self_attn.q_proj" in layout.config["target_modules"]
    assert layout.config["modules_to_save"] is None
