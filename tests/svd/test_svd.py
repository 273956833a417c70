"""Every route against a float64 SVD of the same matrix, and the certificates against both."""

from __future__ import annotations

import gc
import math
import weakref
from dataclasses import dataclass, replace
from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from matrices import Case, flat, hadamard, merged, noise, power_law, with_spectrum
from svdcut.choose.cut import is_certified
from svdcut.svd import dense, engine, krylov
from svdcut.svd.certificate import (
    ERROR_FLOOR,
    VALUE_FLOOR,
    VALUE_TOLERANCE,
    Method,
    Proof,
    allowed_value_error,
)
from svdcut.svd.decomposition import UNCOUNTED, Basis, Decomposition
from svdcut.svd.engine import decompose
from svdcut.svd.route import Route, gram_bytes

TOLERANCE = 1e-6
EPS = torch.finfo(torch.float64).eps
ROUTES = list(Route)

# The reference is a float64 SVD: its values are off by tens of units in the last place of the
# first one, the product that is subtracted from the matrix by some of the norm, and a norm
# of 200,000 entries by some hundreds of its own.
ERROR_SLACK = 64 * EPS
NORM_SLACK = 1e-13
VALUE_SLACK = 32 * EPS

SHAPES = [(300, 200), (160, 280), (480, 400), (48, 500), (500, 48), (2, 50), (50, 2), (17, 17)]
KINDS = ["power", "flat", "flat_tail", "repeated40", "deficient", "nearly_deficient", "noise"]
CASES = [
    *(Case(kind, *shape) for kind in KINDS for shape in SHAPES),
    *(Case(kind, 300, 200, torch.float64) for kind in KINDS),
    *(Case("flat_tail", *shape, torch.float64) for shape in SHAPES[1:]),
    *(Case("repeated100", *shape) for shape in SHAPES[:3]),
    *(Case("steep", *shape, dtype) for shape in SHAPES[:3] for dtype in (torch.float32,)),
    *(Case("power", 300, 200, scale=scale) for scale in (1e-30, 1e30)),
    *(Case("noise", 160, 280, torch.float64, scale) for scale in (1e-30, 1e30, 1e-300, 1e300)),
]


@dataclass(frozen=True)
class Reference:
    """A matrix over a power of two, its float64 singular values, and that power."""

    a: torch.Tensor
    unit: torch.Tensor
    s: torch.Tensor
    exponent: int


def refer(a: torch.Tensor) -> Reference:
    exponent = math.frexp(float(a.abs().max()))[1]
    half = exponent // 2
    unit = a.double() * 2.0**-half * 2.0 ** (half - exponent)
    return Reference(a, unit, torch.linalg.svdvals(unit), exponent)


@lru_cache(maxsize=1)
def reference(case: Case) -> Reference:
    return refer(case.build())


def run(a, k, route, *, tolerance=TOLERANCE, seed=1, **options) -> Decomposition:
    return decompose(
        a.clone(),
        k,
        accept=lambda found: is_certified(found.measured().bounds(k), tolerance),
        route=route,
        tolerance=tolerance,
        seed=seed,
        **options,
    )


@dataclass(frozen=True)
class Measured:
    """What a decomposition at rank `k` is worth, over the reference."""

    excess: float
    values: float
    tail: float
    best_share: float
    """Best possible error over the norm."""


def measure(found: Decomposition, k: int, truth: Reference) -> Measured:
    scale = math.ldexp(1.0, found.exponent - truth.exponent)
    left, right = found.factors(list(range(k)))
    assert left.shape == (truth.a.shape[0], k)
    assert right.shape == (k, truth.a.shape[1])
    reached = float((truth.unit - (left.double() @ right.double()) * scale).norm())
    best, norm, first = float(truth.s[k:].norm()), float(truth.s.norm()), float(truth.s[0])
    s = (found.triplets.squares.sqrt() * scale).tolist()
    worst = max(
        abs(s[i] - float(truth.s[i])) / max(float(truth.s[i]), VALUE_FLOOR * first)
        for i in {0, max(k - 1, 0), min(k, len(truth.s) - 1)}
    )
    tail = math.sqrt(math.fsum(found.triplets.squares[k:].tolist()) + found.rest) * scale
    return Measured(
        excess=(reached - best) / max(best, ERROR_FLOOR * norm),
        values=worst,
        tail=abs(tail - best) / max(best, VALUE_FLOOR * norm),
        best_share=best / norm,
    )


