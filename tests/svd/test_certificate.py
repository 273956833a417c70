"""The bounds of the certificate against brute force on small Gram matrices."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import pytest
import torch
from certificates import examine
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from matrices import orthonormal
from svdcut.svd.certificate import (
    ERROR_FLOOR,
    VALUE_FLOOR,
    Bounds,
    RitzValues,
)

SLACK = 1e-13
"""Rounding of the brute force, relative to the largest eigenvalue."""


@dataclass(frozen=True)
class Trial:
    """Approximate eigenvectors of a small matrix, and the truth that no engine knows."""

    gram: Tensor
    vectors: Tensor
    """All of a basis; the first `count` are at hand."""

    count: int

    @property
    def size(self) -> int:
        return len(self.gram)

    @cached_property
    def truth(self) -> list[float]:
        """Eigenvalues, descending."""
        return torch.linalg.eigvalsh(self.gram).flip(0).tolist()

    @cached_property
    def at_hand(self) -> Tensor:
        return self.vectors[:, : self.count]

    @cached_property
    def squares(self) -> list[float]:
        return (self.at_hand * (self.gram @ self.at_hand)).sum(0).clamp_min(0).tolist()

    @cached_property
    def defects(self) -> Tensor:
        return self.gram @ self.at_hand - self.at_hand * torch.tensor(
            self.squares, dtype=torch.float64
        )

    @cached_property
    def residuals(self) -> list[float]:
        return self.defects.norm(dim=0).tolist()

    @cached_property
    def couplings(self) -> list[float]:
        return (self.at_hand.T @ self.defects).norm(dim=0).tolist()

    def largest_beyond(self, j: int) -> float:
        """The largest eigenvalue on the complement of the first `j` vectors."""
        rest = self.vectors[:, j:]
        return float(torch.linalg.eigvalsh(rest.T @ self.gram @ rest)[-1]) if j < self.size else 0.0

    def lacking(self, k: int) -> float:
        """The energy that the first `k` vectors lack."""
        return math.fsum(self.truth[:k]) - math.fsum(self.squares[:k])

    @cached_property
    def values(self) -> RitzValues:
        """What an engine knows."""
        return RitzValues(
            squares=self.squares,
            residuals=self.residuals,
            couplings=self.couplings,
            beyond=self.largest_beyond(self.count),
            rest=max(math.fsum(self.truth) - math.fsum(self.squares), 0.0),
        )

    def bounds(self, k: int) -> Bounds:
        return self.values.bounds(k)


def ritz(squares, residuals=None, beyond=0.0, rest=0.0, couplings=None) -> RitzValues:
    """Residuals and couplings are zero where none are given."""
    zeros = [0.0] * len(squares)
    return RitzValues(
        squares=squares,
        residuals=residuals or zeros,
        couplings=couplings or zeros,
        beyond=beyond,
        rest=rest,
    )


def spectrum(kind: str, size: int, generator: torch.Generator) -> Tensor:
    u = torch.rand(size, generator=generator, dtype=torch.float64)
    if kind == "near ties":
        return 1 + 1e-2 * u
    if kind == "ties":
        return 1 + 1e-3 * (u < 0.3).double()
    if kind == "graded":
        return 10 ** (-6 * u)
    if kind == "deficient":
        return u * (u > 0.4)
    return u


@st.composite
def trials(draw, *, exact_ritz: bool, smallest: float = -7.0) -> Trial:
    """Eigenvectors that are perturbed as a whole or each by its own amount."""
    size = draw(st.integers(2, 9))
    count = draw(st.integers(1, size))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    kinds = ["uniform", "near ties", "ties", "graded", "deficient"]
    values = spectrum(draw(st.sampled_from(kinds)), size, generator)
    values = values.sort(descending=True).values
    assume(values[0] > 0)
    true = orthonormal(size, size, generator)
    gram = (true * values) @ true.T
    gram = (gram + gram.T) / 2
    amounts = torch.full((size,), 10 ** draw(st.floats(smallest, 0.5)), dtype=torch.float64)
    if draw(st.booleans()):
        amounts = 10 ** (smallest + (0.5 - smallest) * torch.rand(size, generator=generator))
    vectors = torch.linalg.qr(
        true + amounts * torch.randn(size, size, generator=generator, dtype=torch.float64)
    ).Q
    part = vectors[:, :count]
    part = part @ torch.linalg.eigh(part.T @ gram @ part).eigenvectors.flip(1)
    if not exact_ritz:
        turn = 10 ** draw(st.floats(smallest, 0)) * torch.randn(
            count, count, generator=generator, dtype=torch.float64
        )
        part = part @ torch.linalg.qr(torch.eye(count, dtype=torch.float64) + turn).Q
        part = part[:, (part * (gram @ part)).sum(0).argsort(descending=True)]
    return Trial(gram, torch.cat((part, vectors[:, count:]), dim=1), count)


def slack(trial: Trial) -> float:
    return SLACK * trial.size * trial.truth[0]


@settings(max_examples=700)
@given(trial=st.one_of(trials(exact_ritz=True), trials(exact_ritz=False)), data=st.data())
def test_bound_1_with_the_true_spectrum_of_the_complement(trial, data):
    k = data.draw(st.integers(1, trial.count))
    bound = trial.values.excess_energy(k, trial.largest_beyond(k))
    assert trial.lacking(k) <= bound + slack(trial)


@settings(max_examples=700)
@given(trial=st.one_of(trials(exact_ritz=True), trials(exact_ritz=False)), data=st.data())
def test_bounds_1_and_2_with_what_an_engine_knows(trial, data):
    k = data.draw(st.integers(1, trial.count))
    h = trial.values.complement_bounds()
    assert trial.lacking(k) <= trial.values.excess_energy(k, h[k]) + slack(trial)
    assert trial.lacking(k) <= trial.values.gap_energy(k, h) + slack(trial)


@settings(max_examples=700)
@given(trial=st.one_of(trials(exact_ritz=True), trials(exact_ritz=False)))
def test_the_spectrum_of_every_complement_is_bounded(trial):
    h = trial.values.complement_bounds()
    assert len(h) == trial.count + 1
    assert h[-1] == trial.largest_beyond(trial.count)
    for j, bound in enumerate(h):
        assert trial.largest_beyond(j) <= bound + slack(trial)
        if j < trial.size:
            assert trial.truth[j] <= bound + slack(trial)


@settings(max_examples=700)
@given(trial=trials(exact_ritz=True), data=st.data())
def test_errors_of_a_cut_are_bounded(trial, data):
    k = data.draw(st.integers(0, trial.count - (trial.count < trial.size)))
    bounds, truth = trial.bounds(k), trial.truth
    best, norm = math.sqrt(max(math.fsum(truth[k:]), 0)), math.sqrt(math.fsum(truth))
    reached = math.sqrt(max(math.fsum(truth) - math.fsum(trial.squares[:k]), 0))
    floor = ERROR_FLOOR * norm
    if k < trial.size:
        # Of the difference of two sums, over the square of what it is compared with.
        rounding = slack(trial) / max(best, floor) ** 2
        assert (reached - best) / max(best, floor) <= bounds.excess + rounding
    for index in {0, max(k - 1, 0), min(k, trial.count - 1)}:
        found, true = (math.sqrt(max(x[index], 0)) for x in (trial.squares, truth))
        scale = max(found, VALUE_FLOOR * math.sqrt(truth[0]))
        assert abs(found - true) <= bounds.value * scale + slack(trial) / max(
            found, math.sqrt(slack(trial))
        )


def test_the_bounds_are_not_idle():
    """They shrink with the square of the residuals where there is a gap."""
    lacking = []
    for e in (1e-2, 1e-3):
        values = ritz([4.0, 2.0, 1.0, 0.5], [e] * 4, beyond=0.25)
        h = values.complement_bounds()
        lacking.append(values.excess_energy(2, h[2]))
        assert lacking[-1] <= 2 * e * e
        assert values.gap_energy(2, h) <= 3 * e * e
        assert h[2] - values.squares[2] <= 3 * e * e
    assert lacking[1] == pytest.approx(lacking[0] / 100, rel=0.01)


def test_no_gap_no_bound_2():
    values = ritz([1.0, 1.0, 1.0], [1e-3] * 3, beyond=1.0)
    h = values.complement_bounds()
    assert values.gap_energy(2, h) == math.inf
    assert values.excess_energy(2, h[2]) >= 2e-3


def test_perfect_triplets_lack_nothing():
    values = ritz([3.0, 2.0, 1.0], beyond=0.5, rest=2.0)
    assert values.complement_bounds() == [3.0, 2.0, 1.0, 0.5]
    assert values.bounds(2) == Bounds(0.0, 0.0)


@pytest.mark.parametrize("cut", [1e-10, 1e-14, 1e-16, 1e-17])
def test_the_excess_is_what_the_error_is_above_the_best_one(cut):
    """Of the best error, or of what float32 can store where that is more."""
    lacking = 1e-17  # by a residual of its root, at a gap of about one
    found = ritz([1.0, 0.0], [math.sqrt(lacking), 0.0], rest=cut).bounds(1)
    best = math.sqrt(cut - lacking)
    excess = (math.sqrt(cut) - best) / max(best, ERROR_FLOOR)
    assert found.excess == pytest.approx(excess, rel=1e-3)


def test_zeros_are_certain():
    assert replace(ritz([0.0]), epsilon=1.0).bounds(0) == Bounds(0, 0)


class TestHoles:
    """Cases that simpler bounds let through."""

    def test_a_residual_just_behind_the_cut(self):
        """The kept vector is exact; the next one hides a larger value."""
        gram = torch.tensor([[1.0, 0, 0], [0, 1.0, 0.1], [0, 0.1, 0.2]], dtype=torch.float64)
        trial = Trial(gram, torch.eye(3, dtype=torch.float64), 2)
        assert trial.residuals == pytest.approx([0.0, 0.1])
        assert trial.lacking(1) > 0.01
        values = ritz(trial.squares, trial.residuals, beyond=0.2)
        assert values.excess_energy(1, values.complement_bounds()[1]) >= trial.lacking(1)
        assert trial.bounds(1).excess * 2 * (2.2 - 1) >= trial.lacking(1)

    def test_a_residual_further_behind_the_cut(self):
        """Three equal values, of which the last one's vector is wrong."""
        gram = torch.eye(4, dtype=torch.float64)
        gram[2, 3] = gram[3, 2] = 0.3
        gram[3, 3] = 0.1
        trial = Trial(gram, torch.eye(4, dtype=torch.float64), 3)
        assert trial.truth[0] > 1.09
        h = ritz(trial.squares, trial.residuals, beyond=0.1).complement_bounds()
        assert all(h[j] >= trial.truth[0] for j in range(3))
        assert trial.bounds(1).value >= math.sqrt(trial.truth[0]) - 1

    def test_something_larger_beyond(self):
        assert ritz([1.0, 0.2, 0.1], beyond=0.6).complement_bounds() == [1.0, 0.6, 0.6, 0.6]

    def test_a_kept_value_below_what_lies_beyond(self):
        """The gap is negative: the vector may be of no use at all."""
        assert ritz([0.1]).excess_energy(1, 0.5) == pytest.approx(0.4)
        assert ritz([0.1], [0.05]).excess_energy(1, 0.5) > 0.4

    def test_vectors_mixed_within_the_span(self):
        """All vectors are at hand, two of them mixed: nothing is coupled to the outside."""
        gram = torch.tensor([[1.0, 1e-3], [1e-3, 1.0]], dtype=torch.float64)
        trial = Trial(gram, torch.eye(2, dtype=torch.float64), 2)
        assert trial.lacking(1) == pytest.approx(1e-3)
        values = trial.values
        h = values.complement_bounds()
        assert values.gap_energy(1, h) >= 1e-3
        assert values.excess_energy(1, h[1]) >= 1e-3
        uncoupled = replace(values, couplings=[0.0, 0.0])
        assert uncoupled.gap_energy(1, uncoupled.complement_bounds()) < 1e-5


def test_a_copy_behind_the_wanted_values_may_be_missing():
    """17 near copies, of which the start block shows 16, one of them behind the 15 wanted."""
    assert not [claim for _, claim in examine(7012356) if claim]


@pytest.mark.parametrize("first", range(0, 300, 30))
def test_no_certificate_is_false_in_families_that_were_false_once(first):
    claims = {
        (number, name): claim
        for number in range(first, first + 30)
        for name, claim in examine(number)
        if claim
    }
    assert not claims


@pytest.mark.parametrize("close", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("angle", [1e-2, 1e-5])
def test_the_angle_of_a_space_is_bounded_by_the_gap_behind_it(close, angle):
    """The value that follows a space is near; those after it are far, and do not count."""
    turn = torch.eye(3, dtype=torch.float64)
    turn[0, 0] = turn[1, 1] = math.cos(angle)
    turn[1, 0], turn[0, 1] = math.sin(angle), -math.sin(angle)
    trial = Trial(torch.diag(torch.tensor([1.0, close, 0.01], dtype=torch.float64)), turn, 3)
    found = replace(trial.values, beyond=0.0).space_bound(1)
    assert math.sin(angle) * (1 - 1e-9) <= found <= 2 * angle
