"""Truncations: from options to a checked plan, and from there to manifests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from svdcut.adapter.reading import open_finetuned
from svdcut.api.keywords import public
from svdcut.choose.options import Options
from svdcut.choose.ranks import Rule, parse_rules
from svdcut.errors import UsageError
from svdcut.files.checkpoint import open_checkpoint
from svdcut.pair.plan import Form, Output, Plan, make_plan
from svdcut.record.manifest import Manifest
from svdcut.record.provenance import InputHashes
from svdcut.truncation.adapter_plan import refuse_empty, refuse_stacks, refuse_unholdable
from svdcut.truncation.preflight import Preflight, check_run
from svdcut.write.destination import check_output

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from svdcut.record.progress import Observer


class ShapeOptions(TypedDict, total=False):
    """Options that shape a cut, as keyword arguments; all have defaults."""

    rank_for: str | Sequence[str]
    """``GLOB=RULE``: the rule of matching tensors; the last match wins."""

    seed: int
    """Of ``keep="random"``."""

    only: str | Sequence[str]
    """Globs: truncate these tensors alone."""

    skip: str | Sequence[str]
    """Globs: leave these tensors alone."""

    rest: str
    """Where other tensors come from: ``ft`` or ``base``."""

    scale: float
    """Factor on the kept update."""

    map: Mapping[str, str]
    """Prefixes of base's names, old to new."""

    device: str
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""

    svd: str
    """Route to start with: ``auto``, ``exact``, ``gram`` or ``krylov``."""

    dtype: str
    """Of truncated tensors, or of an adapter's factors: ``auto``, ``float32``, ``bfloat16`` or
    ``float16``."""

    restart: bool
    """Drop unfinished work on the same output, instead of going on from it."""

    quiet: bool
    """Show no progress of downloads."""


class CutOptions(ShapeOptions, total=False):
    """Options of every command that writes a cut."""

    keep: str
    """Which triplets stay: ``top``, ``bottom`` or ``random``."""

    tolerance: float
    """Relative excess error that every cut must be certified for."""

    force: bool
    """Replace an existing output."""


class TruncateOptions(CutOptions, total=False):
    """Options of `truncate`."""

    max_shard_size: str | None
    """As ``5GB``; None keeps the fine-tuned checkpoint's files."""


class ExtractOptions(CutOptions, total=False):
    """Options of `extract`."""

    drop: str | Sequence[str]
    """Globs: leave these tensors as they are in base, where an adapter cannot hold them."""

    experts: str
    """``fused`` or ``separate``: experts that are stored one by one as the stacks that
    transformers makes of them, or each by itself, as other readers need them."""


class RunOptions(TruncateOptions, ExtractOptions, total=False):
    """Options of `prepare`: those of all commands."""


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
def truncate(
    base: str | Path,
    finetuned: str | Path,
    out: str | Path,
    *,
    rank: str | int,
    also_adapter: str | Path | None = None,
    observe: Observer | None = None,
    **options: Unpack[TruncateOptions],
) -> Manifest:
    """Write ``base + truncated update`` as a complete checkpoint.

    Parameters
    ----------
    base, finetuned : str or Path
        Directory, ``.safetensors`` file, or Hub id ``org/name[@revision]``; `finetuned` may
        be a PEFT adapter of `base`.
    out : str or Path
        Folder to write.
    also_adapter : str or Path, optional
        Folder to write the same truncated update to as a PEFT adapter; see `extract`.
    rank : str or int
        A rank rule: ``64``, ``0``, ``"full"``, ``"noise"``, ``"energy=0.9"``,
        ``"ratio=0.05"`` or ``"budget=0.1"``.
    observe : callable, optional
        Told of each tensor that is done; see `svdcut.Progress`.
    **options : TruncateOptions
        The options of the command line by the same names.

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
    """
    also = None if also_adapter is None else {str(rank): also_adapter}
    request = prepare(base, finetuned, {str(rank): out}, also_adapters=also, **options)
    return carry_out(request, observe=observe)[0]


@public(TruncateOptions)
def truncate_many(
    base: str | Path,
    finetuned: str | Path,
    outs: Mapping[str, str | Path] | Mapping[int, str | Path],
    *,
    observe: Observer | None = None,
    **options: Unpack[TruncateOptions],
) -> list[Manifest]:
    """Write several truncations from one decomposition of each tensor.

    Parameters
    ----------
    base, finetuned : str or Path
        As for `truncate`.
    outs : mapping
        From rank rule to the folder to write.
    observe, **options
        As for `truncate`.

    Returns
    -------
    list of Manifest
        In the order of `outs`.
    """
    by_rule = {str(rule): out for rule, out in outs.items()}
    request = prepare(base, finetuned, by_rule, **options)
    return carry_out(request, observe=observe)