def check(found: Decomposition, k: int, truth: Reference) -> None:
    """The promises, and that the certificate claims no more than is so."""
    bounds, measured = found.measured().bounds(k), measure(found, k, truth)
    error_slack = NORM_SLACK + ERROR_SLACK / max(measured.best_share, ERROR_FLOOR)
    share = float(truth.s[min(k, len(truth.s) - 1)] / truth.s[0])
    value_slack = VALUE_SLACK / max(share, VALUE_FLOOR)
    assert is_certified(bounds, TOLERANCE), found.rejected
    assert measured.excess <= TOLERANCE + error_slack
    assert measured.excess <= bounds.excess + error_slack
    assert measured.values <= VALUE_TOLERANCE
    assert measured.values <= bounds.value + value_slack
    assert measured.tail <= 1e-5
    expected = math.ldexp(float(truth.s.norm()), truth.exponent)
    assert found.measured().norm == pytest.approx(expected, rel=1e-12)


def ranks_for(full_rank: int) -> list[int]:
    return sorted({0, 1, min(16, full_rank), min(64, full_rank), full_rank})


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.value)
def test_promises_hold(case, route):
    truth = reference(case)
    for k in ranks_for(len(truth.s)):
        found = run(truth.a, k, route)
        check(found, k, truth)
        check_vectors(found)


def check_vectors(found: Decomposition) -> None:
    """Right vectors are orthonormal, and left ones orthogonal with norms s."""
    right = found.triplets.right.double()
    slack = 16 * torch.finfo(found.triplets.right.dtype).eps * math.sqrt(len(right))
    assert (right.T @ right - torch.eye(right.shape[1])).abs().max() <= slack
    if found.triplets.left is None:
        return
    left, s = found.triplets.left.double(), found.triplets.squares.sqrt()
    defect = left.T @ left - torch.diag(s.square())
    assert (defect.abs() <= slack * s[0] * torch.maximum(s[:, None], s[None, :]) + 1e-30).all()


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("k", [None, 0, 2, 5])
def test_zeros_have_no_triplets(route, k):
    found = decompose(torch.zeros(7, 5), k, accept=lambda _: False, route=route)
    assert (found.energy, found.num_triplets, found.method) == (0.0, 0, Method.NONE)
    assert found.full_rank == 5
    left, right = found.factors([])
    assert torch.equal(left @ right, torch.zeros(7, 5))


@pytest.mark.parametrize("route", ROUTES)
def test_a_single_entry(route):
    a = torch.zeros(40, 30)
    a[3, 4] = -2.5
    found = run(a, 1, route)
    left, right = found.factors([0])
    assert torch.allclose(left @ right * found.scale, a.to(left.dtype), atol=1e-14)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_matrix_is_kept_but_for_a_power_of_two(route, dtype):
    a = noise(30, 40, seed=2, dtype=dtype) * 3e-9
    found = run(a, 3, route)
    assert found.transposed
    assert torch.equal(found.matrix.T * found.scale, a)


@pytest.mark.parametrize("route", [Route.KRYLOV, Route.GRAM])
def test_factors_of_chosen_triplets_are_projections(route):
    a = with_spectrum(60, 90, power_law(60), seed=3, dtype=torch.float64)
    u, s, vh = torch.linalg.svd(a, full_matrices=False)
    found = run(a, 5, route)
    left, right = found.factors([1, 4])
    expected = (u[:, [1, 4]] * s[[1, 4]]) @ vh[[1, 4]]
    assert torch.allclose(left @ right * found.scale, expected, atol=1e-7)


@dataclass(frozen=True)
class Problem:
    """A small matrix, and what is asked of it."""

    m: int
    n: int
    spectrum: tuple[float, ...]
    dtype: torch.dtype
    scale: float
    vectors: int
    k: int
    route: Route
    seed: int


