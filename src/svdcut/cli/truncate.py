"""``svdcut truncate``."""

from __future__ import annotations

from svdcut.api.truncation import plan_truncation
from svdcut.cli.commands import command
from svdcut.cli.cutting import RULES, CutCommand, run
from svdcut.option_kinds import options
from svdcut.truncation.options import TruncateOptions


@options
class TruncateCommand(CutCommand, TruncateOptions):
    """Options of the command."""


@command(
    TruncateCommand,
    usage="-k RULE -o OUT [OPTIONS]",
    more_help=RULES,
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
def truncate(options: TruncateCommand) -> None:
    """Write OUT = BASE + truncated update, a complete checkpoint.

    The update of each weight matrix, FT - BASE, is cut to the rank that RULE
    says. Every other tensor is copied. OUT appears complete or not at all, with
    a manifest, svdcut.json, and a model card. The same command goes on from where
    an interrupted run stopped.
    """
    run(lambda: plan_truncation(options), options, others="copied whole")
