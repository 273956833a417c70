"""Names of one model found in another, and shapes that may differ."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import svdcut
from checkpoints import finetune_tensor, read_folder, rewrite, toy_tensors, write_folder
from svdcut.files.tensorfile import Dtype, TensorEntry
from svdcut.names import collapse_numbers, is_bias, is_expert_stack, is_task_head, is_vocabulary
from svdcut.pair.matching import match_names, rename_tensors

BERT = {
    "embeddings.word_embeddings.weight": (50, 8),
    "embeddings.position_embeddings.weight": (16, 8),
    "encoder.layer.0.attention.self.query.weight": (8, 8),
    "encoder.layer.0.output.dense.weight": (8, 12),
    "encoder.layer.1.attention.self.query.weight": (8, 8),
    "encoder.layer.1.output.dense.weight": (8, 12),
    "pooler.dense.weight": (8, 8),
}


def entries(shapes):
    return {
        name: TensorEntry(name, Dtype.F32, tuple(shape), None, 0) for name, shape in shapes.items()
    }


def match(base, finetuned):
    """Return the partners by name, and the renames, of two maps of names to shapes."""
    found = match_names(entries(base), entries(finetuned), lambda a, b: a.shape == b.shape)
    partners = {name: entry.name for name, entry in found.partners.items()}
    assert len(set(partners.values())) == len(partners)
    return partners, [(r.base, r.finetuned) for r in found.renames], found


def prefixed(prefix, shapes=BERT):
    return {prefix + name: shape for name, shape in shapes.items()}


@pytest.mark.parametrize(
    "prefix",
    [
        *("bert.", "model.", "module.", "_orig_mod.", "base_model.model.", "transformer."),
        *("distilbert.", "roberta.", "deberta.", "electra.", "albert.", "vit."),
        *("_fsdp_wrapped_module.", "_forward_module.", "_forward_module.module.", "a.b.c.d."),
    ],
)
def test_a_prefix_of_either_side(prefix):
    for base, finetuned, rename in (
        (prefixed(prefix), BERT, (prefix, "")),
        (BERT, prefixed(prefix), ("", prefix)),
        (prefixed("model."), prefixed(f"{prefix}model."), ("", prefix)),
    ):
        partners, renames, _ = match(base, finetuned)
        assert partners == dict(zip(finetuned, base, strict=True))
        assert renames == [rename]


def test_some_names_that_coincide_do_not_end_the_search():
    base = BERT | {"classifier.weight": (3, 8), "pooler.bias": (8,)}
    finetuned = prefixed("bert.") | {"classifier.weight": (3, 8), "pooler.bias": (8,)}
    partners, renames, _ = match(base, finetuned)
    assert partners["classifier.weight"] == "classifier.weight"
    assert partners["bert.pooler.dense.weight"] == "pooler.dense.weight"
    assert renames == [("", "bert.")]
    assert len(partners) == len(finetuned)


def test_several_renames_at_once():
    """As vision-language models were stored by transformers 4, and are by 5."""
    base = (
        prefixed("language_model.model.")
        | {"language_model.lm_head.weight": (50, 8)}
        | prefixed("vision_tower.", {"patch.weight": (6, 4), "blocks.0.weight": (6, 6)})
        | {"multi_modal_projector.linear.weight": (8, 6)}
    )

    def renamed(name):
        name = name.replace("language_model.model.", "model.language_model.")
        name = name.replace("language_model.lm_head", "lm_head")
        new = ("vision_tower", "multi_modal_projector")
        return f"model.{name}" if name.startswith(new) else name

    finetuned = {renamed(name): shape for name, shape in base.items()}
    partners, renames, found = match(base, finetuned)
    assert partners == {renamed(name): name for name in base}
    assert set(renames) == {
        ("language_model.model.", "model.language_model."),
        ("language_model.", ""),
        ("", "model."),
    }
    assert sum(r.tensors for r in found.renames) == len(base)
    partners, renames, _ = match(finetuned, base)
    assert partners == {name: renamed(name) for name in base}


def test_text_model_in_a_model_with_more_parts():
    vision = {f"model.visual.{name}": shape for name, shape in BERT.items() if "layer" in name}
    partners, renames, _ = match(prefixed("model."), prefixed("model.language_model.") | vision)
    assert renames == [("model.", "model.language_model.")]
    assert all("language_model" in name for name in partners)
    assert len(partners) == len(BERT)


def wrapped(name, *wrappers):
    first, _, rest = name.partition(".")
    return ".".join([first, *wrappers, *rest.split(".")])


@pytest.mark.parametrize(
    "wrappers",
    [
        ("_orig_mod",),
        ("_fsdp_wrapped_module",),
        ("_fsdp_wrapped_module", "_checkpoint_wrapped_module"),
    ],
)
def test_wrappers_in_the_middle_of_names(wrappers):
    finetuned = {wrapped(name, *wrappers): shape for name, shape in BERT.items()}
    partners, renames, found = match(BERT, finetuned)
    assert partners == dict(zip(finetuned, BERT, strict=True))
    assert (renames, found.wrappers) == ([], tuple(sorted(wrappers)))
    both = prefixed("module.", finetuned)
    partners, renames, found = match(BERT, both)
    assert partners == dict(zip(both, BERT, strict=True))
    assert (renames, found.wrappers) == ([("", "module.")], tuple(sorted(wrappers)))


def test_wrappers_stay_where_names_would_become_one():
    both = BERT | {wrapped(name, "_orig_mod"): shape for name, shape in BERT.items()}
    partners, renames, found = match(BERT, both)
    assert partners == {name: name for name in BERT}
    assert (renames, found.wrappers) == ([], ())


@pytest.mark.parametrize(
    ("base", "finetuned"),
    [
        (prefixed("bert."), prefixed("roberta.")),
        ({"layers.3.w": (8, 8)}, {"layers.4.w": (8, 8)}),
        ({"mlp.w": (8, 8)}, {"mlp.experts.0.w": (8, 8)}),
        ({"encoder.w": (8, 8)}, {"decoder.w": (8, 8)}),
    ],
    ids=str,
)
def test_what_is_no_rename(base, finetuned):
    assert match(base, finetuned)[:2] == ({}, [])


def test_equal_names_win_a_tie():
    copies = BERT | prefixed("ema.")
    assert match(BERT, copies)[:2] == ({name: name for name in BERT}, [])
    assert match(copies, BERT)[:2] == ({name: name for name in BERT}, [])


def test_equal_names_of_other_shapes_stay_a_pair():
    other = {name: (*shape[:-1], shape[-1] + 1) for name, shape in BERT.items()}
    assert match(BERT, other)[0] == {name: name for name in BERT}
    assert match(BERT, prefixed("bert.", other))[1] == [("", "bert.")]


@given(st.randoms(use_true_random=False), st.data())
def test_matching_is_safe_and_does_not_depend_on_the_order(generator, data):
    parts = st.sampled_from(["a", "b", "model", "0", "1", "_orig_mod"])
    names = st.lists(parts, min_size=1, max_size=4).map(".".join)
    shapes = st.sampled_from([(2, 2), (2, 3), (4,)])
    base, finetuned = (data.draw(st.dictionaries(names, shapes, max_size=8)) for _ in range(2))
    if not (base and finetuned):
        return
    first = match(base, finetuned)
    assert first[0].keys() <= finetuned.keys()
    assert set(first[0].values()) <= base.keys()
    if base.keys() == finetuned.keys() and base == finetuned:
        assert first[0] == {name: name for name in base}
    shuffled = []
    for side in (base, finetuned):
        items = list(side.items())
        generator.shuffle(items)
        shuffled.append(dict(items))
    again = match(*shuffled)
    assert again[0] == first[0]
    assert again[1] == first[1]


def test_many_names_are_searched_in_bounded_rounds(monkeypatch):
    """Each pair of prefixes is weighed, not each pair of names."""
    calls = []
    import svdcut.pair.matching as module

    pairs = module._pairs
    monkeypatch.setattr(module, "_pairs", lambda *args: calls.append(1) or pairs(*args))
    names = {f"model.layers.{i}.mlp.experts.{j}.w": (4, 4) for i in range(40) for j in range(250)}
    partners, renames, _ = match(names, prefixed("module.", names))
    assert len(partners) == len(names)
    assert renames == [("", "module.")]
    assert len(calls) < 40


# Names


@pytest.mark.parametrize(
    ("name", "collapsed"),
    [
        ("model.layers.12.mlp.up_proj.weight", "model.layers.*.mlp.up_proj.weight"),
        ("h.0.experts.31.w1", "h.*.experts.*.w1"),
        ("0.auto_model.conv2.weight", "*.auto_model.conv2.weight"),
        ("weight.3", "weight.3"),
    ],
)
def test_numbers_collapse(name, collapsed):
    assert collapse_numbers(name) == collapsed


def test_what_names_say():
    assert is_bias("model.layers.0.mlp.experts.gate_up_proj_bias")
    assert is_bias("bias")
    assert is_bias("a.bias")
    assert not is_bias("encoder.relative_attention_bias.weight")
    assert not is_bias("model.unbias")
    assert is_expert_stack("a.experts.down_proj", (2, 3, 4))
    assert is_expert_stack("a.block_sparse_moe.input_linear.weight", (2, 3, 4))
    assert is_expert_stack("a.moe.up_proj.weight", (2, 3, 4))
    assert is_expert_stack("a.mlp.output_linear.weight", (2, 3, 4))
    assert not is_expert_stack("a.experts.down_proj", (2, 3))
    assert not is_expert_stack("a.shared_experts.conv", (2, 3, 4))
    for head in ("score.weight", "classifier.out_proj.bias", "qa_outputs.weight", "head.weight"):
        assert is_task_head(head)
    for other in ("lm_head.weight", "layers.3.classifier.weight", "cls.predictions.bias"):
        assert not is_task_head(other)
    for tokens in (
        *("model.embed_tokens.weight", "lm_head.weight", "lm_head.bias", "shared.weight"),
        *("transformer.wte.weight", "cls.predictions.decoder.weight", "cls.predictions.bias"),
    ):
        assert is_vocabulary(tokens)
    for other in ("embeddings.LayerNorm.weight", "layers.0.embed.weight", "decoder.norm.weight"):
        assert not is_vocabulary(other)


# Shapes that differ


def tuned(tensors):
    return {name: finetune_tensor(name, value, 0) for name, value in tensors.items()}


def write_pair(folder, base, finetuned, configs=(None, None)):
    return [
        write_folder(folder / name, tensors, config)
        for name, tensors, config in zip(("base", "ft"), (base, finetuned), configs, strict=True)
    ]


@pytest.mark.parametrize(
    "name", ["classifier", "score", "classification_head.out_proj", "head", "qa_outputs"]
)
def test_head_of_another_task_is_copied(tmp_path, name):
    base = toy_tensors() | {f"{name}.weight": torch.randn(2, 24), f"{name}.bias": torch.ones(2)}
    finetuned = tuned(base) | {f"{name}.weight": torch.randn(3, 24), f"{name}.bias": torch.ones(3)}
    sides = write_pair(tmp_path, base, finetuned)
    for rest in ("ft", "base"):
        out = tmp_path / f"rest-{rest}"
        manifest = svdcut.truncate(*sides, out, rank=2, rest=rest)
        for part in ("weight", "bias"):
            assert manifest.tensors[f"{name}.{part}"].action == "copy_finetuned"
            stored = read_folder(out)[f"{name}.{part}"].value
            assert torch.equal(stored, finetuned[f"{name}.{part}"])
        assert set(manifest.base_only) == {f"{name}.weight", f"{name}.bias"}


def test_a_head_of_as_many_labels_is_truncated(tmp_path):
    base = toy_tensors() | {"classifier.weight": torch.randn(3, 24)}
    sides = write_pair(tmp_path, base, tuned(base))
    manifest = svdcut.truncate(*sides, tmp_path / "out", rank=2)
    assert manifest.tensors["classifier.weight"].truncation.ranks == (2,)


def test_vocabulary_by_the_size_that_both_configs_name(tmp_path):
    base = toy_tensors() | {"layers.9.mtp.table": torch.randn(30, 24)}
    finetuned = tuned(base) | {"layers.9.mtp.table": torch.randn(33, 24)}
    configs = [{"model_type": "toy", "vocab_size": size} for size in (30, 33)]
    nested = [{"model_type": "toy", "text_config": config} for config in configs]
    for number, pair in enumerate((configs, nested)):
        folder = tmp_path / str(number)
        sides = write_pair(folder, base, finetuned, pair)
        manifest = svdcut.truncate(*sides, folder / "out", rank=2)
        assert manifest.tensors["layers.9.mtp.table"].truncation.rows == 30
    sides = write_pair(tmp_path / "unnamed", base, finetuned)
    with pytest.raises(svdcut.MismatchError, match=r"layers\.9\.mtp\.table"):
        svdcut.truncate(*sides, tmp_path / "out", rank=2)


def test_another_width_is_no_vocabulary(tmp_path):
    base = toy_tensors() | {"projector.weight": torch.randn(20, 24)}
    finetuned = tuned(base) | {"projector.weight": torch.randn(22, 24)}
    sides = write_pair(tmp_path, base, finetuned)
    with pytest.raises(svdcut.MismatchError, match=r"'projector\.weight': base \[20, 24\]"):
        svdcut.truncate(*sides, tmp_path / "out", rank=2)
    manifest = svdcut.truncate(*sides, tmp_path / "out", rank=2, skip=["projector*"])
    assert manifest.tensors["projector.weight"].action == "copy_finetuned"
    assert manifest.matching.unmatched == manifest.base_only == ()
    assert torch.equal(
        read_folder(tmp_path / "out")["projector.weight"].value, finetuned["projector.weight"]
    )


def test_tables_of_one_row_and_integers_may_differ(tmp_path):
    base = toy_tensors() | {"final_logits_bias": torch.randn(1, 9)}
    finetuned = tuned(base) | {
        "final_logits_bias": torch.randn(1, 11),
        "position_ids": torch.arange(48).reshape(2, 24),
    }
    sides = write_pair(tmp_path, base, finetuned)
    svdcut.truncate(*sides, tmp_path / "out", rank=2, rest="base")
    result = read_folder(tmp_path / "out")
    for name in ("final_logits_bias", "position_ids"):
        assert torch.equal(result[name].value, finetuned[name])


# Tied weights

TIES = {
    "llama": ("model.embed_tokens.weight", "lm_head.weight"),
    "t5": (
        *("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
        "lm_head.weight",
    ),
    "bert": ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
    "gpt2": ("transformer.wte.weight", "lm_head.weight"),
    "whisper": ("model.decoder.embed_tokens.weight", "proj_out.weight"),
}


def tied_sides(folder, names, stored):
    """Write a pair whose sides store all copies, or the first alone."""
    generator = torch.Generator().manual_seed(3)
    base = toy_tensors(torch.bfloat16)
    del base["embed.weight"]
    table = (0.02 * torch.randn(300, 260, generator=generator)).bfloat16()
    moved = finetune_tensor("table", table, 0)
    sides = []
    for value, tensors, everywhere in ((table, base, stored[0]), (moved, tuned(base), stored[1])):
        copies = names if everywhere else names[:1]
        sides.append(tensors | {name: value.clone() for name in copies})
    config = {"model_type": "toy", "tie_word_embeddings": True}
    return write_pair(folder, *sides, (config, config))


@pytest.mark.parametrize("model", TIES)
@pytest.mark.parametrize("stored", [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize(
    "options",
    [
        {"rank": 4, "svd": "krylov"},
        {"rank": 5, "keep": "random"},
        {"rank": "budget=0.0371"},
    ],
    ids=str,
)
def test_copies_of_a_tied_matrix_stay_equal(tmp_path, model, stored, options):
    names = TIES[model]
    sides = tied_sides(tmp_path, names, stored)
    manifest = svdcut.truncate(*sides, tmp_path / "out", dtype="float32", **options)
    result = read_folder(tmp_path / "out")
    facts = [manifest.tensors[name] for name in names if name in result]
    assert len(facts) == (len(names) if stored[1] else 1)
    assert all(all(fact.truncation.ranks) for fact in facts)
    assert len({fact.sha256 for fact in facts}) == 1
    assert len({result[name].raw for name in names if name in result}) == 1
    assert manifest.matching.unmatched == ()
    if options.get("svd") == "krylov":
        assert facts[0].truncation.svd.method == "krylov"


def test_a_second_embedding_is_no_copy_of_the_first(tmp_path):
    base, finetuned = tied_sides(tmp_path, TIES["llama"], (False, False))
    extra = torch.randn(30, 260)
    rewrite(finetuned / "model.safetensors", lambda tensors: tensors | {"audio.wte.weight": extra})
    manifest = svdcut.truncate(base, finetuned, tmp_path / "out", rank=4)
    assert manifest.tensors["audio.wte.weight"].action == "copy_finetuned"
    assert manifest.matching.unmatched == ("audio.wte.weight",)


def test_base_may_store_the_head_alone(tmp_path):
    embedding, head = TIES["llama"]
    base, finetuned = tied_sides(tmp_path, (head, embedding), (False, True))
    manifest = svdcut.truncate(base, finetuned, tmp_path / "out", rank=4)
    assert manifest.tensors[embedding].sha256 == manifest.tensors[head].sha256
    assert manifest.tensors[embedding].truncation.ranks == (4,)


def test_what_a_config_says_of_ties(tmp_path):
    names = TIES["llama"]
    for number, (config, tied) in enumerate(
        [
            ({"model_type": "llama"}, True),
            ({"model_type": "llama", "tie_word_embeddings": False}, False),
            ({"model_type": "x", "text_config": {"tie_word_embeddings": False}}, False),
            ({"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}, True),
            ({}, False),
        ]
    ):
        folder = tmp_path / str(number)
        base, finetuned = tied_sides(folder, names, (False, True))
        (base / "config.json").write_text(json.dumps(config))
        manifest = svdcut.truncate(base, finetuned, folder / "out", rank=4)
        assert (manifest.tensors["lm_head.weight"].truncation is not None) is tied
        assert ("lm_head.weight" in manifest.matching.unmatched) is not tied


def test_the_longest_prefix_to_rename_wins():
    found = rename_tensors(
        entries(dict.fromkeys(("a.b.w", "a.c.w", "d.w"), (4, 4))),
        {"a.": "x.", "a.b.": "y."},
        "base",
    )
    assert {name: entry.name for name, entry in found.items()} == {
        "y.w": "a.b.w",
        "x.c.w": "a.c.w",
        "d.w": "d.w",
    }
