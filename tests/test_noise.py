"""The noise edge against simulation."""

import pytest
import torch

from matrices import noise, with_spectrum
from svdcut.noise import bulk_rms, marchenko_pastur_median, noise_edge, storage_edge
from svdcut.ranks import Rule, RuleKind, select_rank

SHAPES = [(200, 200), (300, 120), (120, 300)]


@pytest.mark.parametrize("shape", SHAPES)
def test_noise_alone_exceeds_the_edge_once_in_a_hundred(shape):
    tops = [float(torch.linalg.matrix_norm(noise(*shape, seed=i), 2)) for i in range(150)]
    edge = noise_edge(*shape, 1.0)
    assert sum(top > edge for top in tops) <= 6
    assert max(tops) > 0.98 * edge


@pytest.mark.parametrize("shape", SHAPES)
def test_the_bulk_tells_its_variance(shape):
    s = torch.linalg.svdvals(3.0 * noise(*shape)).tolist()
    assert bulk_rms(s, *shape) == pytest.approx(3.0, rel=0.02)


def test_the_median_of_the_marchenko_pastur_law():
    for beta, m in ((1.0, 700), (0.25, 1400)):
        s = torch.linalg.svdvals(noise(m, int(beta * m), dtype=torch.float64))
        assert float(s.square().median()) / m == pytest.approx(
            marchenko_pastur_median(beta), rel=0.02
        )
    assert marchenko_pastur_median(1e-3) == pytest.approx(1.0, abs=0.01)


def planted_count(m, n, rank, strength, dtype, update_size, seed):
    """Return the count above the edge, and the planted values over the true edge."""
    base = (0.02 * noise(m, n, seed=seed, dtype=torch.float64)).to(dtype)
    bits = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 24}[dtype]
    ulp = torch.exp2(torch.frexp(base.double())[1].double() - bits)
    rounding = float(ulp.square().mean().div(12).sqrt())
    s = torch.linspace(strength, 1.0, rank).double()
    edge = noise_edge(m, n, rounding)
    planted = with_spectrum(m, n, s * edge * update_size, seed=seed + 1, dtype=torch.float64)
    finetuned = (base.double() + planted).to(dtype)
    values = torch.linalg.svdvals(finetuned.double() - base.double()).tolist()
    # Both sides are stored, so both may be rounded.
    zeros = float((finetuned == base).double().mean())
    found = storage_edge(values, m, n, rounding * 2**0.5, zeros)
    return select_rank(Rule(RuleKind.NOISE), values, min(m, n), edge=found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 6])
def test_planted_ranks_are_found(shape, rank, dtype):
    for seed in range(4):
        assert planted_count(*shape, rank, 6.0, dtype, 2.5, 100 * seed) == rank


@pytest.mark.parametrize("shape", SHAPES)
def test_weak_updates_are_not_overcounted(shape):
    for seed in range(4):
        for strength, size in ((2.0, 0.4), (1.0, 1.2), (6.0, 1.3)):
            assert planted_count(*shape, 4, strength, torch.bfloat16, size, 100 * seed) <= 5
