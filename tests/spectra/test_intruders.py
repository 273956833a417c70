"""Intruder dimensions are those of a plain SVD of both sides' weights."""

import json

import pytest
import torch

import svdcut
from checkpoints import write_folder
from matrices import deficient, flat, noise, orthonormal, power_law, with_spectrum
from svdcut.files.checkpoint import open_checkpoint
from svdcut.spectra.plan import SpectraOptions, plan_spectra
from svdcut.streaming.memory import spectrum_needs

NAME = "layers.0.proj.weight"
SHAPES = [(60, 40), (40, 60), (96, 96), (30, 4), (5, 80), (520, 400), (400, 520)]


def measure(folder, base, finetuned, **options):
    """The spectra of a pair of one tensor, or of several by name."""
    sides = [{NAME: side} if torch.is_tensor(side) else side for side in (base, finetuned)]
    paths = [
        write_folder(folder / name, {k: v.contiguous() for k, v in side.items()})
        for name, side in zip(("base", "ft"), sides, strict=True)
    ]
    return svdcut.spectrum(*paths, intruders=True, **options)


def intruders(folder, base, finetuned, **options):
    (matrix,) = measure(folder, base, finetuned, **options).tensors[NAME].matrices
    return matrix.intruders


def reference(base, finetuned):
    """Largest cosines by LAPACK, of vectors that have a value."""

    def left(weights, floor):
        u, s, _ = torch.linalg.svd(weights.double(), full_matrices=False)
        return u[:, s > floor * s[0]]

    return (left(base, 1e-6).T @ left(finetuned, 1e-8)[:, :10]).abs().amax(0).tolist()


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("size", [0.05, 1.0])
def test_cosines_are_those_of_a_plain_svd(m, n, size, tmp_path):
    r = min(m, n)
    base = with_spectrum(m, n, power_law(r, 0.6), seed=1)
    finetuned = base + with_spectrum(m, n, size * power_law(r, 0.8), seed=2)
    found = intruders(tmp_path, base, finetuned)
    expected = reference(base, finetuned)
    assert len(found.cosines) == min(10, r)
    assert found.cosines == pytest.approx(expected, abs=1e-3)
    assert found.count == sum(cosine < 0.5 for cosine in expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype(dtype, tmp_path):
    base = noise(48, 64, seed=1).to(dtype)
    finetuned = (base.double() + with_spectrum(48, 64, 9 * power_law(48), seed=2)).to(dtype)
    found = intruders(tmp_path, base, finetuned)
    assert found.cosines == pytest.approx(reference(base, finetuned), abs=1e-5)


@pytest.mark.parametrize(("m", "n"), [(96, 64), (64, 96), (450, 400)])
def test_a_planted_vector_is_the_only_intruder(m, n, tmp_path):
    r = min(m, n)
    generator = torch.Generator().manual_seed(0)
    u, v = orthonormal(m, r, generator), orthonormal(n, r, generator)
    s = torch.linspace(2, 1, r).double()
    base = (u * s) @ v.T
    mixed = u[:, 12:].sum(1) / (r - 12) ** 0.5  # a little of each but the leading ones
    finetuned = base + 9 * torch.outer(mixed, v[:, -1])
    found = intruders(tmp_path, base.float(), finetuned.float())
    assert found.count == 1
    assert found.cosines[0] < 0.3
    assert min(found.cosines[1:]) > 0.9


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
def test_an_update_that_keeps_the_vectors_has_none(scale, tmp_path):
    base = with_spectrum(70, 50, power_law(50), seed=1) * scale
    found = intruders(tmp_path, base, 1.5 * base)
    assert found.cosines == pytest.approx([1.0] * 10, abs=1e-6)
    assert max(found.cosines) <= 1
    assert found.count == 0


def test_no_update_has_none(tmp_path):
    base = noise(400, 420, seed=1)
    found = intruders(tmp_path, base, base)
    assert found.cosines == pytest.approx([1.0] * 10, abs=1e-4)


def test_of_equal_values_any_vectors_will_do(tmp_path):
    base = with_spectrum(64, 48, flat(48), seed=1, dtype=torch.float64)
    found = intruders(tmp_path, base, base + 1e-3 * noise(64, 48, seed=2, dtype=torch.float64))
    assert min(found.cosines) > 0.99


def test_a_null_space_has_no_vectors(tmp_path):
    base = with_spectrum(80, 60, deficient(60, 5), seed=1, dtype=torch.float64)
    u = torch.linalg.svd(base).U
    new = 9 * torch.outer(u[:, 30], noise(60, 1, seed=3, dtype=torch.float64)[:, 0])
    found = intruders(tmp_path, base, base + new)
    assert len(found.cosines) == 6
    assert found.cosines == pytest.approx(reference(base, base + new), abs=1e-9)
    assert found.cosines[0] < 0.5


def test_matrices_of_zeros(tmp_path):
    zeros, some = torch.zeros(20, 12), noise(20, 12, seed=1)
    grown = intruders(tmp_path / "grown", zeros, some)
    assert grown.cosines == (0.0,) * 10
    assert grown.count == 10
    for name, base in (("gone", some), ("never", zeros)):
        found = intruders(tmp_path / name, base, zeros)
        assert (found.cosines, found.count) == ((), 0)


def test_each_expert_has_its_own(tmp_path):
    name = "model.layers.0.mlp.experts.down_proj"
    base = torch.stack([noise(24, 36, seed=i) for i in range(3)])
    moved = torch.stack([with_spectrum(24, 36, 20 * i * flat(2), seed=9 + i) for i in range(3)])
    tensor = measure(tmp_path, {name: base}, {name: base + moved}).tensors[name]
    for matrix, ours, theirs in zip(tensor.matrices, base, base + moved, strict=True):
        assert matrix.intruders.cosines == pytest.approx(reference(ours, theirs), abs=1e-6)
    document = json.loads(json.dumps(tensor.to_json()))["intruders"]
    assert [expert["count"] for expert in document] == [m.intruders.count for m in tensor.matrices]
    assert document[0]["threshold"] == 0.5


def test_a_convolution_is_the_matrix_of_its_outputs(tmp_path):
    base, moved = noise(16, 27, seed=1), 3 * noise(16, 27, seed=2)
    shape = (16, 3, 3, 3)
    found = intruders(tmp_path, base.reshape(shape), (base + moved).reshape(shape))
    assert found.cosines == pytest.approx(reference(base, base + moved), abs=1e-6)


@pytest.mark.parametrize("kind", ["tied", "untied_by_finetuning", "grown_vocabulary"])
def test_embeddings(kind, pairs):
    pair = pairs(kind)
    found = svdcut.spectrum(pair.base, pair.finetuned, intruders=True)
    assert all(len(matrix.intruders.cosines) == 10 for _, matrix in found.matrices)


def test_beside_it_nothing_changes(pairs):
    pair = pairs("single")
    plain = svdcut.spectrum(pair.base, pair.finetuned)
    beside = svdcut.spectrum(pair.base, pair.finetuned, intruders=True)
    few = svdcut.spectrum(pair.base, pair.finetuned, intruders=True, top=3)
    for name, matrix in beside.matrices:
        (other,), (fewer,) = plain.tensors[name].matrices, few.tensors[name].matrices
        assert other.intruders is None
        assert matrix.singular_values == other.singular_values
        assert matrix.intruders == fewer.intruders


def test_one_side_has_no_intruders(pairs):
    with pytest.raises(svdcut.UsageError, match="two checkpoints"):
        svdcut.spectrum(pairs("single").finetuned, intruders=True)


def test_nan_is_refused_by_the_name_of_its_side(tmp_path):
    base = noise(20, 20, seed=1)
    broken = base.clone()
    broken[3, 4] = torch.nan
    with pytest.raises(svdcut.NonFiniteError, match=f"{NAME}' of base holds NaN"):
        intruders(tmp_path, broken, base)


@pytest.mark.parametrize(("m", "n"), [(512, 512), (2048, 512)])
def test_memory_counts_the_vectors(m, n, tmp_path):
    sides = [write_folder(tmp_path / side, {NAME: torch.zeros(m, n)}) for side in ("base", "ft")]
    plan = plan_spectra(*map(open_checkpoint, sides), SpectraOptions())
    needs = spectrum_needs([(pair,) for pair in plan.pairs], None, intruders=True)
    assert needs.sizes[0] >= 8 * min(m, n) ** 2 * 4
    assert needs.total <= (250 << 20) + 8 * 4 * m * n
