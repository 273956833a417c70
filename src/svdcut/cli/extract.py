"""``svdcut extract``."""

from __future__ import annotations

from typing import Annotated

import typer

from svdcut.api import ExtractOptions, Request, prepare
from svdcut.choose.options import Experts, StoredDtype
from svdcut.cli.cutting import (
    OUTPUT,
    BaseArgument,
    CutParameters,
    FinetunedArgument,
    RankOption,
    RunParameters,
    dtype_option,
    explain_rules,
    outputs,
    run,
)
from svdcut.cli.groups import grouped
from svdcut.cli.shared import TENSORS, new_app
from svdcut.pair.plan import Form

app = new_app()


@app.command(
    options_metavar="-k RULE -o ADAPTER [OPTIONS]",
    epilog="""\
svdcut extract base/ ft/ -k 64 -o lora/  # write the update as a LoRA adapter of rank 64

svdcut extract base/ ft/ -k energy=0.9 -o lora/  # give each layer the rank that it needs

svdcut extract base/ lora/ -k 8 -o small/  # cut an adapter to a lower rank

svdcut extract base/ ft/ -k 64 --drop '*norm*' -o lora/  # leave norms as in base
""",
)
@explain_rules
@grouped
def extract(
    base: BaseArgument,
    finetuned: FinetunedArgument,
    rank: RankOption,
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            metavar="ADAPTER",
            help="Folder to write; {k} in it stands for the rule.",
            rich_help_panel=OUTPUT,
        ),
    ],
    cut: CutParameters,
    *,
    drop: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Leave tensors whose name matches as they are in BASE: those that an adapter "
            "cannot hold, or that its loader does not take.",
            rich_help_panel=TENSORS,
        ),
    ] = None,
    experts: Annotated[
        Experts,
        typer.Option(
            help="Experts that FT stores one by one: fused to the stacks that transformers makes "
            "of them, or separate, as SGLang needs them, padded with zeros to one rank.",
            rich_help_panel=OUTPUT,
        ),
    ] = Experts.FUSED,
    dtype: Annotated[
        StoredDtype,
        dtype_option(
            "Store the factors in float32, bfloat16 or float16; auto is float32, which no "
            "loader rounds further than it must."
        ),
    ] = StoredDtype.AUTO,
    how: RunParameters,
) -> None:
    """Write the truncated update of FT as a PEFT LoRA adapter of BASE.

    The update of each weight matrix, FT - BASE, is cut to the rank that RULE
    says, and stored as two thin factors. Biases, norms and new heads that
    changed are in the adapter too; what PEFT has no place for is an error,
    unless --drop names it. ADAPTER appears complete or not at all, with a
    manifest, svdcut.json, and a card. The same command goes on from where an
    interrupted run stopped.

    FT may be an adapter itself: its update is cut to another rank.
    """

    def request() -> Request:
        options: ExtractOptions = {
            **cut.cut_options(dtype, how),
            "drop": drop or [],
            "experts": experts.value,
        }
        return prepare(base, finetuned, outputs(rank, out), form=Form.ADAPTER, **options)

    run(request, how, others="stored whole")
