"""Accuracies of groups, gaps and intervals, against definitions, scikit-learn and simulation."""

from __future__ import annotations

import itertools
import json
import random
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score

from svdcut.evaluation import metrics
from svdcut.evaluation.dataset import read_dataset
from svdcut.evaluation.metrics import (
    Evaluation,
    GroupResult,
    Interval,
    evaluate_predictions,
    wilson_interval,
)
from svdcut.evaluation.options import DataOptions

IDENTITIES = (
    *("male", "female", "LGBTQ", "christian"),
    *("muslim", "other_religions", "black", "white"),
)
GROUP_SETS = st.lists(st.sampled_from("abcdef"), unique=True, max_size=3).map(sorted).map(tuple)
ROWS = st.lists(st.tuples(GROUP_SETS, st.booleans(), st.booleans()), min_size=1, max_size=60)


def split(rows):
    groups, aligned, correct = zip(*rows, strict=True)
    return list(correct), groups, aligned


def some(correct, names=None, aligned=None, **options):
    """Evaluate rows of one group each."""
    names = names or "a" * len(correct)
    return evaluate_predictions(correct, [(n,) for n in names], aligned, **options)


# Accuracies


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.sampled_from("xyz"))))
def test_accuracies_are_those_of_scikit_learn(rows):
    rows = [*rows, (0, 1, "x"), (2, 2, "y")]
    truth, found, names = map(np.array, zip(*rows, strict=True))
    result = some(list(truth == found), list(names))
    assert result.accuracy == pytest.approx(accuracy_score(truth, found), rel=1e-15)
    assert result.size == len(rows)
    for name in set(names):
        mine = result.groups[name]
        assert mine.accuracy == pytest.approx(
            accuracy_score(truth[names == name], found[names == name]), rel=1e-15
        )
        assert mine.size == np.sum(names == name)
    assert list(result.groups) == sorted(set(names))


def test_overlapping_groups_are_those_of_civilcomments_wilds(tmp_path):
    """The definition, from the paper: each identity with each label, 16 groups that overlap."""
    draw = np.random.default_rng(0)
    shares = draw.random((2000, 8)) ** 3
    labels = draw.integers(0, 2, 2000)
    correct = draw.random(2000) < 0.7 + 0.2 * labels
    path = tmp_path / "civil.csv"
    with path.open("w") as file:
        print("text", *IDENTITIES, "label", sep=",", file=file)
        for row, label in zip(shares, labels, strict=True):
            print("some", *row.tolist(), label, sep=",", file=file)
    data = read_dataset(path, DataOptions(group_columns=IDENTITIES))
    result = evaluate_predictions(list(correct), data.groups)
    expected = {}
    for (place, name), label in itertools.product(enumerate(IDENTITIES), (0, 1)):
        mask = (shares[:, place] >= 0.5) & (labels == label)
        expected[f"{name}, label={label}"] = correct[mask].mean(), mask.sum()
    assert {n: (g.accuracy, g.size) for n, g in result.groups.items()} == expected
    assert len(result.groups) == 16
    assert result.worst_group_accuracy == min(accuracy for accuracy, _ in expected.values())
    assert result.accuracy == correct.mean()
    assert any(not names for names in data.groups)
    assert any(len(names) > 1 for names in data.groups)
    assert result.gap.average_worst == result.accuracy - result.worst_group_accuracy


def test_disjoint_groups_are_those_of_group_dro(tmp_path):
    """MultiNLI: three labels, with and without a negation, are six groups."""
    draw = np.random.default_rng(1)
    labels, negation = draw.integers(0, 3, 900), draw.integers(0, 2, 900)
    correct = draw.random(900) < 0.5 + 0.15 * labels
    path = tmp_path / "nli.csv"
    with path.open("w") as file:
        print("text,label,negation", file=file)
        for label, has in zip(labels, negation, strict=True):
            print("some", label, has, sep=",", file=file)
    data = read_dataset(path, DataOptions(group=("label", "negation")))
    result = evaluate_predictions(list(correct), data.groups)
    number = labels * 2 + negation  # as the authors' code numbers them
    by_number = [correct[number == g].mean() for g in range(6)]
    assert [group.accuracy for group in result.groups.values()] == pytest.approx(by_number)
    assert list(result.groups)[3] == "label=1, negation=1"
    assert sum(group.size for group in result.groups.values()) == 900
    assert result.gap.best_worst == pytest.approx(max(by_number) - min(by_number))


