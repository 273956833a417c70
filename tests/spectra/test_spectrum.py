"""``svdcut.spectrum``: exact values for every kind of checkpoint, and what follows from them."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import svdcut
from architectures import ARCHITECTURES
from checkpoints import read_folder, toy, write_folder
from kinds import KINDS
from matrices import noise
from svdcut.api.spectra import prepare_spectra
from svdcut.choose.ranks import Fixed, parse_rule, rank_for_energy
from svdcut.names import model_order
from svdcut.spectra.columns import COLUMNS, JOINED, NORM, describe
from svdcut.spectra.cuts import cut_points
from svdcut.spectra.files import HEAD, rows, save_values
from svdcut.spectra.groups import SORT_KEYS, by_depth, by_module, sort_tensors
from svdcut.spectra.matrix import (
    Intruders,
    Spectrum,
    effective_rank,
    energy_curve,
    head_rank,
    stable_rank,
)
from svdcut.svd.certificate import RESOLUTION

GOLDEN = Path(__file__).parents[1] / "golden" / "spectrum.json"
TOLERANCE, FLOOR = 1e-5, 1e-7
"""Singular values are within this share of themselves, or that of the first, if larger."""

ROUNDING = 2.0**-24
"""Of an entry that float32 subtracts, relatively."""

UNREAD = ("nan-copied", "nan-complex")
WORKING = [slug for slug, kind in KINDS.items() if not kind.error]
# What is only copied is not read.
REFUSED = [slug for slug, kind in KINDS.items() if kind.error and slug not in UNREAD]


def options_of(kind):
    return {key: value for key, value in kind.options.items() if key in ("only", "skip", "map")}


def plan_of(*sides, **options):
    return prepare_spectra(svdcut.SpectrumOptions(*sides, **options))


def stored(entry):
    """A tensor as the safetensors library reads it, in float64."""
    with safe_open(entry.path, "pt") as file:
        return file.get_tensor(entry.name).double()


def reference(plan):
    """Singular values of every matrix of a plan, by torch in float64: a list for each tensor."""
    values = {}
    for pair in plan.pairs:
        update = stored(pair.finetuned)
        if pair.base is not None:
            base = stored(pair.base)
            count = min(len(update), len(base))
            update = update[:count] - base[:count]
        matrices = update if pair.stacked else [update.reshape(len(update), -1)]
        values[pair.name] = [torch.linalg.svdvals(matrix) for matrix in matrices]
    return values


def allowed_errors(s):
    return (TOLERANCE * s).clamp_min(FLOOR * float(s[0]))


def check_values(spectra, expected, *, top=None):
    assert spectra.tensors.keys() == expected.keys()
    for name, tensor in spectra.tensors.items():
        for matrix, s in zip(tensor.matrices, expected[name], strict=True):
            got = torch.tensor(matrix.singular_values, dtype=torch.float64)
            assert len(got) == len(s[:top])
            assert matrix.full_rank == len(s)
            assert bool(((got - s[:top]).abs() <= allowed_errors(s[:top])).all())
            assert matrix.norm == pytest.approx(float(s.norm()), rel=2 * ROUNDING, abs=1e-300)


@pytest.mark.parametrize("slug", WORKING)
def test_update_of_every_kind(slug, tmp_path):
    kind = KINDS[slug]
    pair = kind.build(tmp_path)
    request = plan_of(pair.base, pair.finetuned, **options_of(kind))
    found = svdcut.spectrum(pair.base, pair.finetuned, **options_of(kind))
    manifest = svdcut.truncate(pair.base, pair.finetuned, tmp_path / "o", rank=1, **kind.options)
    cut = {
        name for name, fact in manifest.tensors.items() if fact.action in ("truncate", "unchanged")
    }
    assert set(found.tensors) == cut
    assert set(found.left_out) == set(manifest.tensors) - cut
    check_values(found, reference(request.plan))


@pytest.mark.parametrize("slug", WORKING)
def test_weights_of_every_kind(slug, tmp_path):
    pair = KINDS[slug].build(tmp_path)
    found = svdcut.spectrum(pair.finetuned)
    check_values(found, reference(plan_of(pair.finetuned).plan))
    for _, matrix in found.matrices:
        assert matrix.base_norm is matrix.relative_norm is None


@pytest.mark.parametrize("slug", REFUSED)
def test_refused_kinds(slug, tmp_path):
    kind = KINDS[slug]
    pair = kind.build(tmp_path)
    with pytest.raises(svdcut.InputError):
        svdcut.spectrum(pair.base, pair.finetuned, **options_of(kind))


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_architectures(name, tmp_path):
    pair = ARCHITECTURES[name].pair(tmp_path)
    found = svdcut.spectrum(pair.base, pair.finetuned)
    check_values(found, reference(plan_of(pair.base, pair.finetuned).plan))


def test_real_pair_against_float64(real_pair):
    for finetuned in (real_pair.finetuned, real_pair.finetuned_encoder):
        found = svdcut.spectrum(real_pair.base, finetuned)
        check_values(found, reference(plan_of(real_pair.base, finetuned).plan))


def large_updates(m, n):
    """Pairs in float32 whose difference has more bits than that: the update dwarfs the weights."""
    base = 0.02 * noise(m, n)
    yield noise(m, n, seed=1), noise(m, n, seed=2)
    yield base, base + 10 * base.roll(1)
    yield base, base + noise(m, 1, seed=1) @ noise(1, n, seed=2)
    yield base * (noise(m, n, seed=1) > 0), base + noise(m, 4, seed=2) @ noise(4, n, seed=3)
    yield base + 0.1, base.roll(1) + 7.3
    yield base, base * torch.exp(2 * noise(m, 1, seed=1)) + 0.3 * noise(m, n, seed=2)


def test_float32_subtraction_is_far_within_what_is_promised():
    """Every command subtracts float32 in float32; a tenth of the tolerance would do."""
    for base, finetuned in large_updates(200, 160):
        single = (finetuned - base).double()
        exact = finetuned.double() - base.double()
        assert not torch.equal(single, exact)
        s = torch.linalg.svdvals(exact)
        errors = (torch.linalg.svdvals(single) - s).abs()
        assert bool((errors <= allowed_errors(s) / 10).all())


def test_truncate_and_spectrum_have_the_same_update(tmp_path):
    """Of values near the floor too, where the two would part if they subtracted differently."""
    pairs = dict(enumerate(large_updates(60, 40)))
    sides = [
        write_folder(
            tmp_path / side, {f"{i}.weight": pair[place].clone() for i, pair in pairs.items()}
        )
        for place, side in enumerate(("base", "ft"))
    ]
    seen = svdcut.spectrum(*sides).tensors
    cut = svdcut.truncate(*sides, tmp_path / "out", rank=39).tensors
    for name, tensor in seen.items():
        s, facts = tensor.matrices[0].singular_values, cut[name].truncation
        (matrix,) = facts.matrices
        for value, claim in ((s[0], matrix.sigma_first), (s[39], matrix.sigma_next)):
            assert claim == pytest.approx(value, rel=1e-6, abs=1e-10 * s[0])
        assert facts.update_norm == pytest.approx(tensor.matrices[0].norm, rel=1e-12)


def thinned(spectra):
    """What the golden file keeps of a document: all numbers, but not all singular values."""
    document = spectra.to_json()
    del document["svdcut_version"], document["torch_version"], document["seconds"]
    document |= {"base": "base", "checkpoint": "finetuned"}
    for facts in document["tensors"].values():
        facts["singular_values"] = facts["singular_values"][::51]
        del facts["value_bound"], facts["method"]
    return document


def close(got, expected, where=""):
    if isinstance(expected, dict):
        assert list(got) == list(expected), where
        for key, value in expected.items():
            close(got[key], value, f"{where}/{key}")
    elif isinstance(expected, list):
        assert len(got) == len(expected), where
        for number, value in enumerate(expected):
            close(got[number], value, f"{where}/{number}")
    elif isinstance(expected, float):
        # What is below the resolution of a spectrum is rounding, another on each processor.
        floor = RESOLUTION if "/singular_values/" in where else 1e-12
        assert got == pytest.approx(expected, rel=1e-6, abs=floor), where
    else:
        assert got == expected, where


def test_golden_json_of_the_real_pair(real_pair):
    """Written anew by ``python tests/spectra/test_spectrum.py``; look at what changed."""
    found = thinned(svdcut.spectrum(real_pair.base, real_pair.finetuned))
    close(found, json.loads(GOLDEN.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def wide_pair(tmp_path_factory):
    """Matrices wide enough for the iteration, in bfloat16, and a stack."""
    folder = tmp_path_factory.mktemp("wide")
    generator = torch.Generator().manual_seed(0)

    def side(scale):
        update = {}
        for name, shape in (("a", (600, 500)), ("b", (450, 900)), ("c", (40, 30))):
            left, right = (torch.randn(n, min(shape), generator=generator) for n in shape)
            s = torch.arange(1, min(shape) + 1) ** -0.7 + 0.01
            update[f"layers.0.{name}.weight"] = (
                scale * (left * s) @ right.T / math.sqrt(math.prod(shape))
            )
        update["layers.0.experts.up"] = scale * torch.randn(3, 400, 420, generator=generator)
        return update

    weights, moved = side(1.0), side(0.1)
    tuned = {name: (value + moved[name]).bfloat16() for name, value in weights.items()}
    base = {name: value.bfloat16() for name, value in weights.items()}
    return write_folder(folder / "base", base), write_folder(folder / "ft", tuned)


@pytest.fixture
def iterates(monkeypatch):
    """Leading values of matrices this small are iterated for, too."""
    monkeypatch.setattr("svdcut.svd.route._KRYLOV_MIN_SIDE", 385)


@pytest.mark.usefixtures("iterates")
@pytest.mark.parametrize("top", [1, 24, 64])
def test_leading_values(wide_pair, top):
    found = svdcut.spectrum(*wide_pair, top=top)
    check_values(found, reference(plan_of(*wide_pair).plan), top=top)
    whole = svdcut.spectrum(*wide_pair)
    methods = set()
    for (name, part), (_, full) in zip(found.matrices, whole.matrices, strict=True):
        methods.add(part.method)
        assert part.value_bound <= TOLERANCE
        assert part.stable_rank == pytest.approx(full.stable_rank, rel=1e-5)
        for field in ("effective_rank", "rank_90", "rank_99", "noise_edge", "above_noise_edge"):
            # What the leading values do not tell is not told, and nothing else.
            value, expected = getattr(part, field), getattr(full, field)
            assert value is None or value == pytest.approx(expected, rel=1e-9), (name, field)
        if full.rank_90 <= top:
            assert part.rank_90 == full.rank_90
    assert "krylov" in methods


def test_the_methods_are_those_that_were_taken(wide_pair):
    assert {matrix.method for _, matrix in svdcut.spectrum(*wide_pair).matrices} == {"gram"}


def test_statistics(wide_pair):
    for name, matrix in svdcut.spectrum(*wide_pair).matrices:
        s = np.array(matrix.singular_values)
        shares = s / s.sum()
        assert matrix.effective_rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
        assert matrix.stable_rank == pytest.approx((s**2).sum() / s[0] ** 2)
        for share, rank in ((0.9, matrix.rank_90), (0.99, matrix.rank_99)):
            energy = (s**2).cumsum() / (s**2).sum()
            assert energy[rank - 1] >= share - 1e-12
            assert rank == 1 or energy[rank - 2] < share
        assert matrix.above_noise_edge == (s > matrix.noise_edge).sum()
        assert matrix.relative_norm == matrix.norm / matrix.base_norm, name


def test_norms_zeros_and_edges_against_the_weights(wide_pair):
    base, tuned = (read_folder(side) for side in wide_pair)
    found = svdcut.spectrum(*wide_pair)
    for name, tensor in found.tensors.items():
        theirs, ours = base[name].value.double(), tuned[name].value.double()
        for i, matrix in enumerate(tensor.matrices):
            a, b = (ours[i], theirs[i]) if tensor.stacked else (ours, theirs)
            assert matrix.norm == pytest.approx(float((a - b).norm()), rel=1e-9)
            assert matrix.base_norm == pytest.approx(float(b.norm()), rel=1e-9)
            assert matrix.zero_fraction == pytest.approx(float((a == b).double().mean()))


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40), st.floats(0.01, 0.99))
def test_properties_of_the_statistics(values, share):
    s = sorted((value for value in values if value == 0 or value > 1e-100), reverse=True) or [0.0]
    norm = math.hypot(*s)
    if norm == 0:
        assert stable_rank(s, norm) is effective_rank(s) is None
        assert energy_curve(s, norm) == [1.0] * len(s)
        return
    positive = sum(value > 0 for value in s)
    assert 1 - 1e-9 <= stable_rank(s, norm) <= effective_rank(s) * (1 + 1e-9)
    assert effective_rank(s) <= positive * (1 + 1e-9)
    curve = energy_curve(s, norm)
    assert curve == sorted(curve)
    assert curve[-1] == pytest.approx(1)
    found = head_rank(s, norm, share)
    assert abs(found - rank_for_energy(s, share)) <= 1
    assert curve[found - 1] >= share
    assert found == 1 or curve[found - 2] < share


def test_a_base_equal_to_the_fine_tuned_side(tmp_path):
    pair = toy(tmp_path)
    for _, matrix in svdcut.spectrum(pair.base, pair.base).matrices:
        assert set(matrix.singular_values) == {0.0}
        assert (matrix.norm, matrix.rank_90, matrix.above_noise_edge) == (0, 0, 0)
        assert matrix.stable_rank is matrix.effective_rank is None
        assert matrix.zero_fraction == 1


def test_nothing_but_vectors(tmp_path):
    folder = write_folder(tmp_path / "v", {"norm.weight": torch.ones(4)})
    found = svdcut.spectrum(folder)
    assert (found.tensors, found.left_out) == ({}, ("norm.weight",))
    json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.parametrize("side", ["base", "finetuned"])
def test_nan_is_refused(tmp_path, side):
    pair = toy(tmp_path)
    path = getattr(pair, side) / "model.safetensors"
    tensors = load_file(path)
    name = next(
        name for name, value in tensors.items() if value.dim() == 2 and value.is_floating_point()
    )
    tensors[name][1, 1] = math.nan
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(svdcut.NonFiniteError, match=name):
        svdcut.spectrum(pair.base, pair.finetuned)


def test_usage_errors(tmp_path):
    pair = toy(tmp_path)
    for options, words in (
        ({"top": 0}, "--top 0"),
        ({"only": ["nothing*"]}, "--only 'nothing"),
        ({"skip": ["nothing*"]}, "--skip 'nothing"),
        ({"map": {"nothing": "x"}}, "--map nothing"),
        ({"device": "tpu"}, "--device 'tpu'"),
    ):
        with pytest.raises(svdcut.UsageError, match=words):
            svdcut.spectrum(pair.base, pair.finetuned, **options)
    for options in ({"intruders": True}, {"map": {"a": "b"}}):
        with pytest.raises(svdcut.UsageError, match="needs two checkpoints"):
            svdcut.spectrum(pair.base, **options)


def test_order_of_a_model():
    names = ["lm_head.weight", "model.layers.10.mlp.up.weight", "model.layers.2.mlp.up.weight"]
    names += ["model.embed_tokens.weight", "model.layers.2.attn.q.weight", "model.norm.weight"]
    names += ["model.layers.2.mlp.experts.10.up", "model.layers.2.mlp.experts.9.up"]
    assert sorted(names, key=model_order) == [
        "model.embed_tokens.weight",
        "model.layers.2.attn.q.weight",
        "model.layers.2.mlp.experts.9.up",
        "model.layers.2.mlp.experts.10.up",
        "model.layers.2.mlp.up.weight",
        "model.layers.10.mlp.up.weight",
        "lm_head.weight",
        "model.norm.weight",
    ]


def test_sorted_by_every_key(wide_pair):
    found = svdcut.spectrum(*wide_pair)
    assert len(SORT_KEYS) == 2 + len(JOINED)
    assert list(sort_tensors(found, "name").tensors) == sorted(found.tensors)
    for column in JOINED:
        tensors = sort_tensors(found, column.key).tensors
        assert tensors.keys() == found.tensors.keys()
        values = [column.joined(tensor.matrices) for tensor in tensors.values()]
        known = [value for value in values if value is not None]
        assert known == sorted(known, reverse=True)
        assert values[: len(known)] == known  # the others come last


def test_groups(tmp_path):
    found = svdcut.spectrum(*vars(toy(tmp_path, layers=3)).values())
    modules = by_module(found)
    assert sum(len(group.matrices) for group in modules) == len(found.matrices)
    assert [group.name for group in by_depth(found)] == ["0", "1", "2"]
    whole = math.hypot(*(matrix.norm for _, matrix in found.matrices))
    assert math.hypot(*(NORM.joined(group.matrices) for group in modules)) == pytest.approx(whole)


def matrix(values, *, size=100, top=None, full_rank=None, **facts):
    """A spectrum with its columns, of these values."""
    usual = {"base_norm": 20.0, "noise_edge": 1.0, "zero_fraction": 0.0, "method": "gram"}
    raw = Spectrum(
        singular_values=values,
        full_rank=full_rank or len(values),
        size=size,
        norm=math.hypot(*values),
        value_bound=1e-9,
        **usual | facts,
    )
    return describe(raw, top)


JOINS = {
    "norm": (13.0, "13"),
    "relative_norm": (13 / math.hypot(20, 20), "46%"),
    "sigma_first": (12.0, "12"),
    "sigma_last": (12e-7, "<1.2e-06"),
    "stable_rank": ((25 / 16 + 1) / 2, "1.3"),
    "effective_rank": (
        (math.exp(math.log(7) - (3 * math.log(3) + 4 * math.log(4)) / 7) + 1) / 2,
        "1.5",
    ),
    "rank_90": (1.5, "1.5"),
    "rank_99": (1.5, "1.5"),
    "noise_edge": (1.5, "1.5"),
    "above_noise_edge": (1.5, "1.5"),
    "zero_fraction": (0.1, "10%"),
    "intruders": (3, "3"),
}


def test_every_column_has_one_rule_for_several_matrices():
    """A stack, a module and a layer alike, on the screen, the page and in pictures."""
    intruders = [Intruders(cosines, 0.5) for cosines in ((0.1, 0.9), (0.2, 0.3))]
    both = [
        matrix([4.0, 3.0], intruders=intruders[0]),
        matrix(
            [12.0, 0.0], size=300, noise_edge=2.0, zero_fraction=0.4 / 3, intruders=intruders[1]
        ),
    ]
    assert JOINS.keys() == {column.key for column in JOINED}
    for column in JOINED:
        value, text = JOINS[column.key]
        assert column.joined(both) == pytest.approx(value), column.key
        assert column.text(both) == text, column.key


def test_several_matrices_have_no_number_where_one_has_none():
    whole, head = matrix([4.0, 3.0, 2.0]), matrix([4.0], full_rank=3)
    zeros = matrix([0.0, 0.0, 0.0], noise_edge=0.0)
    for column in JOINED:
        alone = column.joined([whole])
        if column.key in ("stable_rank", "effective_rank"):
            assert column.joined([whole, zeros]) == alone  # zeros have none of their own
            assert column.joined([zeros]) is None
        if column.joined([head]) is None:
            assert column.joined([whole, head]) is None
            assert column.text([whole, head]) == "-"


def test_columns_are_measured_from_all_values_that_were_computed():
    """However many of them are kept: the last one too."""
    values = [float(value) for value in range(20, 0, -1)]
    whole, some = matrix(values), matrix(values, top=4)
    assert list(some.singular_values) == values[:4]
    assert some.numbers == whole.numbers
    assert some.sigma_last == 1.0
    head = matrix(values[:4], full_rank=20)
    assert head.sigma_last is head.effective_rank is None


def test_a_spectrum_has_the_columns_as_attributes():
    found = matrix([4.0, 3.0])
    for column in COLUMNS:
        assert getattr(found, column.key) is not None or column.key == "intruders"
    assert "stable_rank=1.5625" in repr(found)
    with pytest.raises(AttributeError, match="stable_rnk"):
        _ = found.stable_rnk


def test_cut_points_are_those_of_truncate(wide_pair, tmp_path):
    found = svdcut.spectrum(*wide_pair)
    for point in cut_points(found):
        manifest = svdcut.truncate(*wide_pair, tmp_path / str(point.rule), rank=str(point.rule))
        assert manifest.totals.rank == point.rank
        assert manifest.totals.full_rank == point.full_rank
        assert manifest.totals.energy_retained == pytest.approx(point.energy, abs=1e-9)


@pytest.mark.usefixtures("iterates")
def test_cut_points_of_leading_values(wide_pair):
    points = {str(point.rule): point for point in cut_points(svdcut.spectrum(*wide_pair, top=64))}
    whole = {str(point.rule): point for point in cut_points(svdcut.spectrum(*wide_pair))}
    assert "64" in points
    assert "256" not in points
    for rule, point in points.items():
        assert (point.rank, point.lowest, point.highest) == (
            whole[rule].rank,
            whole[rule].lowest,
            whole[rule].highest,
        )
        assert point.energy is None or point.energy == pytest.approx(whole[rule].energy, rel=1e-6)
    assert points["64"].energy is not None
    assert parse_rule("64") == Fixed(64)


def test_rows(wide_pair):
    found = svdcut.spectrum(*wide_pair)
    table = [dict(zip(HEAD, row, strict=True)) for row in rows(found)]
    assert len(table) == len(found.matrices)
    stacked = [row for row in table if row["tensor"].endswith("experts.up")]
    assert [row["matrix"] for row in stacked] == [0, 1, 2]
    for row, (name, matrix) in zip(table, found.matrices, strict=True):
        assert row["tensor"] == name
        assert row["sigma_first"] == matrix.singular_values[0]
        assert row["sigma_last"] == matrix.singular_values[-1]


@pytest.mark.parametrize("top", [None, 10])
def test_saved_values(wide_pair, tmp_path, top):
    found = svdcut.spectrum(*wide_pair, top=top)
    path = tmp_path / "values.safetensors"
    save_values(found, path)
    saved = load_file(path)
    assert saved.keys() == found.tensors.keys()
    for name, tensor in found.tensors.items():
        expected = [list(matrix.singular_values) for matrix in tensor.matrices]
        assert saved[name].dtype == torch.float64
        assert saved[name].tolist() == (expected if tensor.stacked else expected[0])
    with safe_open(path, "pt") as file:
        assert file.metadata()["subject"] == "update"
        assert file.metadata()["checkpoint"] == str(wide_pair[1])
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


@pytest.mark.usefixtures("iterates")
def test_same_numbers_whatever_the_workers(wide_pair, monkeypatch):
    documents = []
    for cores in (1, 3):
        monkeypatch.setattr("svdcut.spectra.run.num_workers", lambda device, cores=cores: cores)
        document = svdcut.spectrum(*wide_pair, top=24).to_json()
        del document["seconds"]
        documents.append(document)
    assert documents[0] == documents[1]


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
    from real_pair import make_real_pair

    sides = make_real_pair(Path(__file__).parents[2] / "demo")
    GOLDEN.parent.mkdir(exist_ok=True)
    text = json.dumps(thinned(svdcut.spectrum(sides.base, sides.finetuned)), indent=1)
    GOLDEN.write_text(text + "\n", encoding="utf-8")
