"""The screen of ``svdcut spectrum --compare``."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from rich.markup import escape

from svdcut.cli.screen import Column, common_ends, no_room, open_screen, print_table
from svdcut.shown import MISSING, printable
from svdcut.spectra.column import Column as SpectrumColumn
from svdcut.spectra.columns import EFFECTIVE_RANK, RELATIVE_NORM
from svdcut.spectra.comparison import Both, Comparison, Overlap

_SHOWN = (
    Column("rank", 2),
    Column("relative", 1),
    Column("effective", 1),
    Column("distance"),
    Column("left"),
    Column("chance", 3),
    Column("right"),
    Column("chance", 3),
)
"""Columns of the table."""


def print_comparison(comparison: Comparison) -> None:
    """Print what two updates have in common, for people."""
    screen = open_screen()
    sides = [escape(printable(side.checkpoint)) for side in (comparison.first, comparison.second)]
    base = escape(printable(comparison.first.base or ""))
    screen.print(f"[bold]Updates from {base} to {sides[0]} and to {sides[1]}[/bold]")
    found = list(comparison.matrices)
    if not found:
        screen.print("They have no matrix in common.")
        return
    screen.print(_LEGEND.format(rank=comparison.rank), style="dim")
    screen.print()
    start, end = common_ends(list(comparison.overlaps))
    if start or end:
        screen.print(f"({escape(printable(start))} ... {escape(printable(end))})")
    lines = [_line(name[len(start) : len(name) - len(end)], both) for name, both in found]
    dropped = print_table(screen, "", _SHOWN, lines, gap=1)
    if dropped:
        screen.say(no_room(dropped, "--csv"), style="dim")
    screen.print()
    for line in _verdict(comparison, [both.overlap for _, both in found]):
        screen.say(line)


_LEGEND = (
    "relative: norm by base's; effective: ranks; distance: largest difference of the two energy "
    "curves, 0 to 1; left, right: overlap of the leading spaces of rank {rank}, 0 to 1, beside "
    "what random spaces have."
)


def _line(label: str, both: Both) -> list[str]:
    overlap = both.overlap
    return [
        label if both.number is None else f"{label} [{both.number}]",
        str(overlap.rank),
        *(_both(column, both) for column in (RELATIVE_NORM, EFFECTIVE_RANK)),
        _unit(overlap.energy_distance),
        _unit(overlap.left_overlap),
        _unit(overlap.left_chance),
        _unit(overlap.right_overlap),
        _unit(overlap.right_chance),
    ]


def _both(column: SpectrumColumn, both: Both) -> str:
    first, second = (column.text([side]) for side in both.sides)
    return f"{first} {second:>5}"


def _unit(value: float | None) -> str:
    if value is None:
        return MISSING
    return f"{value:.2f}" if value >= 0.01 or value == 0 else f"{value:.0e}"


def _verdict(comparison: Comparison, overlaps: Sequence[Overlap]) -> Iterator[str]:
    distances = [o.energy_distance for o in overlaps if o.energy_distance is not None]
    if distances:
        yield (
            f"Energy curves differ by {statistics.median(distances):.2f} in the middle case and by "
            f"{max(distances):.2f} at most."
        )
    for side in ("left", "right"):
        found = [getattr(o, f"{side}_overlap") for o in overlaps if o.rank]
        chance = [getattr(o, f"{side}_chance") for o in overlaps if o.rank]
        if found:
            yield (
                f"Leading {side} spaces overlap by {statistics.median(found):.2f} in the middle "
                f"case; random ones by {statistics.median(chance):.2f}."
            )
    if comparison.unmatched:
        yield f"{len(comparison.unmatched)} tensors are in one of the two updates only."
