"""The tables of the page as HTML, and as data for its script.

It computes nothing: the numbers come from `rows`.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any

from svdcut.page import sparkline
from svdcut.page.rows import COLUMNS, MAX_ROWS, Kind, Row, Totals, kinds
from svdcut.page.text import (
    MISSING,
    exact,
    grouped,
    markup,
    name_markup,
    number,
    visible,
    whole,
)
from svdcut.shown import percent
from svdcut.spectra.facts import RESOLUTION, Spectra, Subject

MAX_LEFT_OUT = 1000

_NAME = ("tensor", "Its name in the checkpoint. An expert stack is one row.")
_SHAPE = ("shape", "As stored; sorted by the number of entries.")
_DTYPE = ("dtype", "The dtype it is stored in.")
_BAR = 100
_NEAR = 500
"""Rows that are laid out before the script takes over."""

Columns = Sequence[int]
"""Places in `COLUMNS`."""


def filled(rows: Sequence[Row]) -> list[int]:
    """Return the columns that hold a number anywhere."""
    return [
        place for place in range(len(COLUMNS)) if any(row.values[place] is not None for row in rows)
    ]


def totals_list(totals: Totals, *, is_update: bool) -> str:
    """Return the numbers of the whole checkpoint."""
    found = [
        ("Norm of the update" if is_update else "Norm", _shown(totals.norm), ""),
        ("Relative norm", _shown(totals.relative_norm, percent), "of base's, the same tensors"),
        ("Matrices", grouped(totals.num_matrices), ""),
        (
            "Above the noise edge",
            grouped(totals.num_above_edge),
            f"of {grouped(totals.num_values)} singular values",
        ),
        ("Zeros", _shown(totals.zero_fraction, percent), "of all entries"),
    ]
    if totals.relative_norm is None:
        del found[1]
    if not totals.num_values:
        found = [fact for fact in found if fact[0] != "Above the noise edge"]
    return "".join(
        f"<div><dt>{term}</dt><dd>{value}{f'<small>{note}</small>' if note else ''}</dd></div>"
        for term, value, note in found
    )


def lead(every: Sequence[Row], rows: Sequence[Row]) -> str:
    """Return what a reader must know of the table: its order, and what it leaves out."""
    sentences = ["In the order of the model; a click on a column sorts by it."]
    if any(row.experts for row in every):
        sentences.append("Experts of one layer are one row, with the median of each column.")
    if len(rows) < len(every):
        sentences.append(
            f"Of {grouped(len(every))} tensors these are the {grouped(MAX_ROWS)} of largest norm."
        )
    if sum(len(row.experts) for row in rows) < sum(len(row.experts) for row in every):
        sentences.append("There are too many experts for a page to list each of them.")
    return " ".join(sentences)


def heads(columns: Columns) -> str:
    """Return the header cells of the table by tensor."""
    titles = [(*_NAME, ""), (*_SHAPE, "t"), (*_DTYPE, "t")]
    titles += [(COLUMNS[place].title, COLUMNS[place].meaning, "") for place in columns]
    cells = [
        f'<th scope="col" aria-sort="none" data-column="{place}"'
        f"{f' class={kind}' if kind else ''}>"
        f'<button type="button" title="{html.escape(meaning)}">{_head(title)}</button></th>'
        for place, (title, meaning, kind) in enumerate(titles, start=1)
    ]
    cells.insert(1, '<th scope="col" class="s">spectrum</th>')
    return "".join(cells)


def body(rows: Sequence[Row], columns: Columns) -> str:
    """Return the rows of the table by tensor, experts after their own."""
    decades = _decades(rows)
    lines: list[str] = []
    for row in rows:
        lines.append(_line(row, columns, decades))
        lines += [_line(expert, columns, decades, is_expert=True) for expert in row.experts]
    near, rest = "".join(lines[:_NEAR]), "".join(lines[_NEAR:])
    return f"<tbody>{near}</tbody>" + (f"<tbody class=rest>{rest}</tbody>" if rest else "")


def _decades(rows: Sequence[Row]) -> int:
    return sparkline.scale([row.curve for row in rows])


def _line(row: Row, columns: Columns, decades: int, *, is_expert: bool = False) -> str:
    # Cells need no end tags in HTML, which a fourth of the file would be.
    cells = [
        f"<tr{' class=x hidden' if is_expert else ''}><th scope=row>{_title(row)}",
        f"<td class=s>{sparkline.svg(row.curve, decades)}",
        f"<td class=t>{'×'.join(map(str, row.shape))}",
        f"<td class=t>{markup(row.dtype)}",
    ]
    cells += [f"<td>{_cell(row, place)}" for place in columns]
    return "".join(cells)


def _cell(row: Row, place: int) -> str:
    value, column = row.values[place], COLUMNS[place]
    if column.key == "sigma_last" and value is not None:
        least = RESOLUTION * (row.values[place - 1] or 0.0)
        return number(value) if value >= least else f"&lt; {number(least)}"
    return _shown(value, column.text)


def _title(row: Row) -> str:
    name = name_markup(row.name)
    if row.experts:
        label = markup(f"Experts of {row.name}")
        return (
            f'<button type=button class="fold scripted" aria-expanded=false aria-label="{label}">'
            f"{len(row.experts)}</button>{name}"
        )
    return name


def _head(title: str) -> str:
    return title.replace(" %", "&nbsp;%")


def _shown(value: float | None, text: Callable[[float], str] = number) -> str:
    return MISSING if value is None else text(value)


def meanings(rows: Sequence[Row], columns: Columns) -> str:
    """Return what each column means."""
    curve = (
        f"The values from the first to the last, on one logarithmic scale for all rows: from the "
        f"first value of each at the top to {_decades(rows)} decades below. The dashed line is "
        "the noise edge."
    )
    found = [_NAME, ("spectrum", curve), _SHAPE, _DTYPE]
    found += [(COLUMNS[place].title, COLUMNS[place].meaning) for place in columns]
    found.append((MISSING, "Not known, or not defined: a matrix of zeros has no stable rank."))
    return "".join(
        f"<div><dt>{_head(title)}</dt><dd>{html.escape(text)}</dd></div>" for title, text in found
    )


def data(rows: Sequence[Row], columns: Columns) -> list[list[Any]]:
    """Return what the script sorts by: all rows as the table has them."""
    lines: list[list[Any]] = []
    for row in rows:
        parent = len(lines)
        lines.append(_entry(-1, row, columns))
        lines += [_entry(parent, expert, columns) for expert in row.experts]
    return lines


def _entry(parent: int, row: Row, columns: Columns) -> list[Any]:
    values = [exact(row.values[place]) for place in columns]
    return [parent, visible(row.name), list(row.shape), visible(row.dtype), *values]


_KINDS: tuple[tuple[str, str], ...] = (
    ("tensors", "t"),
    ("matrices", ""),
    ("norm", ""),
    ("relative norm", ""),
    ("share of the energy", ""),
    ("stable rank", ""),
    ("effective rank", ""),
    ("rank 90 %", ""),
    ("above edge", ""),
)


def _kind_cells(kind: Kind) -> list[str]:
    share = kind.energy_share
    bar = "" if share is None else _bar(share)
    return [
        name_markup(kind.name),
        grouped(kind.num_matrices),
        _shown(kind.norm),
        _shown(kind.relative_norm, percent),
        _shown(share, percent) + bar,
        _shown(kind.stable_rank),
        _shown(kind.effective_rank),
        _shown(kind.rank_90, whole),
        _shown(kind.above_edge, percent),
    ]


def _bar(share: float) -> str:
    return (
        f'<svg class="share" viewBox="0 0 {_BAR} 10" preserveAspectRatio="none">'
        f'<rect width="{min(share, 1) * _BAR:.1f}" height="10"/></svg>'
    )


def _kind_places(spectra: Spectra) -> list[int]:
    hidden = {3} if spectra.subject is not Subject.UPDATE else set()
    if all(matrix.above_noise_edge is None for _, matrix in spectra.matrices):
        hidden.add(8)
    return [place for place in range(len(_KINDS)) if place not in hidden]


def kind_heads(spectra: Spectra) -> str:
    """Return the header cells of the table by kind."""
    titles = [_KINDS[place] for place in _kind_places(spectra)]
    return "".join(
        f'<th scope="col"{f" class={kind}" if kind else ""}>{_head(title)}</th>'
        for title, kind in titles
    )


def kind_rows(spectra: Spectra) -> str:
    """Return the rows of the table by kind."""
    places = _kind_places(spectra)
    lines = []
    for kind in kinds(spectra):
        cells = _kind_cells(kind)
        first = f"<tr><th scope=row>{cells[0]}"
        lines.append(first + "".join(f"<td>{cells[place]}" for place in places[1:]))
    return "".join(lines)
