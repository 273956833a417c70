"""Rank rules, by their definitions."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svdcut.choose.budget import allocate_budget
from svdcut.choose.keep import Keep, choose_indices
from svdcut.choose.ranks import (
    EXAMPLES,
    FULL,
    KINDS,
    NOTHING,
    Budget,
    Energy,
    Fixed,
    Noise,
    Ratio,
    parse_override,
    parse_rule,
    parse_rules,
    rank_for_energy,
    rule_for,
)
from svdcut.errors import UsageError

spectra = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=40).map(
    lambda values: sorted(values, reverse=True)
)
shares = st.floats(1e-9, 1.0, exclude_min=True)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("64", Fixed(64)),
        (64, Fixed(64)),
        ("0", NOTHING),
        (" full ", FULL),
        ("noise", Noise()),
        ("energy=0.9", Energy(0.9)),
        ("ratio=5e-2", Ratio(0.05)),
        ("budget=1", Budget(1.0)),
    ],
)
def test_good_rules(text, rule):
    assert parse_rule(text) == rule
    assert parse_rule(str(rule)) == rule


@pytest.mark.parametrize(
    "text",
    ["", "-1", "1.5", "x", "energy", "energy=", "energy=0", "energy=1.1", "energy=nan", "energy=x",
     "rank=3", "full=1", "noise=2", "fixed=3", "²", "energy=inf", "64 32", "9" * 5000],
)  # fmt: skip
def test_bad_rules(text):
    with pytest.raises(UsageError) as caught:
        parse_rule(text)
    assert caught.value.exit_code == 2


@given(st.sampled_from([Energy, Ratio, Budget]), shares)
def test_a_printed_rule_is_the_same_rule(kind, share):
    assert parse_rule(str(kind(share))) == kind(share)


def test_lists_of_rules():
    assert parse_rules("8,full") == (Fixed(8), FULL)
    with pytest.raises(UsageError, match="twice"):
        parse_rules("8,08")


def test_overrides():
    override = parse_override("*.mlp.*=energy=0.5")
    assert (override.pattern, str(override.rule)) == ("*.mlp.*", "energy=0.5")
    for text in ("8", "=8", "*.mlp.*=", "*.mlp.*=x"):
        with pytest.raises(UsageError):
            parse_override(text)


def test_the_last_override_that_matches_wins():
    default = parse_rule(1)
    overrides = [parse_override("*=2"), parse_override("a.*=3"), parse_override("b.*=4")]
    assert [int(rule_for(name, default, overrides).value) for name in ("a.x", "b.x", "c")] == [
        3,
        4,
        2,
    ]
    assert rule_for("a.x", default, []) == default


@given(spectra, shares)
def test_energy_is_the_smallest_rank_with_that_share(s, share):
    k = rank_for_energy(s, share)
    energies = [0.0, *itertools.accumulate(value**2 for value in s)]
    assert energies[k] >= share * energies[-1] * (1 - 1e-12)
    assert energies[k - 1] < share * energies[-1] * (1 + 1e-12)


@given(spectra, shares, st.sampled_from([1e-30, 1.0, 1e30]))
def test_rules_do_not_depend_on_the_scale(s, share, scale):
    for kind in (Energy, Ratio):
        ranks = {kind(share).rank([v * f for v in s], len(s)) for f in (1.0, scale)}
        assert max(ranks) - min(ranks) <= 1  # a tie may fall to either side


@given(spectra, shares)
def test_ratio_counts_values_near_the_first(s, share):
    k = Ratio(share).rank(s, len(s))
    assert all(value >= share * s[0] for value in s[:k])
    assert all(value < share * s[0] for value in s[k:])
    assert k >= 1


def test_noise_counts_values_above_the_edge():
    assert Noise().rank([3.0, 2.0, 1.0], 3, edge=2.0) == 1


def test_fixed_full_and_nothing():
    assert parse_rule(99).rank([2.0, 1.0], 2) == 2
    assert parse_rule("full").rank([2.0], 7) == 7
    for rule in ("5", "full", "energy=0.9", "ratio=0.1", "noise"):
        assert parse_rule(rule).rank([0.0, 0.0], 2) == 0


problems = st.dictionaries(
    st.sampled_from("abc"),
    st.tuples(spectra.map(lambda s: s[:4]), st.integers(4, 9), st.integers(4, 9)),
    min_size=1,
)


@given(problems, shares)
def test_a_budget_is_kept_and_spent_best(problem, share):
    spectra = {name: s for name, (s, _, _) in problem.items()}
    shapes = {name: (m, n) for name, (_, m, n) in problem.items()}
    ranks = allocate_budget(spectra, shapes, share)
    cost = {name: sum(shape) for name, shape in shapes.items()}
    budget = share * sum(cost[n] * min(shapes[n]) for n in shapes)
    spent = sum(ranks[name] * cost[name] for name in ranks)
    assert spent <= budget * (1 + 1e-12)

    def kept(choice):
        return math.fsum(v**2 for n, k in choice.items() for v in spectra[n][:k])

    best = max(
        kept(choice)
        for counts in itertools.product(*(range(len(s) + 1) for s in spectra.values()))
        for choice in [dict(zip(spectra, counts, strict=True))]
        if sum(k * cost[n] for n, k in choice.items()) <= spent
    )
    assert kept(ranks) >= best * (1 - 1e-9)


@given(problems)
def test_the_whole_budget_is_full_rank(problem):
    spectra = {name: s for name, (s, _, _) in problem.items()}
    shapes = {name: (len(s), 9) for name, s in spectra.items()}
    assert allocate_budget(spectra, shapes, 1.0) == {n: len(s) for n, s in spectra.items()}


@given(problems, shares, shares)
def test_more_budget_never_spends_or_keeps_less(problem, one, two):
    spectra = {name: s for name, (s, _, _) in problem.items()}
    shapes = {name: (m, n) for name, (_, m, n) in problem.items()}
    small, large = (allocate_budget(spectra, shapes, share) for share in sorted((one, two)))
    for worth in (
        lambda ranks: sum(k * sum(shapes[n]) for n, k in ranks.items()),
        lambda ranks: math.fsum(v**2 for n, k in ranks.items() for v in spectra[n][:k]),
    ):
        assert worth(large) >= worth(small) * (1 - 1e-12)


def test_more_budget_may_be_less_rank_where_densities_tie():
    spectra, shapes = {"a": [2.0, *[0.0] * 7], "b": [1.0, 1.0]}, {"a": (8, 8), "b": (2, 2)}
    whole = 16 * 8 + 4 * 2
    assert allocate_budget(spectra, shapes, 15 / whole) == {"a": 0, "b": 2}
    assert allocate_budget(spectra, shapes, 17 / whole) == {"a": 1, "b": 0}


def test_ties_are_spent_in_order_and_zeros_not_at_all():
    spectra = {"a": [1.0, 1.0], "b": [1.0, 1.0], "c": [0.0, 0.0]}
    shapes = dict.fromkeys(spectra, (2, 2))
    assert allocate_budget(spectra, shapes, 0.5) == {"a": 2, "b": 1, "c": 0}
    assert allocate_budget(spectra, shapes, 1.0)["c"] == 0


def test_indices():
    assert choose_indices(Keep.TOP, 3, 9, seed=0) == range(3)
    assert choose_indices(Keep.BOTTOM, 3, 9, seed=0) == range(6, 9)
    chosen = choose_indices(Keep.RANDOM, 4, 100, seed=1)
    # Frozen: a published control must stay what it was.
    assert chosen == [8, 17, 72, 97]
    assert choose_indices(Keep.RANDOM, 100, 100, seed=1) == list(range(100))
    assert choose_indices(Keep.RANDOM, 0, 100, seed=1) == []


@given(spectra, st.sampled_from(EXAMPLES), st.floats(1e-3, 10.0))
def test_the_range_of_ranks_is_narrow_and_holds_the_rank(s, text, edge):
    rule = parse_rule(text)
    least, most = rule.rank_range(s, len(s), edge=edge)
    assert 0 <= least <= most <= len(s)
    if not rule.is_joint:
        assert least <= rule.rank(s, len(s), edge=edge) <= most
    assert rule.rank_range([0.0] * len(s), len(s)) == (0, 0)


def test_a_value_at_the_limit_may_fall_to_either_side():
    s = [1.0, 0.5, 0.5 * (1 - 1e-9), 0.1]
    assert Ratio(0.5).rank(s, 4) == 2
    assert Ratio(0.5).rank_range(s, 4) == (1, 3)
    assert Noise().rank_range(s, 4, edge=0.5) == (1, 3)
    assert Energy(0.8).rank_range([1.0, 0.5, 0.0], 3) == (1, 2)
    assert Energy(1.0).rank_range([1.0, 0.5, 0.0], 3)[1] == 3
    assert Fixed(3).rank_range(s, 4) == (3, 3)


def test_each_kind_has_examples_of_its_own():
    assert [type(parse_rule(text)) for text in EXAMPLES] == [k for k in KINDS for _ in k.examples]
