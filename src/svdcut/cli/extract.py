"""``svdcut extract``."""

from __future__ import annotations

from svdcut.api.truncation import plan_extraction
from svdcut.cli.commands import command
from svdcut.cli.cutting import RULES, CutCommand, run
from svdcut.option_kinds import options
from svdcut.truncation.options import ExtractOptions


@options
class ExtractCommand(CutCommand, ExtractOptions):
    """Options of the command."""


@command(
    ExtractCommand,
    usage="-k RULE -o ADAPTER [OPTIONS]",
    more_help=RULES,
    examples="""\
svdcut extract base/ ft/ -k 64 -o lora/  # write the update as a LoRA adapter of rank 64

svdcut extract base/ ft/ -k energy=0.9 -o lora/  # give each layer the rank that it needs

svdcut extract base/ lora/ -k 8 -o small/  # cut an adapter to a lower rank

svdcut extract base/ ft/ -k 64 --drop '*norm*' -o lora/  # leave norms as in base
""",
)
def extract(options: ExtractCommand) -> None:
    """Write the truncated update of FT as a PEFT LoRA adapter of BASE.

    The update of each weight matrix, FT - BASE, is cut to the rank that RULE
    says, and stored as two thin factors. Biases, norms and new heads that
    changed are in the adapter too; what PEFT has no place for is an error,
    unless --drop names it. ADAPTER appears complete or not at all, with a
    manifest, svdcut.json, and a card. The same command goes on from where an
    interrupted run stopped.

    FT may be an adapter itself: its update is cut to another rank.
    """
    run(lambda: plan_extraction(options), options, others="stored whole")
