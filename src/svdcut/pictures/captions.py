"""What the panels say in words, from the same numbers.

It draws nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from svdcut.pictures.groups import RULES, Frame, Group, noise_edges, spread_of_ranks
from svdcut.pictures.kinds import MAX_LINES
from svdcut.pictures.style import readable
from svdcut.pictures.tables import Measure, Table, scale_of
from svdcut.spectra.facts import Spectra, Subject
from svdcut.spectra.matrix import Spectrum

_CHECKPOINT = 64
"""Characters of a name that may be a path."""

_TITLE = 54


def headline(spectra: Spectra) -> str:
    """Return what the page shows."""
    if spectra.subject is Subject.UPDATE:
        return "Singular values of a fine-tuning update"
    return "Singular values of a checkpoint's weights"


def footnote(spectra: Spectra) -> list[str]:
    """Return where the numbers come from, line by line."""
    matrices = [matrix for _, matrix in spectra.matrices]
    lines = []
    if spectra.base is not None:
        lines.append(f"base: {readable(spectra.base, _CHECKPOINT)}")
    side = "fine-tuned" if spectra.subject is Subject.UPDATE else "checkpoint"
    lines.append(f"{side}: {readable(spectra.checkpoint, _CHECKPOINT)}")
    facts = [counted(len(matrices), "matrix", "matrices")]
    if spectra.left_out:
        facts.append(f"{counted(len(spectra.left_out), 'tensor', 'tensors')} without a spectrum")
    if spectra.top is not None:
        facts.append("at most " + counted(spectra.top, "leading value", "leading values"))
    facts.append(f"svdcut {readable(spectra.svdcut_version, 16)}")
    return [*lines, " · ".join(facts)]


def counted(number: int, one: str, many: str) -> str:
    """Return a number with its noun."""
    return f"{number} {one if number == 1 else many}"


def spectra_texts(groups: Sequence[Group], frame: Frame) -> tuple[str, str]:
    """Return title and caption of the spectra."""
    curves = [curve for group in groups for curve in group.curves]
    experts = max((curve.num_matrices for curve in curves), default=1)
    layers = {curve.layer for curve in curves} - {None}
    notes = []
    if not curves:
        notes.append("Nothing but zeros")
    elif len(layers) > 1:
        notes.append("One line for each layer, later layers stronger")
    else:
        notes.append("One line for each matrix" if len(curves) > 1 else "One matrix")
    if experts > 1:
        notes.append(f"median over up to {experts} matrices of a layer")
    marks = ["○ 90 %, ◇ 99 % of the energy"] if _has_marks(groups) else []
    edges = [edge for group in groups for edge in noise_edges(group.kind)]
    if edges and math.log10(max(edges)) > frame.low:
        marks.append("dashed: noise edge")
    if edges and math.log10(min(edges)) <= frame.low:
        marks.append("↓: noise edge below the frame")
    if marks:
        notes.append(", ".join(marks) + (" (medians)" if len(curves) > 1 else ""))
    crowded = max((len(group.curves) for group in groups), default=0)
    if crowded > MAX_LINES:
        notes.append(f"{MAX_LINES} of up to {crowded} lines, evenly by their first values")
    if frame.cut_off:
        notes.append("smaller values lie below the frame")
    return "Singular values by module", _sentence([*notes, *_zeros(groups)])


def _has_marks(groups: Sequence[Group]) -> bool:
    return any(
        found is not None and found[1] < math.inf and group.kind.num_kinds == 1
        for group in groups
        for found in [spread_of_ranks(RULES[0], group.kind.changed)]
    )


def _zeros(groups: Iterable[Group]) -> list[str]:
    number = sum(len(g.kind.matrices) - len(g.kind.changed) for g in groups)
    return [f"{counted(number, 'matrix', 'matrices')} of zeros left out"] if number else []


def energy_texts(groups: Sequence[Group]) -> tuple[str, str]:
    """Return title and caption of the energies."""
    shown = [group for group in groups if group.energy is not None]
    matrices = _changed(groups)
    found = spread_of_ranks(RULES[0], matrices)
    title = "Energy kept by rank"
    if found is not None and found[1] < math.inf:
        rank = f"Rank {found[1]:.0f} keeps 90 % of the energy"
        title = rank if len(matrices) == 1 else f"{rank} (median)"
    if len(matrices) < 2:
        return title, "Share of the squared Frobenius norm."
    over = "all matrices" if len(shown) > 3 else "the same matrices"
    return title, f"Lines: medians by kind; band: range over {over}."


def ranks_texts(groups: Sequence[Group]) -> tuple[str, str]:
    """Return title and caption of the ranks that rules choose."""
    matrices = _changed(groups)
    caption = "Marks: medians; lines: from the least to the largest."
    if len(matrices) < 2:
        caption = "Triplets that a rule keeps."
    above = spread_of_ranks(RULES[2], matrices)
    share = spread_of_ranks(RULES[0], matrices)
    title = "Ranks that rules choose"
    if above is not None:
        title = f"{_span(above)} values above the noise edge"
    elif share is not None and share[2] < math.inf:
        title = f"Rank {_span(share)} for 90 % of the energy"
    if any(m.rank_99 is None for m in matrices):
        caption += " “>”: beyond the values at hand."
    return title, caption


def measure_texts(table: Table, measure: Measure) -> tuple[str, str]:
    """Return title and caption of a measure by layer."""
    notes = [measure.explanation]
    known = table.known
    title = measure.name
    if known.size:
        low, high = measure.text(float(known.min())), measure.text(float(known.max()))
        span = low if low == high else f"{low} to {high}"
        title = readable(f"{measure.name}: {span} {measure.of}", _TITLE)
    if table.of_several:
        notes.append("Medians over experts.")
    if table.has_layers and "" in table.columns:
        notes.append("At the ends: what is in no layer.")
    if table.layers_in_column > 1:
        notes.append(f"Each column: the median of {table.layers_in_column} layers.")
    if table.left_out:
        notes.append(f"{table.left_out} more kinds are not shown.")
    if np.any(table.values == 0):
        notes.append("Grey: zero.")
    if table.has_layers and (scale := scale_of(table, measure)) is not None:
        above, below = int(table.above(scale).sum()), int(table.below(scale).sum())
        clipped = [f"{above} above {measure.text(scale.high)} (▲)"] if above else []
        clipped += [f"{below} below {measure.text(scale.low)} (▼)"] if below else []
        if clipped:
            notes.append(f"Cells beyond the colours: {', '.join(clipped)}.")
    return title, " ".join(notes)


def _changed(groups: Iterable[Group]) -> list[Spectrum]:
    return [matrix for group in groups for matrix in group.kind.changed]


def _span(spread: tuple[float, float, float]) -> str:
    low, _, high = spread
    return f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}"


def _sentence(notes: Sequence[str]) -> str:
    return "; ".join(notes) + "."
