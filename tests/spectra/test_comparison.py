"""Two updates side by side: each as if alone, and what their leading spaces share."""

import json
import math

import pytest
import torch

import svdcut
from checkpoints import finetune_tensor, rewrite, write_folder
from matrices import deficient, flat, noise, orthonormal, power_law, repeated, with_spectrum
from svdcut.spectra.matrix import energy_distance
from svdcut.svd.certificate import Method
from svdcut.svd.engine import decompose
from svdcut.svd.route import Route
from svdcut.svd.subspace import SPACE_TOLERANCE, leading_spaces, principal_cosines

NAME = "layers.0.proj.weight"
SHAPES = [(60, 40), (40, 60), (64, 64), (30, 4), (520, 400), (400, 520)]


def write(folder, base, *updates):
    """Write base and what each update makes of it; of one tensor, or of several by name."""

    def named(tensors):
        return {NAME: tensors} if torch.is_tensor(tensors) else tensors

    sides = [named(base)]
    for update in updates:
        moved = named(update)
        sides.append({name: value + moved[name] for name, value in sides[0].items()})
    names = ("base", "ft", "other")
    return [write_folder(folder / n, side) for n, side in zip(names, sides, strict=True)]


def overlap(folder, base, first, second, **options):
    found = svdcut.compare_spectra(*write(folder, base, first, second), **options)
    (matrix,) = found.overlaps[NAME]
    return matrix


def double(m, n, s, seed):
    return with_spectrum(m, n, s, seed=seed, dtype=torch.float64)


def reference(first, second, k):
    """Cosines of left and right spaces by LAPACK, and the largest difference of energy."""
    (u1, s1, v1), (u2, s2, v2) = (
        torch.linalg.svd(matrix.double(), full_matrices=False) for matrix in (first, second)
    )
    left = torch.linalg.svdvals(u1[:, :k].T @ u2[:, :k]).tolist()
    right = torch.linalg.svdvals(v1[:k] @ v2[:k].T).tolist()
    curves = [s.square().cumsum(0) / s.square().sum() for s in (s1, s2)]
    gaps = [float(1 - s[k] / s[k - 1]) if k < len(s) else 1.0 for s in (s1, s2)]
    return left, right, float((curves[0] - curves[1]).abs().max()), gaps


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("rank", [1, 4, 16])
def test_as_by_a_plain_svd(m, n, rank, tmp_path):
    r = min(m, n)
    shared = with_spectrum(m, n, power_law(r, 0.7), seed=1)
    first, second = (
        shared + with_spectrum(m, n, 0.6 * power_law(r, 0.5), seed=seed) for seed in (2, 3)
    )
    base = torch.zeros(m, n)
    found = overlap(tmp_path, base, first, second, rank=rank)
    left, right, distance, gaps = reference(first, second, min(rank, r))
    assert (found.rank, found.rows, found.columns) == (min(rank, r), m, n)
    assert found.left_cosines == pytest.approx(left, abs=1e-3)
    assert found.right_cosines == pytest.approx(right, abs=1e-3)
    squares = [cosine**2 for cosine in left]
    assert found.left_overlap == pytest.approx(sum(squares) / len(squares), abs=1e-3)
    assert found.energy_distance == pytest.approx(distance, abs=1e-6)
    assert found.gaps == pytest.approx(gaps, abs=1e-4)


@pytest.mark.parametrize("factor", [1.0, -3.0, 1e-3])
@pytest.mark.parametrize(("m", "n"), [(50, 70), (420, 400)])
def test_an_update_against_itself(factor, m, n, tmp_path):
    update = double(m, n, power_law(min(m, n)), seed=2)
    base = noise(m, n, seed=1, dtype=torch.float64) * 1e-2
    found = overlap(tmp_path, base, update, factor * update)
    assert found.left_overlap == pytest.approx(1.0, abs=1e-6)
    assert found.right_overlap == pytest.approx(1.0, abs=1e-6)
    assert max(*found.left_cosines, *found.right_cosines) <= 1
    assert found.energy_distance == pytest.approx(0.0, abs=1e-9)
    assert found.gaps[0] == pytest.approx(found.gaps[1], abs=1e-6)