def spectra(draw, r: int) -> list[float]:
    """Singular values with ties, cliffs, plateaus and zeros."""
    kind = draw(st.sampled_from(["steps", "free", "plateau"]))
    if kind == "steps":
        levels = st.sampled_from([1.0, 0.999999, 0.5, 0.1, 1e-3, 1e-5, 1e-7, 0.0])
        return [*draw(st.lists(levels, min_size=r - 1, max_size=r - 1)), 1.0]
    if kind == "free":
        return [10**e for e in draw(st.lists(st.floats(-9, 0), min_size=r, max_size=r))]
    heads, tail = draw(st.integers(1, r)), 10 ** draw(st.floats(-7, 0))
    spread = 10 ** draw(st.floats(-6, 0))
    return [1.0] * heads + [tail * (1 + spread * i / r) for i in range(r - heads)]


@st.composite
def problems(draw) -> Problem:
    m, n = draw(st.integers(2, 60)), draw(st.integers(2, 60))
    return Problem(
        m,
        n,
        spectrum=tuple(sorted(spectra(draw, min(m, n)), reverse=True)),
        dtype=draw(st.sampled_from([torch.float32, torch.float64])),
        scale=draw(st.sampled_from([1.0, 1e-30, 1e30])),
        vectors=draw(st.integers(0, 99)),
        k=draw(st.integers(0, min(m, n))),
        route=draw(st.sampled_from(ROUTES)),
        seed=draw(st.integers(0, 9)),
    )


@settings(max_examples=400)
@given(p=problems())
def test_promises_hold_for_any_small_matrix(p):
    s = torch.tensor(p.spectrum, dtype=torch.float64)
    truth = refer(with_spectrum(p.m, p.n, s * p.scale, seed=p.vectors, dtype=p.dtype))
    check(run(truth.a, p.k, p.route, seed=p.seed), p.k, truth)


def block_diagonal(copies: int, side: int, spread: float) -> torch.Tensor:
    """The same block many times, each scaled a little differently; float32."""
    block = noise(side, side, seed=2, dtype=torch.float64)
    scales = 1 + spread * noise(copies, 1, seed=3, dtype=torch.float64)
    return torch.block_diag(*(scale * block for scale in scales)).float()


@pytest.mark.parametrize(("copies", "side"), [(32, 24), (26, 16), (60, 8)])
@pytest.mark.parametrize("spread", [0.0, 1e-12, 1e-6, 1e-4, 1e-3, 1e-2])
def test_copies_that_the_start_of_an_iteration_cannot_show(copies, side, spread):
    """More of them than it has random vectors: the values of a block come `copies` times."""
    truth = refer(block_diagonal(copies, side, spread))
    for k in (16, 32, 64):
        check(run(truth.a, k, Route.KRYLOV), k, truth)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda values, vectors: (values[:-1], vectors[:, :-1]),
        lambda values, vectors: (values[:0], vectors[:, :0]),
        lambda values, vectors: (values[1:].repeat(2)[:19], vectors[:, 1:].repeat(1, 2)[:, :19]),
        lambda values, vectors: (values, vectors.flip(0)),
    ],
    ids=["fewer", "none", "one twice, for the first", "others"],
)
def test_eigenvectors_that_are_not_the_leading_ones_are_refused(monkeypatch, spoil):
    a = noise(200, 120)
    energy = float(a.square().sum())
    assert isinstance(dense.gram_basis(a, 11, energy), Basis)
    find = dense.leading_eigenpairs
    monkeypatch.setattr(dense, "leading_eigenpairs", lambda *given: spoil(*find(*given)))
    assert dense.gram_basis(a, 11, energy) is None
    found = run(a, 11, Route.GRAM)
    assert found.rejected == ("gram/leading: not proven to be the leading ones",)
    assert (found.method, found.num_triplets) == (Method.GRAM, 120)


@pytest.mark.parametrize("index", [0, 5, 18])
def test_a_leading_eigenvector_that_was_missed_is_noticed(monkeypatch, index):
    a, find = noise(200, 120), dense.leading_eigenpairs

    def miss(product, count):
        kept = [i for i in range(count + 1) if i != index]
        return tuple(x[..., kept] for x in find(product, count + 1))

    monkeypatch.setattr(dense, "leading_eigenpairs", miss)
    assert dense.gram_basis(a, 11, float(a.square().sum())) is None


