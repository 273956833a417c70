"""Products of thin factors against a float64 SVD of the matrix that they make."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from matrices import noise, orthonormal
from svdcut.choose.cut import Cut, CutRequest, cut_matrix, is_certified
from svdcut.choose.keep import Keep, choose_indices
from svdcut.choose.ranks import parse_rule
from svdcut.svd import engine, factored
from svdcut.svd.certificate import VALUE_FLOOR, VALUE_TOLERANCE, Method, Proof
from svdcut.svd.decomposition import UNCOUNTED, Decomposition, SolverError
from svdcut.svd.engine import decompose
from svdcut.svd.factored import reduce_product
from svdcut.svd.product import Product
from svdcut.svd.route import Route
from svdcut.svd.subspace import leading_spaces
from svdcut.svd.values import singular_values

EPS = torch.finfo(torch.float64).eps
TOLERANCE = 1e-6
SLACK = 1e-12
"""Of the reference, relative to the first value or to the norm."""


@dataclass(frozen=True)
class Case:
    """A product of m x r and r x n, built on demand."""

    kind: str
    m: int
    n: int
    r: int
    scales: tuple[float, float] = (1.0, 1.0)

    def build(self) -> Product:
        left = noise(self.m, self.r, seed=1, dtype=torch.float64)
        right = noise(self.r, self.n, seed=2, dtype=torch.float64)
        if self.kind == "steep":
            left *= torch.logspace(0, -9, self.r, dtype=torch.float64)
        elif self.kind == "alike":
            left = left[:, :1] + 1e-3 * left
        elif self.kind == "deficient":
            left[:, self.r // 2 :] = left[:, : self.r - self.r // 2]
            right[1 : self.r // 3] = 0
        elif self.kind == "uneven":
            # Terms of one size, whose parts are not.
            uneven = 10 ** torch.linspace(-150, 150, self.r, dtype=torch.float64)
            left, right = left * uneven, right / uneven[:, None]
        return Product(left * self.scales[0], right * self.scales[1])

    def __str__(self) -> str:
        return f"{self.kind}-{self.m}x{self.n}-{self.r}-{self.scales[0]:g}-{self.scales[1]:g}"


KINDS = ["noise", "steep", "alike", "deficient", "uneven"]
SHAPES = [
    (90, 70, 8),
    (70, 90, 8),
    (400, 9, 4),
    (9, 400, 4),
    (20, 30, 40),
    (30, 20, 25),
    (12, 9, 9),
]
SCALES = [
    (1e-30, 1e30),
    (1e30, 1e-30),
    (1e-100, 1e-90),
    (1e100, 1e120),
    (1e-200, 1e250),
    (1e-321, 1e300),
]
CASES = [
    *(Case(kind, *shape) for kind in KINDS for shape in SHAPES),
    *(Case(kind, 60, 50, 1) for kind in ("noise", "uneven")),
    *(Case("noise", 1, 1, 1), Case("noise", 1, 40, 3), Case("noise", 40, 1, 3)),
    *(Case(kind, 50, 60, 6, scales) for kind in ("noise", "steep") for scales in SCALES),
]


def dense(product: Product) -> tuple[Tensor, float]:
    """The matrix and its scale, whose squares neither overflow nor vanish."""
    size = float(product.dense().abs().max())
    scale = math.ldexp(1.0, math.frexp(size)[1]) if size else 1.0
    return product.dense() / scale, scale


def run(product: Product, k: int, *, tolerance: float = TOLERANCE, **options) -> Decomposition:
    return decompose(
        product,
        k,
        accept=lambda found: is_certified(found.measured().bounds(k), tolerance),
        tolerance=tolerance,
        **options,
    )


def request(rule: str, keep: Keep = Keep.TOP) -> CutRequest:
    return CutRequest(parse_rule(rule), keep, seed=3)


def cut(product: Product, *requests: CutRequest) -> tuple[Decomposition, list[Cut]]:
    return cut_matrix(
        product, requests, storage=None, route=Route.AUTO, tolerance=TOLERANCE, seed=0
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_the_svd_of_the_dense_product(case):
    product = case.build()
    a, scale = dense(product)
    s = torch.linalg.svdvals(a)
    slack = SLACK * float(s[0])
    rank = min(case.m, case.n, case.r)
    for k in {0, 1, rank // 2, rank, rank + 3}:
        found = run(product, min(k, rank))
        assert (found.method, found.proof, found.rejected) == (
            Method.FACTORED,
            Proof.SPECTRUM,
            (),
        )
        assert (found.full_rank, found.num_triplets) == (rank, rank)
        assert is_certified(found.measured().bounds(min(k, rank)), TOLERANCE)
        values = torch.tensor(found.measured().singular_values(), dtype=torch.float64) / scale
        assert float((values - s[:rank]).abs().max()) <= slack
        assert found.measured().norm / scale == pytest.approx(float(s.norm()), rel=SLACK)
        left, right = found.factors(list(range(min(k, rank))))
        assert (left.shape[0], right.shape[1]) == (case.m, case.n)
        reached = float((a - (left * (found.scale / scale)) @ right).norm())
        assert abs(reached - float(s[k:].norm())) <= slack * math.sqrt(rank)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_vectors_are_orthonormal_and_say_what_they_hold(case):
    found = run(case.build(), 0)
    long, short = found.triplets.left, found.triplets.right
    assert (len(long), len(short)) == (max(case.m, case.n), min(case.m, case.n))
    assert float((short.T @ short - torch.eye(short.shape[1])).abs().max()) <= SLACK
    s = found.triplets.squares.sqrt()
    assert (s.diff() <= 0).all()
    assert float((long.T @ long - s.square().diag()).abs().max()) <= SLACK * float(s[0]) ** 2
    assert found.energy == pytest.approx(float(s.square().sum()), rel=SLACK)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values(case):
    product = case.build()
    a, scale = dense(product)
    s = torch.linalg.svdvals(a)[: product.rank]
    found = singular_values(product)
    assert (found.method, len(found.singular_values)) == (Method.FACTORED, product.rank)
    assert found.singular_values == sorted(found.singular_values, reverse=True)
    assert found.bound <= VALUE_TOLERANCE
    values = torch.tensor(found.singular_values, dtype=torch.float64) / scale
    errors = (values - s).abs() / s.clamp_min(VALUE_FLOOR * s[0])
    assert float(errors.max()) <= min(found.bound, SLACK / VALUE_FLOOR)


@pytest.mark.parametrize("case", CASES[:14], ids=str)
@pytest.mark.parametrize("keep", list(Keep))
@pytest.mark.parametrize("k", [1, 3])
def test_cuts_choose_among_the_triplets_of_the_product(case, keep, k):
    product = case.build()
    a, scale = dense(product)
    u, s, vh = torch.linalg.svd(a, full_matrices=False)
    found, (one,) = cut(product, request(str(k), keep))
    chosen = list(choose_indices(keep, k, product.rank, seed=3))
    assert list(one.indices) == chosen
    left, right = found.factors(chosen)
    unit = (left * (found.scale / scale)) @ right
    slack = SLACK * float(s[0]) * math.sqrt(product.rank)
    rest = [i for i in range(product.rank) if i not in chosen]
    assert float((a - unit).norm()) == pytest.approx(float(s[rest].norm()), abs=slack)
    assert one.tail_norm / scale == pytest.approx(float(s[rest].norm()), abs=slack)
    assert one.kept_norm / scale == pytest.approx(float(s[chosen].norm()), abs=slack)
    if case.kind == "noise":  # vectors of other values are not alike
        expected = (u[:, chosen] * s[chosen]) @ vh[chosen]
        assert torch.allclose(unit, expected, atol=1e-9 * float(s[0]))


@pytest.mark.parametrize("rule", ["2", "energy=0.9", "noise", "ratio=0.1", "full"])
def test_a_rank_above_that_of_the_product_means_all_of_it(rule):
    product = Case("noise", 30, 40, 5).build()
    found, (some, all_, whole) = cut(product, request(rule), request("25"), request("full"))
    assert some.rank <= 5
    assert (all_.rank, all_.tail_norm, all_.sigma_next) == (5, 0.0, None)
    assert all_ == whole
    left, right = found.factors(all_.indices)
    assert torch.allclose(left @ right * found.scale, product.dense(), atol=1e-12)


def test_the_noise_rule_keeps_what_is_not_numerically_zero():
    product = Case("noise", 300, 200, 6).build()
    twice = Product(torch.cat((product.left, product.left), 1), product.right.repeat(2, 1))
    _, (one,) = cut(twice, request("noise"))
    assert one.rank == 6
    assert one.edge == pytest.approx(300 * EPS * one.sigma_first)


@pytest.mark.parametrize("zero", ["left", "right", "in_turn"])
def test_zeros(zero):
    product = Case("noise", 30, 40, 4, (1e-20, 1e200)).build()
    if zero != "right":
        product.left[:, 0 if zero == "in_turn" else slice(None)] = 0
    if zero != "left":
        product.right[1 if zero == "in_turn" else 0 :] = 0
    found, cuts = cut(product, request("2"), request("noise"), request("1", Keep.BOTTOM))
    assert (found.method, found.energy, found.full_rank) == (Method.NONE, 0.0, 4)
    assert [one.rank for one in cuts] == [0, 0, 0]
    left, right = found.factors([])
    assert torch.equal(left @ right, torch.zeros(30, 40, dtype=torch.float64))
    values = singular_values(product)
    assert (values.singular_values, values.method) == ([0.0] * 4, Method.NONE)
    assert leading_spaces(product, 2, seed=0).rank == 0


@pytest.mark.parametrize("shape", [(90, 70, 6), (70, 90, 6), (30, 20, 40)])
def test_leading_spaces(shape):
    product = Case("noise", *shape).build()
    u, s, vh = torch.linalg.svd(product.dense(), full_matrices=False)
    for rank in (1, 4, 100):
        found = leading_spaces(product, rank, seed=0)
        assert found.rank == min(rank, product.rank)
        assert found.values == pytest.approx(s[: product.rank].tolist(), rel=1e-10)
        for j in range(1, found.rank + 1):
            for ours, theirs in ((found.left, u), (found.right, vh.T)):
                cosines = torch.linalg.svdvals(ours[:, :j].T @ theirs[:, :j])
                assert float(cosines.min()) == pytest.approx(1, abs=1e-10)


def test_the_same_bits_every_time():
    product = Case("steep", 300, 200, 16).build()
    before = Product(product.left.clone(), product.right.clone())
    once, again = run(product, 4, seed=1), run(product, 4, seed=2)
    for name in ("left", "right", "squares", "residuals"):
        assert torch.equal(getattr(once.triplets, name), getattr(again.triplets, name))
    assert singular_values(product) == singular_values(product)
    assert torch.equal(product.left, before.left)
    assert torch.equal(product.right, before.right)


class Largest(TorchDispatchMode):
    """Watches the size of every tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for found in out if isinstance(out, tuple | list) else [out]:
            if isinstance(found, Tensor):
                self.numbers = max(self.numbers, found.numel())
        return out


