"""The screen and the rows of ``svdcut spectrum --compare``."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from rich.markup import escape

from svdcut.cli.output import common_ends
from svdcut.cli.spectra_screen import number_text, open_screen, share_text
from svdcut.cli.tables import Column, no_room, print_table
from svdcut.shown import printable
from svdcut.spectra.comparison import Comparison, Overlap
from svdcut.spectra.facts import Spectrum

COLUMNS = (
    "tensor",
    "matrix",
    "rank",
    "norm_first",
    "norm_second",
    "effective_rank_first",
    "effective_rank_second",
    "energy_distance",
    "left_overlap",
    "left_chance",
    "right_overlap",
    "right_chance",
    "gap_first",
    "gap_second",
)
"""Of the rows."""

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
"""Of the table."""


def rows(comparison: Comparison) -> Iterator[list[str | int | float | None]]:
    """Yield a row of `COLUMNS` for each matrix that both updates have."""
    for name, number, first, second, overlap in _matrices(comparison):
        gaps = overlap.gaps or (None, None)
        stacked = comparison.first.tensors[name].stacked
        yield [
            name,
            number if stacked else None,
            overlap.rank,
            first.norm,
            second.norm,
            first.effective_rank,
            second.effective_rank,
            overlap.energy_distance,
            overlap.left_overlap,
            overlap.left_chance,
            overlap.right_overlap,
            overlap.right_chance,
            *gaps,
        ]


def _matrices(
    comparison: Comparison,
) -> Iterator[tuple[str, int, Spectrum, Spectrum, Overlap]]:
    partners = comparison.partners
    for name, overlaps in comparison.overlaps.items():
        ours = comparison.first.tensors[name].matrices
        theirs = comparison.second.tensors[partners[name]].matrices
        for number, overlap in enumerate(overlaps):
            yield name, number, ours[number], theirs[number], overlap


def print_comparison(comparison: Comparison) -> None:
    """Print what two updates have in common, for people."""
    screen = open_screen()
    sides = [escape(printable(side.checkpoint)) for side in (comparison.first, comparison.second)]
    base = escape(printable(comparison.first.base or ""))
    screen.print(f"[bold]Updates from {base} to {sides[0]} and to {sides[1]}[/bold]")
    found = list(_matrices(comparison))
    if not found:
        screen.print("They have no matrix in common.")
        return
    screen.print(_LEGEND.format(rank=comparison.rank), style="dim")
    screen.print()
    start, end = common_ends(list(comparison.overlaps))
    if start or end:
        screen.print(f"({escape(printable(start))} ... {escape(printable(end))})")
    lines = []
    for name, number, first, second, overlap in found:
        label = name[len(start) : len(name) - len(end)]
        stacked = comparison.first.tensors[name].stacked
        lines.append(
            [
                f"{label} [{number}]" if stacked else label,
                str(overlap.rank),
                _both(share_text(first.relative_norm), share_text(second.relative_norm)),
                _both(number_text(first.effective_rank), number_text(second.effective_rank)),
                _unit(overlap.energy_distance),
                _unit(overlap.left_overlap),
                _unit(overlap.left_chance),
                _unit(overlap.right_overlap),
                _unit(overlap.right_chance),
            ]
        )
    dropped = print_table(screen, "", _SHOWN, lines, gap=1)
    if dropped:
        screen.say(no_room(dropped, "--csv"), style="dim")
    screen.print()
    for line in _verdict(comparison, [overlap for *_, overlap in found]):
        screen.say(line)


_LEGEND = (
    "relative: norm by base's; effective: ranks; distance: largest difference of the two energy "
    "curves, 0 to 1; left, right: overlap of the leading spaces of rank {rank}, 0 to 1, beside "
    "what random spaces have."
)


def _both(first: str, second: str) -> str:
    return f"{first} {second:>5}"


def _unit(value: float | None) -> str:
    return (
        "-" if value is None else f"{value:.2f}" if value >= 0.01 or value == 0 else f"{value:.0e}"
    )


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