def test_eigenvectors_of_any_length_will_do(monkeypatch):
    truth, find = refer(noise(200, 120)), dense.leading_eigenpairs
    monkeypatch.setattr(
        dense, "leading_eigenpairs", lambda *given: (find(*given)[0], 3 * find(*given)[1])
    )
    found = run(truth.a, 11, Route.GRAM)
    assert not found.rejected
    check(found, 11, truth)


@pytest.mark.parametrize("spread", [0.0, 1e-8, 1e-4, 1e-3])
def test_few_distinct_values(spread):
    levels = torch.tensor([1.0, 0.98, 0.96, 0.94, 0.9]).double().repeat_interleave(30)
    s = torch.cat((levels, 0.8 * flat(490)))
    s *= 1 + spread * torch.rand(640, generator=torch.Generator().manual_seed(1)).double()
    truth = refer(with_spectrum(640, 640, s.sort(descending=True).values))
    for k in (16, 32, 64):
        check(run(truth.a, k, Route.KRYLOV), k, truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("below", [0.3, 0.01, 1e-4])
@pytest.mark.parametrize("copies", [40, 100])
@pytest.mark.parametrize("tail", ["power", "flat"])
def test_values_repeated_more_often_than_a_block_is_wide(dtype, below, copies, tail):
    """In float64, with two levels, the start block spans what it will ever see in two steps."""
    below_it = flat(240 - copies) if tail == "flat" else power_law(240 - copies, 0.5)
    s = torch.cat((flat(copies), below * below_it))
    truth = refer(with_spectrum(300, 240, s, seed=4, dtype=dtype))
    for k in (16, 32, 64, 80):
        check(run(truth.a, k, Route.KRYLOV), k, truth)


@pytest.mark.parametrize("heads", [1, 5])
@pytest.mark.parametrize("tail", [1e-6, 3e-6, 1e-5])
@pytest.mark.parametrize("spread", [1e-4, 1e-2])
def test_cuts_within_a_cluster_below_the_rounding_of_the_gram_matrix(heads, tail, spread):
    """Rounding mixes the cluster's vectors: an error of first order, which no gap damps."""
    generator = torch.Generator().manual_seed(5)
    cluster = torch.rand(100 - heads, generator=generator, dtype=torch.float64)
    s = torch.cat((flat(heads), tail * (1 + spread * cluster).sort(descending=True).values))
    truth = refer(with_spectrum(200, 100, s, dtype=torch.float64))
    for route in (Route.AUTO, Route.KRYLOV):
        for k in (50, 90):
            check(run(truth.a, k, route), k, truth)


@pytest.mark.parametrize("share", [9e-4, 2e-3, 2e-2])
@pytest.mark.parametrize("seed", range(3))
def test_the_energy_of_a_small_tail_is_not_lost_in_a_difference(share, seed):
    for k in (1, 5):
        tail = math.sqrt(share * k / (50 - k)) * (1 + 0.3 * torch.linspace(1, -1, 50 - k))
        truth = refer(with_spectrum(60, 50, torch.cat((flat(k), tail)), seed=seed))
        check(run(truth.a, k, Route.KRYLOV), k, truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(500, 400), (700, 1400), (1200, 1100)])
