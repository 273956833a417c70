"""Sweeps over ranks: from options to a task, and from there to the rank to use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svdcut.adapter.reading import open_finetuned
from svdcut.api.evaluation import DataOptions, read_data, resolve_columns
from svdcut.api.keywords import public, texts
from svdcut.api.truncation import RunOptions, ShapeOptions, resolve_options
from svdcut.choose.keep import Keep
from svdcut.choose.options import Options
from svdcut.choose.ranks import parse_rules
from svdcut.errors import UsageError
from svdcut.evaluation.dataset import Columns, Dataset, check_grouping
from svdcut.evaluation.scores import ScoringOptions
from svdcut.files.checkpoint import open_checkpoint
from svdcut.files.jsonfile import quoted
from svdcut.pair.plan import Plan, make_plan
from svdcut.sweeps.facts import Sweep, Variant
from svdcut.sweeps.rowlog import ROW, ROWS_NAME
from svdcut.write.destination import check_apart
from svdcut.write.journal import count_finished

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from svdcut.record.progress import Observer

DEFAULT_RANKS = "0,1,2,4,8,16,32,64,full"
DEFAULT_TOLERANCE = 0.02

EvaluateFunction = Callable[[Any], object]
"""Takes the model of transformers; returns an `Evaluation`, an accuracy, or a mapping."""


class SweepOptions(ShapeOptions, DataOptions, total=False):
    """Options of `sweep`: those of `truncate` that shape a cut, and those of `evaluate`."""


@dataclass(frozen=True, slots=True)
class SweepRequest:
    """A sweep that can be carried out: checked, planned, the data read."""

    plan: Plan
    options: Options
    variants: tuple[Variant, ...]
    folder: Path
    tolerance: float
    dataset: Dataset | None
    columns: Columns
    scoring: ScoringOptions
    seed: int
    function: EvaluateFunction | None
    command: str | None
    restart: bool
    quiet: bool


@public(SweepOptions)
def sweep(
    base: str | Path,
    finetuned: str | Path,
    data: str | Path | None,
    out: str | Path,
    *,
    ranks: str | int | Iterable[str | int] = DEFAULT_RANKS,
    controls: str | Sequence[str] = (),
    tolerance: float = DEFAULT_TOLERANCE,
    evaluate: EvaluateFunction | None = None,
    eval_command: str | None = None,
    observe: Observer | None = None,
    **options: Unpack[SweepOptions],
) -> Sweep:
    """Evaluate many ranks of one update, and find the one to use.

    Parameters
    ----------
    base, finetuned : str or Path
        As for `truncate`; `finetuned` is a model of transformers, or an adapter of `base`.
    data : str, Path or None
        File of labelled texts; None where `evaluate` or `eval_command` is given.
    out : str or Path
        Folder for ``sweep.json``, ``sweep.csv``, ``sweep.png``, ``rows.jsonl`` and the
        decomposition. A later call over the same inputs, options and data measures only the
        rows that are not there.
    ranks : str, int or iterable
        Rank rules, as ``"0,1,2,full"`` or ``[0, 1, "energy=0.9"]``.
    controls : str or sequence of str
        ``bottom``, ``random``: the same ranks of other triplets too.
    tolerance : float
        How much accuracy a cut may cost.
    evaluate : callable, optional
        Takes the model, whose weights are those of a cut, and returns its accuracy, a mapping
        as ``svdcut evaluate --json`` prints, or an `Evaluation`.
    eval_command : str, optional
        A command that prints so, with ``{model}`` in it for the folder of a checkpoint; or one
        with ``{out}`` in it too, for a folder that it writes files of lm-evaluation-harness to.
        `group`, `group_columns`, `aligned` and `label` name fields of their documents then.
    observe : callable, optional
        Told of each tensor that is merged or decomposed, and of each batch that is evaluated.
    **options : SweepOptions
        The options of the command line by the same names.

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
    """
    request = prepare_sweep(
        base,
        finetuned,
        data,
        out,
        ranks=ranks,
        controls=controls,
        tolerance=tolerance,
        evaluate=evaluate,
        eval_command=eval_command,
        **options,
    )
    return carry_out_sweep(request, observe=observe)


def prepare_sweep(
    base: str | Path,
    finetuned: str | Path,
    data: str | Path | None,
    out: str | Path,
    *,
    ranks: str | int | Iterable[str | int] = DEFAULT_RANKS,
    controls: str | Sequence[str] = (),
    tolerance: float = DEFAULT_TOLERANCE,
    evaluate: EvaluateFunction | None = None,
    eval_command: str | None = None,
    **options: Unpack[SweepOptions],
) -> SweepRequest:
    """Check options, plan, and read the data, before torch is imported; see `sweep`."""
    _check_evaluator(data, evaluate, eval_command)
    if not 0 <= tolerance < 1:
        raise UsageError(f"--tolerance {tolerance}: expected an accuracy, as 0.02")
    variants = _variants(ranks, controls)
    resolved = resolve_options(_shape(options))
    dataset, scoring = read_data(data, options)
    columns = resolve_columns(options)
    if dataset is None:
        _check_columns(columns, eval_command)
    quiet = options.get("quiet", False)
    ours = open_checkpoint(base, quiet=quiet)
    theirs = open_finetuned(finetuned, ours, renames=resolved.map, quiet=quiet)
    folder = Path(out).expanduser()
    check_apart(folder, [side.directory or side.files[0].path for side in (ours, theirs)])
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: a file is there; name a folder")
    return SweepRequest(
        plan=make_plan(ours, theirs, resolved),
        options=resolved,
        variants=variants,
        folder=folder,
        tolerance=tolerance,
        dataset=dataset,
        columns=columns,
        scoring=scoring,
        seed=options.get("seed", 0),
        function=evaluate,
        command=eval_command,
        restart=options.get("restart", False),
        quiet=quiet,
    )


def carry_out_sweep(request: SweepRequest, *, observe: Observer | None = None) -> Sweep:
    """Carry out what was prepared, and write its files; see `sweep`."""
    # Later: the import of torch takes a second or two.
    from svdcut.pictures import can_draw
    from svdcut.sweeps.command import CommandEvaluator
    from svdcut.sweeps.evaluators import DataEvaluator, FunctionEvaluator
    from svdcut.sweeps.files import PICTURE_NAME, save_sweep
    from svdcut.sweeps.run import Task, run_sweep

    evaluator: CommandEvaluator | DataEvaluator | FunctionEvaluator
    if request.command is not None:
        evaluator = CommandEvaluator(request.command, request.columns, request.seed)
    elif request.function is not None:
        evaluator = FunctionEvaluator(request.function, request.scoring)
    else:
        assert request.dataset is not None
        evaluator = DataEvaluator(request.dataset, request.scoring, request.seed)
    task = Task(
        plan=request.plan,
        options=request.options,
        variants=request.variants,
        evaluator=evaluator,
        folder=request.folder,
        tolerance=request.tolerance,
        restart=request.restart,
        quiet=request.quiet,
    )
    found = run_sweep(task, observe or (lambda progress: None))
    save_sweep(found, request.folder)
    if can_draw():
        from svdcut.sweeps.picture import save_picture

        save_picture(found, request.folder)
    else:
        (request.folder / PICTURE_NAME).unlink(missing_ok=True)  # of an earlier sweep
    return found


def count_rows(out: str | Path) -> int:
    """Return how many rows a sweep has put into its folder so far."""
    return count_finished(Path(out).expanduser(), ROW, ROWS_NAME)


def _check_evaluator(data: object, function: object, command: str | None) -> None:
    given = [value for value in (data, function, command) if value is not None]
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


def _variants(
    ranks: str | int | Iterable[str | int], controls: str | Sequence[str]
) -> tuple[Variant, ...]:
    several = [ranks] if isinstance(ranks, str) or not isinstance(ranks, Iterable) else ranks
    text = ",".join(map(str, several))
    top = [Variant(rule) for rule in parse_rules(text)]
    allowed = (Keep.BOTTOM.value, Keep.RANDOM.value)
    controls = texts({"controls": controls}, "controls")
    for name in controls:
        if name not in allowed:
            raise UsageError(f"--controls {name!r}: expected {' or '.join(allowed)}")
    others = [
        Variant(variant.rule, Keep(name))
        for name in dict.fromkeys(controls)
        for variant in top
        if not variant.is_end
    ]
    return (*top, *others)


def _shape(options: SweepOptions) -> RunOptions:
    """Return the options that shape a cut."""
    shape: RunOptions = {}
    for name in ShapeOptions.__annotations__:
        if name in options:
            shape[name] = options[name]  # type: ignore[literal-required]
    return shape
