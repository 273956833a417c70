"""The progress of a run on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from svdcut.shown import counted, printable

if TYPE_CHECKING:
    from svdcut.record.progress import Observer
    from svdcut.record.progress import Progress as TensorDone

_STAGES = {
    "spectra": "pass 1 of 2: spectra",
    "truncate": "truncating",
    "merge": "merging",
    "load": "loading the model",
    "spectrum": "measuring",
    "result": "reading the result",
    "inputs": "reading the inputs",
    "recompute": "computing again",
    "evaluate": "evaluating",
    "decompose": "decomposing",
    "sweep": "evaluating",
}
_COUNTS_TEXTS = ("evaluate", "sweep")
_BAR_WIDTH = 10
"""Columns of a terminal; what is left is for the name."""

_WIDE = 80
"""In fewer columns a bar and the time would leave no room for the name."""


class _Amount(DownloadColumn):
    """Column with the bytes or texts done; empty where nothing is counted."""

    def render(self, task: Task) -> Text:
        """Return the column's text."""
        if task.total is None:
            return Text("")
        if task.fields["texts"]:
            return Text(f"{task.completed:.0f}/{task.total:.0f} texts", style="progress.download")
        return super().render(task)


class _TailOfName(ProgressColumn):
    """The name of what is done, cut at its start: its end tells it from others."""

    def __init__(self) -> None:
        super().__init__(Column(no_wrap=True, ratio=1))

    def render(self, task: Task) -> _Tail:
        """Return the column's text."""
        return _Tail(printable(task.fields["name"]))


@dataclass(frozen=True, slots=True)
class _Tail:
    """The end of a text, as long as there is room for."""

    text: str

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> Iterator[Text]:
        room = options.max_width
        fits = len(self.text) <= room
        yield Text(self.text if fits else f"…{self.text[1 - room :]}", overflow="ellipsis")


def progress_bar(console: Console, *, quiet: bool) -> Progress:
    """Return bars that draw on a terminal alone; on a narrow one, names and amounts."""
    whole = Column(no_wrap=True)
    wide = console.width >= _WIDE
    columns = (
        TextColumn("{task.description}", table_column=whole),
        BarColumn(bar_width=_BAR_WIDTH) if wide else None,
        _Amount(table_column=whole),
        TimeRemainingColumn(compact=True, table_column=whole) if wide else None,
        _TailOfName(),
    )
    return Progress(
        *filter(None, columns),
        console=console,
        disable=quiet or not console.is_terminal,
        transient=True,
        expand=True,
    )


@contextmanager
def show_progress(*, quiet: bool, verbose: bool) -> Iterator[Observer]:
    """Give an observer that draws a bar, on a terminal alone.

    Parameters
    ----------
    quiet : bool
        Draw nothing.
    verbose : bool
        Print a line for each tensor too.
    """
    console = Console(stderr=True)
    bar = progress_bar(console, quiet=quiet)
    tasks: dict[str, Any] = {}
    resumed: list[str] = []
    of_tasks = Lock()  # workers tell of their tensors at once

    def task_of(done: TensorDone) -> Any:  # noqa: ANN401 - a number of rich's
        with of_tasks:
            if "load" in tasks and done.stage != "load":
                bar.remove_task(tasks.pop("load"))
            if done.stage not in tasks:
                tasks[done.stage] = bar.add_task(
                    _STAGES[done.stage],
                    total=done.total or None,
                    name="",
                    texts=done.stage in _COUNTS_TEXTS,
                )
            return tasks[done.stage]

    def observe(done: TensorDone) -> None:
        bar.update(task_of(done), advance=done.size, name=done.name)
        if done.resumed and done.facts:
            resumed.append(done.name)
        if verbose and done.facts:
            console.print(_describe(done), highlight=False, markup=False, soft_wrap=True)

    with bar:
        yield observe
    if resumed and not quiet:
        console.print(f"{counted(len(resumed), 'tensor')} finished by an earlier run.")


def _describe(done: TensorDone) -> str:
    fact = done.facts[0]
    if done.resumed:
        return f"{printable(done.name)}: finished by an earlier run"
    if fact.truncation is None:
        return f"{printable(done.name)}: {fact.action}"
    svd, ranks = fact.truncation.svd, fact.truncation.ranks
    rank = ranks[0] if len(ranks) == 1 else ranks
    return (
        f"{printable(done.name)}: rank {rank} of {fact.truncation.full_rank}, "
        f"{svd.method}, excess error at most {svd.excess_bound:.1e}"
        + "".join(f", after {route}" for route in svd.rejected)
    )
