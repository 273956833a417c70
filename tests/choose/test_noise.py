"""The noise edge against simulation."""

import numpy as np
import pytest
import torch

import planted
import svdcut
from checkpoints import write_folder
from matrices import noise, with_spectrum
from svdcut.choose.noise import Margins, noise_edge, storage_edge, variance_edge
from svdcut.files.tensorfile import Dtype
from svdcut.streaming.rounding import RoundingMeter

SHAPES = [(200, 200), (300, 120), (120, 300)]
CPU = torch.device("cpu")


def margins(variances):
    return Margins(variances.sum(1).numpy(), variances.sum(0).numpy())


def norm(matrix):
    return float(torch.linalg.matrix_norm(matrix.double(), 2))


@pytest.mark.parametrize("shape", SHAPES)
def test_noise_alone_exceeds_the_edge_once_in_a_hundred(shape):
    tops = [norm(noise(*shape, seed=i)) for i in range(150)]
    edge = noise_edge(*shape, 1.0)
    assert sum(top > edge for top in tops) <= 6
    assert max(tops) > 0.98 * edge


@pytest.mark.parametrize("shape", SHAPES)
def test_even_variances_have_the_edge_of_white_noise(shape):
    variances = torch.full(shape, 9.0, dtype=torch.float64)
    assert variance_edge(margins(variances)) == pytest.approx(noise_edge(*shape, 3.0), rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0])
def test_the_edge_of_uneven_noise(shape, spread):
    for seed in range(5):
        rows = torch.exp(spread * noise(shape[0], 1, seed=seed, dtype=torch.float64))
        columns = torch.exp(0.5 * noise(1, shape[1], seed=seed + 1, dtype=torch.float64))
        variances = rows * columns
        # Uniform, as rounding is: an entry has no large values by itself.
        uniform = torch.rand(shape, generator=torch.Generator().manual_seed(seed)).double() - 0.5
        top = norm(uniform * (12 * variances).sqrt())
        assert 0.96 < variance_edge(margins(variances)) / top < 1.2


def test_noise_that_is_nothing_has_no_edge():
    assert variance_edge(Margins(np.zeros(2), np.zeros(3))) == 0.0


def meter(ours, theirs=None):
    update = None if theirs is None else ours.float() - theirs.float()
    found = RoundingMeter(tuple(ours.shape), CPU)
    for start in range(0, len(ours), 7):  # in blocks, as they are read
        rows = slice(start, min(start + 7, len(ours)))
        found.add(rows, ours[rows], None if update is None else update[rows])
    return found.storage(None if update is None else float((update == 0).double().mean()))


@pytest.mark.parametrize("dtype", planted.TORCH)
def test_units_in_the_last_place(dtype):
    """The distance to the next number, subnormal ones of float16 included."""
    torch_dtype = planted.TORCH[dtype]
    tiny = torch.finfo(torch_dtype).tiny
    values = torch.tensor([[1.0, -1.5, 0.02, 1000.0, tiny, tiny / 4, 0.0]]).to(torch_dtype)
    kind = torch.int16 if torch_dtype.itemsize == 2 else torch.int32
    following = (values.abs().view(kind) + 1).view(torch_dtype)
    units = (following.double() - values.abs().double()) * (values != 0)
    if dtype is not Dtype.F16:  # those of subnormal numbers are nothing there
        units *= values.abs().double() >= tiny
    found = meter(values).rounding.columns
    assert found == pytest.approx((units.square() / 12)[0].tolist(), rel=1e-6, abs=1e-45)


def test_what_is_measured_of_an_update():
    base = torch.tensor([[1.0, 1.0, 2.0], [1.0, 1.0, 1.0]], dtype=torch.bfloat16)
    unit = 2.0**-7
    change = torch.tensor([[0.0, unit, 6 * unit], [0.0, 0.0, -3 * unit]])
    storage = meter((base.float() + change).bfloat16(), base)
    assert storage.zero_fraction == 0.5
    one = unit**2 / 12  # of the last value, which fell below 1, a quarter of that
    assert storage.rounding.rows == pytest.approx((2 * one + 4 * one, 2 * one + one / 4))
    assert storage.observed.rows == pytest.approx((unit**2 + 4 * one, one / 4))
    assert storage.observed.columns == pytest.approx((0, unit**2, 4 * one + one / 4))
    assert storage.within_unit == pytest.approx(unit**2 * (1 + 4 + 1 / 4))


