"""``svdcut sweep``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from svdcut import api
from svdcut.api import ShapeOptions, SweepOptions
from svdcut.api.sweeps import DEFAULT_RANKS, DEFAULT_TOLERANCE
from svdcut.choose.options import StoredDtype
from svdcut.cli.cutting import (
    OUTPUT,
    RANK,
    BaseArgument,
    DtypeOption,
    ShapeParameters,
    complete_rules,
)
from svdcut.cli.evaluating import DataParameters, note_cut_texts, split_names
from svdcut.cli.groups import grouped
from svdcut.cli.guard import Unfinished, guard, note
from svdcut.cli.output import (
    print_json,
    show_progress,
    warn_of_no_update,
    warn_of_plan,
)
from svdcut.cli.shared import (
    COMPUTATION,
    QuietOption,
    VerboseOption,
    new_app,
    screen_flag,
)
from svdcut.cli.sweep_screen import print_sweep
from svdcut.errors import QualityError
from svdcut.sweeps.facts import Sweep
from svdcut.write.destination import check_output

_CHOICE = "Choice"

app = new_app()


@app.command(
    options_metavar="-o DIR [OPTIONS]",
    epilog="""\
svdcut sweep base/ ft/ test.csv --group label -o sweep/  # find the rank to use

svdcut sweep base/ ft/ test.csv -k 1,2,3,energy=0.9 -o sweep/  # try other ranks

svdcut sweep base/ ft/ test.csv --controls bottom,random -o sweep/  # with controls

svdcut sweep base/ ft/ test.csv -o sweep/ --write out/  # write the cut, too

svdcut sweep base/ ft/ -o sweep/ --eval-command './my-eval {model}'  # your own
""",
)
@grouped
def sweep(
    base: BaseArgument,
    finetuned: Annotated[
        str,
        typer.Argument(
            metavar="FT",
            help="The model fine-tuned from it, named likewise: a sequence classifier or a "
            "causal language model, or a PEFT adapter of BASE.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="Folder for sweep.json, sweep.csv, sweep.png, the rows as they are done, and "
            "the decomposition.",
            rich_help_panel=OUTPUT,
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Argument(metavar="DATA", help="A table of labelled texts, as evaluate takes it."),
    ] = None,
    *,
    rank: Annotated[
        str,
        typer.Option(
            "--rank",
            "-k",
            metavar="RULE,RULE",
            autocompletion=complete_rules,
            help="Which ranks to try: rules as those of truncate.",
            rich_help_panel=RANK,
        ),
    ] = DEFAULT_RANKS,
    controls: Annotated[
        list[str] | None,
        typer.Option(
            metavar="bottom,random",
            help="Try the same ranks of the last triplets, or of a random set, too.",
            show_default=False,
            rich_help_panel=RANK,
        ),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(
            metavar="F",
            help="How much accuracy a cut may cost: 0.02 is two points.",
            rich_help_panel=_CHOICE,
        ),
    ] = DEFAULT_TOLERANCE,
    write: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT",
            help="Truncate at the chosen rank right away, to this folder.",
            rich_help_panel=_CHOICE,
        ),
    ] = None,
    cut: ShapeParameters,
    dtype: DtypeOption = StoredDtype.AUTO,
    asked: DataParameters,
    eval_command: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND",
            help="Evaluate by this command instead of on DATA: {model} in it stands for the "
            "folder of a checkpoint; it prints JSON as evaluate --json does, or "
            '{"accuracy": 0.9}. With {out} in it, for an empty folder, the files of '
            "lm_eval are read from there: lm_eval --output_path {out}; and if it is given "
            "--log_samples, then --group and its kin name fields of its documents.",
            show_default=False,
            rich_help_panel="What the model is asked",
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Seed of --controls random, of --limit, and of the intervals.",
            rich_help_panel=COMPUTATION,
        ),
    ] = 0,
    restart: Annotated[
        bool,
        typer.Option(
            "--restart",
            help="Drop the rows and the decomposition in DIR, instead of going on from them.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    json: Annotated[bool, screen_flag("--json", help="Print sweep.json on stdout.")] = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
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
    with guard(verbose=verbose, find_unfinished=lambda: _find_unfinished(out)):
        shape: ShapeOptions = {
            **cut.shape_options(),
            "dtype": dtype.value,
            "seed": seed,
            "quiet": quiet,
        }
        data_options = asked.data_options(seed=seed, device=cut.device, quiet=quiet)
        options: SweepOptions = {**shape, **data_options, "restart": restart}
        if write is not None:
            sides = [Path(side) for side in (base, finetuned) if Path(side).exists()]
            check_output(write, [*sides, out], force=False)
        request = api.prepare_sweep(
            base,
            finetuned,
            data,
            out,
            ranks=rank,
            controls=split_names(*(controls or [])),
            tolerance=tolerance,
            eval_command=eval_command,
            **options,
        )
        plan = request.plan
        warn_of_plan(plan, "left as FT has them")
        with show_progress(quiet=quiet, verbose=False) as observe:
            found = api.carry_out_sweep(request, observe=observe)
        if plan.num_truncated:
            warn_of_no_update(differ=found.rows[0].cost.energy_retained is not None)
        if json:
            print_json(found.to_json())
        elif not quiet:
            print_sweep(request, found)
        if not quiet:
            note_cut_texts(found.finetuned)
        _refuse_none(found)
        if write is not None:
            _write(base, finetuned, found, write, shape, quiet=quiet or json)


def _refuse_none(found: Sweep) -> None:
    if found.chosen is None:
        raise QualityError(
            found.answer[0].rstrip("."),
            hint="Try higher ranks, or allow for more: --tolerance.",
        )


def _write(
    base: str,
    finetuned: str,
    found: Sweep,
    out: Path,
    options: ShapeOptions,
    *,
    quiet: bool,
) -> None:
    assert found.chosen is not None
    rule = str(found.chosen.variant.rule)
    request = api.prepare(base, finetuned, {rule: out}, **options)
    with show_progress(quiet=quiet, verbose=False) as observe:
        api.carry_out(request, command=["svdcut", *sys.argv[1:]], observe=observe)
    if not quiet:
        note(f"wrote {shlex.quote(str(out))} at -k {rule}")


def _find_unfinished(out: Path) -> Sequence[Unfinished]:
    rows = api.count_rows(out)
    return [Unfinished(out, rows, "rows")] if rows else []
