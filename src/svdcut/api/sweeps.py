"""Sweeps over ranks: from options to a task, and from there to the rank to use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from svdcut.adapter.reading import open_finetuned
from svdcut.api.evaluation import read_data
from svdcut.api.public import public
from svdcut.choose.keep import Keep
from svdcut.choose.options import Options, ShapeOptions, ignore
from svdcut.errors import UsageError
from svdcut.evaluation.dataset import Dataset
from svdcut.files.checkpoint import open_checkpoint
from svdcut.files.jsonfile import quoted
from svdcut.option import shared
from svdcut.pair.plan import make_plan
from svdcut.sweeps.options import SweepOptions, SweepRequest
from svdcut.sweeps.result import PICTURE_NAME, ROW, ROWS_NAME, Sweep, Variant
from svdcut.write.destination import check_apart
from svdcut.write.journal import count_finished

if TYPE_CHECKING:
    from svdcut.record.progress import Observer


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
    dataset = _read_data(options)
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
    from svdcut.sweeps.run import run_sweep

    found = run_sweep(request, observe)
    folder = request.options.out
    found.save(folder)
    if can_draw():
        from svdcut.sweeps.picture import save_picture

        save_picture(found, folder)
    else:
        (folder / PICTURE_NAME).unlink(missing_ok=True)  # of an earlier sweep
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


def _read_data(options: SweepOptions) -> Dataset | None:
    if options.data is not None:
        return read_data(options.data, options)
    if columns := options.grouping:
        raise UsageError(
            f"{', '.join(map(quoted, columns))}: a column to group by, but no DATA",
            hint='The evaluator itself reports groups: {"accuracy": ..., "groups": ...}.',
        )
    return None


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