@given(ROWS, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(rows, chance):
    shuffled = rows.copy()
    chance.shuffle(shuffled)
    assert evaluate_predictions(*split(rows)) == evaluate_predictions(*split(shuffled))


@given(ROWS)
def test_what_follows_from_the_accuracies(rows):
    result = evaluate_predictions(*split(rows))
    assert sum(group.size for group in result.groups.values()) == sum(len(r[0]) for r in rows)
    for name, group in result.groups.items():
        own = [right for names, _, right in rows if name in names]
        assert (group.size, group.accuracy) == (len(own), sum(own) / len(own))
    for interval, value in [
        (result.interval, result.accuracy),
        *((group.interval, group.accuracy) for group in result.groups.values()),
    ]:
        assert 0 <= interval.low <= value <= interval.high <= 1
    sides = [[right for _, side, right in rows if side is which] for which in (True, False)]
    if all(sides):
        aligned, conflicting = (sum(side) / len(side) for side in sides)
        assert result.gap.aligned_conflicting == aligned - conflicting
    else:
        assert result.gap.aligned_conflicting is None
    gaps = result.to_json()["gap"]
    assert set(result.intervals) <= {name for name, gap in gaps.items() if gap is not None}


def test_rows_without_groups_have_an_accuracy_alone():
    result = evaluate_predictions([True, False], [(), ()])
    assert (result.accuracy, result.groups, result.intervals) == (0.5, {}, {})
    assert (result.worst_group, result.worst_group_accuracy) == (None, None)
    assert result.to_json()["gap"] == {
        "best_worst": None,
        "average_worst": None,
        "aligned_conflicting": None,
    }


def test_of_equally_bad_groups_the_worst_is_the_largest_then_the_first():
    assert some([True, False] * 3 + [True], "aabbbbc").worst_group == "b"
    assert some([True, False] * 2 + [True], "bbaac").worst_group == "a"
    assert some([True, False, False] + [True, False, False] * 2, "aaabbbbbb").worst_group == "b"


@pytest.mark.parametrize(("predictions", "rows"), [(0, 0), (1, 2), (3, 2)])
def test_predictions_and_rows_are_as_many(predictions, rows):
    with pytest.raises(ValueError, match=f"{predictions} predictions for {rows} rows"):
        evaluate_predictions([True] * predictions, [("a",)] * rows)


def test_truths_of_numpy_are_taken():
    assert some(np.array([True, False, True])) == some([True, False, True])


# JSON


@given(ROWS)
def test_json_and_back(rows):
    result = evaluate_predictions(*split(rows))
    text = json.dumps(result.to_json(), allow_nan=False)
    assert Evaluation.from_json(json.loads(text)) == result
    assert Evaluation.from_json({**json.loads(text), "rule": "64"}) == result
    assert result.num_truncated is None


def test_json_that_does_not_say_how_a_model_was_asked():
    plain = some([True, False])
    known = replace(plain, num_truncated=1, chat_template=True)
    document = known.to_json()
    assert Evaluation.from_json(document) == known
    assert (document.pop("num_truncated"), document.pop("chat_template")) == (1, True)
    assert Evaluation.from_json(document) == plain


def test_json_is_as_documented():
    document = some([True, False, True], "aab", aligned=[True, True, False]).to_json()
    assert list(document) == [
        *("accuracy", "size", "num_truncated", "chat_template", "groups"),
        *("worst_group", "worst_group_accuracy", "gap", "intervals"),
    ]
    assert document["groups"] == {
        "a": {"accuracy": 0.5, "size": 2},
        "b": {"accuracy": 1.0, "size": 1},
    }
    assert (document["worst_group"], document["worst_group_accuracy"]) == ("a", 0.5)
    assert document["gap"]["best_worst"] == 0.5
    assert document["gap"]["aligned_conflicting"] == -0.5
    assert list(document["intervals"]) == ["accuracy", "groups", "gap"]
    assert list(document["intervals"]["gap"]) == list(document["gap"])
    assert document["intervals"]["groups"]["b"] == [pytest.approx(0.2065, abs=1e-4), 1.0]


def broken(**changes):
    return {**some([True, False], "ab").to_json(), **changes}


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ({}, "accuracy: Field required"),
        (broken(accuracy=None), "accuracy: Field required"),
        (broken(accuracy=1.5), "accuracy: .* found 1.5"),
        (broken(accuracy=float("nan")), "accuracy: .* found nan"),
        (broken(size="many"), "size: .* found 'many'"),
        (broken(size=-1), "size: .* found -1"),
        (broken(groups=[]), r"groups: \[\]"),
        (broken(groups={"z": 0.5}), r"groups\.z: .* found 0.5"),
        (broken(groups={"z": {"accuracy": 2}}), r"groups\.z\.accuracy: .* found 2"),
        (broken(gap="none"), "gap: 'none'"),
        (broken(intervals={"gap": {"best_worst": [0]}}), r"intervals\.best_worst: "),
    ],
)
def test_other_json_is_refused(document, named):
    with pytest.raises(ValueError, match=named):
        Evaluation.from_json(document)


def test_what_follows_from_accuracies_is_not_read():
    """So that no evaluator contradicts itself."""
    found = some([True, False, True], "aab")
    told = found.to_json() | {"worst_group": "b", "worst_group_accuracy": 0.1}
    assert Evaluation.from_json(told) == found
    assert Evaluation.from_json({"accuracy": 0.5}).interval == Interval(0, 1)


# Wilson's interval


