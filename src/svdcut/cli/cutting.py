"""What ``truncate`` and ``extract`` share: what they say of rules, and how a request is run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY

from svdcut.api.truncation import Request, carry_out
from svdcut.cli.commands import ScreenOptions
from svdcut.cli.guard import Unfinished, guard, warn
from svdcut.cli.output import (
    print_json,
    print_result,
    show_progress,
    warn_of_no_update,
    warn_of_plan,
    warn_of_rounding,
)
from svdcut.cli.plan import print_plan
from svdcut.option import Panel
from svdcut.option_kinds import Switch, options
from svdcut.truncation.options import ResultOptions
from svdcut.write.destination import partial_path
from svdcut.write.journal import count_finished
from svdcut.write.writer import TENSOR

RULES = """\
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


@options
class CutCommand(ScreenOptions, ResultOptions):
    """Options of a command that writes a cut."""

    _: KW_ONLY
    dry_run: Switch = Switch(
        "Show the plan, from headers alone; write nothing.", default=False, panel=Panel.OUTPUT
    )
    json: Switch = Switch(
        "Print the manifest on stdout, or the plan of a dry run.",
        default=False,
        panel=Panel.SCREEN,
    )
    verbose: Switch = Switch(
        "Print a line for each tensor, and the traceback of an error.",
        default=False,
        panel=Panel.SCREEN,
        short="-v",
    )


def run(make_request: Callable[[], Request], options: CutCommand, *, others: str) -> None:
    """Make a request, carry it out, and print what was done.

    Parameters
    ----------
    make_request : callable
        Called under the guard of errors and signals.
    options : CutCommand
        What to print, and whether to do it at all.
    others : str
        What becomes of matrices that base has nothing to compare with.
    """
    planned: list[Request] = []
    with guard(verbose=options.verbose, find_unfinished=lambda: _find_unfinished(planned)):
        request = make_request()
        for text in request.preflight.warnings():
            warn(text)
        plan = request.plan
        warn_of_plan(plan, others)
        if options.dry_run:
            print_plan(request, as_json=options.json)
            request.preflight.refuse()
            return
        planned.append(request)
        with show_progress(quiet=options.quiet, verbose=options.verbose) as observe:
            manifests = carry_out(request, command=["svdcut", *sys.argv[1:]], observe=observe)
        if plan.num_truncated:
            warn_of_no_update(differ=manifests[0].totals.energy_retained is not None)
        for manifest in manifests:
            warn_of_rounding(manifest)
        if options.json:
            documents = [manifest.to_json() for manifest in manifests]
            print_json(documents if len(documents) > 1 else documents[0])
        elif not options.quiet:
            print_result(request, manifests)


def _find_unfinished(planned: Sequence[Request]) -> list[Unfinished]:
    folders = [partial_path(output.path) for request in planned for output in request.outputs]
    found = [Unfinished(folder, count_finished(folder, TENSOR)) for folder in folders]
    return [work for work in found if work.finished]