@pytest.mark.parametrize("degrees", [0.0, 0.1, 30.0, 89.0, 90.0])
def test_planted_angles(degrees, tmp_path):
    """The left spaces are turned against each other by one angle, the right ones not at all."""
    generator = torch.Generator().manual_seed(0)
    u, v = orthonormal(60, 8, generator), orthonormal(50, 4, generator)
    angle = math.radians(degrees)
    turned = math.cos(angle) * u[:, :4] + math.sin(angle) * u[:, 4:]
    s = power_law(4).double()
    base = torch.zeros(60, 50, dtype=torch.float64)
    found = overlap(tmp_path, base, (u[:, :4] * s) @ v.T, (turned * s) @ v.T, rank=4)
    assert found.left_cosines == pytest.approx([math.cos(angle)] * 4, abs=1e-10)
    assert found.left_overlap == pytest.approx(math.cos(angle) ** 2, abs=1e-10)
    assert found.right_overlap == pytest.approx(1.0)
    assert found.energy_distance == pytest.approx(0.0, abs=1e-12)


def test_random_updates_overlap_as_chance_says(tmp_path):
    def many(seed):
        return {f"layers.{i}.proj.weight": noise(64, 48, seed=seed + i) for i in range(40)}

    zeros = dict.fromkeys(many(0), torch.zeros(64, 48))
    zeros = {name: value.clone() for name, value in zeros.items()}
    compared = svdcut.compare_spectra(*write(tmp_path, zeros, many(100), many(200)), rank=6)
    found = [matrix for (matrix,) in compared.overlaps.values()]
    assert (found[0].left_chance, found[0].right_chance) == (6 / 64, 6 / 48)
    for side in ("left", "right"):
        mean = sum(getattr(m, f"{side}_overlap") for m in found) / len(found)
        assert mean == pytest.approx(getattr(found[0], f"{side}_chance"), rel=0.1)


def test_the_lower_rank_is_compared(tmp_path):
    first = double(60, 50, power_law(50), seed=1)
    u, s, vh = torch.linalg.svd(first)
    second = (u[:, :3] * s[:3]) @ vh[:3]
    found = overlap(tmp_path, torch.zeros(60, 50, dtype=torch.float64), first, second)
    assert found.rank == 3
    assert found.left_overlap == pytest.approx(1.0)
    assert found.gaps[1] == pytest.approx(1.0)
    assert found.gaps[0] == pytest.approx(float(1 - s[3] / s[2]))


def test_low_rank_where_the_engine_iterates(tmp_path, monkeypatch):
    monkeypatch.setattr("svdcut.svd.route._KRYLOV_MIN_SIDE", 385)
    first, second = (double(420, 400, deficient(400, 5), seed=seed) for seed in (1, 2))
    found = overlap(tmp_path, torch.zeros(420, 400, dtype=torch.float64), first, second)
    left, right, distance, _ = reference(first, second, 5)
    assert found.rank == 5
    assert found.left_cosines == pytest.approx(left, abs=1e-6)
    assert found.right_cosines == pytest.approx(right, abs=1e-6)
    assert found.energy_distance == pytest.approx(distance, abs=1e-9)


@pytest.mark.parametrize("zero", ["first", "second", "both"])
def test_an_update_of_zeros(zero, tmp_path):
    some, none = noise(20, 12, seed=1), torch.zeros(20, 12)
    first, second = (none if zero in (side, "both") else some for side in ("first", "second"))
    found = overlap(tmp_path, some, first, second)
    assert found.rank == 0
    assert (found.left_cosines, found.right_cosines) == ((), ())
    assert (found.left_overlap, found.right_overlap, found.gaps) == (None, None, None)
    assert found.energy_distance is None
    assert found.left_chance == 0


def test_leading_values_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("svdcut.svd.route._KRYLOV_MIN_SIDE", 385)
    m, n = 400, 420
    first, second = (with_spectrum(m, n, power_law(m, p), seed=1) for p in (0.5, 1.0))
    sides = write(tmp_path, torch.zeros(m, n), first, second)
    few = svdcut.compare_spectra(*sides, top=3)
    whole = svdcut.compare_spectra(*sides)
    assert few.first.tensors[NAME].matrices[0].effective_rank is None
    (ours,), (all_of_them,) = few.overlaps[NAME], whole.overlaps[NAME]
    assert ours.left_cosines == pytest.approx(all_of_them.left_cosines, abs=1e-6)
    energies = [
        s.square().cumsum(0) / s.square().sum() for s in (power_law(m, p) for p in (0.5, 1))
    ]
    apart = (energies[0] - energies[1]).abs()
    assert ours.energy_distance == pytest.approx(float(apart[:3].max()), abs=1e-5)
    assert all_of_them.energy_distance == pytest.approx(float(apart.max()), abs=1e-5)


