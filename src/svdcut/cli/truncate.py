"""``svdcut truncate`` and ``svdcut extract``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY

from svdcut.api.truncation import Request, carry_out, plan_extraction, plan_truncation
from svdcut.cli.app import ScreenOptions, command
from svdcut.cli.guard import Unfinished, guard, note, warn
from svdcut.cli.progress import show_progress
from svdcut.cli.result_screen import print_plan, print_result
from svdcut.cli.screen import print_json
from svdcut.cli.warnings import warn_of_no_update, warn_of_plan, warn_of_rounding
from svdcut.cli.workers import find_worker, run_workers
from svdcut.option import Panel
from svdcut.option_kinds import Switch, Text, Whole, options
from svdcut.record.manifest import Manifest
from svdcut.truncation.options import ExtractOptions, ResultOptions, TruncateOptions
from svdcut.write.destination import partial_path
from svdcut.write.journal import count_finished
from svdcut.write.writer import TENSOR

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


@options
class _CutOptions(ScreenOptions, ResultOptions):
    """Options of a command that writes a cut."""

    _: KW_ONLY
    dry_run: Switch = Switch(
        "Show the plan, from headers alone; write nothing.", default=False, panel=Panel.OUTPUT
    )
    workers: Whole[int] = Whole(
        "Share the work among N processes of this machine, each with a GPU, or with a share of "
        "the cores.",
        default=1,
        least=1,
        metavar="N",
        panel=Panel.COMPUTATION,
    )
    part: Text[str | None] = Text(
        "Do part I of N, as of a job array with a shared disk; the part that ends last writes OUT.",
        default=None,
        metavar="I/N",
        panel=Panel.COMPUTATION,
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


@options
class _TruncateOptions(_CutOptions, TruncateOptions):
    """Options of the command."""


@command(
    _TruncateOptions,
    usage="-k RULE -o OUT [OPTIONS]",
    more_help=_RULES,
    examples="""\
svdcut truncate base/ ft/ -k 64 -o out/  # keep 64 triplets of every update

svdcut truncate base/ ft/ -k energy=0.9 -o out/  # keep 90 % of the energy

svdcut truncate base/ ft/ -k 8,16,64 -o 'out-{k}'  # write three results at once

svdcut truncate base/ ft/ -k 32 --skip '*embed*' -o out/  # leave embeddings alone

svdcut truncate base/ ft/ -k 32 --rank-for '*.mlp.*=16' -o out/  # cut the MLPs harder

svdcut truncate org/base org/tuned@v2 -k 64 -o out/  # fetch both from the Hub

svdcut truncate base/ adapter/ -k 8 -o out/  # cut a PEFT adapter, and merge it

svdcut truncate base/ ft/ -k 64 -o out/ --also-adapter lora/  # write an adapter too

svdcut truncate base/ ft/ -k 64 -o out/ --dry-run  # show the plan, write nothing
""",
)
def truncate(options: _TruncateOptions) -> None:
    """Write OUT = BASE + truncated update, a complete checkpoint.

    The update of each weight matrix, FT - BASE, is cut to the rank that RULE
    says. Every other tensor is copied. OUT appears complete or not at all, with
    a manifest, svdcut.json, and a model card. The same command goes on from where
    an interrupted run stopped.
    """
    _run(
        lambda processes: plan_truncation(options, processes=processes),
        options,
        others="copied whole",
    )


@options
class _ExtractOptions(_CutOptions, ExtractOptions):
    """Options of the command."""


@command(
    _ExtractOptions,
    usage="-k RULE -o ADAPTER [OPTIONS]",
    more_help=_RULES,
    examples="""\
svdcut extract base/ ft/ -k 64 -o lora/  # write the update as a LoRA adapter of rank 64

svdcut extract base/ ft/ -k energy=0.9 -o lora/  # give each layer the rank that it needs

svdcut extract base/ lora/ -k 8 -o small/  # cut an adapter to a lower rank

svdcut extract base/ ft/ -k 64 --drop '*norm*' -o lora/  # leave norms as in base
""",
)
def extract(options: _ExtractOptions) -> None:
    """Write the truncated update of FT as a PEFT LoRA adapter of BASE.

    The update of each weight matrix, FT - BASE, is cut to the rank that RULE
    says, and stored as two thin factors. Biases, norms and new heads that
    changed are in the adapter too; what PEFT has no place for is an error,
    unless --drop names it. ADAPTER appears complete or not at all, with a
    manifest, svdcut.json, and a card. The same command goes on from where an
    interrupted run stopped.

    FT may be an adapter itself: its update is cut to another rank.
    """
    _run(
        lambda processes: plan_extraction(options, processes=processes),
        options,
        others="stored whole",
    )


def _run(make_request: Callable[[int], Request], options: _CutOptions, *, others: str) -> None:
    """Make a request, carry it out, and print what was done.

    Parameters
    ----------
    make_request : callable
        Takes the number of processes on this machine; called under the guard of errors and
        signals.
    options : _CutOptions
        What to print, and whether to do it at all.
    others : str
        What becomes of matrices that base has nothing to compare with.
    """
    planned: list[Request] = []
    with guard(verbose=options.verbose, find_unfinished=lambda: _find_unfinished(planned)):
        worker = find_worker(options.part, options.workers, restart=options.restart)
        launches = options.workers > 1 and not worker.is_launched
        request = make_request(options.workers if launches else worker.local_count)
        quiet = options.quiet or not worker.reports
        if worker.reports and not (launches and not options.dry_run):
            for text in request.preflight.warnings():
                warn(text)
            warn_of_plan(request.plan, others)
        if options.dry_run:
            print_plan(request, as_json=options.json)
            request.preflight.refuse()
            return
        planned.append(request)
        if launches:
            request.preflight.refuse()
            run_workers(options.workers)
            return
        with show_progress(quiet=quiet, verbose=options.verbose and worker.reports) as observe:
            manifests = carry_out(
                request, command=["svdcut", *sys.argv[1:]], observe=observe, worker=worker
            )
        if manifests:
            _print(request, manifests, options)
        elif not quiet:
            note(f"{worker} is done; the part that ends last writes the result")


def _print(request: Request, manifests: Sequence[Manifest], options: _CutOptions) -> None:
    if request.plan.num_truncated:
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