@pytest.mark.parametrize("k", [8, 9, 16])
def test_a_merged_lora_update_takes_no_exact_route(dtype, shape, k):
    """From its rank on what is wanted is the rounding of storage, far below the head."""
    truth = refer(merged(*shape, 8, dtype).float())
    found = run(truth.a, k, Route.KRYLOV)
    assert found.method is not Method.EXACT
    check(found, k, truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_noise_beside_dominant_triplets_of_a_narrow_matrix_takes_no_exact_route(dtype):
    truth = refer(merged(700, 1400, 8, dtype).float())
    found = run(truth.a, 40, Route.KRYLOV)
    assert found.method is not Method.EXACT
    check(found, 40, truth)


@pytest.mark.parametrize("name", ["decades", "geometric", "square"])
@pytest.mark.parametrize("k", [20, 50, 70])
def test_deflation_repeats_as_often_as_needed(name, k):
    decades = torch.cat([10.0**-d * torch.linspace(3, 1, 12).double() for d in range(0, 80, 2)])
    spectra = {
        "decades": decades[:480].clamp_min(1e-30),
        "geometric": 0.7 ** torch.arange(480, dtype=torch.float64),
        "square": power_law(480, 2.0),
    }
    truth = refer(with_spectrum(600, 480, spectra[name], seed=7))
    found = run(truth.a, k, Route.KRYLOV)
    check(found, k, truth)


def test_dominant_triplets_that_leave_nothing():
    a = torch.zeros(500, 450)
    a[range(0, 60, 10), range(0, 90, 15)] = torch.tensor([9.0, -7.0, 5.0, 1e-4, 3e-5, 1e-5])
    truth = refer(a)
    for k in (2, 3, 5, 6, 30):
        check(run(a, k, Route.KRYLOV), k, truth)


def test_dominant_triplets_above_an_endless_rest():
    """The rest is so flat that the iteration gives up on it: the Gram matrix of it serves."""
    s = torch.cat((1e4 * power_law(6, 0.2), 1 + 1e-6 * torch.rand(394).double()))
    truth = refer(with_spectrum(500, 400, s.sort(descending=True).values, dtype=torch.float64))
    a = truth.a.float()
    truth = refer(a)
    check(run(a, 40, Route.KRYLOV), 40, truth)


def test_memory_is_reserved_before_deflation():
    asked = []
    run(with_spectrum(500, 400, power_law(400)), 12, Route.KRYLOV, escalate=asked.append)
    assert not asked
    a = merged(1200, 1100, 4, torch.float32).float()
    run(a, 12, Route.KRYLOV, escalate=asked.append)
    assert asked == [a.nbytes]


@pytest.mark.parametrize("route", list(Route))
@pytest.mark.parametrize("accepted", [True, False])
def test_a_matrix_is_freed_at_once(route, accepted):
    """And not when the interpreter looks for cycles next: it is what memory is full of."""
    a = merged(700, 500, 8, torch.float32).float()
    matrix = weakref.ref(a)
    gc.collect()
    gc.disable()
    try:
        found = decompose(a, 12, accept=lambda _: accepted, route=route)
        del a, found
        assert matrix() is None
    finally:
        gc.enable()


def run_for_all(a, ranks, **options) -> Decomposition:
    """All triplets, so well that the cut at each of the ranks is certified."""

    def accept(found):
        return all(is_certified(found.measured().bounds(k), TOLERANCE) for k in ranks)

    return decompose(a.clone(), None, accept=accept, tolerance=TOLERANCE, seed=1, **options)


@pytest.mark.parametrize("shape", [(700, 400), (400, 900)])
@pytest.mark.parametrize("strength", [4e-3, 4e-5, 4e-6])
def test_rules_on_the_whole_spectrum_of_a_merged_lora_update(shape, strength):
    """Cuts above the rounding of float32 storage need no exact route, those within it do."""
    truth = refer(merged(*shape, 8, torch.float32, strength=strength).float())
    for ranks in ((3, 7), (8, 9, 40, 200, 390, 400)):
        found = run_for_all(truth.a, ranks)
        assert (found.method is Method.GRAM) is (8 not in ranks)
        assert found.proof is Proof.SPECTRUM
        check_vectors(found)
        for k in ranks:
            check(found, k, truth)


def test_small_values_beside_dominant_triplets_take_no_exact_route():
    """Those of a square: bfloat16 storage rounds more, but not enough for the last ones."""
    truth = refer(merged(400, 400, 8, torch.bfloat16).float())
    found = run_for_all(truth.a, (400,))
    assert found.method is Method.GRAM
    check(found, 400, truth)


def test_what_a_head_leaves_is_known_within_its_bound_to_the_last_bit():
    """The matrix and its singular values are exact, so that no reference rounds."""
    n, levels = 512, torch.tensor([0.0, 1.0, 2.0, 3.0]).double()
    exponents = torch.cat((levels.repeat_interleave(4), 20 + levels.repeat_interleave(124)))
    h = hadamard(n)
    found = run_for_all(h * 2.0**-exponents @ h.flip(0).T, (16, 140))
    s, true = found.triplets.squares.sqrt() * found.scale, n * 2.0**-exponents
    error = ((s - true) / true.clamp_min(VALUE_FLOOR * n)).abs().max()
    assert 0 < error <= found.measured().value_bound(n) <= VALUE_TOLERANCE


@pytest.mark.parametrize("base", [0.5, 0.9, 0.97])
def test_a_spectrum_that_has_no_end_is_decomposed_all_the_same(base):
    truth = refer(with_spectrum(500, 400, base ** torch.arange(400.0).double(), seed=7))
    ranks = (1, 20, 60)
    found = run_for_all(truth.a, ranks)
    for k in ranks:
        check(found, k, truth)


def test_memory_once_asked_for_is_kept_by_the_routes_that_follow():
    asked = []
    a = merged(1200, 1100, 4, torch.float32).float()
    decompose(a, 12, accept=lambda _: False, route=Route.KRYLOV, escalate=asked.append)
    assert asked == [a.nbytes, gram_bytes(1100), UNCOUNTED]


@pytest.mark.parametrize("route", ROUTES)
def test_the_same_seed_gives_the_same_bits(route):
    a = with_spectrum(420, 400, power_law(400), seed=5)
    once, again = (run(a, 12, route, seed=3) for _ in range(2))
    for name in ("right", "squares", "residuals", "couplings"):
        assert torch.equal(getattr(once.triplets, name), getattr(again.triplets, name))
    assert (once.rest, once.beyond) == (again.rest, again.beyond)
    assert once.rejected == again.rejected


def test_other_seeds_agree_within_the_promise():
    truth = refer(with_spectrum(420, 400, power_law(400, 0.3), seed=5))
    for seed in range(4):
        check(run(truth.a, 12, Route.KRYLOV, seed=seed), 12, truth)


class TestLadder:
    """Where it starts, where it goes on, and what it leaves on record."""

    def test_auto_iterates_on_large_matrices_at_low_rank_alone(self):
        a = noise(1100, 1040)
        a[:, :8] *= 10
        assert run(a, 4, Route.AUTO).method is Method.KRYLOV
        assert run(a, 200, Route.AUTO).method is Method.GRAM
        assert run(a[:, :300].clone(), 4, Route.AUTO).method is Method.GRAM

    def test_proof_says_what_was_computed(self):
        a = with_spectrum(240, 200, power_law(200))
        assert run(a, 3, Route.KRYLOV).proof is Proof.RANDOM_START
        assert run(a, 3, Route.GRAM).proof is Proof.SPECTRUM
        assert run(a, 3, Route.EXACT).proof is Proof.SPECTRUM

    def test_whole_spectra_are_not_iterated_for(self):
        a = noise(30, 20)
        for top in (None, 20):
            found = decompose(a.clone(), top, accept=lambda _: True, route=Route.KRYLOV)
            assert (found.method, found.num_triplets) == (Method.GRAM, 20)

    def test_every_rung_that_was_left_is_on_record(self):
        found = decompose(noise(60, 50), 3, accept=lambda _: False, route=Route.KRYLOV)
        assert found.method is Method.EXACT
        assert found.rejected == (
            "krylov: bound missed",
            "gram/leading: bound missed",
            "gram: bound missed",
        )

    def test_a_flat_spectrum_ends_where_a_basis_of_half_the_side_is_too_small(self):
        a = noise(400, 400)
        found = run(a, 60, Route.KRYLOV)
        assert found.method is Method.GRAM
        assert found.rejected == ("krylov: no convergence",)

    def test_values_below_the_reach_of_a_route_are_left_to_the_next(self):
        s = torch.cat((power_law(5), 1e-7 * power_law(55, 0.1)))
        truth = refer(with_spectrum(80, 60, s, dtype=torch.float64))
        found = run(truth.a, 40, Route.GRAM)
        assert (found.method, found.rejected) == (Method.EXACT, ("gram: bound missed",))
        check(found, 40, truth)

    @pytest.mark.parametrize("flat", [True, False], ids=["noise", "decaying head"])
    def test_a_coarse_tolerance_takes_fewer_steps(self, monkeypatch, flat):
        a = noise(1500, 1200) + (0 if flat else with_spectrum(1500, 1200, 900 * power_law(128)))
        truth, steps = refer(a), []
        step = krylov._Lanczos.step
        monkeypatch.setattr(krylov._Lanczos, "step", lambda it: (steps.append(1), step(it)))
        taken = {}
        for tolerance in (1e-6, 1e-3):
            found = run(a, 24, Route.KRYLOV, tolerance=tolerance)
            assert found.method is Method.KRYLOV
            result = measure(found, 24, truth)
            assert result.excess <= tolerance
            assert result.values <= allowed_value_error(tolerance)
            taken[tolerance] = len(steps)
            steps.clear()
        assert taken[1e-3] < taken[1e-6]

    def test_what_is_below_the_resolution_of_larger_triplets_is_not_searched(self, monkeypatch):
        a, steps = noise(1500, 1200), []
        energy = float(a.double().square().sum())
        step = krylov._Lanczos.step
        monkeypatch.setattr(krylov._Lanczos, "step", lambda it: (steps.append(1), step(it)))
        taken = []
        for known in ([], [1e16 * energy]):
            generator = torch.Generator().manual_seed(1)
            found = krylov.krylov_basis(
                a, 24, energy, known, tolerance=TOLERANCE, generator=generator
            )
            assert isinstance(found, Basis)
            taken.append(len(steps))
            steps.clear()
        assert taken[1] < taken[0]

    def test_the_rest_is_searched_with_the_dominant_values_in_its_units(self, monkeypatch):
        a, asked = 1e-3 * merged(1300, 1100, 8, torch.bfloat16).float(), []

        def find(rest, k, energy, known, **options):
            asked.append((k, energy, known))
            return krylov.krylov_basis(rest, k, energy, known, **options)

        monkeypatch.setattr(engine, "krylov_basis", find)
        run(a, 24, Route.KRYLOV)
        (_, _, nothing), (k, energy, known) = asked
        s = torch.linalg.svdvals(a.double())
        assert (k, len(known), nothing) == (16, 8, [])
        expected = s[:8].square() / s[8:].square().sum()
        assert torch.tensor(known, dtype=torch.float64) / energy == pytest.approx(
            expected, rel=1e-5
        )

    def test_a_tolerance_that_no_route_reaches_ends_exact_and_uncertified(self):
        found = run(noise(40, 30), 3, Route.KRYLOV, tolerance=1e-40)
        assert found.method is Method.EXACT
        assert not is_certified(found.measured().bounds(3), 1e-40)


class TestDamage:
    """A certificate is worth what it refuses."""

    @pytest.fixture(params=[Route.KRYLOV, Route.GRAM, Route.EXACT], ids=lambda r: r.value)
    def found(self, request):
        a = with_spectrum(220, 200, power_law(200, 0.5), seed=6, dtype=torch.float64)
        found = run(a, 8, request.param)
        assert is_certified(found.measured().bounds(8), TOLERANCE)
        return found

    @staticmethod
    def measured(found: Decomposition, right: torch.Tensor) -> Decomposition:
        """The same decomposition with other right vectors, measured as they are."""
        left = found.matrix @ right
        squares = left.square().sum(0)
        order = squares.argsort(descending=True)
        right, left, squares = right[:, order], left[:, order], squares[order]
        defects = found.matrix.T @ left - right * squares
        triplets = replace(
            found.triplets,
            right=right,
            left=left,
            squares=squares,
            residuals=defects.norm(dim=0),
            couplings=(right.T @ defects).norm(dim=0),
        )
        rest = max(found.energy - float(squares.sum()), 0.0)
        return replace(found, triplets=triplets, rest=rest)

    def test_the_measure_used_here_accepts_what_is_right(self, found):
        same = self.measured(found, found.triplets.right)
        assert is_certified(same.measured().bounds(8), TOLERANCE)

    @pytest.mark.parametrize("index", [0, 3, 7])
    def test_a_random_vector_in_place_of_a_triplet(self, found, index):
        right = found.triplets.right.clone()
        right[:, index] = noise(len(right), 1, seed=8, dtype=torch.float64)[:, 0]
        right = torch.linalg.qr(right[:, [index, *(i for i in range(9) if i != index)]].flip(1)).Q
        assert not is_certified(self.measured(found, right).measured().bounds(8), TOLERANCE)

    @pytest.mark.parametrize("angle", [1e-1, 1e-2])
    def test_a_triplet_turned_out_of_the_span(self, found, angle):
        right = found.triplets.right[:, :9].clone()
        other = noise(len(right), 1, seed=9, dtype=torch.float64)[:, 0]
        other -= right @ (right.T @ other)
        right[:, 2] = math.cos(angle) * right[:, 2] + math.sin(angle) * other / other.norm()
        assert not is_certified(self.measured(found, right).measured().bounds(8), TOLERANCE)

    def test_a_kept_triplet_turned_into_one_that_is_cut(self, found):
        right = found.triplets.right[:, :9].clone()
        right[:, 7] = math.cos(0.1) * right[:, 7] + math.sin(0.1) * right[:, 8]
        right = torch.linalg.qr(right).Q
        assert not is_certified(self.measured(found, right).measured().bounds(8), TOLERANCE)

    @pytest.mark.parametrize("missing", [0, 4])
    def test_a_triplet_left_out_of_a_whole_spectrum(self, found, missing):
        if found.proof is not Proof.SPECTRUM:
            pytest.skip("see the next test")
        kept = [i for i in range(found.num_triplets) if i != missing]
        part = self.measured(found, found.triplets.right[:, kept])
        part = replace(part, beyond=float(found.triplets.squares[missing]))
        assert not is_certified(part.measured().bounds(8), TOLERANCE)

    def test_no_certificate_sees_a_triplet_that_nothing_touched(self):
        """What protects from it is not arithmetic: a start from many random vectors."""
        a = with_spectrum(220, 200, power_law(200, 0.5), seed=6, dtype=torch.float64)
        found = run(a, 8, Route.KRYLOV)
        part = self.measured(found, found.triplets.right[:, 1:])
        assert is_certified(part.measured().bounds(8), TOLERANCE)


class TestHiddenCopies:
    """A Krylov space shows as many copies of a value as it has random vectors to start from."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("copies", [15, 16, 17, 47, 60])
    @pytest.mark.parametrize("above", [0, 5, 30])
    def test_more_vectors_are_drawn_until_all_are_seen(self, dtype, copies, above):
        head = torch.linspace(3, 2, above).double()
        s = torch.cat((head, flat(copies), 0.1 * flat(240 - copies - above)))
        truth = refer(with_spectrum(300, 240, s, seed=4, dtype=dtype))
        for k in (8, 32, 50):
            check(run(truth.a, k, Route.KRYLOV), k, truth)

    def test_without_looking_nobody_would_know(self, monkeypatch):
        truth = refer(torch.diag(torch.cat((flat(60), 0.1 * flat(340))).float()))
        with monkeypatch.context() as patch:
            patch.setattr(krylov._Ritz, "may_hide_copies", lambda *_: False)
            found = run(truth.a, 48, Route.KRYLOV)
        assert found.method is Method.KRYLOV
        assert is_certified(found.measured().bounds(48), TOLERANCE)
        assert measure(found, 48, truth).excess > 0.1
        check(run(truth.a, 48, Route.KRYLOV), 48, truth)

    def test_values_that_are_nearly_alike_hide_each_other_too(self):
        draws = torch.rand(100, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        for width in (1e-2, 1e-4, 1e-6, 1e-8):
            alike = 1 + width * draws.sort(descending=True).values
            truth = refer(with_spectrum(300, 240, torch.cat((alike, 0.1 * flat(140))), seed=3))
            for k in (16, 32, 64):
                check(run(truth.a, k, Route.KRYLOV), k, truth)
