"""Singular values without vectors against the float64 SVD."""

import math

import pytest
import torch

from matrices import SPECTRA, Case, merged, noise, with_spectrum
from svdcut.svd import values as module
from svdcut.svd.certificate import VALUE_FLOOR, VALUE_TOLERANCE
from svdcut.svd.decomposition import UNCOUNTED, SolverError
from svdcut.svd.dense import gram
from svdcut.svd.measured import Method
from svdcut.svd.smallest import smallest_values
from svdcut.svd.values import singular_values

SHAPES = [(90, 90), (300, 40), (40, 300), (2, 500), (3, 2), (130, 120)]
CASES = [
    Case(kind, m, n, dtype, scale)
    for kind in (*SPECTRA, "noise")
    for m, n in SHAPES
    for dtype, scale in ((torch.float32, 1.0), (torch.float64, 1.0), (torch.float32, 1e-30))
]


def errors(got, a):
    """Errors relative to the values, and the values themselves."""
    reference = torch.linalg.svdvals(a.double())
    floor = reference.clamp_min(VALUE_FLOOR * reference[0])
    return (torch.tensor(got, dtype=torch.float64) - reference).abs() / floor


@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_float64(case):
    a = case.build()
    found = singular_values(a.clone())
    assert len(found.singular_values) == min(case.m, case.n)
    assert found.singular_values == sorted(found.singular_values, reverse=True)
    assert found.bound <= VALUE_TOLERANCE
    assert float(errors(found.singular_values, a).max()) <= found.bound + 1e-13


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0, 4.0])
@pytest.mark.parametrize("shape", [(60, 60), (400, 100), (256, 256)])
def test_the_bound_of_the_gram_route_holds(shape, exponent):
    """Where it is not good enough too: steep spectra lose their small values."""
    for seed in range(4):
        s = torch.arange(1, min(shape) + 1, dtype=torch.float64) ** -exponent
        a = with_spectrum(*shape, s, seed=seed, dtype=torch.float64)
        found = module._rough_values(a if shape[0] >= shape[1] else a.T).values()
        assert float(errors(found.singular_values, a).max()) <= found.bound


def test_small_values_take_the_exact_route():
    s = torch.logspace(0, -7, 64, dtype=torch.float64)
    a = with_spectrum(64, 64, s, dtype=torch.float64)
    called = []
    found = singular_values(a.clone(), escalate=called.append)
    assert found.method is Method.EXACT
    assert called == [UNCOUNTED]
    assert found.singular_values == pytest.approx(s.tolist(), rel=1e-6)


def test_a_well_conditioned_matrix_takes_the_fast_one():
    assert singular_values(noise(200, 150)).method is Method.GRAM


def test_zeros():
    found = singular_values(torch.zeros(5, 7))
    assert (found.singular_values, found.method, found.bound) == ([0.0] * 5, Method.NONE, 0.0)


def test_no_route_converges(monkeypatch):
    def fail(*_, **__):
        raise torch.linalg.LinAlgError("LAPACK gave up")

    monkeypatch.setattr(torch.linalg, "eigvalsh", fail)
    assert singular_values(noise(30, 20)).method is Method.EXACT
    monkeypatch.setattr(torch.linalg, "svdvals", fail)
    with pytest.raises(SolverError):
        singular_values(noise(30, 20))


def test_other_failures_are_not_hidden(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("something else")

    monkeypatch.setattr(torch.linalg, "eigvalsh", fail)
    with pytest.raises(RuntimeError, match="something else"):
        singular_values(noise(30, 20))


@pytest.mark.parametrize("shape", [(700, 600), (300, 257), (5000, 12), (40, 40)])
def test_the_gram_matrix(shape):
    a = noise(*shape)
    expected = a.double().T @ a.double()
    found = gram(a)
    assert torch.allclose(found, found.T, rtol=1e-14, atol=1e-13)
    assert float((found - expected).abs().max()) <= 1e-14 * math.prod(shape)


@pytest.mark.parametrize("kind", [*SPECTRA, "noise"])
@pytest.mark.parametrize("shape", [(480, 450), (450, 480), (400, 400)])
def test_a_steep_spectrum_without_its_head(kind, shape):
    a = Case(kind, *shape, torch.float64).build()
    found = singular_values(a.clone(), steep=True)
    assert len(found.singular_values) == min(shape)
    assert found.singular_values == sorted(found.singular_values, reverse=True)
    assert found.bound <= VALUE_TOLERANCE
    assert float(errors(found.singular_values, a).max()) <= found.bound + 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(620, 600), (500, 1200)])
