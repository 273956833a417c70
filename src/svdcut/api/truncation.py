"""Truncations and extractions: from options to a checked plan, and from there to manifests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from svdcut.adapter.reading import open_finetuned
from svdcut.api.public import public
from svdcut.choose.options import Options, ignore
from svdcut.choose.ranks import Rule, parse_rule
from svdcut.errors import UsageError
from svdcut.files.checkpoint import open_checkpoint
from svdcut.option import shared
from svdcut.option_kinds import expand_user
from svdcut.pair.plan import Form, Output, Plan, make_plan
from svdcut.record.manifest import Manifest
from svdcut.record.provenance import InputHashes
from svdcut.truncation.adapter_plan import refuse_adapters
from svdcut.truncation.options import (
    ExtractOptions,
    RunOptions,
    TruncateManyOptions,
    TruncateOptions,
)
from svdcut.truncation.preflight import Preflight, check_run
from svdcut.truncation.sharing import hashed_by
from svdcut.worker import ALONE, Worker
from svdcut.write.destination import check_output

if TYPE_CHECKING:
    from svdcut.record.progress import Observer


@dataclass(frozen=True, slots=True)
class Request:
    """A truncation that can be carried out: checked, planned, not begun."""

    plan: Plan
    outputs: tuple[Output, ...]
    options: Options
    preflight: Preflight
    left_behind: tuple[str, ...]
    """Files and folders of the fine-tuned side that a checkpoint does not take along."""


@public(TruncateOptions)
def truncate(options: TruncateOptions) -> Manifest:
    """Write ``base + truncated update`` as a complete checkpoint.

    Returns
    -------
    Manifest
        What was done; `out` holds it as ``svdcut.json``.

    Raises
    ------
    UsageError
        If a rule, option or pattern is wrong, or `out` is refused.
    InputError
        If the inputs cannot be used or do not match.
    QualityError
        If the tolerance cannot be met.
    OutputError
        If writing fails.

    Notes
    -----
    `rank` is one rule: ``64``, ``0``, ``"full"``, ``"noise"``, ``"energy=0.9"``,
    ``"ratio=0.05"`` or ``"budget=0.1"``; see `truncate_many` for several.
    """
    _check_single(options.rank)
    return carry_out(plan_truncation(options), observe=options.observe)[0]


@public(TruncateManyOptions)
def truncate_many(options: TruncateManyOptions) -> list[Manifest]:
    """Write several truncations from one decomposition of each tensor.

    Returns
    -------
    list of Manifest
        In the order of `outs`.

    Raises
    ------
    UsageError, InputError, QualityError, OutputError
        As for `truncate`.
    """
    return carry_out(plan_many(options), observe=options.observe)


@public(ExtractOptions)
def extract(options: ExtractOptions) -> Manifest:
    """Write the truncated update as a PEFT LoRA adapter of base.

    Returns
    -------
    Manifest
        What was done; `out` holds it as ``svdcut.json``.

    Raises
    ------
    UnholdableError
        If PEFT has no way to hold a tensor that changed; all of them are listed.
    UsageError, InputError, QualityError, OutputError
        As for `truncate`.
    """
    _check_single(options.rank)
    return carry_out(plan_extraction(options), observe=options.observe)[0]


def _check_single(rules: Sequence[Rule]) -> None:
    if len(rules) > 1:
        raise UsageError(
            f"rank {', '.join(map(str, rules))}: one output, several rules",
            hint="truncate_many writes several checkpoints.",
        )


def plan_truncation(options: TruncateOptions, *, processes: int = 1) -> Request:
    """Check and plan a truncation from headers alone; every rank rule has its output."""
    outputs = list(_outputs(_named(options.out, options.rank), options))
    if options.also_adapter is not None:
        outs = _named(options.also_adapter, options.rank)
        outputs += _outputs(outs, options, Form.ADAPTER)
    return _plan(options, outputs, processes)


def plan_many(options: TruncateManyOptions) -> Request:
    """Check and plan several truncations from headers alone."""
    outs = {parse_rule(rule): expand_user(out) for rule, out in options.outs.items()}
    return _plan(options, _outputs(outs, options))


def plan_extraction(options: ExtractOptions, *, processes: int = 1) -> Request:
    """Check and plan an extraction from headers alone; every rank rule has its output."""
    outputs = _outputs(_named(options.out, options.rank), options, Form.ADAPTER)
    return _plan(options, outputs, processes)


def _named(out: Path, rules: Sequence[Rule]) -> dict[Rule, Path]:
    """Return the folder of each rule: ``{k}`` in its name stands for the rule."""
    if len(rules) > 1 and "{k}" not in str(out):
        raise UsageError("several ranks need {k} in the output's name", hint="As -o 'out-{k}'.")
    return {rule: Path(str(out).replace("{k}", str(rule))) for rule in rules}


def _outputs(
    outs: Mapping[Rule, Path], options: RunOptions, form: Form = Form.CHECKPOINT
) -> Iterator[Output]:
    for rule, out in outs.items():
        yield Output(out, rule, options.restart, options.force, form)


def _plan(options: RunOptions, outputs: Iterable[Output], processes: int = 1) -> Request:
    """Find everything that can be wrong before a weight is read."""
    outputs = tuple(outputs)
    paths = [output.path for output in outputs]
    if len({path.resolve() for path in paths}) != len(paths):
        raise UsageError("several results, one output", hint="Name it with {k}: -o 'out-{k}'.")
    shape = Options(**shared(options, Options))
    ours = open_checkpoint(options.base, quiet=options.quiet)
    theirs = open_finetuned(options.finetuned, ours, renames=shape.map, quiet=options.quiet)
    # Now rather than after the work, when the other files are copied.
    left = tuple(theirs.left_behind())
    for side in (ours, theirs):
        side.card()
    inputs = [side.directory or side.files[0].path for side in (ours, theirs)]
    for path in paths:
        check_output(path, inputs, force=options.force)
    plan = make_plan(ours, theirs, shape)
    adapters = [output.rule for output in outputs if output.form is Form.ADAPTER]
    if adapters:
        refuse_adapters(plan, adapters, shape)
    takes_files = any(output.form is Form.CHECKPOINT for output in outputs)
    preflight = check_run(plan, outputs, shape, processes=processes)
    return Request(plan, outputs, shape, preflight, left if takes_files else ())


def carry_out(
    request: Request,
    *,
    command: Iterable[str] = (),
    observe: Observer = ignore,
    worker: Worker = ALONE,
) -> list[Manifest]:
    """Carry out a request; see `truncate` for what it returns and raises.

    Of several workers one returns manifests: the one that publishes the results.
    """
    request.preflight.refuse()
    with InputHashes(request.plan, hashed_by(request.plan, worker)) as hashes:
        # Meanwhile: the import of torch takes a second or two of one core.
        from svdcut.truncation.run import run_truncation

        return run_truncation(
            request.plan,
            request.outputs,
            request.options,
            hashes,
            command=tuple(command),
            observe=observe,
            worker=worker,
        )
