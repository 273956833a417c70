"""``svdcut truncate``."""

from __future__ import annotations

from typing import Annotated

import typer

from svdcut.api import Request, TruncateOptions, prepare
from svdcut.choose.options import StoredDtype
from svdcut.cli.cutting import (
    OUTPUT,
    BaseArgument,
    CutParameters,
    DtypeOption,
    FinetunedArgument,
    RankOption,
    RunParameters,
    explain_rules,
    outputs,
    run,
)
from svdcut.cli.groups import grouped
from svdcut.cli.shared import new_app

app = new_app()


@app.command(
    options_metavar="-k RULE -o OUT [OPTIONS]",
    epilog="""\
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
@explain_rules
@grouped
def truncate(
    base: BaseArgument,
    finetuned: FinetunedArgument,
    rank: RankOption,
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            metavar="OUT",
            help="Folder to write; {k} in it stands for the rule.",
            rich_help_panel=OUTPUT,
        ),
    ],
    cut: CutParameters,
    *,
    dtype: DtypeOption = StoredDtype.AUTO,
    max_shard_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Split the weights into files of at most this size, as 5GB.",
            show_default="the fine-tuned checkpoint's own files",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    also_adapter: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Write the same truncated update as a PEFT adapter too, as extract does.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    how: RunParameters,
) -> None:
    """Write OUT = BASE + truncated update, a complete checkpoint.

    The update of each weight matrix, FT - BASE, is cut to the rank that RULE
    says. Every other tensor is copied. OUT appears complete or not at all, with
    a manifest, svdcut.json, and a model card. The same command goes on from where
    an interrupted run stopped.
    """

    def request() -> Request:
        options: TruncateOptions = {**cut.cut_options(dtype, how), "max_shard_size": max_shard_size}
        also = None if also_adapter is None else outputs(rank, also_adapter)
        return prepare(base, finetuned, outputs(rank, out), also_adapters=also, **options)

    run(request, how, others="copied whole")