def test_the_edge_of_weights_is_that_of_their_own_rounding():
    """Whatever their zeros: those are no update that was lost."""
    for spread, pruned in ((0.0, 0.0), (1.0, 0.0), (0.5, 0.5)):
        weights = 0.02 * noise(300, 200) * torch.exp(spread * noise(300, 1, seed=1))
        weights *= torch.rand(300, 200, generator=torch.Generator().manual_seed(2)) >= pruned
        stored = weights.bfloat16()
        edge = storage_edge(meter(stored), None)
        assert 0.98 < edge / norm(stored.float() - weights) < 1.15


def test_the_whole_spectrum_is_asked_for_only_with_many_zeros():
    base = (0.02 * noise(60, 40)).bfloat16()
    large = (base.float() + noise(60, 40, seed=1)).bfloat16()
    assert storage_edge(meter(large, base), None) > 0
    few = base.clone()
    few[:30] *= 1.5
    storage = meter(few, base)
    assert storage.zero_fraction == 0.5
    assert storage_edge(storage, None) is None
    s = torch.linalg.svdvals(few.double() - base.double()).tolist()
    assert storage_edge(storage, s) > 0


def test_the_edge_scales_with_the_weights():
    base = (0.02 * noise(60, 40)).bfloat16()
    tuned = (base.float() + 2e-5 * noise(60, 40, seed=1)).bfloat16()
    s = torch.linalg.svdvals(tuned.double() - base.double())
    edge = storage_edge(meter(tuned, base), s.tolist())
    scaled = storage_edge(meter(tuned * 2**-10, base * 2**-10), (s * 2**-10).tolist())
    assert scaled == pytest.approx(edge * 2**-10, rel=1e-9)


@pytest.mark.parametrize("dtype", planted.TORCH.values())
def test_the_dtype_of_base_is_not_its_rounding(dtype, tmp_path):
    """The same numbers, whatever they are stored as; the units of bfloat16 are not in float32."""
    base = (0.02 * noise(60, 40)).bfloat16()
    signal = with_spectrum(60, 40, torch.tensor([2.0, 1.5, 1.0]), dtype=torch.float64)
    tuned = {"w.weight": (base.double() + 1e-4 * signal).to(dtype)}
    finetuned = write_folder(tmp_path / "ft", tuned)
    edges, ranks = [], set()
    for label in (torch.bfloat16, torch.float32, torch.float64):
        folder = write_folder(tmp_path / str(label), {"w.weight": base.to(label)})
        matrix = svdcut.spectrum(folder, finetuned).tensors["w.weight"].matrices[0]
        cut = svdcut.truncate(folder, finetuned, tmp_path / f"{label}-out", rank="noise")
        facts = cut.tensors["w.weight"].truncation
        edges += [matrix.noise_edge, facts.matrices[0].noise_edge]
        ranks |= {matrix.above_noise_edge, facts.ranks[0]}
    assert edges == pytest.approx([edges[0]] * len(edges), rel=1e-9)
    assert len(ranks) == 1
    if dtype is torch.float32:
        assert ranks == {3}


@pytest.mark.parametrize(
    ("shape", "touched"), [((300, 300), 3), ((300, 300), 6), ((4, 500), 4), ((500, 4), 500)]
)
def test_noise_in_few_dimensions_is_noise(shape, touched):
    """What a unit leaves of a small white update has no signal, in few rows neither."""
    above = 0
    for seed in range(30):
        base = (0.02 * noise(*shape, seed=seed)).bfloat16()
        tuned = (base.float() + 1e-5 * noise(*shape, seed=1000 + seed)).bfloat16()
        tuned[touched:] = base[touched:]
        update = tuned.double() - base.double()
        s = torch.linalg.svdvals(update).tolist()
        edge = storage_edge(meter(tuned, base), s)
        above += s[0] > edge
    assert above <= 2


EXACT = 0.94
"""Share of the clear tensors whose count is the rank; docs/noise.md has them all."""


def test_planted_ranks():
    tensors = map(planted.tensor, range(30 * len(planted.GROUPS)))
    outcomes = [planted.count(one) for one in tensors if one.situation != planted.BOTH]
    assert all(one.count <= one.rank + 1 for one in outcomes)
    clear = [one for one in outcomes if one.strong]
    assert len(clear) > len(outcomes) / 3
    assert sum(one.count == one.rank for one in clear) >= EXACT * len(clear)
    assert sum(one.count > one.rank for one in clear) <= 0.02 * len(clear)