@public(ExtractOptions)
def extract(
    base: str | Path,
    finetuned: str | Path,
    out: str | Path,
    *,
    rank: str | int,
    observe: Observer | None = None,
    **options: Unpack[ExtractOptions],
) -> Manifest:
    """Write the truncated update as a PEFT LoRA adapter of base.

    Parameters
    ----------
    base, finetuned, out, rank, observe
        As for `truncate`.
    **options : ExtractOptions
        The options of the command line by the same names.

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
    outs = {str(rank): out}
    request = prepare(base, finetuned, outs, form=Form.ADAPTER, **options)
    return carry_out(request, observe=observe)[0]


def prepare(
    base: str | Path,
    finetuned: str | Path,
    outs: Mapping[str, str | Path],
    *,
    form: Form = Form.CHECKPOINT,
    also_adapters: Mapping[str, str | Path] | None = None,
    **options: Unpack[RunOptions],
) -> Request:
    """Check and plan a truncation or an extraction from headers alone, as a dry run does.

    Parameters
    ----------
    base, finetuned, outs, **options
        As for `truncate_many`.
    form : Form
        What to write to `outs`.
    also_adapters : mapping, optional
        From rank rule to the folder of an adapter to write too.

    Returns
    -------
    Request
        To look at, or to pass to `carry_out`.

    Raises
    ------
    UsageError, InputError
        Everything that can be known before a weight is read.
    """
    outputs = [
        *_outputs(outs, form, options),
        *_outputs(also_adapters or {}, Form.ADAPTER, options),
    ]
    paths = [output.path for output in outputs]
    if len({path.resolve() for path in paths}) != len(paths):
        raise UsageError("several results, one output", hint="Name it with {k}: -o 'out-{k}'.")
    resolved = resolve_options(options)
    force, quiet = options.get("force", False), options.get("quiet", False)
    ours = open_checkpoint(base, quiet=quiet)
    theirs = open_finetuned(finetuned, ours, renames=resolved.map, quiet=quiet)
    # Now rather than after the work, when the other files are copied.
    left = tuple(theirs.left_behind())
    for side in (ours, theirs):
        side.card()
    inputs = [side.directory or side.files[0].path for side in (ours, theirs)]
    for path in paths:
        check_output(path, inputs, force=force)
    plan = make_plan(ours, theirs, resolved)
    adapters = [output.rule for output in outputs if output.form is Form.ADAPTER]
    if adapters:
        refuse_empty(plan, adapters, resolved)
        refuse_unholdable(plan)
        refuse_stacks(plan, resolved)
    preflight = check_run(plan, outputs, resolved)
    left = left if form is Form.CHECKPOINT else ()
    return Request(plan, tuple(outputs), resolved, preflight, left)


def _outputs(outs: Mapping[str, str | Path], form: Form, options: RunOptions) -> Iterator[Output]:
    restart, force = options.get("restart", False), options.get("force", False)
    for text, out in outs.items():
        yield Output(_expand_user(out), _single(text), restart, force, form)


def carry_out(
    request: Request, *, command: Iterable[str] = (), observe: Observer | None = None
) -> list[Manifest]:
    """Carry out a request; see `truncate` for what it returns and raises."""
    request.preflight.refuse()
    with InputHashes(request.plan) as hashes:
        # Meanwhile: the import of torch takes a second or two of one core.
        from svdcut.truncation.run import run_truncation

        return run_truncation(
            request.plan,
            request.outputs,
            request.options,
            hashes,
            command=tuple(command),
            observe=observe or (lambda progress: None),
        )


def resolve_options(options: RunOptions) -> Options:
    """Return options as plain data of the right types.

    Raises
    ------
    UsageError
        If a value is none of the allowed ones.
    """
    return Options.from_json(options)


def _expand_user(out: str | Path) -> Path:
    try:
        path = Path(out).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{out}: there is no such user", hint="As a folder: ./~name.") from error
    try:
        path.resolve()
    except RuntimeError as error:  # before Python 3.13
        raise UsageError(f"{out}: a link that leads to itself") from error
    return path


def _single(text: str) -> Rule:
    rules = parse_rules(text)
    if len(rules) != 1:
        raise UsageError(f"rank rules {text!r}: one output, several rules")
    return rules[0]
