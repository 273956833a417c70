"""The tables of the page as HTML, and as data for its script.

What stands in them follows from `svdcut.spectra.columns`.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from svdcut.page import sparkline
from svdcut.page.text import grouped, markup, name_markup, visible
from svdcut.shown import MISSING, percent
from svdcut.spectra.column import Column
from svdcut.spectra.columns import NORM, RELATIVE_NORM, ZERO_FRACTION
from svdcut.spectra.facts import Spectra, Subject, TensorSpectra
from svdcut.spectra.groups import by_module, count_above_edge
from svdcut.spectra.matrix import Spectrum

MAX_ROWS = 6000
"""At most so many rows are on a page: a browser is quick with them, and mail takes the file."""

_MAX_KINDS = 500
_NEAR = 500
"""Rows that are laid out before the script takes over."""

_BAR = 100
_DIGITS = 9
"""Significant digits of what the script sorts by: more than any method warrants."""

_EXPERT = re.compile(r"(?<=\bexperts\.)(?:expert_)?\d+(?=\.)")
_NAME = ("tensor", "Its name in the checkpoint. An expert stack is one row.")
_SHAPE = ("shape", "As stored; sorted by the number of entries.")
_DTYPE = ("dtype", "The dtype it is stored in.")

Columns = Sequence[Column]


@dataclass(frozen=True, slots=True)
class Row:
    """A matrix, or the experts of a layer."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    matrices: tuple[Spectrum, ...]
    experts: tuple[Row, ...] = ()


def tensor_rows(spectra: Spectra) -> list[Row]:
    """Return a row for each tensor, in the order of the model.

    A stack of experts is one row, and so are numbered experts of one layer.
    """
    gathered: dict[str, list[str]] = {}
    for name in spectra.tensors:
        gathered.setdefault(_EXPERT.sub("*", name), []).append(name)
    rows: list[Row] = []
    for common, names in gathered.items():
        first = spectra.tensors[names[0]]
        members = tuple(chain.from_iterable(_matrix_rows(n, spectra.tensors[n]) for n in names))
        if len(names) == 1 and not first.stacked:
            rows += members
        else:
            title = names[0] if len(names) == 1 else common
            matrices = tuple(matrix for member in members for matrix in member.matrices)
            rows.append(Row(title, first.shape, first.dtype, matrices, members))
    return rows


def _matrix_rows(name: str, tensor: TensorSpectra) -> list[Row]:
    if not tensor.stacked:
        return [Row(name, tensor.shape, tensor.dtype, tensor.matrices)]
    return [
        Row(f"{name}[{number}]", tensor.shape[1:], tensor.dtype, (matrix,))
        for number, matrix in enumerate(tensor.matrices)
    ]


def limited(rows: Sequence[Row]) -> list[Row]:
    """Return the rows for which there is room: the largest ones, then experts, in order."""
    room = MAX_ROWS
    if len(rows) > room:
        norms = [NORM.joined(row.matrices) or 0.0 for row in rows]
        largest = sorted(range(len(rows)), key=lambda i: -norms[i])[:room]
        rows = [rows[i] for i in sorted(largest)]
    room -= len(rows)
    kept = []
    for row in rows:
        experts = row.experts if len(row.experts) <= room else ()
        room -= len(experts)
        kept.append(replace(row, experts=experts))
    return kept


def totals_list(spectra: Spectra) -> str:
    """Return the numbers of the whole checkpoint."""
    matrices = [matrix for _, matrix in spectra.matrices]
    above, known = count_above_edge(matrices)
    values = sum(matrix.full_rank for matrix in known)
    is_update = spectra.subject is Subject.UPDATE
    norm = "Norm of the update" if is_update else "Norm"
    found = [(norm, _text(NORM, matrices), "")]
    if is_update:
        relative = _text(RELATIVE_NORM, matrices)
        found.append(("Relative norm", relative, "of base's, the same tensors"))
    found.append(("Matrices", grouped(len(matrices)), ""))
    if values:
        note = f"of {grouped(values)} singular values"
        found.append(("Above the noise edge", grouped(above), note))
    found.append(("Zeros", _text(ZERO_FRACTION, matrices), "of all entries"))
    return "".join(
        f"<div><dt>{term}</dt><dd>{value}{f'<small>{note}</small>' if note else ''}</dd></div>"
        for term, value, note in found
    )


