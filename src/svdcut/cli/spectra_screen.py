"""The screen of ``svdcut spectrum``: lines by tensor, module and depth, and what they come to."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from rich.markup import escape

from svdcut.cli.result_screen import print_matching
from svdcut.cli.screen import (
    SHOWN_ROWS,
    Column,
    Screen,
    common_ends,
    no_room,
    open_screen,
    print_more,
    print_table,
)
from svdcut.pair.pairing import Pairing
from svdcut.shown import MISSING, percent, printable
from svdcut.spectra.column import Column as SpectrumColumn
from svdcut.spectra.column import known_columns
from svdcut.spectra.columns import ABOVE_NOISE_EDGE, JOINED, NORM, RELATIVE_NORM, ZERO_FRACTION
from svdcut.spectra.cuts import CutPoint, cut_points
from svdcut.spectra.facts import Spectra, Subject
from svdcut.spectra.groups import Group, by_depth, by_module, by_tensor, count_above_edge
from svdcut.spectra.matrix import RESOLUTION, Spectrum
from svdcut.svd.certificate import Method

_BARS, _PLAIN_BARS = "▁▂▃▄▅▆▇█", "_.-=+*#@"
_SPARK_WIDTH = 8
_SPARK_DECADES = (1.0, 4.0)
"""Powers of ten from the lowest bar to the highest, at least and at most."""

_MAX_NAME = 60
"""Longer names are folded."""

_FEW = 12
"""Tensors that are shown unasked."""

_MANY_ZEROS = 0.25

_Columns = Sequence[tuple[Column, Callable[[Group], str]]]


def print_spectra(spectra: Spectra, pairing: Pairing | None, *, with_tensors: bool) -> None:
    """Print what was measured, for people.

    Parameters
    ----------
    spectra : Spectra
        What was measured.
    pairing : Pairing or None
        Of the two sides, where there are two.
    with_tensors : bool
        Whether to print a line for each tensor, where modules and layers say less.
    """
    screen = open_screen()
    if pairing is not None:
        print_matching(screen, pairing)
    screen.say(_title(spectra))
    lines = by_tensor(spectra)
    if not lines:
        screen.print("There is no matrix to look at.")
        return
    columns = _columns(spectra)
    screen.print(_legend(spectra), style="dim")
    screen.print()
    modules, layers = by_module(spectra), by_depth(spectra)
    tables = {
        "tensor": lines if with_tensors or len(lines) <= max(len(modules), _FEW) else [],
        "module": modules if 1 < len(modules) < len(lines) else [],
        "layer": layers if len(layers) > 1 else [],
    }
    changed = any(matrix.norm for _, matrix in spectra.matrices)
    points = cut_points(spectra) if changed and spectra.subject is Subject.UPDATE else []
    dropped: list[str] = []
    if points:
        dropped += _print_cuts(screen, points)
        screen.print()
    for title, groups in tables.items():
        if groups:
            shown = groups if with_tensors else groups[:SHOWN_ROWS]
            dropped += _print_lines(screen, title, shown, columns)
            if not with_tensors:
                print_more(screen, len(groups), "--sort model shows all")
            screen.print()
    for line in _verdict(spectra):
        screen.say(line)
    if not tables["tensor"]:
        screen.say(f"--sort model shows each of the {len(lines)} tensors, and so does --csv.")
    if dropped:
        screen.say(no_room(dropped, "--csv"))


def _title(spectra: Spectra) -> str:
    checkpoint = escape(printable(spectra.checkpoint))
    if spectra.base is None:
        return f"[bold]Weights of {checkpoint}[/bold]"
    return f"[bold]Update from {escape(printable(spectra.base))} to {checkpoint}[/bold]"


def _legend(spectra: Spectra) -> str:
    """Return what the titles of columns mean that need a word."""
    meanings: dict[str, list[str]] = {}
    for column in known_columns(JOINED, [matrix for _, matrix in spectra.matrices]):
        if column.short and column.legend:
            meanings.setdefault(column.legend, []).append(column.short)
    return "; ".join(f"{', '.join(titles)}: {text}" for text, titles in meanings.items()) + "."


def _columns(spectra: Spectra) -> _Columns:
    """Return the columns beside the names, with the text of each in a row."""
    decades = _decades([matrix for _, matrix in spectra.matrices])
    columns: list[tuple[Column, Callable[[Group], str]]] = [
        (Column("shape", 4), lambda group: _shape(group.shape)),
        *(
            (Column(column.short, column.priority), partial(_text, column))
            for column in JOINED
            if column.short
        ),
        (
            Column("spectrum", 2, "left", "cyan"),
            lambda group: _sparkline(group.matrices, decades),
        ),
    ]
    if any(tensor.stacked for tensor in spectra.tensors.values()):
        columns.insert(0, (Column("n", 4), lambda group: str(len(group.matrices))))
    return columns


def _text(column: SpectrumColumn, group: Group) -> str:
    return column.text(group.matrices)


def _print_lines(
    screen: Screen, title: str, lines: Sequence[Group], columns: _Columns
) -> list[str]:
    """Print a table of as many columns as there is room for; return the titles of the others."""
    start, end = common_ends([line.name for line in lines])
    where = f" ({printable(start)} ... {printable(end)})" if start or end else ""
    screen.say(f"[bold]By {title}[/bold]{escape(where)}")
    names = [line.name[len(start) : len(line.name) - len(end)] for line in lines]
    cells = {column: [text(line) for line in lines] for column, text in columns}
    known = {column: texts for column, texts in cells.items() if set(texts) != {MISSING}}
    rows = list(zip(names, *known.values(), strict=True))
    return print_table(screen, "", list(known), rows, gap=1, max_name=_MAX_NAME)


def _shape(shape: tuple[int, ...] | None) -> str:
    return MISSING if shape is None else "x".join(map(str, shape))


def _decades(matrices: Sequence[Spectrum]) -> float:
    """Return how many powers of ten the sparklines span: those of a usual spectrum."""
    spans = [-curve[-1] for matrix in matrices if (curve := _logarithms(matrix))]
    low, high = _SPARK_DECADES
    return min(max(statistics.median(spans), low), high) if spans else low


def _logarithms(matrix: Spectrum) -> list[float]:
    """Return ``log10(s_i / s_1)`` at places 1 to min(m, n), as far apart as powers are."""
    s = matrix.singular_values
    if not s[0]:
        return []
    places = [round(matrix.full_rank ** (j / (_SPARK_WIDTH - 1))) - 1 for j in range(_SPARK_WIDTH)]
    lowest = 10 ** -_SPARK_DECADES[1]
    return [math.log10(max(s[i] / s[0], lowest)) for i in places if i < len(s)]


def _sparkline(matrices: Sequence[Spectrum], decades: float) -> str:
    """Return the logarithm of a spectrum, or the mean of several, in bars."""
    bars = _BARS if (sys.stdout.encoding or "").lower().startswith("utf") else _PLAIN_BARS
    curves = [curve for matrix in matrices if (curve := _logarithms(matrix))]
    if not curves:
        return ""
    shown = min(map(len, curves))
    means = [statistics.fmean(curve[i] for curve in curves) for i in range(shown)]
    heights = [max(0.0, 1 + mean / decades) for mean in means]
    return "".join(bars[round(height * (len(bars) - 1))] for height in heights)


def _print_cuts(screen: Screen, points: Sequence[CutPoint]) -> list[str]:
    columns = (Column("keeps of each matrix"), Column("of all", 1), Column("energy"))
    rows = []
    for point in points:
        span = f"{point.lowest} to {point.highest}, median {point.median:.0f}"
        each = str(point.lowest) if point.lowest == point.highest else span
        energy = MISSING if point.energy is None else percent(point.energy)
        rows.append([str(point.rule), each, f"{point.rank} of {point.full_rank}", energy])
    return print_table(screen, "a cut at -k", columns, rows)


def _verdict(spectra: Spectra) -> Iterator[str]:
    """Yield in sentences what the tables come to."""
    matrices = [matrix for _, matrix in spectra.matrices]
    left = f", {len(spectra.left_out)} tensors without one" if spectra.left_out else ""
    relative = RELATIVE_NORM.joined(matrices)
    share = "" if relative is None else f", {percent(relative)} of base's"
    yield f"{len(matrices)} matrices{left}. Norm of all: {NORM.text(matrices)}{share}."
    above, known = count_above_edge(matrices)
    if known and spectra.subject is Subject.UPDATE:
        total = sum(matrix.full_rank for matrix in known)
        factored = all(matrix.method == Method.FACTORED.value for matrix in known)
        # The factors of an adapter are taken as they are stored.
        where = "float64" if factored else "storage"
        yield (
            f"{above} of {total} singular values are above what rounding in {where} explains "
            f"({percent(above / total)})."
        )
    if spectra.subject is Subject.UPDATE:
        yield from _zeros(spectra)
    unknown = len(matrices) - len(known)
    if unknown:
        yield (f"The noise edge of {unknown} matrices takes all values; --top computes the first.")
    worst = max(matrix.value_bound for matrix in matrices)
    yield (
        f"Singular values within {worst:.0e} of themselves or {RESOLUTION:.0e} of the first, "
        f"whichever is larger, in {spectra.seconds:.1f} s on "
        f"{escape(spectra.device)}."
    )


def _zeros(spectra: Spectra) -> Iterator[str]:
    """Yield what zeros in an update mean: a layer that was left alone, or one lost in storage."""
    changed = [matrix for _, matrix in spectra.matrices if matrix.norm]
    same = len(spectra.matrices) - len(changed)
    if changed and same:
        noun = "matrix is" if same == 1 else "matrices are"
        yield f"{same} {noun} unchanged: the same on both sides."
    zeros = ZERO_FRACTION.joined(changed) or 0.0
    if zeros >= _MANY_ZEROS:
        where = "what changed" if same else "the update"
        text = f"{percent(zeros)} of the entries of {where} are exactly zero"
        above = [_norm_above_edge(matrix) for matrix in changed]
        # Rows that training never reached are zero too, but leave the others above the edge.
        if 2 * math.hypot(*above) ** 2 < math.hypot(*(matrix.norm for matrix in changed)) ** 2:
            text += (
                ": most of it is within the rounding of the stored weights, so that smaller "
                "changes were lost when they were saved"
            )
        yield f"{text}."


def _norm_above_edge(matrix: Spectrum) -> float:
    """Return the norm of the part that rounding does not explain; all where that is not known."""
    above = ABOVE_NOISE_EDGE.of(matrix)
    return matrix.norm if above is None else math.hypot(*matrix.singular_values[: int(above)])
