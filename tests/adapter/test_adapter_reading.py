"""What svdcut reads of an adapter, against what PEFT merges of it."""

from __future__ import annotations

import pytest
import torch
import transformers
from peft import LoraConfig

from svdcut.errors import MismatchError
from trained_adapters import SIZES, bert, gpt2, llama, make, quietly, randomize, results

EXACT = 1e-6


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


LAYERS = ["q_proj", "k_proj", "down_proj"]
CONFIGS = {
    "plain": {"lora_alpha": 6},
    "rank-stabilised": {"use_rslora": True, "lora_alpha": 6},
    "patterns": {
        "rank_pattern": {"^model.layers.0.self_attn.q_proj": 2, "k_proj": 3},
        "alpha_pattern": {r".*\.(0|2)\..*k_proj": 11, "down_proj": 5},
    },
    "patterns, rank-stabilised": {"use_rslora": True, "rank_pattern": {r"q_\w+": 1}},
    "first pattern wins": {"alpha_pattern": {r"[kq]_proj": 7, "q_proj": 9, "self_attn.q_proj": 3}},
    "DoRA": {"use_dora": True},
    "EVA's start": {"init_lora_weights": "gaussian"},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_linear_layers(tmp_path, config):
    made = make(tmp_path, llama(), LoraConfig(r=4, target_modules=LAYERS, **config))
    assert made.worst() < EXACT
    assert len(made.open().updates) == 6


@pytest.mark.parametrize("dora", [False, True])
def test_embeddings_and_heads(tmp_path, dora):
    targets = ["embed_tokens", "lm_head", "q_proj"]
    made = make(tmp_path, llama(), LoraConfig(r=4, target_modules=targets, use_dora=dora))
    found = made.open()
    assert made.worst() < EXACT
    assert found.updates["model.embed_tokens.weight"].transposed
    # PEFT stores the embedding whole too; it is base's.
    assert all(entry.path.parent == made.base for entry in found.tensors.values())


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("flag", [False, True])
def test_layers_that_are_stored_as_in_by_out(tmp_path, dora, flag):
    config = LoraConfig(
        r=4,
        target_modules=["c_attn", "c_proj", "c_fc", "wte"],
        use_dora=dora,
        fan_in_fan_out=flag,
    )
    made = make(tmp_path, gpt2(), config)
    assert made.worst() < EXACT
    square = made.open().updates["transformer.h.0.attn.c_proj.weight"]
    assert square.transposed


def test_convolutions(tmp_path):
    sizes = {"d_model": 32, "num_mel_bins": 8, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": 1}
    layers = {"encoder_layers": 1, "decoder_layers": 1, "max_source_positions": 20}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    config = transformers.WhisperConfig(vocab_size=64, **sizes, **tokens, **layers, **heads)
    for dora in (False, True):
        model = transformers.WhisperForConditionalGeneration(config)
        targets = ["conv1", "conv2", "q_proj"]
        lora = LoraConfig(r=2, target_modules=targets, use_dora=dora)
        assert make(tmp_path / str(dora), model, lora).worst() < EXACT


@pytest.mark.parametrize("dora", [False, True])
def test_convolutions_of_images(tmp_path, dora):
    config = transformers.ConvNextConfig(
        num_channels=3, patch_size=2, image_size=16, hidden_sizes=[8, 16, 24, 32], depths=[1] * 4
    )
    model = transformers.ConvNextForImageClassification(config)
    targets = ["patch_embeddings", "downsampling_layer.1", "pwconv1"]
    lora = LoraConfig(r=2, target_modules=targets, use_dora=dora, modules_to_save=["classifier"])
    made = make(tmp_path, model, lora)
    assert made.worst() < EXACT
    assert len(made.open().updates) == 8


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_biases(tmp_path, bias):
    config = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query"], bias=bias)
    made = make(tmp_path, bert(), config)
    whole = [name for name, e in made.open().tensors.items() if e.path.parent == made.adapter]
    assert made.worst() < EXACT
    assert sum(name.endswith("bias") for name in whole) == {"all": 11, "lora_only": 2}[bias]


def test_biases_that_an_adapter_adds_to(tmp_path):
    made = make(tmp_path, bert(), LoraConfig(r=4, target_modules=["query"], lora_bias=True))
    updates = made.open().updates
    assert {name.endswith(".bias"): update.a is None for name, update in updates.items()} == {
        True: True,
        False: False,
    }
    assert made.worst() < EXACT


def test_a_head_that_base_lacks(tmp_path):
    model = bert()
    with quietly():
        pretrained = bert(transformers.BertForMaskedLM)
        pretrained.bert.load_state_dict(model.bert.state_dict(), strict=False)
    config = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query"])
    made = make(tmp_path, model, config, base=pretrained)
    found = made.open()
    head = ["classifier.bias", "classifier.weight"]
    assert not any(name.startswith("cls.") for name in found.tensors)  # what guesses words
    assert sorted(name for name in found.tensors if name.startswith("classifier")) == head
    assert sorted(list(found.shards.values())[-1][-2:]) == head
    assert found.tensors[head[1]].name == head[1]


def test_more_tokens(tmp_path):
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    made = make(tmp_path, llama(), config, tokens=70)
    found = made.open()
    assert made.worst() < EXACT
    assert found.vocab_size == 70
    assert found.tensors["lm_head.weight"].shape == (70, 32)


def test_more_tokens_and_factors_of_the_embedding(tmp_path):
    targets = ["embed_tokens", "lm_head"]
    made = make(tmp_path, llama(), LoraConfig(r=4, target_modules=targets), tokens=70)
    assert made.worst() < EXACT
    assert made.open().vocab_size == 70


def test_more_tokens_in_one_place_only(tmp_path):
    """PEFT saves the head only where it is a target too."""
    made = make(tmp_path, llama(), LoraConfig(r=4, target_modules=["embed_tokens"]), tokens=70)
    with pytest.raises(MismatchError, match=r"70 rows.*'lm_head.weight' 64"):
        made.open()


class TestTied:
    """Models whose head is their embedding."""

    def model(self):
        return llama(tie_word_embeddings=True)

    def test_the_head_moves_with_the_embedding(self, tmp_path):
        made = make(tmp_path, self.model(), LoraConfig(r=4, target_modules=["embed_tokens"]))
        assert made.worst() < EXACT
        assert list(made.open().updates) == ["model.embed_tokens.weight"]

    def test_factors_of_both_count_once(self, tmp_path):
        """PEFT's merge counts them twice, which is not what its model computes."""
        model = self.model()
        before = model.model.embed_tokens.weight.detach().double().clone()
        config = LoraConfig(
            r=4, target_modules=["embed_tokens", "lm_head"], ensure_weight_tying=True
        )
        deltas = []

        def train(wrapped):
            randomize(wrapped)
            deltas.append(wrapped.base_model.model.model.embed_tokens.get_delta_weight("default"))

        made = make(tmp_path, model, config, train=train)
        result = results(made.open())["model.embed_tokens.weight"]
        assert torch.allclose(result, before + deltas[0].double(), atol=1e-6)

    def test_a_head_trained_apart_joins(self, tmp_path):
        config = LoraConfig(
            r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]
        )
        made = make(tmp_path, self.model(), config)
        found = made.open()
        assert made.worst() < EXACT
        assert not found.ties_embeddings
        assert list(found.tensors)[-1] == "lm_head.weight"

    def test_a_head_that_is_the_embedding_does_not(self, tmp_path):
        config = LoraConfig(
            r=4,
            target_modules=["q_proj"],
            modules_to_save=["embed_tokens", "lm_head"],
            ensure_weight_tying=True,
        )
        made = make(tmp_path, self.model(), config)
        found = made.open()
        assert found.ties_embeddings
        assert "lm_head.weight" not in found.tensors
        assert found.tensors["model.embed_tokens.weight"].path.parent == made.adapter

    def test_more_tokens(self, tmp_path):
        config = LoraConfig(r=4, target_modules=["q_proj"])
        # PEFT asks base's config whether tokens were added.
        made = make(tmp_path, self.model(), config, tokens=70, named=True)
        found = made.open()
        assert made.worst() < EXACT
        assert found.vocab_size == 70
        assert found.ties_embeddings

    def test_an_embedding_trained_apart_is_refused(self, tmp_path):
        config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
        with pytest.raises(MismatchError, match=r"embed_tokens.weight' alone"):
            make(tmp_path, self.model(), config).open()

    def test_a_head_trained_apart_by_factors_is_refused(self, tmp_path):
        config = LoraConfig(r=4, target_modules=["q_proj", "lm_head"])
        with pytest.raises(MismatchError, match=r"lm_head.*tied to the embedding"):
            make(tmp_path, self.model(), config).open()


def test_16_bits(tmp_path):
    """PEFT rounds its sum; base and factors are the same."""
    model = llama().to(torch.bfloat16)
    made = make(tmp_path, model, LoraConfig(r=4, target_modules=LAYERS))
    assert made.worst() < 2**-8


def test_what_else_a_checkpoint_has_is_bases(tmp_path):
    made = make(tmp_path, llama(), LoraConfig(r=4, target_modules=LAYERS))
    found = made.open()
    assert list(found.tensors) == list(found.shards["model.safetensors"])
    assert (found.directory, found.under) == (made.adapter, made.base)
    names = [file.path.name for file in found.files]
    assert names == ["adapter_model.safetensors", "adapter_config.json"]
    assert found.files[1].size_bytes == (made.adapter / "adapter_config.json").stat().st_size
    assert found.config["hidden_size"] == SIZES["hidden_size"]
    untouched = set(found.tensors) - set(found.updates)
    assert all(found.tensors[name].path.parent == made.base for name in untouched)


def test_weights_of_a_model_win(tmp_path):
    made = make(tmp_path, llama(), LoraConfig(r=4, target_modules=LAYERS))
    weights = made.merged / "model.safetensors"
    weights.rename(made.adapter / "model.safetensors")
    assert not made.open().updates