@pytest.mark.parametrize("shape", [(60000, 50000), (50000, 60000)])
def test_the_matrix_is_never_formed(shape):
    product = Case("noise", *shape, 8).build()
    with Largest() as largest:
        found, _ = cut(product, request("4"), request("noise"), request("2", Keep.RANDOM))
        found.factors([0, 1])
        values = singular_values(product)
        leading_spaces(product, 3, seed=0)
    assert largest.numbers <= 8 * max(shape)
    assert values.singular_values == pytest.approx(found.measured().singular_values(), rel=1e-13)


class TestCertificate:
    """What is claimed of the rounding, and what follows where it is too much."""

    @pytest.mark.parametrize("case", [*CASES, Case("alike", 20000, 20, 12)], ids=str)
    def test_the_reduction_rounds_no_more_than_said(self, case):
        """In extended precision; and not a thousand times less."""
        product, _ = case.build().normalised()
        reduced = reduce_product(product)
        left, core, right, ours, theirs = (
            part.numpy().astype(np.longdouble)
            for part in (reduced.left, reduced.core, reduced.right, product.left, product.right)
        )
        off = float(np.sqrt(((left @ core @ right.T - ours @ theirs) ** 2).sum()))
        assert off <= reduced.rounding <= 1000 * off + EPS

    @staticmethod
    def cancelling(share: float) -> Product:
        """Two products that are alike but for a share of themselves."""
        left, right = noise(60, 4, dtype=torch.float64), noise(4, 50, seed=1, dtype=torch.float64)
        other = right + share * noise(4, 50, seed=2, dtype=torch.float64)
        return Product(torch.cat((left, left), 1), torch.cat((right, -other)))

    @pytest.mark.parametrize("wide", [False, True])
    def test_terms_that_cancel_end_in_the_exact_route(self, wide):
        product, called = self.cancelling(1e-11), []
        product = product.T if wide else product
        found = run(product, 3, escalate=called.append)
        assert (found.method, found.rejected) == (Method.EXACT, ("factored: bound missed",))
        assert (found.num_triplets, found.full_rank, called) == (8, 8, [UNCOUNTED])
        # Another order of the same products rounds by as much as the terms cancel.
        s = torch.linalg.svdvals(product.dense())[:8]
        rounding = VALUE_TOLERANCE * float(s[0])
        values = found.measured().singular_values()
        assert values == pytest.approx(s.tolist(), abs=rounding)
        left, right = found.factors([0, 1, 2])
        reached = float((product.dense() - left @ right * found.scale).norm())
        assert reached == pytest.approx(float(s[3:].norm()), abs=rounding)

        values = singular_values(product, escalate=called.append)
        assert (values.method, called) == (Method.EXACT, [UNCOUNTED, UNCOUNTED])
        assert values.singular_values == pytest.approx(s.tolist(), abs=rounding)

    def test_terms_that_cancel_to_nothing(self):
        product = self.cancelling(0.0)
        _, (one,) = cut(product, request("2"))
        assert one.sigma_first <= SLACK * float(product.left.norm() * product.right.norm())
        assert singular_values(product).singular_values[0] <= one.sigma_first + SLACK * 1e4

    def test_cancellation_that_leaves_enough_is_certified(self):
        product = self.cancelling(1e-1)
        assert run(product, 3).method is Method.FACTORED
        assert singular_values(product).method is Method.FACTORED

    def test_a_solver_that_fails(self, monkeypatch):
        def fail(*_, **__):
            raise torch.linalg.LinAlgError("LAPACK gave up")

        product = Case("noise", 30, 20, 4).build()
        with monkeypatch.context() as patch:
            patch.setattr(factored, "exact_triplets", fail)
            found = run(product, 2)
            assert (found.method, found.num_triplets) == (Method.EXACT, 4)
            assert found.rejected == ("factored: solver failed",)
            patch.setattr(engine, "exact_triplets", fail)
            with pytest.raises(SolverError):
                run(product, 2)
        monkeypatch.setattr(torch.linalg, "qr", fail)
        assert singular_values(product).method is Method.EXACT


