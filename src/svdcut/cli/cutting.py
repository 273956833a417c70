"""What ``truncate`` and ``extract`` share: their options, and how a request is carried out."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from svdcut.api import CutOptions, Request, carry_out
from svdcut.cli.guard import Unfinished, guard, warn
from svdcut.cli.output import (
    print_json,
    print_result,
    show_progress,
    warn_of_rounding,
    warn_of_unmatched,
)
from svdcut.cli.plan import print_plan
from svdcut.cli.shared import COMPUTATION, TENSORS, parse_rename, screen_flag
from svdcut.destination import partial_path
from svdcut.errors import UsageError
from svdcut.journal import count_finished
from svdcut.options import Rest, StoredDtype
from svdcut.ranks import Keep, parse_rules
from svdcut.svd.route import Route
from svdcut.writer import TENSOR

_Command = TypeVar("_Command", bound=Callable[..., None])

_RULES = """\
RULE says how many triplets (left vector, singular value, right vector)
stay of each update:

- `64`: that many; all of them where the matrix has fewer.

- `full`: all; `0`: none, which gives base's values.

- `energy=0.9`: the least number with that share of the squared singular
  values.

- `ratio=0.05`: those of at least that share of the first.

- `noise`: those above the edge that rounding in storage explains.

- `budget=0.1`: over all tensors together, that share of the parameters of
  full-rank updates, spent where it keeps most energy. Reads twice.
