"""Choose the rank to use, and say why. Pure functions of the measured rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from svdcut.choose.keep import Keep
from svdcut.evaluation.metrics import Evaluation, Interval
from svdcut.files.jsonfile import quoted
from svdcut.shown import points
from svdcut.sweeps.result import Row

_SAME = 1e-9
"""Accuracies are shares of whole numbers: a smaller difference is none."""

_FEW_TEXTS = 30
"""Size below which a group's accuracy says little: one text is three points or more."""

_MOST_NAMES = 4
"""Ranks or groups that a sentence names."""

_NOT_APART = "these texts do not tell them apart."

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
    """Choose a rank among the cuts of the tail that leave something out.

    Parameters
    ----------
    rows : sequence of Row
        All measured rows.
    finetuned : Evaluation
        The model to compare with.
    tolerance : float
        How much accuracy a cut may cost.

    Returns
    -------
    Choice
        The smallest rank whose accuracy is within the tolerance, chosen without group labels;
        and among those ranks the one with the smallest gap, of equals the smaller rank.
    """
    within = _within(rows, Keep.TOP, finetuned, tolerance)
    return Choice(
        by_accuracy=min(within, key=lambda row: row.rank, default=None),
        by_gap=_smallest_gap(within),
    )


def _cuts(rows: Iterable[Row], keep: Keep) -> list[Row]:
    return [row for row in rows if row.variant.keep is keep and row.is_cut]


def _within(rows: Iterable[Row], keep: Keep, finetuned: Evaluation, tolerance: float) -> list[Row]:
    least = finetuned.accuracy - tolerance - _SAME
    return [row for row in _cuts(rows, keep) if row.evaluation.accuracy >= least]


def _smallest_gap(rows: Iterable[Row]) -> Row | None:
    known = [(gap, row.rank, row) for row in rows if (gap := _gap_of(row)) is not None]
    return min(known, key=lambda item: item[:2])[2] if known else None


def _gap_of(row: Row | None) -> float | None:
    """Return the accuracy of the best group minus that of the worst, if there are groups."""
    return None if row is None else row.evaluation.gap.best_worst


def explain(
    rows: Sequence[Row], finetuned: Evaluation, tolerance: float, choice: Choice
) -> Iterator[str]:
    """Yield the answer in plain words, one sentence each; it takes what `choose` does."""
    yield from _explain_accuracy(rows, finetuned, tolerance, choice.by_accuracy)
    yield from _explain_storage(rows, choice.by_accuracy)
    whole = finetuned.gap.best_worst
    if whole is None:
        yield "There are no groups, so nothing is known of the gap."
        return
    yield from _explain_small_groups(finetuned)
    within = _within(rows, Keep.TOP, finetuned, tolerance)
    best, gap = choice.by_gap, _gap_of(choice.by_gap)
    if best is not None and gap is not None and gap < whole - _SAME:
        start = "The same rank has" if best == choice.by_accuracy else f"-k {best.variant.rule} has"
        yield (
            f"{start} the smallest gap between the best and the worst group, {points(gap)} points "
            f"against {points(whole)}; this choice uses group labels."
        )
        others = {f"-k {row.variant.rule}": row.evaluation for row in within if row != best}
        yield from _doubt_gap(best.evaluation, {"the fine-tuned model": finetuned, **others})
        return
    if gap is not None:
        yield (
            f"No cut of the tail within the tolerance shrinks the gap of {points(whole)} points "
            "between the best and the worst group: nothing here says that what makes it is in the "
            "tail."
        )
    for keep, name in _CONTROLS.items():
        if any(row.variant.keep is keep for row in rows):
            control = _smallest_gap(_within(rows, keep, finetuned, tolerance))
            yield f"{name} {_explain_control(control, finetuned, whole)}"
        else:
            yield f"{name} was not tried: --controls {keep.value}."


