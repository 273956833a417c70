"""Which rank to use, and why, in words. Pure functions of what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from svdcut.evaluation.metrics import Evaluation
from svdcut.ranks import Keep
from svdcut.sweeps.facts import Row

_SAME = 1e-9
"""Accuracies are shares of whole numbers: what is closer than this is equal."""

_CONTROLS = {
    Keep.BOTTOM: "Dropping the head of the spectrum instead (bottom)",
    Keep.RANDOM: "Keeping a random set instead",
}


@dataclass(frozen=True, slots=True)
class Choice:
    """The rank to use, by accuracy alone and by the gap."""

    by_accuracy: Row | None
    by_gap: Row | None


def choose(rows: Sequence[Row], finetuned: Evaluation, tolerance: float) -> Choice:
    """Choose a rank.

    Parameters
    ----------
    rows : sequence of Row
        All that were measured. Those that cut the tail are candidates; a cut that leaves
        nothing out is none.
    finetuned : Evaluation
        What they are compared with.
    tolerance : float
        How much accuracy a cut may cost.

    Returns
    -------
    Choice
        The smallest rank whose accuracy is within the tolerance, for which no group label is
        looked at; and the one with the smallest gap of those, the smaller rank where several
        have it.
    """
    within = _within(rows, Keep.TOP, finetuned, tolerance)
    return Choice(
        by_accuracy=min(within, key=lambda row: row.cost.rank, default=None),
        by_gap=_smallest_gap(within),
    )


def _within(rows: Iterable[Row], keep: Keep, finetuned: Evaluation, tolerance: float) -> list[Row]:
    least = finetuned.accuracy - tolerance - _SAME
    return [
        row
        for row in rows
        if row.variant.keep is keep and row.cost.is_cut and row.evaluation.accuracy >= least
    ]


def _smallest_gap(rows: Iterable[Row]) -> Row | None:
    known = [(gap, row.cost.rank, row) for row in rows if (gap := gap_of(row)) is not None]
    return min(known, key=lambda item: item[:2])[2] if known else None


def gap_of(row: Row) -> float | None:
    """Return the accuracy of the best group over that of the worst, if there are groups."""
    return row.evaluation.gap.best_worst


def explain(
    rows: Sequence[Row], finetuned: Evaluation, tolerance: float, choice: Choice
) -> Iterator[str]:
    """Yield the answer in plain words, a sentence each.

    Parameters
    ----------
    rows, finetuned, tolerance
        As for `choose`.
    choice : Choice
        What it chose.
    """
    points = f"{100 * tolerance:g} points"
    chosen = choice.by_accuracy
    if chosen is None:
        yield _nothing_within(rows, finetuned, points)
    else:
        yield (
            f"Use -k {chosen.variant.rule}: the smallest rank within {points} of the fine-tuned "
            f"accuracy, {_share(chosen.evaluation.accuracy)} against "
            f"{_share(finetuned.accuracy)}; no group label was needed for that."
        )
        if chosen.cost.rank == 0:
            yield "Base does as well on these data without any of the update."
    whole = finetuned.gap.best_worst
    if whole is None:
        yield "There are no groups, so nothing is known of the gap."
        return
    yield from _explain_gap(choice, whole)
    if not shrinks_gap(choice, whole):
        for keep, name in _CONTROLS.items():
            yield _explain_control(rows, keep, name, finetuned, tolerance)


def _nothing_within(rows: Sequence[Row], finetuned: Evaluation, points: str) -> str:
    cuts = [row for row in rows if row.variant.keep is Keep.TOP and row.cost.is_cut]
    text = f"No rank is within {points} of the fine-tuned accuracy, {_share(finetuned.accuracy)}"
    if not cuts:
        return f"{text}: none was tried that leaves anything out."
    best = max(cuts, key=lambda row: row.evaluation.accuracy)
    found = _share(best.evaluation.accuracy)
    return f"{text}: the closest is -k {best.variant.rule}, with {found}."


def shrinks_gap(choice: Choice, finetuned: float) -> bool:
    """Whether a cut of the tail within the tolerance has a smaller gap than the whole update."""
    found = None if choice.by_gap is None else gap_of(choice.by_gap)
    return found is not None and found < finetuned - _SAME


def _explain_gap(choice: Choice, finetuned: float) -> Iterator[str]:
    best = choice.by_gap
    gap = None if best is None else gap_of(best)
    if best is None or gap is None:
        return
    if not shrinks_gap(choice, finetuned):
        yield (
            f"No cut of the tail within the tolerance shrinks the gap of {_points(finetuned)} "
            "points between the best and the worst group: what makes it is not in the tail."
        )
        return
    start = "The same rank has" if best == choice.by_accuracy else f"-k {best.variant.rule} has"
    yield (
        f"{start} the smallest gap between the best and the worst group, {_points(gap)} points "
        f"against {_points(finetuned)}; this choice uses group labels."
    )


def _explain_control(
    rows: Sequence[Row], keep: Keep, name: str, finetuned: Evaluation, tolerance: float
) -> str:
    if not any(row.variant.keep is keep for row in rows):
        return f"{name} was not tried: --controls {keep.value}."
    best = _smallest_gap(_within(rows, keep, finetuned, tolerance))
    gap, whole = None if best is None else gap_of(best), finetuned.gap.best_worst
    if best is None or gap is None:
        return f"{name} never keeps the accuracy."
    if whole is not None and gap < whole - _SAME:
        accuracy = _share(best.evaluation.accuracy)
        return (
            f"{name} does better: at rank {best.variant.rule} the gap is {_points(gap)} points, "
            f"with an accuracy of {accuracy}."
        )
    return f"{name} does not shrink it either."


def _share(value: float) -> str:
    return f"{value:.1%}"


def _points(value: float) -> str:
    return f"{100 * value:.1f}"
