"""Sweeps over ranks: from options to a task, and from there to the rank to use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from svdcut.adapter.reading import open_finetuned
from svdcut.api.evaluation import read_data
from svdcut.api.public import public
from svdcut.choose.keep import Keep
from svdcut.choose.options import Options, ShapeOptions, ignore
from svdcut.errors import UsageError
from svdcut.evaluation.dataset import Columns, Dataset, check_grouping
from svdcut.files.checkpoint import open_checkpoint
from svdcut.files.jsonfile import quoted
from svdcut.option import shared
from svdcut.pair.plan import Plan, make_plan
from svdcut.sweeps.facts import Sweep, Variant
from svdcut.sweeps.options import SweepOptions
from svdcut.sweeps.rowlog import ROW, ROWS_NAME
from svdcut.write.destination import check_apart
from svdcut.write.journal import count_finished

if TYPE_CHECKING:
    from svdcut.record.progress import Observer


@dataclass(frozen=True, slots=True)
class SweepRequest:
    """A sweep that can be carried out: checked, planned, the data read."""

    plan: Plan
    shape: Options
    variants: tuple[Variant, ...]
    dataset: Dataset | None
    options: SweepOptions


@public(SweepOptions)
def sweep(options: SweepOptions) -> Sweep:
    """Evaluate many ranks of one update, and find the one to use.

    Returns
    -------
    Sweep
        Both ends, the rows, and the choice; `chosen` is None where no rank is within the
        tolerance.

    Raises
    ------
    UsageError
        If an option is wrong, or transformers or matplotlib is not installed.
    InputError
        If the inputs cannot be used, do not match, or cannot be evaluated.
    OutputError
        If writing fails.

    Notes
    -----
    `data` is None where `evaluate` or `eval_command` is given. A later call over the same
    inputs, options and data measures only the rows that are not there.
    """
    return carry_out_sweep(prepare_sweep(options), observe=options.observe)


def prepare_sweep(options: SweepOptions) -> SweepRequest:
    """Check options, plan, and read the data, before torch is imported; see `sweep`."""
    _check_evaluator(options)
    variants = _variants(options)
    shape = Options(**shared(options, ShapeOptions))
    if options.data is None:
        _check_columns(options.columns, options.eval_command)
        dataset = None
    else:
        dataset = read_data(options.data, options)
    ours = open_checkpoint(options.base, quiet=options.quiet)
    theirs = open_finetuned(options.finetuned, ours, renames=shape.map, quiet=options.quiet)
    check_apart(options.out, [side.directory or side.files[0].path for side in (ours, theirs)])
    if options.out.exists() and not options.out.is_dir():
        raise UsageError(f"{options.out}: a file is there; name a folder")
    return SweepRequest(make_plan(ours, theirs, shape), shape, variants, dataset, options)


def carry_out_sweep(request: SweepRequest, *, observe: Observer = ignore) -> Sweep:
    """Carry out what was prepared, and write its files; see `sweep`."""
    # Later: the import of torch takes a second or two.
    from svdcut.pictures import can_draw
    from svdcut.sweeps.command import CommandEvaluator
    from svdcut.sweeps.evaluators import DataEvaluator, FunctionEvaluator
    from svdcut.sweeps.files import PICTURE_NAME, save_sweep
    from svdcut.sweeps.run import Task, run_sweep

    options = request.options
    evaluator: CommandEvaluator | DataEvaluator | FunctionEvaluator
    if options.eval_command is not None:
        evaluator = CommandEvaluator(options.eval_command, options.columns, options.seed)
    elif options.evaluate is not None:
        evaluator = FunctionEvaluator(options.evaluate, options.scoring)
    else:
        assert request.dataset is not None
        evaluator = DataEvaluator(request.dataset, options.scoring, options.seed)
    task = Task(
        plan=request.plan,
        options=request.shape,
        variants=request.variants,
        evaluator=evaluator,
        folder=options.out,
        tolerance=options.tolerance,
        restart=options.restart,
        quiet=options.quiet,
    )
    found = run_sweep(task, observe)
    save_sweep(found, options.out)
    if can_draw():
        from svdcut.sweeps.picture import save_picture

        save_picture(found, options.out)
    else:
        (options.out / PICTURE_NAME).unlink(missing_ok=True)  # of an earlier sweep
    return found


def count_rows(out: Path) -> int:
    """Return how many rows a sweep has put into its folder so far."""
    return count_finished(out, ROW, ROWS_NAME)


def _check_evaluator(options: SweepOptions) -> None:
    command = options.eval_command
    ways = (options.data, options.evaluate, command)
    given = [value for value in ways if value is not None]
    if len(given) != 1:
        raise UsageError(
            "expected one way to evaluate a model: DATA, or --eval-command, or a function",
            hint="As: svdcut sweep BASE FT test.csv -o DIR",
        )
    if command is not None and "{model}" not in command:
        raise UsageError(
            f"--eval-command {command!r}: expected {{model}} in it, for the checkpoint's folder",
            hint="As --eval-command 'python my_eval.py {model}'.",
        )


def _check_columns(columns: Columns, command: str | None) -> None:
    """Refuse columns of nothing: without DATA there are those of the files of a command."""
    has_files = command is not None and "{out}" in command
    if has_files:
        check_grouping(columns)
    elif columns.grouping:
        raise UsageError(
            f"{', '.join(map(quoted, columns.grouping))}: a column to group by, but no DATA",
            hint='The evaluator itself reports groups: {"accuracy": ..., "groups": ...}; or '
            "it leaves files of lm_eval in {out}.",
        )


def _variants(options: SweepOptions) -> tuple[Variant, ...]:
    top = [Variant(rule) for rule in options.ranks]
    allowed = (Keep.BOTTOM.value, Keep.RANDOM.value)
    for name in options.controls:
        if name not in allowed:
            raise UsageError(f"--controls {name!r}: expected {' or '.join(allowed)}")
    others = [
        Variant(variant.rule, Keep(name))
        for name in dict.fromkeys(options.controls)
        for variant in top
        if not variant.is_end
    ]
    return (*top, *others)