@pytest.mark.parametrize("options", [{}, {"top": 3}, {"intruders": True, "skip": ["*embed*"]}])
def test_each_spectrum_is_the_one_measured_alone(options, pairs, tmp_path):
    pair = pairs("single")
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes((pair.base / "model.safetensors").read_bytes())
    rewrite(
        other / "model.safetensors",
        lambda tensors: {name: finetune_tensor(name, v, 7) for name, v in tensors.items()},
    )
    found = svdcut.compare_spectra(pair.base, pair.finetuned, other, **options)
    for ours, side in ((found.first, pair.finetuned), (found.second, other)):
        alone = svdcut.spectrum(pair.base, side, **options)
        assert ours.tensors == alone.tensors
        assert list(ours.tensors) == list(alone.tensors)
        assert ours.to_json() | {"seconds": 0} == alone.to_json() | {"seconds": 0}
    assert found.unmatched == ()
    assert list(found.overlaps) == list(found.first.tensors)


def test_progress_is_told(tmp_path):
    base, first, second = (
        {name: noise(12, 10, seed=seed + place) for place, name in enumerate(("a", "b"))}
        for seed in (0, 2, 4)
    )
    sides = write(tmp_path, base, first, second)
    told = []
    svdcut.compare_spectra(*sides, observe=told.append)
    assert {(step.stage, step.name) for step in told} == {
        ("spectrum", "a"),
        ("spectrum", "b"),
    }
    assert sum(step.size for step in told) == told[0].total == 4 * 12 * 10 * 4


def test_names_may_differ_by_a_prefix(tmp_path):
    names = [f"layers.{i}.proj.weight" for i in range(3)]
    base = {name: noise(16, 12, seed=i) for i, name in enumerate(names)}
    moved = {name: value + noise(16, 12, seed=9) for name, value in base.items()}
    paths = [
        write_folder(tmp_path / "base", base),
        write_folder(tmp_path / "ft", {f"model.{name}": v for name, v in moved.items()}),
        write_folder(tmp_path / "other", {f"net.body.{name}": v for name, v in moved.items()}),
    ]
    found = svdcut.compare_spectra(*paths, rank=2)
    assert list(found.overlaps) == [f"model.{name}" for name in names]
    assert list(found.second.tensors) == [f"net.body.{name}" for name in names]
    assert all(o.left_overlap == pytest.approx(1) for (o,) in found.overlaps.values())


def test_tensors_that_one_update_lacks(tmp_path):
    base = {name: noise(16, 12, seed=i) for i, name in enumerate("abc")}
    moved = {name: value + noise(16, 12, seed=9) for name, value in base.items()}
    paths = [
        write_folder(tmp_path / "base", base),
        write_folder(tmp_path / "ft", {name: moved[name] for name in "ab"}),
        write_folder(tmp_path / "other", {name: moved[name] for name in "bc"}),
    ]
    found = svdcut.compare_spectra(*paths)
    assert list(found.overlaps) == ["b"]
    assert found.unmatched == ("a", "c")
    assert (list(found.first.tensors), list(found.second.tensors)) == (["a", "b"], ["b", "c"])


@pytest.mark.parametrize("swapped", [False, True])
def test_tied_embeddings_meet_embeddings(swapped, pairs):
    untied, tied = pairs("untied_by_finetuning"), pairs("tied")
    sides = [untied.finetuned, tied.finetuned]
    found = svdcut.compare_spectra(untied.base, *(sides[::-1] if swapped else sides))
    assert "model.embed_tokens.weight" in found.overlaps
    assert found.unmatched == ("lm_head.weight",)


def test_a_stack_is_compared_expert_by_expert(tmp_path):
    name = "model.layers.0.mlp.experts.down_proj"
    base = torch.stack([noise(24, 36, seed=i) for i in range(3)])
    first = torch.stack([noise(24, 36, seed=10 + i) for i in range(3)])
    second = torch.stack([first[0], torch.zeros(24, 36), noise(24, 36, seed=20)])
    sides = write(tmp_path, {name: base}, {name: first}, {name: second})
    found = svdcut.compare_spectra(*sides, rank=5)
    same, none, apart = found.overlaps[name]
    assert same.left_overlap == pytest.approx(1)
    assert none.rank == 0
    assert apart.left_cosines == pytest.approx(reference(first[2], second[2], 5)[0], abs=1e-4)
    document = json.loads(json.dumps(found.to_json()))
    assert document["overlaps"][name]["rank"] == [5, 0, 5]
    assert document["overlaps"][name]["left_overlap"][1] is None
    assert [len(cosines) for cosines in document["overlaps"][name]["right_cosines"]] == [5, 0, 5]


