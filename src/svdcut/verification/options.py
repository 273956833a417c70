"""The options of `verify`."""

from __future__ import annotations

from dataclasses import KW_ONLY
from pathlib import Path

from svdcut.choose.options import CallOptions, DeviceOptions
from svdcut.option import Panel
from svdcut.option_kinds import File, Side, Whole, options


@options
class VerifyOptions(CallOptions, DeviceOptions):
    """Options of `verify`."""

    out: File[Path] = File("The folder that svdcut wrote.", metavar="OUT")
    _: KW_ONLY
    base: Side[str | Path | None] = Side(
        "The model before fine-tuning, named as for truncate.",
        default=None,
        metavar="BASE",
        panel=Panel.INPUTS,
    )
    finetuned: Side[str | Path | None] = Side(
        "The model fine-tuned from it. With both, every number is computed again.",
        default=None,
        metavar="FT",
        panel=Panel.INPUTS,
        long="--ft",
    )
    sample: Whole[int | None] = Whole(
        "Compute only N truncated tensors again, large and small ones alike; hashes are checked "
        "in full.",
        default=None,
        least=1,
        metavar="N",
        panel=Panel.COMPUTATION,
        shown_default="all",
    )
    seed: Whole[int] = Whole("Seed of the choice.", default=0, metavar="N", panel=Panel.COMPUTATION)
