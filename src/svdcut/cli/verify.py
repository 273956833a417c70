"""``svdcut verify``."""

from __future__ import annotations

from dataclasses import KW_ONLY

import typer

from svdcut.api.verification import carry_out_verification
from svdcut.cli.commands import ScreenOptions, command
from svdcut.cli.guard import guard, warn
from svdcut.cli.output import print_json, show_progress
from svdcut.cli.verdict import first_lines, print_verdict
from svdcut.option import Panel
from svdcut.option_kinds import Switch, options
from svdcut.verification.options import VerifyOptions

_FAILED = 4


@options
class VerifyCommand(ScreenOptions, VerifyOptions):
    """Options of the command."""

    _: KW_ONLY
    json: Switch = Switch("Print the outcome on stdout.", default=False, panel=Panel.SCREEN)
    quiet: Switch = Switch(
        "Print nothing but false claims, on stderr, and errors.",
        default=False,
        panel=Panel.SCREEN,
        short="-q",
    )
    verbose: Switch = Switch(
        "Print a line for each tensor, all false claims, and the traceback of an error.",
        default=False,
        panel=Panel.SCREEN,
        short="-v",
    )


@command(
    VerifyCommand,
    usage="[--base BASE --ft FT] [OPTIONS]",
    examples="""\
svdcut verify out/  # check every byte against the manifest

svdcut verify out/ --base base/ --ft ft/  # compute everything again

svdcut verify out/ --base base/ --ft ft/ --sample 20  # compute 20 tensors again

svdcut verify out/ --json | jq .failures  # list what is wrong
""",
)
def verify(options: VerifyCommand) -> None:
    """Check a result against its manifest, and against what it was made from.

    Every byte of OUT is read: any change of a file that the manifest names is
    found, any change of the manifest, and any file beside them that a loader
    could take. An edited model card is told of, and is no false claim. With BASE
    and FT, every number of the manifest and every stored tensor is computed
    again. A false claim is printed with what the manifest says and what was found;
    the exit status is then 4.
    """
    out, quiet, verbose = str(options.out), options.quiet, options.verbose
    with guard(verbose=verbose):
        with show_progress(quiet=quiet, verbose=verbose) as observe:
            outcome = carry_out_verification(options, observe=observe)
        if options.json:
            print_json(outcome.to_json())
        elif not quiet:
            print_verdict(out, outcome, everything=verbose)
        elif not outcome.ok:
            warn("\n  ".join(first_lines(out, outcome)))
    if not outcome.ok:
        raise typer.Exit(_FAILED)