@st.composite
def products(draw) -> Product:
    m, n, r = (draw(st.integers(1, top)) for top in (40, 40, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    left = torch.randn(m, r, generator=generator, dtype=torch.float64)
    right = torch.randn(r, n, generator=generator, dtype=torch.float64)
    levels = st.sampled_from([1.0, 1.0, 0.5, 1e-3, 1e-8, 1e-15, 0.0])
    weights = draw(st.lists(levels, min_size=r, max_size=r))
    scale = draw(st.sampled_from([1.0, 1e-40, 1e40, 1e-140, 1e140]))
    return Product(left * torch.tensor(weights, dtype=torch.float64), right * scale)


@settings(max_examples=150)
@given(product=products(), k=st.integers(0, 12), keep=st.sampled_from(list(Keep)))
def test_invariants(product, k, keep):
    found, (one,) = cut(product, request(str(max(k, 1)), keep))
    values, norm = found.measured().singular_values(), found.measured().norm
    assert values == sorted(values, reverse=True)
    assert norm == pytest.approx(math.hypot(*values), rel=1e-12)
    assert math.hypot(one.kept_norm, one.tail_norm) == pytest.approx(norm, rel=1e-12)
    assert is_certified(one.bounds, TOLERANCE)
    assert one.rank == (min(max(k, 1), product.rank) if found.energy else 0)
    assert singular_values(product).singular_values[: len(values)] == pytest.approx(
        values, abs=SLACK * values[0] if values else 0.0
    )


@settings(max_examples=100)
@given(product=products(), seed=st.integers(0, 99), condition=st.sampled_from([1.0, 10.0, 100.0]))
def test_the_same_matrix_has_the_same_values_whatever_its_factors(product, seed, condition):
    """A basis between the factors is nobody's business."""
    r = product.left.shape[1]
    generator = torch.Generator().manual_seed(seed)
    one, other = orthonormal(r, r, generator), orthonormal(r, r, generator)
    stretch = torch.logspace(0, math.log10(condition), r, dtype=torch.float64)
    turned = Product(
        product.left @ (one * stretch @ other.T),
        (other / stretch @ one.T) @ product.right,
    )
    values, same = (singular_values(p).singular_values for p in (product, turned))
    assert same == pytest.approx(values, abs=SLACK * condition * max(values))


@settings(max_examples=100)
@given(product=products(), data=st.data())
def test_powers_of_two_between_the_factors_change_no_bit(product, data):
    r = product.left.shape[1]
    powers = data.draw(st.lists(st.integers(-300, 300), min_size=r, max_size=r))
    shift = torch.tensor([math.ldexp(1.0, power) for power in powers], dtype=torch.float64)
    shifted = Product(product.left * shift, product.right / shift[:, None])
    once, again = (decompose(p, None, accept=lambda _: True) for p in (product, shifted))
    assert once.exponent == again.exponent
    assert torch.equal(once.triplets.squares, again.triplets.squares)
    assert torch.equal(once.triplets.right, again.triplets.right)
