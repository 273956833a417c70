"""``svdcut truncate``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from svdcut.api import TruncateOptions, carry_out, prepare
from svdcut.cli.guard import guard
from svdcut.cli.output import (
    print_json,
    print_plan,
    print_result,
    show_progress,
    warn_of_rounding,
)
from svdcut.errors import UsageError
from svdcut.options import Rest, StoredDtype
from svdcut.ranks import Keep, parse_rules
from svdcut.svd.route import Route

_RANK = "Rank"
_TENSORS = "Tensors"
_OUTPUT = "Output"
_COMPUTATION = "Computation"
_SCREEN = "Screen"


def truncate(
    base: Annotated[
        str, typer.Argument(metavar="BASE", help="Directory, .safetensors file or Hub id.")
    ],
    finetuned: Annotated[
        str, typer.Argument(metavar="FT", help="The model fine-tuned from it, likewise.")
    ],
    rank: Annotated[
        str,
        typer.Option(
            "--rank",
            "-k",
            metavar="RULE",
            help="64, full, 0, noise, energy=0.9, ratio=0.05 or budget=0.1; several, "
            "comma-separated, with {k} in -o.",
            rich_help_panel=_RANK,
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            "--out", "-o", metavar="OUT", help="Folder to write.", rich_help_panel=_OUTPUT
        ),
    ],
    rank_for: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB=RULE",
            help="Another rule for matching tensors; the last match wins.",
            rich_help_panel=_RANK,
        ),
    ] = None,
    keep: Annotated[
        Keep,
        typer.Option(
            help="Which triplets stay; bottom and random are controls.", rich_help_panel=_RANK
        ),
    ] = Keep.TOP,
    seed: Annotated[int, typer.Option(help="Of --keep random.", rich_help_panel=_RANK)] = 0,
    scale: Annotated[
        float, typer.Option(help="Factor on the kept update.", rich_help_panel=_RANK)
    ] = 1.0,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB", help="Truncate matching tensors alone.", rich_help_panel=_TENSORS
        ),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB", help="Leave matching tensors alone.", rich_help_panel=_TENSORS
        ),
    ] = None,
    rest: Annotated[
        Rest,
        typer.Option(help="Where every other tensor comes from.", rich_help_panel=_TENSORS),
    ] = Rest.FINETUNED,
    rename: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="OLD=NEW",
            help="Rename a prefix of base's tensor names.",
            rich_help_panel=_TENSORS,
        ),
    ] = None,
    dtype: Annotated[
        StoredDtype,
        typer.Option(
            help="Of truncated tensors; auto is the fine-tuned tensor's own.",
            rich_help_panel=_OUTPUT,
        ),
    ] = StoredDtype.AUTO,
    max_shard_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="As 5GB. Default: the fine-tuned checkpoint's own files.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an existing OUT.", rich_help_panel=_OUTPUT)
    ] = False,
    restart: Annotated[
        bool,
        typer.Option(
            "--restart", help="Drop unfinished work in OUT.partial.", rich_help_panel=_OUTPUT
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Show the plan, from headers alone; write nothing.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False,
    device: Annotated[
        str,
        typer.Option(
            metavar="DEVICE", help="auto, cpu, cuda or cuda:N.", rich_help_panel=_COMPUTATION
        ),
    ] = "auto",
    svd: Annotated[
        Route, typer.Option(help="Route to start with.", rich_help_panel=_COMPUTATION)
    ] = Route.AUTO,
    tolerance: Annotated[
        float,
        typer.Option(
            help="Error above the best possible that a cut must be certified for.",
            rich_help_panel=_COMPUTATION,
        ),
    ] = 1e-6,
    json: Annotated[
        bool,
        typer.Option("--json", help="Print the manifest on stdout.", rich_help_panel=_SCREEN),
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet", "-q", help="Print errors and warnings alone.", rich_help_panel=_SCREEN
        ),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            "-v",
            help="Print a line for each tensor, and tracebacks.",
            rich_help_panel=_SCREEN,
        ),
    ] = False,
) -> None:
    """Write OUT = BASE + truncated update, a complete checkpoint.

    The update of each weight matrix, FT - BASE, is cut to the rank that RULE says.
    Every other tensor is copied. OUT appears complete or not at all, with a
    manifest, svdcut.json, and a model card.
    """
    with guard(verbose=verbose):
        options: TruncateOptions = {
            "rank_for": rank_for or [],
            "keep": keep.value,
            "seed": seed,
            "scale": scale,
            "only": only or [],
            "skip": skip or [],
            "rest": rest.value,
            "map": dict(_parse_rename(text) for text in rename or []),
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
        if dry_run:
            print_plan(request, as_json=json)
            return
        with show_progress(quiet=quiet, verbose=verbose) as observe:
            manifests = carry_out(request, command=["svdcut", *sys.argv[1:]], observe=observe)
        for manifest in manifests:
            warn_of_rounding(manifest)
        if json:
            documents = [manifest.to_json() for manifest in manifests]
            print_json(documents if len(documents) > 1 else documents[0])
        elif not quiet:
            print_result(request, manifests)


def _outputs(rank: str, out: str) -> dict[str, Path]:
    """Return the folder of each rule."""
    rules = parse_rules(rank)
    if len(rules) > 1 and "{k}" not in out:
        raise UsageError("several ranks need {k} in the output's name", hint="As -o 'out-{k}'.")
    return {str(rule): Path(out.replace("{k}", str(rule))) for rule in rules}


def _parse_rename(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not equals:
        raise UsageError(f"--map {text!r}: expected OLD=NEW, as 'model.=language_model.model.'")
    return old, new