def _explain_accuracy(
    rows: Sequence[Row], finetuned: Evaluation, tolerance: float, chosen: Row | None
) -> Iterator[str]:
    margin = f"within {100 * tolerance:g} points of the fine-tuned accuracy"
    whole = f"{points(finetuned.accuracy)}%"
    if chosen is not None:
        yield (
            f"Use -k {chosen.variant.rule}: the smallest rank {margin}, "
            f"{points(chosen.evaluation.accuracy)}% against {whole}; no group label was needed "
            "for that."
        )
        yield from _doubt_accuracy(rows, finetuned.accuracy - tolerance - _SAME, chosen)
        if chosen.rank == 0:
            yield "Base does as well on these data without any of the update."
    elif cuts := _cuts(rows, Keep.TOP):
        best = max(cuts, key=lambda row: row.evaluation.accuracy)
        found = f"-k {best.variant.rule}, with {points(best.evaluation.accuracy)}%"
        yield f"No rank is {margin}, {whole}: the closest is {found}."
    else:
        yield f"No rank is {margin}, {whole}: none was tried that leaves anything out."


def _doubt_accuracy(rows: Sequence[Row], least: float, chosen: Row) -> Iterator[str]:
    """Yield how much of the choice may be chance."""
    found = chosen.evaluation
    if not found.size:
        yield "How much of that is chance is not known: the evaluator gives no number of texts."
        return
    if found.interval.low < least:
        yield (
            f"On {found.size} texts its 95 % interval is {found.interval}, so that it may "
            "cost more than that."
        )
    near = [
        f"-k {row.variant.rule}"
        for row in _cuts(rows, Keep.TOP)
        if row.rank < chosen.rank and _overlap(row.evaluation.interval, found.interval)
    ]
    if near:
        yield (
            f"{_listed(near)} fell short, but the 95 % intervals overlap with its own: {_NOT_APART}"
        )


def _explain_storage(rows: Sequence[Row], chosen: Row | None) -> Iterator[str]:
    """Yield how much of a cut rounding puts back: of the chosen one, else where it is most."""
    undone = [row for row in rows if row.puts_much_back]
    if not undone:
        return
    row = max(undone, key=lambda row: row.rounding_share or 0.0)
    if chosen is not None and chosen in undone:
        row = chosen
    keep = row.variant.keep
    name = f"-k {row.variant.rule}" + ("" if keep is Keep.TOP else f" --keep {keep.value}")
    yield (
        f"Rounding in storage puts back {row.rounding_share:.0%} of what {name} cuts: "
        "--dtype float32 avoids it, and so does an adapter, by svdcut extract."
    )


def _explain_small_groups(finetuned: Evaluation) -> Iterator[str]:
    groups = sorted(finetuned.groups.items(), key=lambda item: item[1].size)
    small = [f"{quoted(name)}: {g.size}" for name, g in groups if 0 < g.size < _FEW_TEXTS]
    if small:
        yield (
            f"{len(small)} of {len(groups)} groups have fewer than {_FEW_TEXTS} texts "
            f"({_listed(small)}): their accuracies, and gaps from them, are mostly chance."
        )


def _doubt_gap(found: Evaluation, others: Mapping[str, Evaluation]) -> Iterator[str]:
    """Yield which other gaps may be the same."""
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
        yield f"Its 95 % interval, {own}, overlaps with that of {_listed(near)}: {_NOT_APART}"


def _explain_control(best: Row | None, finetuned: Evaluation, whole: float) -> str:
    gap = _gap_of(best)
    if best is None or gap is None:
        return "never keeps the accuracy."
    if gap >= whole - _SAME:
        return "does not shrink it either."
    doubt = " ".join(_doubt_gap(best.evaluation, {"the fine-tuned model": finetuned}))
    return (
        f"{'has a smaller gap' if doubt else 'does better'}: at rank {best.variant.rule} the gap "
        f"is {points(gap)} points, with an accuracy of {points(best.evaluation.accuracy)}%. {doubt}"
    ).rstrip()


def _overlap(some: Interval, other: Interval) -> bool:
    return some.low <= other.high and other.low <= some.high


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
