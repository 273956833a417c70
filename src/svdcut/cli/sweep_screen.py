"""The screen of ``svdcut sweep``: a line for each rank, and the answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.markup import escape

from svdcut.cli.screen import Column, no_room, open_screen, print_table
from svdcut.evaluation.metrics import Evaluation
from svdcut.shown import points, printable
from svdcut.sweeps.result import CSV_NAME, JSON_NAME, PICTURE_NAME, Sweep

_BACK = Column("back", 1)
_COLUMNS = (
    Column("accuracy"),
    Column("95 % interval", 2),
    Column("worst"),
    Column("gap"),
    Column("95 % interval", 3),
    _BACK,
    Column("", 0, "left", "bold"),
)


def print_sweep(folder: Path, sweep: Sweep) -> None:
    """Print what was measured, and which rank to use.

    Parameters
    ----------
    folder : Path
        Where its files are.
    sweep : Sweep
        What was found.
    """
    screen = open_screen()
    back = any(row.puts_much_back for row in sweep.rows)
    kept = [number for number, column in enumerate(_COLUMNS) if back or column is not _BACK]
    rows = [[name, *(cells[number] for number in kept)] for name, *cells in _rows(sweep)]
    dropped = print_table(screen, "rank", [_COLUMNS[number] for number in kept], rows)
    screen.print()
    if dropped:
        screen.say(no_room(dropped, CSV_NAME), style="dim")
    worst = sweep.finetuned.worst_group
    if worst is not None:
        name = escape(printable(worst))
        screen.print(
            f"worst, gap: accuracy of the worst group, and of the best over it. That of the "
            f"fine-tuned model is {name}.",
            style="dim",
        )
    if back:
        screen.print("back: what storage puts back of what was cut.", style="dim")
    screen.print("base: with the head and the biases of the fine-tuned model.", style="dim")
    screen.print()
    for sentence in sweep.answer:
        screen.print(escape(printable(sentence)))
    drawn = (folder / PICTURE_NAME).exists()
    names = ", ".join((JSON_NAME, CSV_NAME, *([PICTURE_NAME] if drawn else [])))
    screen.say(f"[bold]{escape(printable(str(folder)))}[/bold]: {names}")
    if not drawn:
        screen.say("No picture was drawn: pip install matplotlib.")


def _rows(sweep: Sweep) -> Iterator[list[str]]:
    yield ["base", *_numbers(sweep.base), "", ""]
    for row in sweep.rows:
        marks = {"use": sweep.chosen, "least gap": sweep.chosen_with_groups}
        mark = next((name for name, found in marks.items() if found == row), "")
        back = "" if row.rounding_share is None else f"{row.rounding_share:.0%}"
        yield [str(row.variant), *_numbers(row.evaluation), back, mark]
    yield ["fine-tuned", *_numbers(sweep.finetuned), "", ""]


def _numbers(found: Evaluation) -> list[str]:
    gap = found.gap.best_worst
    worst = found.worst_group_accuracy
    return [
        f"{points(found.accuracy)}%",
        str(found.interval) if found.size else "",
        "" if worst is None else f"{points(worst)}%",
        "" if gap is None else points(gap),
        str(found.intervals.get("best_worst", "")),
    ]
