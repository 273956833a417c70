"""``svdcut spectrum``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from svdcut.api import (
    ComparisonRequest,
    SpectraRequest,
    SpectrumOptions,
    measure_comparison,
    measure_spectra,
    prepare_comparison,
    prepare_spectra,
)
from svdcut.cli.guard import guard
from svdcut.cli.output import (
    show_progress,
    warn_of_adapters,
    warn_of_no_update,
    warn_of_swap,
    warn_of_unmatched,
)
from svdcut.cli.shared import (
    COMPUTATION,
    TENSORS,
    DeviceOption,
    QuietOption,
    RenameOption,
    VerboseOption,
    new_app,
    parse_rename,
    screen_flag,
)
from svdcut.cli.spectrum_output import (
    Form,
    Targets,
    choose_form,
    show_comparison,
    show_spectra,
)
from svdcut.errors import UsageError
from svdcut.spectra.column import Needs
from svdcut.spectra.columns import COLUMNS
from svdcut.spectra.groups import MODEL_ORDER, SORT_KEYS, sort_comparison, sort_tensors
from svdcut.spectra.plan import SpectraPlan

_QUESTIONS = "Further questions"
_OUTPUT = "Output"
_RANK = 16

app = new_app()


@app.command(
    options_metavar="[OPTIONS]",
    epilog="""\
svdcut spectrum base/ ft/  # look at the update before you cut it

svdcut spectrum ft/  # look at the weights

svdcut spectrum base/ ft/ --sort relative_norm | head -20  # find the layers that moved most

svdcut spectrum base/ ft/ --top 64  # compute 64 values of each matrix, fast

svdcut spectrum base/ ft/ --csv | column -ts,  # print a line for each matrix

svdcut spectrum base/ ft/ --json | jq '.tensors[].rank_90'  # use the numbers

svdcut spectrum base/ ft/ --save values.safetensors  # keep every singular value
""",
)
def spectrum(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A directory, a .safetensors file, or a Hub id org/name, org/name@revision. "
            "With FT, the model before fine-tuning.",
        ),
    ],
    finetuned: Annotated[
        str | None,
        typer.Argument(metavar="FT", help="The model fine-tuned from it, named likewise."),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Compute only the N leading values of each matrix, which is faster.",
            show_default="all",
            rich_help_panel=COMPUTATION,
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Look only at tensors whose name matches.",
            rich_help_panel=TENSORS,
        ),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Leave out tensors whose name matches, as '*embed*'.",
            rich_help_panel=TENSORS,
        ),
    ] = None,
    rename: RenameOption = None,
    sort: Annotated[
        str | None,
        typer.Option(
            autocompletion=lambda: list(SORT_KEYS),
            metavar="KEY",
            help="Show every tensor, in this order, numbers from the largest down: "
            f"{', '.join(SORT_KEYS)}.",
            rich_help_panel=TENSORS,
        ),
    ] = None,
    intruders: Annotated[
        bool,
        typer.Option(
            "--intruders",
            help="Count intruder dimensions: leading left vectors of FT's matrix that are like "
            "none of CHECKPOINT's.",
            rich_help_panel=_QUESTIONS,
        ),
    ] = False,
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="OTHER",
            help="Compare the update with that of another model fine-tuned from CHECKPOINT: "
            "spectra, and the overlap of leading spaces.",
            show_default=False,
            rich_help_panel=_QUESTIONS,
        ),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Rank of the spaces that --compare compares.",
            show_default=str(_RANK),
            rich_help_panel=_QUESTIONS,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw spectra, energies and layers to a .png, .svg or .pdf file.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write one page with the pictures and a table to sort, to a .html file.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write all singular values to a .safetensors file.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    device: DeviceOption = "auto",
    json: Annotated[
        bool, screen_flag("--json", help="Print every value and number on stdout.")
    ] = False,
    as_csv: Annotated[
        bool, screen_flag("--csv", help="Print a line for each matrix, separated by commas.")
    ] = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Show the singular values of CHECKPOINT's weights, or of the update from it to FT.

    For each matrix: its norm, and that of the update relative to base's matrix;
    the first and the last singular value; the stable rank (squared norm over the
    square of the first) and the effective rank (exponential of the entropy of the
    values' shares); how many values hold 90 % and 99 % of the energy; how many
    are above the edge that rounding in storage explains; the share of entries
    that are exactly zero; and the spectrum itself, both axes logarithmic.

    All values are exact to five digits, or to 1e-7 of the first, and nothing is
    kept of a tensor but its numbers: a checkpoint of any size takes the memory of
    its largest matrices.
    """
    with guard(verbose=verbose):
        form = choose_form(json=json, csv=as_csv, quiet=quiet)
        targets = Targets(plot, html, save)
        options: SpectrumOptions = {
            "only": only or [],
            "skip": skip or [],
            "map": dict(parse_rename(text) for text in rename or []),
            "top": top,
            "intruders": intruders,
            "device": device,
            "quiet": quiet,
        }
        _check_sort(sort, update=finetuned is not None, intruders=intruders)
        if compare is None:
            if rank is not None:
                raise UsageError("--rank is of --compare", hint="For values alone: --top N.")
            look = prepare_spectra(checkpoint, finetuned, **options)
            _look(look, targets, sort, form, quiet=quiet)
        elif finetuned is None:
            raise UsageError("--compare needs an update", hint="Name both sides: BASE FT.")
        else:
            asked = prepare_comparison(
                checkpoint, finetuned, compare, rank=rank or _RANK, **options
            )
            _compare(asked, targets, sort, form, quiet=quiet)


def _check_sort(sort: str | None, *, update: bool, intruders: bool) -> None:
    """Refuse what is no key, and a number that no tensor will have."""
    if sort not in {None, *SORT_KEYS}:
        raise UsageError(f"--sort {sort}: there is no such key", hint=f"{', '.join(SORT_KEYS)}.")
    given = {Needs.NOTHING: True, Needs.UPDATE: update, Needs.INTRUDERS: intruders}
    needs = {column.key: column.needs.value for column in COLUMNS if not given[column.needs]}
    if sort in needs:
        keys = ", ".join(key for key in SORT_KEYS if key not in needs)
        raise UsageError(f"--sort {sort} needs {needs[sort]}", hint=f"Without: {keys}.")


def _look(
    request: SpectraRequest, targets: Targets, sort: str | None, form: Form, *, quiet: bool
) -> None:
    targets.check(request.plan.places)
    _warn(request.plan)
    with show_progress(quiet=quiet, verbose=False) as observe:
        spectra = measure_spectra(request, observe=observe)
    spectra = sort_tensors(spectra, sort or MODEL_ORDER)
    if request.plan.base is not None and spectra.tensors:
        warn_of_no_update(differ=any(matrix.norm for _, matrix in spectra.matrices))
    targets.write(spectra)
    show_spectra(spectra, request.plan, form, by_tensor=sort is not None)


def _compare(
    request: ComparisonRequest, targets: Targets, sort: str | None, form: Form, *, quiet: bool
) -> None:
    targets.check_comparison(request.plan.places)
    _warn(request.plan.first, request.plan.second)
    with show_progress(quiet=quiet, verbose=False) as observe:
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
