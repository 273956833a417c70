"""``svdcut sweep``: the command, and its screen of ranks and the answer."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY
from pathlib import Path

from rich.markup import escape

from svdcut.api.sweeps import carry_out_sweep, count_rows, prepare_sweep
from svdcut.api.truncation import carry_out, plan_truncation
from svdcut.choose.options import CallOptions, ShapeOptions
from svdcut.cli.app import ScreenOptions, command
from svdcut.cli.evaluate import note_cut_texts
from svdcut.cli.guard import Unfinished, guard, note
from svdcut.cli.progress import show_progress
from svdcut.cli.screen import Column, no_room, open_screen, print_json, print_table
from svdcut.cli.warnings import warn_of_no_update, warn_of_plan
from svdcut.errors import QualityError
from svdcut.evaluation.metrics import Evaluation
from svdcut.option import Panel, shared
from svdcut.option_kinds import File, Switch, options
from svdcut.shown import points, printable
from svdcut.sweeps.options import SweepOptions
from svdcut.sweeps.result import CSV_NAME, JSON_NAME, PICTURE_NAME, Sweep
from svdcut.truncation.options import TruncateOptions
from svdcut.write.destination import check_output

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


@options
class SweepCommand(ScreenOptions, SweepOptions):
    """Options of the command."""

    _: KW_ONLY
    write: File[Path | None] = File(
        "Truncate at the chosen rank right away, to this folder.",
        default=None,
        metavar="OUT",
        panel=Panel.CHOICE,
    )
    json: Switch = Switch("Print sweep.json on stdout.", default=False, panel=Panel.SCREEN)


@command(
    SweepCommand,
    usage="-o DIR [OPTIONS]",
    examples="""\
svdcut sweep base/ ft/ test.csv --group label -o sweep/  # find the rank to use

svdcut sweep base/ ft/ test.csv -k 1,2,3,energy=0.9 -o sweep/  # try other ranks

svdcut sweep base/ ft/ test.csv --controls bottom,random -o sweep/  # with controls

svdcut sweep base/ ft/ test.csv -o sweep/ --write out/  # write the cut, too

svdcut sweep base/ ft/ -o sweep/ --eval-command './my-eval {model}'  # your own
""",
)
def sweep(options: SweepCommand) -> None:
    """Try many ranks of the update FT - BASE on DATA, and name the one to use.

    Each matrix is decomposed once, and the model is loaded once: its weights are
    replaced in memory. Each rank is a row; base and the fine-tuned model are the
    two ends. Base is measured with the head and the biases of FT, as truncate -k 0
    writes it. The rank to use is the smallest whose accuracy is within --tolerance
    of that of FT, for which no group label is looked at; beside it is the one with
    the smallest gap between groups, which is a choice by group labels. Where none
    is within the tolerance, the exit code is 4.

    The same command goes on from where an interrupted one stopped, and with other
    ranks measures only the new ones.
    """
    with guard(verbose=options.verbose, find_unfinished=lambda: _find_unfinished(options.out)):
        if options.write is not None:
            sides = [Path(side) for side in (options.base, options.finetuned)]
            inputs = [*(side for side in sides if side.exists()), options.out]
            check_output(options.write, inputs, force=False)
        request = prepare_sweep(options)
        plan = request.plan
        warn_of_plan(plan, "left as FT has them")
        with show_progress(quiet=options.quiet, verbose=False) as observe:
            found = carry_out_sweep(request, observe=observe)
        if plan.num_truncated:
            warn_of_no_update(differ=found.rows[0].energy_retained is not None)
        if options.json:
            print_json(found.to_json())
        elif not options.quiet:
            print_sweep(options.out, found)
        if not options.quiet:
            note_cut_texts(found.finetuned)
        _refuse_none(found)
        if options.write is not None:
            _write(found, options.write, options)


def _refuse_none(found: Sweep) -> None:
    if found.chosen is None:
        raise QualityError(
            found.answer[0].rstrip("."),
            hint="Try higher ranks, or allow for more: --tolerance.",
        )


def _write(found: Sweep, out: Path, options: SweepCommand) -> None:
    assert found.chosen is not None
    rule = found.chosen.variant.rule
    shape = shared(options, ShapeOptions) | shared(options, CallOptions)
    request = plan_truncation(
        TruncateOptions(options.base, options.finetuned, out, rank=str(rule), **shape)
    )
    with show_progress(quiet=options.quiet or options.json, verbose=False) as observe:
        carry_out(request, command=["svdcut", *sys.argv[1:]], observe=observe)
    if not (options.quiet or options.json):
        note(f"wrote {shlex.quote(str(out))} at -k {rule}")


def _find_unfinished(out: Path) -> Sequence[Unfinished]:
    rows = count_rows(out)
    return [Unfinished(out, rows, "rows")] if rows else []


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
