"""Which rank to use, and why, in words. Pure functions of what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from svdcut.choose.keep import Keep
from svdcut.evaluation.metrics import Evaluation, Interval
from svdcut.files.jsonfile import quoted
from svdcut.shown import points
from svdcut.sweeps.result import Row

_SAME = 1e-9
"""Accuracies are shares of whole numbers: what is closer than this is equal."""

_FEW_TEXTS = 30
"""Of a group whose accuracy says little: one text is three points and more."""

_MOST_NAMES = 4
"""Ranks or groups that a sentence names."""

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
        by_accuracy=min(within, key=lambda row: row.rank, default=None),
        by_gap=_smallest_gap(within),
    )


def _within(rows: Iterable[Row], keep: Keep, finetuned: Evaluation, tolerance: float) -> list[Row]:
    least = finetuned.accuracy - tolerance - _SAME
    return [
        row
        for row in rows
        if row.variant.keep is keep and row.is_cut and row.evaluation.accuracy >= least
    ]


def _smallest_gap(rows: Iterable[Row]) -> Row | None:
    known = [(gap, row.rank, row) for row in rows if (gap := gap_of(row)) is not None]
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
    margin = f"{100 * tolerance:g} points"
    chosen = choice.by_accuracy
    if chosen is None:
        yield _nothing_within(rows, finetuned, margin)
    else:
        yield (
            f"Use -k {chosen.variant.rule}: the smallest rank within {margin} of the fine-tuned "
            f"accuracy, {points(chosen.evaluation.accuracy)}% against "
            f"{points(finetuned.accuracy)}%; no group label was needed for that."
        )
        yield from _doubt_accuracy(rows, finetuned, tolerance, chosen)
        if chosen.rank == 0:
            yield "Base does as well on these data without any of the update."
    yield from _explain_storage(rows, chosen)
    whole = finetuned.gap.best_worst
    if whole is None:
        yield "There are no groups, so nothing is known of the gap."
        return
    yield from _explain_small_groups(finetuned)
    yield from _explain_gap(choice, finetuned, whole, _within(rows, Keep.TOP, finetuned, tolerance))
    if not shrinks_gap(choice, whole):
        for keep, name in _CONTROLS.items():
            yield _explain_control(rows, keep, name, finetuned, tolerance)


def _nothing_within(rows: Sequence[Row], finetuned: Evaluation, margin: str) -> str:
    cuts = [row for row in rows if row.variant.keep is Keep.TOP and row.is_cut]
    text = f"No rank is within {margin} of the fine-tuned accuracy, {points(finetuned.accuracy)}%"
    if not cuts:
        return f"{text}: none was tried that leaves anything out."
    best = max(cuts, key=lambda row: row.evaluation.accuracy)
    found = f"{points(best.evaluation.accuracy)}%"
    return f"{text}: the closest is -k {best.variant.rule}, with {found}."


def _doubt_accuracy(
    rows: Sequence[Row], finetuned: Evaluation, tolerance: float, chosen: Row
) -> Iterator[str]:
    """Yield how much of the choice may be chance."""
    found = chosen.evaluation
    if not found.size:
        yield "How much of that is chance is not known: the evaluator gives no number of texts."
        return
    if found.interval.low < finetuned.accuracy - tolerance - _SAME:
        yield (
            f"On {found.size} texts its 95 % interval is {found.interval}, so that it may "
            "cost more than that."
        )
    near = [
        f"-k {row.variant.rule}"
        for row in rows
        if row.variant.keep is Keep.TOP
        and row.rank < chosen.rank
        and _overlap(row.evaluation.interval, found.interval)
    ]
    if near:
        yield (
            f"{_listed(near)} fell short, but the 95 % intervals overlap with its own: these texts "
            "do not tell them apart."
        )


def _explain_storage(rows: Sequence[Row], chosen: Row | None) -> Iterator[str]:
    """Yield what rounding undoes of a cut: of the chosen one, or else where it does most."""
    undone = [row for row in rows if row.puts_much_back]
    row = chosen if chosen in undone else max(undone, key=_put_back, default=None)
    if row is not None:
        yield (
            f"Rounding in storage puts back {_put_back(row):.0%} of what {_name(row)} cuts: "
            "--dtype float32 avoids it, and so does an adapter, by svdcut extract."
        )


def _put_back(row: Row) -> float:
    return row.rounding_share or 0.0


def _explain_small_groups(finetuned: Evaluation) -> Iterator[str]:
    groups = sorted(finetuned.groups.items(), key=lambda item: item[1].size)
    small = [f"{quoted(name)}: {g.size}" for name, g in groups if 0 < g.size < _FEW_TEXTS]
    if small:
        yield (
            f"{len(small)} of {len(groups)} groups have fewer than {_FEW_TEXTS} texts "
            f"({_listed(small)}): their accuracies, and gaps from them, are mostly chance."
        )


def shrinks_gap(choice: Choice, finetuned: float) -> bool:
    """Whether a cut of the tail within the tolerance has a smaller gap than the whole update."""
    found = None if choice.by_gap is None else gap_of(choice.by_gap)
    return found is not None and found < finetuned - _SAME


def _explain_gap(
    choice: Choice, finetuned: Evaluation, whole: float, within: Sequence[Row]
) -> Iterator[str]:
    best = choice.by_gap
    gap = None if best is None else gap_of(best)
    if best is None or gap is None:
        return
    if not shrinks_gap(choice, whole):
        yield (
            f"No cut of the tail within the tolerance shrinks the gap of {points(whole)} points "
            "between the best and the worst group: nothing here says that what makes it is in the "
            "tail."
        )
        return
    start = "The same rank has" if best == choice.by_accuracy else f"-k {best.variant.rule} has"
    yield (
        f"{start} the smallest gap between the best and the worst group, {points(gap)} points "
        f"against {points(whole)}; this choice uses group labels."
    )
    others = {f"-k {row.variant.rule}": row.evaluation for row in within if row != best}
    yield from _doubt_gap(best.evaluation, {"the fine-tuned model": finetuned, **others})


def _doubt_gap(found: Evaluation, others: Mapping[str, Evaluation]) -> Iterator[str]:
    """Yield from which others a gap is not told apart."""
    own = found.intervals.get("best_worst")
    if own is None:
        yield "How much of that is chance is not known: there is no interval of the gap."
        return
    near = [
        name
        for name, other in others.items()
        if (theirs := other.intervals.get("best_worst")) is not None and _overlap(own, theirs)
    ]
    if near:
        yield (
            f"Its 95 % interval, {own}, overlaps with that of {_listed(near)}: these texts "
            "do not tell them apart."
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
        accuracy = f"{points(best.evaluation.accuracy)}%"
        doubt = " ".join(_doubt_gap(best.evaluation, {"the fine-tuned model": finetuned}))
        does = "has a smaller gap" if doubt else "does better"
        return (
            f"{name} {does}: at rank {best.variant.rule} the gap is {points(gap)} points, "
            f"with an accuracy of {accuracy}. {doubt}".rstrip()
        )
    return f"{name} does not shrink it either."


def _overlap(some: Interval, other: Interval) -> bool:
    return some.low <= other.high and other.low <= some.high


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _name(row: Row) -> str:
    keep = row.variant.keep
    return f"-k {row.variant.rule}" + ("" if keep is Keep.TOP else f" --keep {keep.value}")