def test_the_json_holds_both_spectra(tmp_path):
    base, first, second = (noise(16, 12, seed=i) for i in range(3))
    found = svdcut.compare_spectra(*write(tmp_path, base, first, second), rank=3)
    document = json.loads(json.dumps(found.to_json()))
    assert document["schema"] == "svdcut/comparison/1"
    assert document["rank"] == 3
    assert document["first"] == found.first.to_json()
    assert document["second"]["checkpoint"].endswith("other")
    (matrix,) = found.overlaps[NAME]
    assert document["overlaps"][NAME] == {
        "rank": 3,
        "left_cosines": list(matrix.left_cosines),
        "right_cosines": list(matrix.right_cosines),
        "left_overlap": matrix.left_overlap,
        "right_overlap": matrix.right_overlap,
        "left_chance": 3 / 16,
        "right_chance": 3 / 12,
        "gaps": list(matrix.gaps),
        "energy_distance": matrix.energy_distance,
    }


@pytest.mark.parametrize("side", ["ft", "other"])
def test_nan_is_refused(side, tmp_path):
    update = noise(16, 12, seed=1)
    broken = update.clone()
    broken[2, 3] = torch.nan
    first, second = (broken if side == name else update for name in ("ft", "other"))
    with pytest.raises(svdcut.NonFiniteError, match=rf"{NAME}' .*/{side}/model"):
        overlap(tmp_path, update, first, second)


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_below_one_is_refused(rank, tmp_path):
    with pytest.raises(svdcut.UsageError, match="at least 1"):
        svdcut.compare_spectra(tmp_path, tmp_path, tmp_path, rank=rank)


def test_the_distance_of_energies_of_nothing():
    assert energy_distance(([0.0], 0.0), ([1.0], 1.0)) is None
    assert energy_distance(([], 1.0), ([1.0], 1.0)) is None


SPECTRA = {
    "power law": power_law(400),
    "flat": flat(400),
    "copies": repeated(400, 6),
    "noise": None,
    "steep": 10.0 ** -torch.linspace(0, 12, 400).double(),
}


@pytest.mark.parametrize("kind", SPECTRA)
def test_spaces_are_as_near_as_their_bound_says(kind):
    """Where there is a gap; and within the tolerance wherever the engine stops."""
    s = SPECTRA[kind]
    a = noise(450, 400, seed=1) if s is None else with_spectrum(450, 400, s, seed=1)
    u, true, vh = torch.linalg.svd(a.double(), full_matrices=False)
    found = leading_spaces(a.clone(), 12, seed=0)
    assert torch.allclose(found.left.T @ found.left, torch.eye(found.rank).double(), atol=1e-12)
    assert torch.allclose(found.right.T @ found.right, torch.eye(found.rank).double(), atol=1e-12)
    for k in range(1, found.rank + 1):
        if true[k] ** 2 < (1 - 1e-3) * true[k - 1] ** 2:
            for ours, theirs in ((found.left, u), (found.right, vh.T)):
                (smallest,) = principal_cosines(ours[:, :k], theirs[:, :k])[-1:]
                assert math.sqrt(max(1 - smallest**2, 0)) <= SPACE_TOLERANCE


@pytest.mark.parametrize("route", [Route.GRAM, Route.KRYLOV])
def test_the_bound_is_above_the_truth(route):
    a = with_spectrum(500, 400, power_law(400, 0.3), seed=1)
    vh = torch.linalg.svd(a.double(), full_matrices=False).Vh
    found = decompose(a, 8, accept=lambda found: True, route=route)
    assert found.method is Method(route.value)
    right = torch.linalg.qr(found.triplets.right[:, :8].double()).Q
    worst = 0.0
    for k in range(1, 9):
        outside = right[:, :k] - vh[:k].T @ (vh[:k] @ right[:, :k])
        worst = max(worst, float(torch.linalg.matrix_norm(outside, 2)))
        assert worst <= found.measured().space_bound(k) + 1e-12
    assert found.measured().space_bound(8) <= 1e-2
