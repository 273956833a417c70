"""The options of `spectrum` and `compare_spectra`."""

from __future__ import annotations

from dataclasses import KW_ONLY
from pathlib import Path

from svdcut.choose.options import CallOptions, PairOptions
from svdcut.option import Panel
from svdcut.option_kinds import Side, Switch, Whole, options


@options
class SpectraOptions(PairOptions):
    """Every option that shapes the spectra."""

    _: KW_ONLY
    top: Whole[int | None] = Whole(
        "Compute only the N leading values of each matrix, which is faster.",
        default=None,
        least=1,
        metavar="N",
        panel=Panel.COMPUTATION,
        shown_default="all",
    )
    intruders: Switch = Switch(
        "Count intruder dimensions: leading left vectors of FT's matrix that are like none of "
        "CHECKPOINT's.",
        default=False,
        panel=Panel.QUESTIONS,
    )


@options
class SpectrumOptions(CallOptions, SpectraOptions):
    """Options of `spectrum`."""

    checkpoint: Side[str | Path] = Side(
        "A directory, a .safetensors file, or a Hub id org/name, org/name@revision. With FT, "
        "the model before fine-tuning.",
        metavar="CHECKPOINT",
    )
    finetuned: Side[str | Path | None] = Side(
        "The model fine-tuned from it, named likewise.", default=None, metavar="FT"
    )


@options
class CompareOptions(CallOptions, SpectraOptions):
    """Options of `compare_spectra`."""

    base: Side[str | Path] = Side("The model before fine-tuning, named as for `spectrum`.")
    finetuned: Side[str | Path] = Side("A model fine-tuned from it.")
    other: Side[str | Path] = Side("Another model fine-tuned from it.")
    _: KW_ONLY
    rank: Whole[int] = Whole("Rank of the spaces to compare.", default=16, least=1)
