"""Models of many architectures: what is cut, what is copied, and that transformers loads it."""

from __future__ import annotations

import json
import math

import pytest
import torch
import transformers

import svdcut
from architectures import ARCHITECTURES, LAYOUTS, kind_of
from checkpoints import Pair, read_folder

RANK = 3
BOTH_LAYOUTS_DIFFER = {
    "qwen3_moe",
    "mixtral",
    "deepseek_v3",
    "granitemoe",
    "gpt_neox",
    "vit",
    "qwen2_vl",
    "llava",
}
CASES = [
    (name, layout)
    for name in ARCHITECTURES
    for layout in LAYOUTS
    if layout == "default" or name in BOTH_LAYOUTS_DIFFER
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Build a pair of one architecture in one layout, once."""
    built = {}

    def get(name, layout):
        if (name, layout) not in built:
            folder = tmp_path_factory.mktemp(name)
            built[name, layout] = ARCHITECTURES[name].pair(folder, layout=layout)
        return built[name, layout]

    return get


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_which_models_have_two_layouts(saved, name):
    """So that the other tests miss none."""
    names = [read_folder(saved(name, layout).base).keys() for layout in LAYOUTS]
    assert (names[0] != names[1]) is (name in BOTH_LAYOUTS_DIFFER)


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_cut_load_and_run(saved, tmp_path, name, layout):
    architecture, pair, out = ARCHITECTURES[name], saved(name, layout), tmp_path / "out"
    manifest = svdcut.truncate(pair.base, pair.finetuned, out, rank=RANK)
    assert manifest.matching == type(manifest.matching)()
    assert manifest.base_only == ()
    copied = {n: fact for n, fact in manifest.tensors.items() if fact.truncation is None}
    assert {fact.action for fact in copied.values()} <= {"copy_finetuned"}
    large = {kind_of(n) for n, fact in copied.items() if len(fact.shape) > 1}
    assert large == architecture.copied.keys()
    stacks = {n for n, f in manifest.tensors.items() if f.truncation and len(f.shape) == 3}
    stacks = {n for n in stacks if n.endswith(architecture.stacks)} if architecture.stacks else {}
    base, result = read_folder(pair.base), read_folder(out)
    for tensor, fact in manifest.tensors.items():
        if fact.truncation is not None:
            ranks = list(fact.truncation.ranks)
            change = result[tensor].value.double() - base[tensor].value.double()
            parts = list(change) if tensor in stacks else [change.flatten(1)]
            assert [numerical_rank(part) for part in parts] == ranks
            assert ranks == [min(RANK, *part.shape) for part in parts]
        else:
            assert result[tensor].raw == read_folder(pair.finetuned)[tensor].raw
    model, info = getattr(transformers, architecture.model).from_pretrained(
        out, output_loading_info=True
    )
    assert {key: list(value) for key, value in info.items() if value} == {}
    with torch.inference_mode():
        logits = model.eval()(**architecture.inputs())[0]
    assert bool(torch.isfinite(logits).all())
    assert float(logits.std()) > 0


def numerical_rank(change: torch.Tensor) -> int:
    """Return the rank above the rounding of float32, of which planted values are far."""
    values = torch.linalg.svdvals(change)
    noise = 1e-5 * float(values[0])
    assert not ((values > noise) & (values < 100 * noise)).any()
    return int((values > noise).sum())


@pytest.mark.parametrize("name", ["llama", "gpt_oss", "mixtral", "whisper", "qwen2_vl"])
def test_forward_pass_lies_between_base_and_finetuned(saved, tmp_path, name):
    """A cut of all but a little of the update gives nearly what the fine-tuned model gives."""
    architecture, pair = ARCHITECTURES[name], saved(name, "default")
    kind = getattr(transformers, architecture.model)
    distance = []
    for rule in ("0", "energy=0.5", "energy=0.999999"):
        svdcut.truncate(pair.base, pair.finetuned, tmp_path / rule, rank=rule)
        with torch.inference_mode():
            outputs = [
                kind.from_pretrained(folder).eval()(**architecture.inputs())[0]
                for folder in (pair.finetuned, tmp_path / rule)
            ]
        distance.append(float((outputs[0] - outputs[1]).norm()))
    assert distance[0] > 10 * distance[2]
    assert distance[1] > 10 * distance[2]


# One side in each layout


@pytest.mark.parametrize("name", ["qwen2_vl", "llava"])
@pytest.mark.parametrize("base_layout", LAYOUTS)
def test_layouts_that_differ_in_prefixes_are_matched(saved, tmp_path, name, base_layout):
    other = LAYOUTS[1 - LAYOUTS.index(base_layout)]
    pair = Pair(saved(name, base_layout).base, saved(name, other).finetuned)
    same = saved(name, other)
    results = []
    for number, sides in enumerate((pair, same)):
        out = tmp_path / str(number)
        svdcut.truncate(sides.base, sides.finetuned, out, rank=RANK)
        results.append({n: stored.raw for n, stored in read_folder(out).items()})
    assert results[0] == results[1]
    manifest = json.loads((tmp_path / "0" / "svdcut.json").read_text())
    assert manifest["base_only"] == manifest["matching"]["unmatched"] == []
    renames = {(r["base"], r["finetuned"]) for r in manifest["matching"]["renames"]}
    wanted = {
        "qwen2_vl": {("model.", "model.language_model."), ("", "model.")},
        "llava": {
            ("language_model.model.", "model.language_model."),
            ("language_model.", ""),
            ("", "model."),
        },
    }[name]
    assert renames == (wanted if base_layout == "default" else {(b, a) for a, b in wanted})
    weights = [r["tensors"] for r in manifest["matching"]["renames"]]
    assert sum(weights) == len(manifest["tensors"]) - (name == "qwen2_vl")  # lm_head keeps its name


@pytest.mark.parametrize("base_layout", LAYOUTS)
@pytest.mark.parametrize(
    ("name", "moved"),
    [
        ("mixtral", ["gate.weight", "experts"]),
        ("qwen3_moe", ["experts"]),
        ("deepseek_v3", ["experts."]),
        ("gpt_neox", ["embed_out.weight", "lm_head.weight"]),
        ("vit", ["vit.encoder.layer.", "vit.layers."]),
    ],
)
def test_layouts_that_differ_in_more_are_not_passed_over(saved, tmp_path, name, moved, base_layout):
    other = LAYOUTS[1 - LAYOUTS.index(base_layout)]
    pair = Pair(saved(name, base_layout).base, saved(name, other).finetuned)
    manifest = svdcut.truncate(pair.base, pair.finetuned, tmp_path / "out", rank=RANK)
    base, finetuned = read_folder(pair.base), read_folder(pair.finetuned)
    wanted = {
        n for n in finetuned.keys() - base.keys() if math.prod(finetuned[n].value.shape[:2]) > 1
    }
    wanted = {n for n in wanted if finetuned[n].value.dim() > 1}
    assert set(manifest.matching.unmatched) == wanted
    assert all(any(part in n for part in moved) for n in wanted)
    result = read_folder(tmp_path / "out")
    assert all(result[n].raw == finetuned[n].raw for n in wanted)
