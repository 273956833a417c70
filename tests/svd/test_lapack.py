"""Leading eigenpairs against torch's, by LAPACK's address and without it."""

import pytest
import torch

from matrices import noise
from svdcut.svd import lapack


@pytest.fixture(params=["by address", "all by torch"])
def find(request, monkeypatch):
    if request.param == "all by torch":
        monkeypatch.setattr(lapack, "_ssyevr", lambda: None)
    return lapack.leading_eigenpairs


@pytest.mark.parametrize("n", [1, 2, 50, 300])
@pytest.mark.parametrize("count", [1, 7, 300])
def test_they_are_the_largest(find, n, count):
    a, count = noise(400, n, seed=3), min(n, count)
    product = a.T @ a
    kept = product.clone()
    values, vectors = find(product, count)
    expected = torch.linalg.eigvalsh(product.double()).flip(0)[:count]
    scale = float(expected[0])
    assert torch.equal(product, kept)
    assert (values.shape, vectors.shape) == ((count,), (n, count))
    assert torch.allclose(values.double(), expected, atol=2e-6 * scale)
    assert float((product @ vectors - vectors * values).norm(dim=0).max()) <= 2e-5 * scale
    assert torch.allclose(vectors.T @ vectors, torch.eye(count), atol=1e-3)


def test_this_scipy_is_called_by_address():
    """Else threads wait for each other: nothing fails, but a second core stands idle."""
    assert lapack._ssyevr() is not None


def test_another_function_is_not_called(monkeypatch):
    from scipy.linalg import cython_lapack

    wrong = {"ssyevr": cython_lapack.__pyx_capi__["dsyevr"]}
    monkeypatch.setattr(cython_lapack, "__pyx_capi__", wrong)
    lapack._ssyevr.cache_clear()
    try:
        assert lapack._ssyevr() is None
    finally:
        lapack._ssyevr.cache_clear()
