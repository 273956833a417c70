"""The panels of what ranks keep, and of the ranks that rules choose.

matplotlib's settings come from the caller; nothing is written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from svdcut.pictures.kinds import (
    ENERGY_90,
    NOISE,
    RULES,
    Energy,
    Group,
    RuleMark,
    Spread,
    spread_of_ranks,
)
from svdcut.pictures.page import Panel, on_axes
from svdcut.pictures.style import (
    Layout,
    Theme,
    draw_fixed_ranks,
    draw_rank_axis,
    marker,
    mixed,
    readable,
    say,
)
from svdcut.spectra.matrix import Spectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PAGE_HEIGHT = 3.0
_LEAST_AXIS = 4
"""Rank that an axis reaches at least."""

_FEW_BANDS = 3
"""The bands of more kinds are mud: then one shows the range of all."""


def energy_panel(groups: Sequence[Group], theme: Theme) -> Panel:
    """Return the panel of the energy kept by rank: medians, and ranges."""
    shown = [(group, group.energy) for group in groups if group.energy is not None]
    matrices = _changed(groups)
    found = spread_of_ranks(ENERGY_90, matrices)
    title = "Energy kept by rank"
    if found is not None and found.middle < math.inf:
        median = "" if len(matrices) == 1 else " (median)"
        title = f"Rank {found.middle:.0f} keeps 90% of the energy{median}"
    caption = "Share of the squared Frobenius norm."
    if len(matrices) > 1:
        over = "all matrices" if len(shown) > _FEW_BANDS else "the same matrices"
        caption = f"Lines: medians by kind; band: range over {over}."
    return Panel(
        title,
        caption,
        _PAGE_HEIGHT,
        2.4 + 0.1 * len(groups),
        on_axes(lambda axes, layout: _draw_energy(axes, shown, theme, layout)),
    )


def _changed(groups: Sequence[Group]) -> list[Spectrum]:
    return [matrix for group in groups for matrix in group.changed]


def _draw_energy(
    axes: Axes, shown: Sequence[tuple[Group, Energy]], theme: Theme, layout: Layout
) -> None:
    largest = max((int(energy.ranks[-1]) for _, energy in shown), default=_LEAST_AXIS)
    end = max(largest, _LEAST_AXIS)
    draw_rank_axis(axes, end, math.log10)
    draw_fixed_ranks(axes, largest, math.log10, theme)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 0.9, 1], ["0", "25%", "50%", "75%", "90%", "100%"])
    axes.grid(axis="y", color=theme.faint, linewidth=0.4)
    axes.axhline(0.9, color=theme.rest, linewidth=0.7, dashes=(1, 2))
    several = len(shown) > _FEW_BANDS
    if several:
        _draw_common_band(axes, [energy for _, energy in shown], theme)
    for group, energy in shown:
        x = np.log10(energy.ranks)
        if not several:
            band: dict[str, Any] = {"color": group.colour, "alpha": 0.18, "linewidth": 0}
            axes.fill_between(x, energy.low, energy.high, **band)
        style: dict[str, Any] = {"marker": "o", "markersize": 3} if len(x) == 1 else {}
        width = 0.7 if group.kind.num_kinds > 1 else 1.2
        axes.plot(x, energy.median, color=group.colour, linewidth=width, **style)
    if not shown:
        say(axes, "all zero", theme)
    axes.set_xlim(-0.04, math.log10(end) * 1.03)
    axes.set_ylim(-0.02, 1.03)
    axes.set_ylabel("energy kept")
    axes.set_xlabel("rank")
    if len(shown) > 1:
        _draw_key(axes, shown, theme, layout)


def _draw_common_band(axes: Axes, energies: Sequence[Energy], theme: Theme) -> None:
    ranks = np.unique(np.concatenate([energy.ranks for energy in energies]))
    low, high = np.full(len(ranks), np.inf), np.full(len(ranks), -np.inf)
    for energy in energies:
        inside = ranks <= energy.ranks[-1]
        x, known = np.log10(ranks[inside]), np.log10(energy.ranks)
        low[inside] = np.minimum(low[inside], np.interp(x, known, energy.low))
        high[inside] = np.maximum(high[inside], np.interp(x, known, energy.high))
    axes.fill_between(np.log10(ranks), low, high, color=theme.rest, alpha=0.16, linewidth=0)


def _draw_key(
    axes: Axes, shown: Sequence[tuple[Group, Energy]], theme: Theme, layout: Layout
) -> None:
    """Name the curves below them, in the order in which they lie."""
    from matplotlib.lines import Line2D

    def place(entry: tuple[Group, Energy]) -> float:
        return float(np.interp(0.5, entry[1].median, np.log10(entry[1].ranks)))

    ordered = sorted(shown, key=place)
    axes.legend(
        [Line2D([], [], color=group.colour, linewidth=2) for group, _ in ordered],
        [readable(group.kind.label, layout.label) for group, _ in ordered],
        loc="upper center",
        bbox_to_anchor=(0.45, 0),
        ncols=2,
        frameon=False,
        labelcolor=theme.ink,
        handlelength=0.9,
        handletextpad=0.5,
        labelspacing=0.25,
        borderaxespad=3,  # below the name of the axis
    )


def ranks_panel(groups: Sequence[Group], theme: Theme) -> Panel:
    """Return the panel of the ranks that rules choose: a row for each group."""
    matrices = _changed(groups)
    above, share = (spread_of_ranks(rule, matrices) for rule in (NOISE, ENERGY_90))
    title = "Ranks that rules choose"
    if above is not None:
        title = f"{above.text()} values above the noise edge"
    elif share is not None and share.high < math.inf:
        title = f"Rank {share.text()} for 90% of the energy"
    caption = "Triplets that a rule keeps."
    if len(matrices) > 1:
        caption = "Marks: medians; lines: from the least to the largest."
    if any(rule.column.of(matrix) is None for rule in RULES[:2] for matrix in matrices):
        caption += " “>”: beyond the values at hand."
    return Panel(
        title,
        caption,
        _PAGE_HEIGHT,
        1.2 + 0.3 * max(len(groups), 2),
        on_axes(lambda axes, layout: _draw_ranks(axes, groups, theme, layout)),
    )


def _place(rank: float) -> float:
    """Return the place of a rank on an axis: log 2, with 0 where 1/2 would be."""
    return math.log2(rank) if rank >= 1 else -1.0


def _draw_ranks(axes: Axes, groups: Sequence[Group], theme: Theme, layout: Layout) -> None:
    full = (m.full_rank for group in groups for m in group.kind.matrices)
    largest = max(full, default=_LEAST_AXIS)
    found = [
        (row, rule, spread)
        for row, group in enumerate(groups)
        for rule in RULES
        if (spread := spread_of_ranks(rule, group.changed)) is not None
    ]
    zero = any(spread.low < 1 for *_, spread in found)
    draw_rank_axis(axes, max(largest, _LEAST_AXIS), _place, zero=zero)
    axes.grid(axis="x", color=theme.faint, linewidth=0.4)
    draw_fixed_ranks(axes, largest, _place, theme)
    end = _place(max(largest, _LEAST_AXIS)) + 0.35
    for row, rule, spread in found:
        _draw_spread(axes, groups[row], rule, spread, (row - rule.offset, end), theme)
    for row, group in enumerate(groups):
        middle = _place(float(np.median([m.full_rank for m in group.kind.matrices])))
        axes.plot([middle] * 2, [row - 0.38, row + 0.38], color=theme.rest, linewidth=1)
    axes.set_yticks(range(len(groups)), [readable(g.kind.label, layout.label) for g in groups])
    spare = max(0.0, (3 - len(groups)) / 2)
    axes.set_ylim(len(groups) - 0.4 + spare, -0.6 - spare)
    axes.set_xlim(-1.3 if zero else -0.3, end)
    axes.set_xlabel("rank")
    axes.spines["left"].set_visible(False)
    _draw_rule_key(axes, [rule for rule in RULES if any(rule is r for _, r, _ in found)], theme)


def _draw_spread(
    axes: Axes,
    group: Group,
    rule: RuleMark,
    spread: Spread,
    place: tuple[float, float],
    theme: Theme,
) -> None:
    """Draw the ranks of a rule at a height, no farther than the end of the axis."""
    y, end = place
    if spread.low < math.inf:
        ends = [_place(min(rank, 2.0**end)) for rank in (spread.low, spread.high)]
        axes.plot(ends, [y, y], color=mixed(group.colour, theme.background, 0.55), linewidth=1)
    if spread.middle < math.inf:
        face = group.colour if rule is ENERGY_90 else theme.background
        style = marker(face, group.colour, 3.6)
        axes.plot(_place(spread.middle), y, rule.marker, **style, clip_on=False, zorder=4)
    else:
        known = max(len(matrix.singular_values) for matrix in group.changed)
        text = f"> {known}  ({rule.name})"
        axes.text(_place(known), y, text, va="center", color=group.colour)


def _draw_rule_key(axes: Axes, rules: Sequence[RuleMark], theme: Theme) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for rule in rules:
        face = theme.muted if rule is ENERGY_90 else theme.background
        style = marker(face, theme.muted, 3.6)
        handles.append(Line2D([], [], marker=rule.marker, linestyle="none", **style))
    handles.append(Line2D([], [], marker="|", linestyle="none", color=theme.rest, markersize=6))
    axes.legend(
        handles,
        [*(rule.name for rule in rules), "full rank"],
        loc="lower left",
        bbox_to_anchor=(-0.01, 0.99),
        ncols=2,
        frameon=False,
        labelcolor=theme.muted,
        handlelength=0.8,
        handletextpad=0.3,
        columnspacing=1.1,
        borderaxespad=0,
        borderpad=0.2,
    )
