"""``svdcut truncate``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from svdcut.api import Request, TruncateOptions, carry_out, prepare
from svdcut.cli.guard import Unfinished, guard, warn
from svdcut.cli.output import (
    print_json,
    print_result,
    show_progress,
    warn_of_rounding,
    warn_of_unmatched,
)
from svdcut.cli.plan import print_plan
from svdcut.cli.shared import (
    COMPUTATION,
    TENSORS,
    DeviceOption,
    RenameOption,
    parse_rename,
    screen_flag,
)
from svdcut.destination import partial_path
from svdcut.errors import UsageError
from svdcut.journal import count_finished
from svdcut.options import Rest, StoredDtype
from svdcut.ranks import Keep, parse_rules
from svdcut.svd.route import Route
from svdcut.writer import TENSOR

_RANK = "Rank"
_OUTPUT = "Output"


def truncate(
    base: Annotated[
        str,
        typer.Argument(
            metavar="BASE",
            help="The model before fine-tuning: a directory, a .safetensors file, or a Hub id "
            "org/name, org/name@revision.",
        ),
    ],
    finetuned: Annotated[
        str, typer.Argument(metavar="FT", help="The model fine-tuned from it, named likewise.")
    ],
    rank: Annotated[
        str,
        typer.Option(
            "--rank",
            "-k",
            metavar="RULE",
            help="How many triplets to keep, see above. Several rules, separated by commas, "
            "give several outputs from one decomposition; name them with {k} in --out.",
            rich_help_panel=_RANK,
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            metavar="OUT",
            help="Folder to write; {k} in it stands for the rule.",
            rich_help_panel=_OUTPUT,
        ),
    ],
    rank_for: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB=RULE",
            help="Use another rule for tensors whose name matches; the last match wins.",
            rich_help_panel=_RANK,
        ),
    ] = None,
    keep: Annotated[
        Keep,
        typer.Option(
            help="Which triplets stay; bottom and random are the controls of an experiment.",
            rich_help_panel=_RANK,
        ),
    ] = Keep.TOP,
    seed: Annotated[
        int, typer.Option(metavar="N", help="Seed of --keep random.", rich_help_panel=_RANK)
    ] = 0,
    scale: Annotated[
        float,
        typer.Option(metavar="F", help="Multiply the kept update by this.", rich_help_panel=_RANK),
    ] = 1.0,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Truncate only tensors whose name matches.",
            rich_help_panel=TENSORS,
        ),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Do not truncate tensors whose name matches, as '*embed*'.",
            rich_help_panel=TENSORS,
        ),
    ] = None,
    rest: Annotated[
        Rest,
        typer.Option(help="Which side every other tensor comes from.", rich_help_panel=TENSORS),
    ] = Rest.FINETUNED,
    rename: RenameOption = None,
    dtype: Annotated[
        StoredDtype,
        typer.Option(
            help="Store truncated tensors so; auto is the fine-tuned tensor's own dtype.",
            rich_help_panel=_OUTPUT,
        ),
    ] = StoredDtype.AUTO,
    max_shard_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Split the weights into files of at most this size, as 5GB.",
            show_default="the fine-tuned checkpoint's own files",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", metavar="", help="Replace an existing OUT.", rich_help_panel=_OUTPUT
        ),
    ] = False,
    restart: Annotated[
        bool,
        typer.Option(
            "--restart",
            metavar="",
            help="Drop unfinished work in OUT.partial, instead of going on from it.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            metavar="",
            help="Show the plan, from headers alone; write nothing.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False,
    device: DeviceOption = "auto",
    svd: Annotated[
        Route,
        typer.Option(
            help="Algorithm to start with; a more careful one follows where its error bound is "
            "not met.",
            rich_help_panel=COMPUTATION,
        ),
    ] = Route.AUTO,
    tolerance: Annotated[
        float,
        typer.Option(
            metavar="F",
            help="Certify the error of every cut to be within this share of the best possible "
            "error at its rank.",
            rich_help_panel=COMPUTATION,
        ),
    ] = 1e-6,
    json: Annotated[
        bool, screen_flag("--json", help="Print the manifest on stdout, or the plan of a dry run.")
    ] = False,
    quiet: Annotated[
        bool, screen_flag("--quiet", "-q", help="Print nothing but warnings and errors.")
    ] = False,
    verbose: Annotated[
        bool,
        screen_flag(
            "--verbose", "-v", help="Print a line for each tensor, and the traceback of an error."
        ),
    ] = False,
) -> None:
    """Write OUT = BASE + truncated update, a complete checkpoint.

    The update of each weight matrix, FT - BASE, is cut to the rank that RULE says.
    Every other tensor is copied. OUT appears complete or not at all, with a
    manifest, svdcut.json, and a model card. The same command goes on from where
    an interrupted run stopped.

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
    planned: list[Request] = []
    with guard(verbose=verbose, find_unfinished=lambda: _find_unfinished(planned)):
        options: TruncateOptions = {
            "rank_for": rank_for or [],
            "keep": keep.value,
            "seed": seed,
            "scale": scale,
            "only": only or [],
            "skip": skip or [],
            "rest": rest.value,
            "map": dict(parse_rename(text) for text in rename or []),
            "dtype": dtype.value,
            "max_shard_size": max_shard_size,
            "force": force,
            "restart": restart,
            "device": device,
            "svd": svd.value,
            "tolerance": tolerance,
            "quiet": quiet,
        }
        request = prepare(base, finetuned, _outputs(rank, out), **options)
        for text in request.preflight.warnings():
            warn(text)
        warn_of_unmatched(request.plan.pairing, "copied whole")
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


def _outputs(rank: str, out: str) -> dict[str, Path]:
    """Return the folder of each rule."""
    rules = parse_rules(rank)
    if len(rules) > 1 and "{k}" not in out:
        raise UsageError("several ranks need {k} in the output's name", hint="As -o 'out-{k}'.")
    return {str(rule): Path(out.replace("{k}", str(rule))) for rule in rules}