@pytest.mark.parametrize(
    ("num_right", "size", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_intervals_are_those_published(num_right, size, low, high):
    """Newcombe 1998, Statistics in Medicine 17, 857-872, table I, method 3."""
    found = wilson_interval(num_right, size)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
    other = wilson_interval(size - num_right, size)
    assert (other.low, other.high) == pytest.approx((1 - high, 1 - low), abs=5e-5)


@given(st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_ends_of_an_interval_solve_the_score_equation(case):
    num_right, size = case
    share, found = num_right / size, wilson_interval(num_right, size)
    assert 0 <= found.low <= share <= found.high <= 1
    for end in (found.low, found.high):
        if 0 < end < 1:
            z = (share - end) / (end * (1 - end) / size) ** 0.5
            assert abs(z) == pytest.approx(1.959964, rel=1e-4)


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("size", [20, 100, 1000])
def test_intervals_cover_the_truth(share, size):
    counts = np.random.default_rng(0).binomial(size, share, 4000)
    known = {count: wilson_interval(int(count), size) for count in set(counts.tolist())}
    covered = np.mean([known[c].low <= share <= known[c].high for c in counts.tolist()])
    assert 0.915 < covered < 0.985


# The bootstrap


def random_rows(num, seed):
    chance = random.Random(seed)
    names = ("a", "b", "c")
    return [
        (
            tuple(name for name in names if chance.random() < 0.4),
            chance.random() < 0.7,
            chance.random() < 0.8,
        )
        for _ in range(num)
    ]


@given(ROWS, st.data())
def test_a_resample_has_the_gaps_of_its_rows(rows, data):
    """Counts of kinds of rows say what the rows themselves would."""
    places = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=80))
    kinds = sorted(set(rows))
    drawn = np.zeros((1, len(kinds)), np.int64)
    for place in places:
        drawn[0, kinds.index(rows[place])] += 1
    gaps = metrics._Cells([(kind, 1) for kind in kinds]).gaps(drawn)
    expected = evaluate_predictions(*split([rows[place] for place in places])).gap
    for name, values in gaps.items():
        gap = getattr(expected, name)
        assert not np.isfinite(values[0]) if gap is None else values[0] == pytest.approx(gap)


def test_intervals_are_those_of_a_bootstrap_by_rows():
    rows = random_rows(400, seed=3)
    found = evaluate_predictions(*split(rows)).intervals
    draw = np.random.default_rng(5)
    truth = np.array([right for _, _, right in rows])
    members = [np.array([name in names for names, _, _ in rows]) for name in "abc"]
    aligned = np.array([side for _, side, _ in rows])
    gaps = []
    for _ in range(4000):
        at = draw.integers(0, 400, 400)
        right = truth[at]
        accuracies = [right[member[at]].mean() for member in members]
        worst = min(accuracies)
        sides = right[aligned[at]].mean() - right[~aligned[at]].mean()
        gaps.append((max(accuracies) - worst, right.mean() - worst, sides))
    expected = np.percentile(np.array(gaps), [2.5, 97.5], axis=0)
    for number, name in enumerate(("best_worst", "average_worst", "aligned_conflicting")):
        ends = (found[name].low, found[name].high)
        assert ends == pytest.approx(tuple(expected[:, number]), abs=0.015)


def test_the_seed_alone_decides_the_intervals(monkeypatch):
    data = split(random_rows(200, seed=1))
    first = evaluate_predictions(*data, seed=1)
    assert evaluate_predictions(*data, seed=1) == first
    assert evaluate_predictions(*data, seed=2).intervals != first.intervals
    monkeypatch.setattr(metrics, "_MAX_DRAWN", 70)  # how many resamples are drawn at once does not
    assert evaluate_predictions(*data, seed=1) == first


def test_a_gap_between_sides_is_covered():
    """True gap 0.2; of 95 % intervals, few may miss it."""
    draw = np.random.default_rng(0)
    aligned = [True] * 150 + [False] * 150
    covered = 0
    for _ in range(200):
        correct = draw.random(300) < np.where(aligned, 0.9, 0.7)
        found = some(list(correct), aligned=aligned).intervals["aligned_conflicting"]
        covered += found.low <= 0.2 <= found.high
    assert 0.89 < covered / 200 < 0.99


def test_groups_of_one_row_may_be_missing_in_a_resample():
    result = some([True, False], "ab")
    assert result.gap.best_worst == 1
    assert result.intervals["best_worst"] == Interval(0, 1)
    assert result.groups["a"] == GroupResult(1.0, 1)
    assert result.groups["a"].interval == wilson_interval(1, 1)


def test_memory_is_bounded_where_every_row_has_groups_of_its_own():
    chance = random.Random(0)
    groups = [tuple(f"g{i}" for i in range(40) if chance.random() < 0.5) for _ in range(8000)]
    correct = [chance.random() < 0.5 for _ in groups]
    tracemalloc.start()
    evaluate_predictions(correct, groups)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 120e6
