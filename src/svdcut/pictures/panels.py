"""One panel each: what is drawn into a pair of axes.

Axes come from the caller, as do the settings of matplotlib; nothing is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from svdcut.pictures.groups import (
    FIXED_RANKS,
    RULES,
    Frame,
    Group,
    RuleMark,
    noise_edges,
    spread_of_ranks,
)
from svdcut.pictures.kinds import Curve, Energy, some_curves
from svdcut.pictures.style import (
    Layout,
    Theme,
    decade_ticks,
    mixed,
    rank_ticks,
    readable,
    short_number,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_spectra(axes: Axes, group: Group, frame: Frame, theme: Theme, layout: Layout) -> None:
    """Draw the singular values of one group: a line for each layer, later ones darker.

    Parameters
    ----------
    axes : Axes
        Of its own.
    group : Group
        What to draw.
    frame : Frame
        Shared with other groups.
    theme : Theme
        Colours.
    layout : Layout
        Sizes.
    """
    draw_rank_grid(axes, 10**frame.right, math.log10)
    places, labels = decade_ticks(frame.low, frame.high)
    axes.set_yticks(places, labels)
    axes.grid(axis="y", color=theme.faint, linewidth=0.4)
    for rank in FIXED_RANKS:
        if math.log10(rank) <= frame.right:
            axes.axvline(math.log10(rank), color=theme.faint, linewidth=0.8, zorder=0.5)
    lines = some_curves(list(group.curves))
    shades = _shades(lines, group, theme)
    width = 1.1 if len(lines) == 1 else 0.75 if len(lines) < 16 else 0.55
    for curve, shade in zip(lines, shades, strict=True):
        axes.plot(
            curve.index,
            curve.value,
            color=shade,
            linewidth=width,
            marker="." if len(curve.index) == 1 else None,
            markersize=4,
            solid_capstyle="round",
        )
    edges = [math.log10(edge) for edge in noise_edges(group.kind)]
    if edges:
        _draw_edge(axes, edges, frame, theme)
    _mark_energies(axes, group, theme)
    if not lines:
        _say(axes, "all zero", theme)
    axes.set_xlim(-0.03 * frame.right - 0.02, frame.right * 1.03 + 0.02)
    axes.set_ylim(frame.low, frame.high)
    axes.set_title(readable(group.kind.label, layout.title), pad=3)


def _draw_edge(axes: Axes, edges: Sequence[float], frame: Frame, theme: Theme) -> None:
    middle = float(np.median(edges))
    if middle > frame.low:
        axes.axhspan(min(edges), max(edges), color=theme.ink, alpha=0.08, linewidth=0)
        axes.axhline(middle, color=theme.ink, linewidth=0.7, dashes=(4, 2.5))
        return
    axes.text(
        0.02,
        0.03,
        f"↓ {short_number(middle)}",
        transform=axes.transAxes,
        color=theme.muted,
    )


def _shades(lines: Sequence[Curve], group: Group, theme: Theme) -> list[str]:
    layers = sorted({line.layer for line in lines if line.layer is not None})
    if group.kind.num_kinds > 1 or len(layers) < 2:
        return [group.colour] * len(lines)
    depth = {layer: i / (len(layers) - 1) for i, layer in enumerate(layers)}
    return [
        mixed(
            group.colour, theme.background, 1 if x.layer is None else 0.35 + 0.65 * depth[x.layer]
        )
        for x in lines
    ]


def _mark_energies(axes: Axes, group: Group, theme: Theme) -> None:
    """Mark the median ranks of two shares on the median spectrum."""
    lines = [curve for curve in group.curves if len(curve.index) > 1]
    if not lines or group.kind.num_kinds > 1:
        return
    for rule in RULES[:2]:
        found = spread_of_ranks(rule, group.kind.changed)
        if found is None or not 1 <= found[1] < math.inf:
            continue
        x = math.log10(found[1])
        reaching = [line for line in lines if line.index[-1] >= x]
        if reaching:
            y = float(np.median([np.interp(x, line.index, line.value) for line in reaching]))
            axes.plot(x, y, rule.marker, **_marker(theme.background, theme.ink, 3.4), zorder=5)


def _marker(face: str, edge: str, size: float) -> dict[str, Any]:
    return {
        "markerfacecolor": face,
        "markeredgecolor": edge,
        "markersize": size,
        "markeredgewidth": 0.8,
    }


def draw_energy(axes: Axes, groups: Sequence[Group], theme: Theme, layout: Layout) -> None:
    """Draw the energy kept by rank: medians, ranges, and the two shares people ask for."""
    shown = [(group, group.energy) for group in groups if group.energy is not None]
    largest = max((int(energy.ranks[-1]) for _, energy in shown), default=4)
    draw_rank_grid(axes, max(largest, 4), math.log10)
    for rank in FIXED_RANKS:
        if rank <= largest:
            axes.axvline(math.log10(rank), color=theme.faint, linewidth=0.8, zorder=0.5)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 0.9, 1], ["0", "25 %", "50 %", "75 %", "90 %", "100 %"])
    axes.grid(axis="y", color=theme.faint, linewidth=0.4)
    axes.axhline(0.9, color=theme.rest, linewidth=0.7, dashes=(1, 2))
    # The bands of many kinds are mud: then only one, of all matrices.
    several = len(shown) > 3
    if several:
        _draw_common_band(axes, [energy for _, energy in shown], theme)
    for group, energy in shown:
        x = np.log10(energy.ranks)
        if not several:
            axes.fill_between(
                x, energy.low, energy.high, color=group.colour, alpha=0.18, linewidth=0
            )
        style: dict[str, Any] = {"marker": "o", "markersize": 3} if len(x) == 1 else {}
        width = 0.7 if group.kind.num_kinds > 1 else 1.2
        axes.plot(x, energy.median, color=group.colour, linewidth=width, **style)
    if not shown:
        _say(axes, "all zero", theme)
    axes.set_xlim(-0.04, math.log10(max(largest, 4)) * 1.03)
    axes.set_ylim(-0.02, 1.03)
    axes.set_ylabel("energy kept")
    axes.set_xlabel("rank")
    if len(shown) > 1:
        _draw_key(axes, shown, theme, layout)


def _draw_common_band(axes: Axes, energies: Sequence[Energy], theme: Theme) -> None:
    ranks = np.unique(np.concatenate([energy.ranks for energy in energies]))
    low = np.full(len(ranks), np.inf)
    high = np.full(len(ranks), -np.inf)
    for energy in energies:
        inside = ranks <= energy.ranks[-1]
        x = np.log10(ranks[inside])
        known = np.log10(energy.ranks)
        low[inside] = np.minimum(low[inside], np.interp(x, known, energy.low))
        high[inside] = np.maximum(high[inside], np.interp(x, known, energy.high))
    axes.fill_between(np.log10(ranks), low, high, color=theme.rest, alpha=0.16, linewidth=0)


def _draw_key(
    axes: Axes, shown: Sequence[tuple[Group, Energy]], theme: Theme, layout: Layout
) -> None:
    """Name the curves below them, in the order in which they lie."""
    from matplotlib.lines import Line2D

    def lie(energy: Energy) -> float:
        return float(np.interp(0.5, energy.median, np.log10(energy.ranks)))

    ordered = sorted(shown, key=lambda entry: lie(entry[1]))
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


def _rank_place(rank: float) -> float:
    """Place of a rank on an axis: log 2, with 0 where 1/2 would be."""
    return math.log2(rank) if rank >= 1 else -1.0


def draw_ranks(axes: Axes, groups: Sequence[Group], theme: Theme, layout: Layout) -> None:
    """Draw the ranks that rules choose: a row for each group, median and range."""
    largest = max((m.full_rank for group in groups for m in group.kind.matrices), default=4)
    found = [
        (row, rule, group, ranks)
        for row, group in enumerate(groups)
        for rule in RULES
        if (ranks := spread_of_ranks(rule, group.kind.changed)) is not None
    ]
    zero = any(ranks[0] < 1 for *_, ranks in found)
    draw_rank_grid(axes, max(largest, 4), _rank_place, zero=zero)
    axes.grid(axis="x", color=theme.faint, linewidth=0.4)
    for rank in FIXED_RANKS:
        if rank <= largest:
            axes.axvline(_rank_place(rank), color=theme.faint, linewidth=0.8, zorder=0.5)
    end = _rank_place(max(largest, 4)) + 0.35
    for row, rule, group, (low, middle, high) in found:
        y = row - rule.offset
        if low < math.inf:
            ends = [_rank_place(min(rank, 2.0**end)) for rank in (low, high)]
            axes.plot(ends, [y, y], color=mixed(group.colour, theme.background, 0.55), linewidth=1)
        if middle < math.inf:
            face = group.colour if rule.marker == "o" else theme.background
            style = _marker(face, group.colour, 3.6)
            axes.plot(_rank_place(middle), y, rule.marker, **style, clip_on=False, zorder=4)
        else:
            _say_beyond(axes, group, rule, y)
    for row, group in enumerate(groups):
        full = float(np.median([m.full_rank for m in group.kind.matrices]))
        axes.plot([_rank_place(full)] * 2, [row - 0.38, row + 0.38], color=theme.rest, linewidth=1)
    axes.set_yticks(range(len(groups)), [readable(g.kind.label, layout.label) for g in groups])
    spare = max(0.0, (3 - len(groups)) / 2)
    axes.set_ylim(len(groups) - 0.4 + spare, -0.6 - spare)
    axes.set_xlim(-1.3 if zero else -0.3, end)
    axes.set_xlabel("rank")
    axes.spines["left"].set_visible(False)
    _draw_rule_key(axes, {rule.field for _, rule, *_ in found}, theme)


def _say_beyond(axes: Axes, group: Group, rule: RuleMark, y: float) -> None:
    known = max(len(matrix.singular_values) for matrix in group.kind.changed)
    axes.text(
        _rank_place(known),
        y,
        f"> {known}  ({rule.name})",
        va="center",
        color=group.colour,
    )


def _draw_rule_key(axes: Axes, fields: set[str], theme: Theme) -> None:
    from matplotlib.lines import Line2D

    rules = [rule for rule in RULES if rule.field in fields]
    handles = [
        Line2D(
            [],
            [],
            marker=rule.marker,
            linestyle="none",
            **_marker(theme.muted if rule.marker == "o" else theme.background, theme.muted, 3.6),
        )
        for rule in rules
    ]
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


def draw_rank_grid(
    axes: Axes, largest: float, place: Callable[[float], float], *, zero: bool = False
) -> None:
    """Draw the lines and the labels of an axis of ranks."""
    ranks = ([0] if zero else []) + rank_ticks(round(largest))
    axes.set_xticks([place(rank) for rank in ranks], [str(rank) for rank in ranks])


def _say(axes: Axes, text: str, theme: Theme) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=theme.muted)