def test_a_merged_lora_update_needs_no_exact_route(dtype, shape):
    a = merged(*shape, 8, dtype)
    found = singular_values(a.clone(), steep=True)
    assert found.method is Method.GRAM
    assert found.bound <= VALUE_TOLERANCE
    assert float(errors(found.singular_values, a).max()) <= VALUE_TOLERANCE


def test_the_tail_of_a_square_update_needs_no_exact_route():
    """A power law over white noise, whose smallest value is a millionth of the first."""
    m = 420
    s = torch.arange(1, 41, dtype=torch.float64) ** -1.0
    a = with_spectrum(m, m, s, seed=3, dtype=torch.float64) / 10
    a += 5e-6 * noise(m, m, seed=4, dtype=torch.float64)
    found = singular_values(a.clone(), steep=True)
    assert found.method is Method.GRAM
    assert float(errors(found.singular_values, a).max()) <= found.bound <= VALUE_TOLERANCE


def tail(kind):
    """256 values, of which a Gram matrix tells most."""
    s = torch.linspace(1, 0.1, 256, dtype=torch.float64)
    last = {
        "one": [3e-7],
        "falling": [1e-5, 3e-6, 1e-6, 3e-7, 1e-7],
        "equal": [2e-6] * 5,
        "pairs": [1e-5, 1e-5, 1e-6, 1e-6],
        "no gap": [3e-5 * 0.9**i for i in range(30)],
        "below the floor": [1e-5, 1e-9],
        "singular": [1e-5, 0.0],
        "two zeros": [0.0, 0.0],
        "many": [1e-6] * 40,
    }[kind]
    s[-len(last) :] = torch.tensor(last, dtype=torch.float64)
    return s


@pytest.mark.parametrize(
    "kind",
    [
        *("one", "falling", "equal", "pairs", "no gap", "below the floor", "singular"),
        *("two zeros", "many"),
    ],
)
@pytest.mark.parametrize("shape", [(256, 256), (256, 300), (700, 256)])
def test_the_smallest_values(kind, shape):
    """By inverse iteration where they are few, by the exact route where not: right in all."""
    for seed in range(3):
        a = with_spectrum(*shape, tail(kind), seed=seed, dtype=torch.float64)
        found = singular_values(a.clone())
        assert float(errors(found.singular_values, a).max()) <= found.bound <= VALUE_TOLERANCE
        assert found.singular_values == sorted(found.singular_values, reverse=True)
        if kind in ("one", "falling", "equal", "pairs"):
            assert found.method is Method.GRAM
        if kind == "many":
            assert found.method is Method.EXACT


def test_smallest_values_that_may_be_others_are_not_taken():
    """An iteration that has not seen the smallest one says nothing, rather than what is next."""
    s = tail("falling")
    a = with_spectrum(256, 256, s, dtype=torch.float64)
    below = (0.99 * s).tolist()
    found, error = smallest_values(a, 5, below, tolerance=1e-8, seed=0)
    assert torch.tensor(found[-5:]) == pytest.approx(s[-5:], rel=max(error, 1e-8))
    assert len(found) >= 5
    # As if the sixth were not known to be larger than the fifth.
    unknown = [*below[:-14], *[0.0] * 14]
    assert smallest_values(a, 5, unknown, tolerance=1e-8, seed=0) is None


def test_a_failure_of_the_refinement_leaves_the_exact_route(monkeypatch):
    a = with_spectrum(256, 256, tail("one"), dtype=torch.float64)

    def fail(*_, **__):
        raise torch.linalg.LinAlgError("LAPACK gave up")

    monkeypatch.setattr(torch, "geqrf", fail)
    assert singular_values(a).method is Method.EXACT


def test_without_an_iteration_a_steep_spectrum_is_measured_all_the_same(monkeypatch):
    a = Case("steep", 450, 430, torch.float64).build()
    for answer in (lambda *_, **__: None,):
        monkeypatch.setattr(module, "krylov_triplets", answer)
        found = singular_values(a.clone(), steep=True)
        assert float(errors(found.singular_values, a).max()) <= found.bound + 1e-13
    assert singular_values(torch.zeros(450, 430), steep=True).method is Method.NONE