def lead(every: Sequence[Row], rows: Sequence[Row]) -> str:
    """Return what a reader must know of the table: its order, and what it leaves out."""
    sentences = ["In the order of the model; a click on a column sorts by it."]
    if any(row.experts for row in every):
        sentences.append("Experts of one layer are one row.")
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
    titles += [(column.title, column.meaning, "") for column in columns]
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
    return sparkline.scale([sparkline.curve(row.matrices) for row in rows])


def _line(row: Row, columns: Columns, decades: int, *, is_expert: bool = False) -> str:
    # Cells need no end tags in HTML, which a fourth of the file would be.
    cells = [
        f"<tr{' class=x hidden' if is_expert else ''}><th scope=row>{_title(row)}",
        f"<td class=s>{sparkline.svg(sparkline.curve(row.matrices), decades)}",
        f"<td class=t>{'×'.join(map(str, row.shape))}",
        f"<td class=t>{markup(row.dtype)}",
        *_cells(columns, row.matrices),
    ]
    return "".join(cells)


def _cells(columns: Columns, matrices: Sequence[Spectrum]) -> Iterable[str]:
    return (f"<td>{_text(column, matrices)}" for column in columns)


def _text(column: Column, matrices: Sequence[Spectrum]) -> str:
    return html.escape(column.text(matrices))


def _title(row: Row) -> str:
    name = name_markup(row.name)
    if not row.experts:
        return name
    label = markup(f"Experts of {row.name}")
    return (
        f'<button type=button class="fold scripted" aria-expanded=false aria-label="{label}">'
        f"{len(row.experts)}</button>{name}"
    )


def _head(title: str) -> str:
    return title.replace(" %", "&nbsp;%")


def meanings(rows: Sequence[Row], columns: Columns) -> str:
    """Return what each column means."""
    curve = (
        f"The values from the first to the last, on one logarithmic scale for all rows: from the "
        f"first value of each at the top to {_decades(rows)} decades below. The dashed line is "
        "the noise edge."
    )
    found = [_NAME, ("spectrum", curve), _SHAPE, _DTYPE]
    for column in columns:
        joined = "" if column.join is None else f" Several matrices: {column.join.value}."
        found.append((column.title, column.meaning + joined))
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
    values = [_exact(column.joined(row.matrices)) for column in columns]
    return [parent, visible(row.name), list(row.shape), visible(row.dtype), *values]


def _exact(value: float | None) -> float | None:
    """Return a number for a script; counts stay whole."""
    return value if value is None or isinstance(value, int) else float(f"{value:.{_DIGITS}g}")


def kind_heads(columns: Columns) -> str:
    """Return the header cells of the table by kind."""
    titles = ["matrices", "share of the energy", *(column.title for column in columns)]
    cells = (f'<th scope="col">{_head(title)}</th>' for title in titles)
    return '<th scope="col" class=t>tensors</th>' + "".join(cells)


def kind_rows(spectra: Spectra, columns: Columns) -> str:
    """Return the rows of the table by kind."""
    total = NORM.joined([matrix for _, matrix in spectra.matrices])
    lines = []
    for group in by_module(spectra)[:_MAX_KINDS]:
        norm = NORM.joined(group.matrices)
        share = (norm / total) ** 2 if norm is not None and total else None
        lines += [
            f"<tr><th scope=row>{name_markup(group.name)}",
            f"<td>{grouped(len(group.matrices))}",
            f"<td>{MISSING if share is None else percent(share) + _bar(share)}",
            *_cells(columns, group.matrices),
        ]
    return "".join(lines)


def _bar(share: float) -> str:
    return (
        f'<svg class="share" viewBox="0 0 {_BAR} 10" preserveAspectRatio="none">'
        f'<rect width="{min(share, 1) * _BAR:.1f}" height="10"/></svg>'
    )