"""

RANK = "Rank"
OUTPUT = "Output"

BaseArgument = Annotated[
    str,
    typer.Argument(
        metavar="BASE",
        help="The model before fine-tuning: a directory, a .safetensors file, or a Hub id "
        "org/name, org/name@revision.",
    ),
]
FinetunedArgument = Annotated[
    str,
    typer.Argument(
        metavar="FT",
        help="The model fine-tuned from it, named likewise, or a PEFT adapter of it.",
    ),
]
RankOption = Annotated[
    str,
    typer.Option(
        "--rank",
        "-k",
        metavar="RULE",
        help="How many triplets to keep, see above. Several rules, separated by commas, "
        "give several outputs from one decomposition; name them with {k} in --out.",
        rich_help_panel=RANK,
    ),
]
RankForOption = Annotated[
    list[str] | None,
    typer.Option(
        "--rank-for",
        metavar="GLOB=RULE",
        help="Use another rule for tensors whose name matches; the last match wins.",
        rich_help_panel=RANK,
    ),
]
KeepOption = Annotated[
    Keep,
    typer.Option(
        "--keep",
        help="Which triplets stay; bottom and random are the controls of an experiment.",
        rich_help_panel=RANK,
    ),
]
SeedOption = Annotated[
    int, typer.Option("--seed", metavar="N", help="Seed of --keep random.", rich_help_panel=RANK)
]
ScaleOption = Annotated[
    float,
    typer.Option(
        "--scale", metavar="F", help="Multiply the kept update by this.", rich_help_panel=RANK
    ),
]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--only",
        metavar="GLOB",
        help="Truncate only tensors whose name matches.",
        rich_help_panel=TENSORS,
    ),
]
SkipOption = Annotated[
    list[str] | None,
    typer.Option(
        "--skip",
        metavar="GLOB",
        help="Do not truncate tensors whose name matches, as '*embed*'.",
        rich_help_panel=TENSORS,
    ),
]
RestOption = Annotated[
    Rest,
    typer.Option(
        "--rest", help="Which side every other tensor comes from.", rich_help_panel=TENSORS
    ),
]
DtypeOption = Annotated[
    StoredDtype,
    typer.Option(
        "--dtype",
        help="Store truncated tensors so; auto is the fine-tuned tensor's own dtype.",
        rich_help_panel=OUTPUT,
    ),
]
ForceOption = Annotated[
    bool,
    typer.Option("--force", metavar="", help="Replace an existing OUT.", rich_help_panel=OUTPUT),
]
RestartOption = Annotated[
    bool,
    typer.Option(
        "--restart",
        metavar="",
        help="Drop unfinished work in OUT.partial, instead of going on from it.",
        rich_help_panel=OUTPUT,
    ),
]
DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        metavar="",
        help="Show the plan, from headers alone; write nothing.",
        rich_help_panel=OUTPUT,
    ),
]
SvdOption = Annotated[
    Route,
    typer.Option(
        "--svd",
        help="Algorithm to start with; a more careful one follows where its error bound is "
        "not met.",
        rich_help_panel=COMPUTATION,
    ),
]
ToleranceOption = Annotated[
    float,
    typer.Option(
        "--tolerance",
        metavar="F",
        help="Certify the error of every cut to be within this share of the best possible "
        "error at its rank.",
        rich_help_panel=COMPUTATION,
    ),
]
JsonOption = Annotated[
    bool, screen_flag("--json", help="Print the manifest on stdout, or the plan of a dry run.")
]
QuietOption = Annotated[
    bool, screen_flag("--quiet", "-q", help="Print nothing but warnings and errors.")
]
VerboseOption = Annotated[
    bool,
    screen_flag(
        "--verbose", "-v", help="Print a line for each tensor, and the traceback of an error."
    ),
]


def explain_rules(command: _Command) -> _Command:
    """Add the rules to what a command says of itself."""
    command.__doc__ = f"{inspect.getdoc(command)}\n\n{_RULES}"
    return command


def cut_options(
    *,
    rank_for: list[str] | None,
    keep: Keep,
    seed: int,
    scale: float,
    only: list[str] | None,
    skip: list[str] | None,
    rest: Rest,
    rename: list[str] | None,
    dtype: StoredDtype,
    force: bool,
    restart: bool,
    device: str,
    svd: Route,
    tolerance: float,
    quiet: bool,
) -> CutOptions:
    """Return the options of both commands as the API takes them."""
    return {
        "rank_for": rank_for or [],
        "keep": keep.value,
        "seed": seed,
        "scale": scale,
        "only": only or [],
        "skip": skip or [],
        "rest": rest.value,
        "map": dict(parse_rename(text) for text in rename or []),
        "dtype": dtype.value,
        "force": force,
        "restart": restart,
        "device": device,
        "svd": svd.value,
        "tolerance": tolerance,
        "quiet": quiet,
    }


def outputs(rank: str, out: str) -> dict[str, Path]:
    """Return the folder of each rule."""
    rules = parse_rules(rank)
    if len(rules) > 1 and "{k}" not in out:
        raise UsageError("several ranks need {k} in the output's name", hint="As -o 'out-{k}'.")
    return {str(rule): Path(out.replace("{k}", str(rule))) for rule in rules}


def run(
    prepare: Callable[[], Request],
    *,
    others: str,
    dry_run: bool,
    json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Prepare a request, carry it out, and print what was done.

    Parameters
    ----------
    prepare : callable
        Called under the guard of errors and signals.
    others : str
        What becomes of matrices that base has nothing to compare with.
    dry_run, json, quiet, verbose
        As the options say.
    """
    planned: list[Request] = []
    with guard(verbose=verbose, find_unfinished=lambda: _find_unfinished(planned)):
        request = prepare()
        for text in request.preflight.warnings():
            warn(text)
        warn_of_unmatched(request.plan.pairing, others)
        if dry_run:
            print_plan(request, as_json=json)
            request.preflight.refuse()
            return
        planned.append(request)
        with show_progress(quiet=quiet, verbose=verbose) as observe:
            manifests = carry_out(request, command=["svdcut", *sys.argv[1:]], observe=observe)
        for manifest in manifests:
            warn_of_rounding(manifest)
        if json:
            documents = [manifest.to_json() for manifest in manifests]
            print_json(documents if len(documents) > 1 else documents[0])
        elif not quiet:
            print_result(request, manifests)


def _find_unfinished(planned: Sequence[Request]) -> list[Unfinished]:
    folders = [partial_path(output.path) for request in planned for output in request.outputs]
    found = [Unfinished(folder, count_finished(folder, TENSOR)) for folder in folders]
    return [work for work in found if work.finished]
