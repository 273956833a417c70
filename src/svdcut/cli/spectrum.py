"""``svdcut spectrum``."""

from __future__ import annotations

from dataclasses import KW_ONLY
from pathlib import Path

from svdcut.api.spectra import (
    measure_comparison,
    measure_spectra,
    prepare_comparison,
    prepare_spectra,
)
from svdcut.choose.options import CallOptions
from svdcut.cli.app import ScreenOptions, command
from svdcut.cli.guard import guard
from svdcut.cli.progress import show_progress
from svdcut.cli.spectrum_output import (
    Form,
    Targets,
    choose_form,
    show_comparison,
    show_spectra,
)
from svdcut.cli.warnings import warn_of_adapters, warn_of_no_update, warn_of_swap, warn_of_unmatched
from svdcut.errors import UsageError
from svdcut.option import Panel, shared
from svdcut.option_kinds import File, Side, Switch, Text, Whole, options
from svdcut.spectra.column import Needs
from svdcut.spectra.columns import COLUMNS
from svdcut.spectra.groups import MODEL_ORDER, SORT_KEYS, sort_comparison, sort_tensors
from svdcut.spectra.options import CompareOptions, SpectraOptions, SpectrumOptions
from svdcut.spectra.plan import SpectraPlan


@options
class SpectrumCommand(ScreenOptions, SpectrumOptions):
    """Options of the command."""

    _: KW_ONLY
    sort: Text[str | None] = Text(
        f"Show every tensor, in this order, numbers from the largest down: {', '.join(SORT_KEYS)}.",
        suggestions=tuple(SORT_KEYS),
        default=None,
        metavar="KEY",
        panel=Panel.TENSORS,
    )
    compare: Side[str | None] = Side(
        "Compare the update with that of another model fine-tuned from CHECKPOINT: spectra, and "
        "the overlap of leading spaces.",
        default=None,
        metavar="OTHER",
        panel=Panel.QUESTIONS,
    )
    rank: Whole[int | None] = Whole(
        "Rank of the spaces that --compare compares.",
        default=None,
        least=1,
        metavar="N",
        panel=Panel.QUESTIONS,
        shown_default="16",
    )
    plot: File[Path | None] = File(
        "Draw spectra, energies and layers to a .png, .svg or .pdf file.",
        default=None,
        metavar="FILE",
        panel=Panel.OUTPUT,
    )
    html: File[Path | None] = File(
        "Write one page with the pictures and a table to sort, to a .html file.",
        default=None,
        metavar="FILE",
        panel=Panel.OUTPUT,
    )
    save: File[Path | None] = File(
        "Write all singular values to a .safetensors file.",
        default=None,
        metavar="FILE",
        panel=Panel.OUTPUT,
    )
    json: Switch = Switch(
        "Print every value and number on stdout.", default=False, panel=Panel.SCREEN
    )
    csv: Switch = Switch(
        "Print a line for each matrix, separated by commas.", default=False, panel=Panel.SCREEN
    )


@command(
    SpectrumCommand,
    usage="[OPTIONS]",
    examples="""\
svdcut spectrum base/ ft/  # look at the update before you cut it

svdcut spectrum ft/  # look at the weights

svdcut spectrum base/ ft/ --sort relative_norm | head -20  # find the layers that moved most

svdcut spectrum base/ ft/ --top 64  # compute 64 values of each matrix, fast

svdcut spectrum base/ ft/ --csv | column -ts,  # print a line for each matrix

svdcut spectrum base/ ft/ --json | jq '.tensors[].rank_90'  # use the numbers

svdcut spectrum base/ ft/ --save values.safetensors  # keep every singular value
""",
)
def spectrum(options: SpectrumCommand) -> None:
    """Show the singular values of CHECKPOINT's weights, or of the update from it to FT.

    For each matrix: how large it is; its first and last singular value; how fast
    the values decay; how many hold most of the energy, and how many are above what
    rounding in storage explains; how many entries are exactly zero; and the
    spectrum itself, both axes logarithmic. docs/spectrum.md explains each column.

    All values are exact to five digits, or to 1e-7 of the first, and nothing is
    kept of a tensor but its numbers: a checkpoint of any size takes the memory of
    its largest matrices.
    """
    with guard(verbose=options.verbose):
        form = choose_form(json=options.json, csv=options.csv, quiet=options.quiet)
        targets = Targets(options.plot, options.html, options.save)
        base, finetuned, other = options.checkpoint, options.finetuned, options.compare
        _check_sort(options.sort, update=finetuned is not None, intruders=options.intruders)
        if other is None:
            if options.rank is not None:
                raise UsageError("--rank is of --compare", hint="For values alone: --top N.")
            _look(options, targets, form)
        elif finetuned is None:
            raise UsageError("--compare needs an update", hint="Name both sides: BASE FT.")
        else:
            common = shared(options, SpectraOptions) | shared(options, CallOptions)
            asked = CompareOptions(base, finetuned, other, rank=options.rank or 16, **common)
            _compare(asked, options.sort, targets, form)


def _check_sort(sort: str | None, *, update: bool, intruders: bool) -> None:
    """Refuse what is no key, and a number that no tensor will have."""
    if sort not in {None, *SORT_KEYS}:
        raise UsageError(f"--sort {sort}: there is no such key", hint=f"{', '.join(SORT_KEYS)}.")
    given = {Needs.NOTHING: True, Needs.UPDATE: update, Needs.INTRUDERS: intruders}
    needs = {column.key: column.needs.value for column in COLUMNS if not given[column.needs]}
    if sort in needs:
        keys = ", ".join(key for key in SORT_KEYS if key not in needs)
        raise UsageError(f"--sort {sort} needs {needs[sort]}", hint=f"Without: {keys}.")


def _look(options: SpectrumCommand, targets: Targets, form: Form) -> None:
    request = prepare_spectra(options)
    targets.check(request.plan.places)
    _warn(request.plan)
    with show_progress(quiet=options.quiet, verbose=False) as observe:
        spectra = measure_spectra(request, observe=observe)
    spectra = sort_tensors(spectra, options.sort or MODEL_ORDER)
    if request.plan.base is not None and spectra.tensors:
        warn_of_no_update(differ=any(matrix.norm for _, matrix in spectra.matrices))
    targets.write(spectra)
    show_spectra(spectra, request.plan, form, by_tensor=options.sort is not None)


def _compare(options: CompareOptions, sort: str | None, targets: Targets, form: Form) -> None:
    request = prepare_comparison(options)
    targets.check_comparison(request.plan.places)
    _warn(request.plan.first, request.plan.second)
    with show_progress(quiet=options.quiet, verbose=False) as observe:
        comparison = measure_comparison(request, observe=observe)
    comparison = sort_comparison(comparison, sort or MODEL_ORDER)
    targets.write_comparison(comparison)
    show_comparison(comparison, form)


def _warn(*plans: SpectraPlan) -> None:
    warn_of_adapters(*(side for plan in plans for side in (plan.base, plan.checkpoint)))
    for plan in plans:
        if plan.base is not None and plan.pairing is not None:
            warn_of_swap(plan.base, plan.checkpoint, plan.pairing)
            warn_of_unmatched(plan.pairing, "left out")
