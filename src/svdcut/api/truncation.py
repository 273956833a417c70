"""Truncations: from options to a checked plan, and from there to manifests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, TypeVar

from svdcut.checkpoint import open_checkpoint
from svdcut.destination import check_output
from svdcut.errors import UsageError
from svdcut.manifest import Manifest
from svdcut.options import Options, Rest, StoredDtype
from svdcut.plan import Output, Plan, make_plan
from svdcut.preflight import Preflight, check_run
from svdcut.provenance import InputHashes
from svdcut.ranks import Keep, Rule, parse_override, parse_rules
from svdcut.svd.route import Route

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from svdcut.progress import Observer

E = TypeVar("E", bound=Enum)


class TruncateOptions(TypedDict, total=False):
    """Options of `truncate`, as keyword arguments; all have defaults."""

    rank_for: Sequence[str]
    """``GLOB=RULE``: the rule of matching tensors; the last match wins."""

    keep: str
    """Which triplets stay: ``top``, ``bottom`` or ``random``."""

    seed: int
    """Of ``keep="random"``."""

    only: Sequence[str]
    """Globs: truncate these tensors alone."""

    skip: Sequence[str]
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

    tolerance: float
    """Relative excess error that every cut must be certified for."""

    dtype: str
    """Of truncated tensors: ``auto``, ``float32``, ``bfloat16`` or ``float16``."""

    max_shard_size: str | None
    """As ``5GB``; None keeps the fine-tuned checkpoint's files."""

    force: bool
    """Replace an existing output."""

    restart: bool
    """Drop unfinished work on the same output, instead of going on from it."""

    quiet: bool
    """Show no progress of downloads."""


@dataclass(frozen=True, slots=True)
class Request:
    """A truncation that can be carried out: checked, planned, not begun."""

    plan: Plan
    outputs: tuple[Output, ...]
    options: Options
    preflight: Preflight


def truncate(
    base: str | Path,
    finetuned: str | Path,
    out: str | Path,
    *,
    rank: str | int,
    observe: Observer | None = None,
    **options: Unpack[TruncateOptions],
) -> Manifest:
    """Write ``base + truncated update`` as a complete checkpoint.

    Parameters
    ----------
    base, finetuned : str or Path
        Directory, ``.safetensors`` file, or Hub id ``org/name[@revision]``.
    out : str or Path
        Folder to write.
    rank : str or int
        A rank rule: ``64``, ``0``, ``"full"``, ``"noise"``, ``"energy=0.9"``,
        ``"ratio=0.05"`` or ``"budget=0.1"``.
    observe : callable, optional
        Told of each tensor that is done; see `svdcut.progress.Progress`.
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
    (manifest,) = truncate_many(base, finetuned, {str(rank): out}, observe=observe, **options)
    return manifest


def truncate_many(
    base: str | Path,
    finetuned: str | Path,
    outs: Mapping[str, str | Path],
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
    request = prepare(base, finetuned, outs, **options)
    return carry_out(request, observe=observe)


def prepare(
    base: str | Path,
    finetuned: str | Path,
    outs: Mapping[str, str | Path],
    **options: Unpack[TruncateOptions],
) -> Request:
    """Check and plan a truncation from headers alone, as a dry run does.

    Parameters
    ----------
    base, finetuned, outs, **options
        As for `truncate_many`.

    Returns
    -------
    Request
        To look at, or to pass to `carry_out`.

    Raises
    ------
    UsageError, InputError
        Everything that can be known before a weight is read.
    """
    rules = [_single(text) for text in outs]
    paths = [_expand_user(out) for out in outs.values()]
    if len({path.resolve() for path in paths}) != len(paths):
        raise UsageError("several ranks, one output", hint="Name it with {k}: -o 'out-{k}'.")
    resolved = resolve_options(options)
    restart, force = options.get("restart", False), options.get("force", False)
    quiet = options.get("quiet", False)
    ours, theirs = (open_checkpoint(side, quiet=quiet) for side in (base, finetuned))
    # Now rather than after the work, when they are copied.
    theirs.sidecars()
    for side in (ours, theirs):
        side.card()
    inputs = [side.directory or side.files[0].path for side in (ours, theirs)]
    for path in paths:
        check_output(path, inputs, force=force)
    plan = make_plan(ours, theirs, resolved)
    outputs = tuple(
        Output(path, rule, restart, force) for path, rule in zip(paths, rules, strict=True)
    )
    return Request(plan, outputs, resolved, check_run(plan, outputs, resolved))


def carry_out(
    request: Request, *, command: Iterable[str] = (), observe: Observer | None = None
) -> list[Manifest]:
    """Carry out a request; see `truncate` for what it returns and raises."""
    request.preflight.refuse()
    with InputHashes(request.plan) as hashes:
        # Meanwhile: the import of torch takes a second or two of one core.
        from svdcut.truncation import run_truncation

        return run_truncation(
            request.plan,
            request.outputs,
            request.options,
            hashes,
            command=tuple(command),
            observe=observe or (lambda progress: None),
        )


def resolve_options(options: TruncateOptions) -> Options:
    """Return options as plain data of the right types.

    Raises
    ------
    UsageError
        If a value is none of the allowed ones.
    """
    scale, tolerance = options.get("scale", 1.0), options.get("tolerance", 1e-6)
    if not abs(scale) < float("inf"):
        raise UsageError(f"--scale {scale}: expected a finite number")
    if not 0 < tolerance < 1:
        raise UsageError(f"--tolerance {tolerance}: expected a number between 0 and 1")
    return Options(
        rank_for=tuple(parse_override(text) for text in options.get("rank_for", ())),
        keep=_member(Keep, "--keep", options.get("keep", "top")),
        seed=options.get("seed", 0),
        only=tuple(options.get("only", ())),
        skip=tuple(options.get("skip", ())),
        rest=_member(Rest, "--rest", options.get("rest", "ft")),
        scale=scale,
        renames=dict(options.get("map", {})),
        device=options.get("device", "auto"),
        svd=_member(Route, "--svd", options.get("svd", "auto")),
        tolerance=tolerance,
        dtype=_member(StoredDtype, "--dtype", options.get("dtype", "auto")),
        max_shard_size=options.get("max_shard_size"),
    )


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


def _member(kind: type[E], option: str, value: str) -> E:
    try:
        return kind(value)
    except ValueError:
        allowed = ", ".join(str(member.value) for member in kind)
        raise UsageError(f"{option} {value!r}: expected one of {allowed}") from None
