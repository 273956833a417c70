"""``svdcut verify``."""

from __future__ import annotations

from typing import Annotated

import typer

from svdcut import api
from svdcut.cli.guard import guard, warn
from svdcut.cli.output import print_json, show_progress
from svdcut.cli.shared import COMPUTATION, DeviceOption, new_app, screen_flag
from svdcut.cli.verdict import first_lines, print_verdict

_INPUTS = "Inputs"
_FAILED = 4

app = new_app()


@app.command(
    options_metavar="[--base BASE --ft FT] [OPTIONS]",
    epilog="""\
svdcut verify out/  # check every byte against the manifest

svdcut verify out/ --base base/ --ft ft/  # compute everything again

svdcut verify out/ --base base/ --ft ft/ --sample 20  # compute 20 tensors again

svdcut verify out/ --json | jq .failures  # list what is wrong
""",
)
def verify(
    out: Annotated[str, typer.Argument(metavar="OUT", help="The folder that svdcut wrote.")],
    base: Annotated[
        str | None,
        typer.Option(
            metavar="BASE",
            help="The model before fine-tuning, named as for truncate.",
            show_default=False,
            rich_help_panel=_INPUTS,
        ),
    ] = None,
    finetuned: Annotated[
        str | None,
        typer.Option(
            "--ft",
            metavar="FT",
            help="The model fine-tuned from it.",
            show_default=False,
            rich_help_panel=_INPUTS,
        ),
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Compute only N truncated tensors again, large and small ones alike; hashes "
            "are checked in full.",
            show_default="all",
            rich_help_panel=COMPUTATION,
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(metavar="N", help="Seed of the choice.", rich_help_panel=COMPUTATION),
    ] = 0,
    device: DeviceOption = "auto",
    json: Annotated[bool, screen_flag("--json", help="Print the outcome on stdout.")] = False,
    quiet: Annotated[
        bool,
        screen_flag("--quiet", "-q", help="Print nothing but false claims, on stderr, and errors."),
    ] = False,
    verbose: Annotated[
        bool,
        screen_flag(
            "--verbose",
            "-v",
            help="Print a line for each tensor, all false claims, and the traceback of an error.",
        ),
    ] = False,
) -> None:
    """Check a result against its manifest, and against what it was made from.

    Every byte of OUT is read: any change of a file that the manifest names is
    found, any change of the manifest, and any file beside them that a loader
    could take. An edited model card is told of, and is no false claim. With BASE
    and FT, every number of the manifest and every stored tensor is computed
    again. A false claim is printed with what the manifest says and what was found;
    the exit status is then 4.
    """
    with guard(verbose=verbose):
        with show_progress(quiet=quiet, verbose=verbose) as observe:
            options: api.VerifyOptions = {
                "base": base,
                "finetuned": finetuned,
                "sample": sample,
                "seed": seed,
                "device": device,
                "quiet": quiet,
            }
            outcome = api.carry_out_verification(out, options, observe=observe)
        if json:
            print_json(outcome.to_json())
        elif not quiet:
            print_verdict(out, outcome, everything=verbose)
        elif not outcome.ok:
            warn("\n  ".join(first_lines(out, outcome)))
    if not outcome.ok:
        raise typer.Exit(_FAILED)
