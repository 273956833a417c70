"""Print for people: sentences, and tables that fit the screen; and JSON."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console, ConsoleOptions
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from svdcut.shown import printable

SHOWN_ROWS = 40
"""Rows of a table, which a screen still holds; a usual model has a dozen."""

_UNLIMITED = 1000
"""Columns, where no terminal limits them."""


class Screen(Console):
    """A console that leaves a closed pipe to `guard`, as `print_json` does.

    Sentences wrap between words on a terminal, and not at all in a pipe or a file.
    """

    def say(self, text: str, *, style: str | None = None, markup: bool = True) -> None:
        """Print a sentence."""
        self.print(text, style=style, markup=markup, soft_wrap=not self.is_terminal)

    def on_broken_pipe(self) -> None:
        """Let the error through."""
        raise  # noqa: PLE0704 - called while the BrokenPipeError is handled


def print_json(document: object) -> None:
    """Print one JSON document on stdout."""
    sys.stdout.write(json.dumps(document, indent=1, allow_nan=False) + "\n")


def open_screen() -> Screen:
    """Return stdout; a pipe or a file has room for every column, and no line is folded."""
    screen = Screen(highlight=False)
    if not screen.is_terminal and "COLUMNS" not in os.environ:
        screen = Screen(highlight=False, width=_UNLIMITED)
    return screen


class WrappedName:
    """A name of a table, wrapped after its dots, equals signs and spaces."""

    def __init__(self, name: str) -> None:
        self._parts = re.findall(r"[^.= ]*[.= ]?", printable(name))
        self.least = max(map(len, self._parts))
        self.most = sum(map(len, self._parts))

    def __rich_measure__(self, _console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(self.least, self.most).with_maximum(options.max_width)

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> Iterator[Text]:
        lines = [""]
        for part in self._parts:
            if lines[-1] and len(lines[-1]) + len(part) > options.max_width:
                lines.append("")
            lines[-1] += part
        yield Text("\n".join(lines), overflow="fold")


@dataclass(frozen=True, slots=True)
class Column:
    """A column beside the names of a table."""

    title: str
    priority: int = 0
    """Where the screen is narrow, columns of higher numbers go first."""

    justify: Literal["left", "right"] = "right"
    style: str = ""


def print_table(
    screen: Console,
    title: str,
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    *,
    gap: int = 2,
    max_name: int = 20,
) -> list[str]:
    """Print a table of as many columns as there is room for; return the titles of the others.

    Parameters
    ----------
    screen : Console
        Where to print.
    title : str
        Of the column of names.
    columns : sequence of Column
        The others.
    rows : sequence of sequence of str
        At least one: a name, and the cells of the columns.
    gap : int
        Spaces between two columns.
    max_name : int
        A name that is longer wraps rather than that a column goes.
    """
    first, *cells = zip(*rows, strict=True)
    names = [WrappedName(name) for name in first]
    needed = max(max(name.least, min(name.most, max_name)) for name in names)
    shown = _fitting(columns, cells, screen.width - needed, gap)
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
    table.add_column(escape(title), overflow="fold")
    for number in shown:
        column = columns[number]
        table.add_column(column.title, justify=column.justify, style=column.style, no_wrap=True)
    for row, name in enumerate(names):
        table.add_row(name, *(escape(cells[number][row]) for number in shown))
    screen.print(table)
    return [column.title for number, column in enumerate(columns) if number not in shown]


def no_room(dropped: Iterable[str], where: str) -> str:
    """Return what to say of the columns that were left out."""
    return f"No room for {', '.join(dict.fromkeys(dropped))}: see {where}, or widen the screen."


def _fitting(
    columns: Sequence[Column], cells: Sequence[Sequence[str]], room: int, gap: int
) -> list[int]:
    """Return which columns fit, in order; of equal priority the first goes first."""
    widths = [
        max(len(column.title), *map(len, texts)) + gap
        for column, texts in zip(columns, cells, strict=True)
    ]
    shown = list(range(len(columns)))
    while sum(widths[number] for number in shown) > room and len(shown) > 1:
        shown.remove(max(shown, key=lambda number: columns[number].priority))
    return shown


def print_more(console: Screen, rows: int, where: str) -> None:
    """Print how many rows of a table were left out, and where they are."""
    if rows > SHOWN_ROWS:
        console.say(f"and {rows - SHOWN_ROWS} more rows: {where}", style="dim")


def first_names(names: Sequence[str], shown: int = 3) -> str:
    """Return the first of some names, and how many more there are."""
    more = len(names) - shown
    return ", ".join(map(printable, names[:shown])) + (f" and {more} more" if more > 0 else "")


def common_ends(names: Sequence[str]) -> tuple[str, str]:
    """Return the dotted parts that all names start with, and end with."""
    if len(names) < 2:
        return "", ""
    parts = [name.split(".") for name in names]
    room = min(map(len, parts)) - 1
    start = 0
    while start < room and len({part[start] for part in parts}) == 1:
        start += 1
    end = 0
    while start + end < room and len({part[-1 - end] for part in parts}) == 1:
        end += 1
    first = parts[0]
    head = "".join(f"{part}." for part in first[:start])
    return head, "".join(f".{part}" for part in first[len(first) - end :])
