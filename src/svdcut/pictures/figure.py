"""Compose the panels of a figure: spectra of one checkpoint, or two updates side by side.

How they are drawn is in the modules of panels, how they stand in `page`.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from svdcut.errors import UsageError
from svdcut.files.atomic_write import write_whole
from svdcut.pictures.kinds import Group, find_kinds, group_kinds, make_group
from svdcut.pictures.layer_panels import layer_panel
from svdcut.pictures.page import Panel, Picture, draw_alone, draw_page
from svdcut.pictures.rank_panels import energy_panel, ranks_panel
from svdcut.pictures.spectra_panels import comparison_panel, spectra_panel
from svdcut.pictures.style import LIGHT, Theme, readable, require_matplotlib
from svdcut.pictures.tables import Measure, measures_of
from svdcut.shown import counted, percent
from svdcut.spectra.column import Drawing
from svdcut.spectra.comparison import Both, Comparison
from svdcut.spectra.facts import Spectra, Subject

SUFFIXES = (".png", ".svg", ".pdf")
_LINE = 110
"""Characters of a line at the foot, of which a path may take most."""


def check_figure(path: Path) -> None:
    """Refuse a picture that could not be drawn or written, before anything is measured.

    Parameters
    ----------
    path : Path
        As for `save_figure`.

    Raises
    ------
    UsageError
        If its suffix is of no known format, or matplotlib is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"{path}: a picture is a .png, .svg or .pdf file, not {path.suffix or 'nameless'!r}",
            hint="As --plot spectrum.png.",
        )
    require_matplotlib()


def save_figure(spectra: Spectra, path: Path) -> None:
    """Draw spectra on one page, and write it.

    Parameters
    ----------
    spectra : Spectra
        Of weights or of an update.
    path : Path
        A ``.png``, ``.svg`` or ``.pdf`` file; what is there is replaced.

    Raises
    ------
    UsageError
        If the suffix is another, or matplotlib is not installed.
    OutputError
        If it cannot be written; then what was there is as before.

    Notes
    -----
    The same spectra give the same bytes with the same matplotlib.
    """
    check_figure(path)
    title = "Singular values of a checkpoint's weights"
    if spectra.subject is Subject.UPDATE:
        title = "Singular values of a fine-tuning update"
    panels = _panels(spectra, LIGHT)
    _save([panels[:1], panels[1:3], panels[3:]], title, _foot(spectra), path)


def save_comparison(comparison: Comparison, path: Path) -> None:
    """Draw two updates of one base on one page, and write it.

    Parameters
    ----------
    comparison : Comparison
        What to draw.
    path : Path
        As for `save_figure`, which raises the same errors.
    """
    check_figure(path)
    matrices: dict[str, list[Both]] = {}
    for name, both in comparison.matrices:
        matrices.setdefault(name, []).append(both)
    kinds = find_kinds(matrices)
    found = [both.overlap for members in matrices.values() for both in members]
    pairs = [
        (
            make_group(kind.of(lambda both: both.sides[0]), _colour(number, LIGHT)),
            make_group(kind.of(lambda both: both.sides[1]), LIGHT.ink),
        )
        for number, kind in enumerate(group_kinds(kinds))
    ]
    rows = []
    if pairs:
        measures = [_overlap_measure(side, comparison) for side in ("left", "right")]
        known = any(overlap.rank for overlap in found)
        rows = [
            [comparison_panel(pairs, found, LIGHT)],
            [layer_panel(kinds, measure, LIGHT) for measure in measures if known],
        ]
    _save(rows, "Two fine-tuning updates of one base", _comparison_foot(comparison), path)


def panels_as_svg(spectra: Spectra, theme: Theme) -> list[Picture]:
    """Draw each panel by itself, to stand in a page of HTML.

    Parameters
    ----------
    spectra : Spectra
        Of weights or of an update.
    theme : Theme
        `LIGHT`, `DARK` or another.

    Returns
    -------
    list of Picture
        Spectra, energies, ranks, and measures by layer; none where there is no matrix.

    Raises
    ------
    UsageError
        If matplotlib is not installed.
    """
    require_matplotlib()
    return [draw_alone(panel, theme) for panel in _panels(spectra, theme)]


def _panels(spectra: Spectra, theme: Theme) -> list[Panel]:
    """Return the spectra, the energies, the ranks, and measures by layer, if there are any."""
    kinds = find_kinds({name: tensor.matrices for name, tensor in spectra.tensors.items()})
    groups: list[Group] = []
    for number, kind in enumerate(group_kinds(kinds)):
        colour = theme.rest if kind.num_kinds > 1 else _colour(number, theme)
        groups.append(make_group(kind, colour))
    if not groups:
        return []
    panels = [panel(groups, theme) for panel in (spectra_panel, energy_panel, ranks_panel)]
    return [*panels, *(layer_panel(kinds, measure, theme) for measure in measures_of(spectra))]


def _colour(number: int, theme: Theme) -> str:
    return theme.palette[number] if number < len(theme.palette) else theme.rest


def _overlap_measure(side: str, comparison: Comparison) -> Measure[Both]:
    def value(matrices: Sequence[Both]) -> float | None:
        found = [getattr(both.overlap, f"{side}_overlap") for both in matrices if both.overlap.rank]
        return statistics.median(found) if found else None

    overlaps = [both.overlap for _, both in comparison.matrices if both.overlap.rank]
    chances = [getattr(overlap, f"{side}_chance") for overlap in overlaps]
    chance = percent(statistics.median(chances)) if chances else "-"
    meaning = (
        f"Mean squared cosine of the principal angles at rank {comparison.rank}; random "
        f"spaces have {chance}."
    )
    return Measure(f"Overlap of {side} spaces", meaning, value, percent, Drawing(0))


def _foot(spectra: Spectra) -> list[str]:
    is_update = spectra.subject is Subject.UPDATE
    sides = {"base": spectra.base, "fine-tuned" if is_update else "checkpoint": spectra.checkpoint}
    facts = [_matrices(len(spectra.matrices))]
    if spectra.left_out:
        facts.append(f"{counted(len(spectra.left_out), 'tensor')} without a spectrum")
    if spectra.top is not None:
        facts.append(f"at most {counted(spectra.top, 'leading value')}")
    return _lines(sides, facts, spectra)


def _comparison_foot(comparison: Comparison) -> list[str]:
    first, second = comparison.first, comparison.second
    sides = {"base": first.base, "line": first.checkpoint, "dashes": second.checkpoint}
    count = sum(map(len, comparison.overlaps.values()))
    return _lines(sides, [f"{_matrices(count)} in common"], first)


def _lines(sides: dict[str, str | None], facts: Sequence[str], spectra: Spectra) -> list[str]:
    """Return the lines at the foot of a page: what it was made from, and of what."""
    named = [readable(f"{side}: {name}", _LINE) for side, name in sides.items() if name is not None]
    return [*named, " · ".join([*facts, readable(f"svdcut {spectra.svdcut_version}", 24)])]


def _matrices(count: int) -> str:
    return "1 matrix" if count == 1 else f"{count} matrices"


def _save(rows: Sequence[Sequence[Panel]], title: str, foot: Sequence[str], path: Path) -> None:
    shown = [row for row in rows if row]
    data = draw_page(shown, title, foot, path.suffix.lower().removeprefix("."), LIGHT)
    write_whole(path, lambda place: place.write_bytes(data))
