"""Singular values without vectors against the float64 SVD."""

import math

import pytest
import torch

from matrices import SPECTRA, Case, noise, with_spectrum
from svdcut.svd.certificate import RESOLUTION, VALUE_FLOOR, VALUE_TOLERANCE, Method
from svdcut.svd.decomposition import UNCOUNTED, SolverError
from svdcut.svd.dense import gram
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
        found = singular_values(a.clone(), tolerance=math.inf)
        assert found.method is Method.GRAM
        assert float(errors(found.singular_values, a).max()) <= found.bound


def test_small_values_are_known_by_the_first():
    s = torch.logspace(0, -9, 64, dtype=torch.float64)
    a = with_spectrum(64, 64, s, dtype=torch.float64)
    found = singular_values(a)
    assert found.method is Method.GRAM
    assert found.singular_values == pytest.approx(s.tolist(), abs=RESOLUTION)


def test_a_tolerance_that_a_gram_matrix_misses_takes_the_exact_route():
    s = torch.logspace(0, -7, 64, dtype=torch.float64)
    a = with_spectrum(64, 64, s, dtype=torch.float64)
    called = []
    found = singular_values(a, tolerance=1e-10, escalate=called.append)
    assert (found.method, called) == (Method.EXACT, [UNCOUNTED])
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
