"""``svdcut spectrum``."""

from __future__ import annotations

import csv
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from svdcut.api import SpectraRequest, SpectrumOptions, measure_spectra, prepare_spectra
from svdcut.cli.guard import guard, note
from svdcut.cli.output import print_json, show_progress, warn_of_unmatched
from svdcut.cli.shared import DeviceOption, parse_rename, screen_flag
from svdcut.cli.spectra_screen import print_spectra
from svdcut.errors import UsageError
from svdcut.spectra.facts import Spectra
from svdcut.spectra.files import COLUMNS, check_target, rows, save_values
from svdcut.spectra.lineage import find_base
from svdcut.spectra.summary import SortKey, sort_tensors

_TENSORS = "Tensors"
_OUTPUT = "Output"


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
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Look only at tensors whose name matches.",
            rich_help_panel=_TENSORS,
        ),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Leave out tensors whose name matches, as '*embed*'.",
            rich_help_panel=_TENSORS,
        ),
    ] = None,
    rename: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="OLD=NEW",
            help="Rename a prefix of base's tensor names.",
            rich_help_panel=_TENSORS,
        ),
    ] = None,
    sort: Annotated[
        SortKey,
        typer.Option(
            help="Order of the tensors: numbers from the largest down.", rich_help_panel=_TENSORS
        ),
    ] = SortKey.MODEL,
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
    quiet: Annotated[
        bool, screen_flag("--quiet", "-q", help="Print nothing but warnings and errors.")
    ] = False,
    verbose: Annotated[
        bool, screen_flag("--verbose", "-v", help="Print the traceback of an error.")
    ] = False,
) -> None:
    """Show the singular values of CHECKPOINT's weights, or of the update from it to FT.

    For each matrix: its norm, and that of the update relative to base's matrix;
    the first and the last singular value; the stable rank (squared norm over the
    square of the first) and the effective rank (exponential of the entropy of the
    values' shares); how many values hold 90 % and 99 % of the energy; how many
    are above the edge that rounding in storage explains; the share of entries
    that are exactly zero; and the spectrum itself, both axes logarithmic.

    All values are exact, by float64, and nothing is kept of a tensor but its
    numbers: a checkpoint of any size takes the memory of its largest matrices.
    """
    with guard(verbose=verbose):
        if json and as_csv:
            raise UsageError("--json and --csv: choose one")
        options: SpectrumOptions = {
            "only": only or [],
            "skip": skip or [],
            "map": dict(parse_rename(text) for text in rename or []),
            "top": top,
            "device": device,
            "quiet": quiet,
        }
        request = prepare_spectra(checkpoint, finetuned, **options)
        _check_files(save, request)
        if request.plan.pairing is not None:
            warn_of_unmatched(request.plan.pairing, "left out")
        with show_progress(quiet=quiet, verbose=verbose) as observe:
            spectra = sort_tensors(measure_spectra(request, observe=observe), sort)
        if save is not None:
            save_values(spectra, save)
        if json:
            print_json(spectra.to_json())
        elif as_csv:
            _print_csv(spectra)
        elif not quiet:
            print_spectra(spectra, request.plan.pairing)
            _tell_of_base(request)


def _check_files(save: Path | None, request: SpectraRequest) -> None:
    """Refuse before the work what could not be written after it."""
    if save is not None and save.suffix != ".safetensors":
        raise UsageError(f"--save {save}: expected a name that ends in .safetensors")
    for path in (save,):
        if path is not None:
            check_target(path, request.plan.places)


def _print_csv(spectra: Spectra) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows(spectra))


def _tell_of_base(request: SpectraRequest) -> None:
    """Say how to see the update, where weights were measured and their base is here."""
    checkpoint = request.plan.checkpoint
    base = find_base(checkpoint) if request.plan.base is None else None
    if base is not None:
        words = ["svdcut", "spectrum", base, checkpoint.source]
        note("its base is here; to see the update: " + shlex.join(words))
