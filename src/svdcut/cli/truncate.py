"""``svdcut truncate``."""

from __future__ import annotations

from typing import Annotated

import typer

from svdcut.api import Request, TruncateOptions, prepare
from svdcut.cli.cutting import (
    OUTPUT,
    BaseArgument,
    DryRunOption,
    DtypeOption,
    FinetunedArgument,
    ForceOption,
    JsonOption,
    KeepOption,
    OnlyOption,
    QuietOption,
    RankForOption,
    RankOption,
    RestartOption,
    RestOption,
    ScaleOption,
    SeedOption,
    SkipOption,
    SvdOption,
    ToleranceOption,
    VerboseOption,
    cut_options,
    explain_rules,
    outputs,
    run,
)
from svdcut.cli.shared import DeviceOption, RenameOption, new_app
from svdcut.options import Rest, StoredDtype
from svdcut.ranks import Keep
from svdcut.svd.route import Route

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
    rank_for: RankForOption = None,
    keep: KeepOption = Keep.TOP,
    seed: SeedOption = 0,
    scale: ScaleOption = 1.0,
    only: OnlyOption = None,
    skip: SkipOption = None,
    rest: RestOption = Rest.FINETUNED,
    rename: RenameOption = None,
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
    force: ForceOption = False,
    restart: RestartOption = False,
    dry_run: DryRunOption = False,
    device: DeviceOption = "auto",
    svd: SvdOption = Route.AUTO,
    tolerance: ToleranceOption = 1e-6,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Write OUT = BASE + truncated update, a complete checkpoint.

    The update of each weight matrix, FT - BASE, is cut to the rank that RULE
    says. Every other tensor is copied. OUT appears complete or not at all, with
    a manifest, svdcut.json, and a model card. The same command goes on from where
    an interrupted run stopped.
    """

    def request() -> Request:
        shared = cut_options(
            rank_for=rank_for,
            keep=keep,
            seed=seed,
            scale=scale,
            only=only,
            skip=skip,
            rest=rest,
            rename=rename,
            dtype=dtype,
            force=force,
            restart=restart,
            device=device,
            svd=svd,
            tolerance=tolerance,
            quiet=quiet,
        )
        options: TruncateOptions = {**shared, "max_shard_size": max_shard_size}
        also = None if also_adapter is None else outputs(rank, also_adapter)
        return prepare(base, finetuned, outputs(rank, out), also_adapters=also, **options)

    run(
        request,
        others="copied whole",
        dry_run=dry_run,
        json=json,
        quiet=quiet,
        verbose=verbose,
    )
