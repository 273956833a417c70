"""The screen of ``svdcut sweep``: a line for each rank, and the answer."""

from __future__ import annotations

from collections.abc import Iterator

from rich.markup import escape
from rich.table import Table

from svdcut.api import SweepRequest
from svdcut.cli.evaluation_screen import show_interval, show_share
from svdcut.cli.spectra_screen import open_screen
from svdcut.evaluation.metrics import Evaluation
from svdcut.shown import printable
from svdcut.sweeps.facts import Sweep
from svdcut.sweeps.files import CSV_NAME, JSON_NAME, PICTURE_NAME

_COLUMNS = ("accuracy", "95 % interval", "worst", "gap", "95 % interval")


def print_sweep(request: SweepRequest, sweep: Sweep) -> None:
    """Print what was measured, and which rank to use.

    Parameters
    ----------
    request : SweepRequest
        What was asked for.
    sweep : Sweep
        What was found.
    """
    screen = open_screen()
    screen.print(_table(sweep))
    screen.print()
    worst = sweep.finetuned.worst_group
    if worst is not None:
        name = escape(printable(worst))
        screen.print(
            f"worst, gap: accuracy of the worst group, and of the best over it. That of the "
            f"fine-tuned model is {name}.",
            style="dim",
        )
    if any(row.puts_much_back for row in sweep.rows):
        screen.print("back: what storage puts back of what was cut.", style="dim")
    screen.print("base: with the head and the biases of the fine-tuned model.", style="dim")
    screen.print()
    for sentence in sweep.answer:
        screen.print(escape(printable(sentence)))
    drawn = (request.folder / PICTURE_NAME).exists()
    names = ", ".join((JSON_NAME, CSV_NAME, *([PICTURE_NAME] if drawn else [])))
    screen.say(f"[bold]{escape(printable(str(request.folder)))}[/bold]: {names}")
    if not drawn:
        screen.say("No picture was drawn: pip install matplotlib.")


def _table(sweep: Sweep) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("rank", overflow="fold")
    shown = any(row.puts_much_back for row in sweep.rows)
    for column in (*_COLUMNS, *(["back"] if shown else [])):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for *cells, back, mark in _lines(sweep):
        table.add_row(*cells, *([back] if shown else []), mark)
    return table


def _lines(sweep: Sweep) -> Iterator[list[str]]:
    yield ["base", *_numbers(sweep.base), "", ""]
    for row in sweep.rows:
        marks = {"use": sweep.chosen, "least gap": sweep.chosen_with_groups}
        mark = next((name for name, found in marks.items() if found == row), "")
        back = "" if row.rounding_share is None else f"{row.rounding_share:.0%}"
        end = [back, f"[bold]{mark}[/bold]" if mark else ""]
        yield [str(row.variant), *_numbers(row.evaluation), *end]
    yield ["fine-tuned", *_numbers(sweep.finetuned), "", ""]


def _numbers(found: Evaluation) -> list[str]:
    gap = found.gap.best_worst
    worst = found.worst_group_accuracy
    return [
        show_share(found.accuracy),
        show_interval(found.interval if found.size else None),
        "" if worst is None else show_share(worst),
        "" if gap is None else f"{100 * gap:.1f}",
        show_interval(found.intervals.get("best_worst")),
    ]
