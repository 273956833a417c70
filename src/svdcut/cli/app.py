"""The command line's root."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import typer

from svdcut._version import __version__
from svdcut.cli.cutting import describe
from svdcut.cli.evaluate import evaluate
from svdcut.cli.extract import extract
from svdcut.cli.spectrum import spectrum
from svdcut.cli.sweep import sweep
from svdcut.cli.truncate import truncate
from svdcut.cli.verify import verify

app = typer.Typer(
    name="svdcut",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
    epilog="svdcut truncate base/ ft/ -k 64 -o out/  # keep 64 triplets of every update",
)


def _print_version(*, wanted: bool) -> None:
    if wanted:
        typer.echo(f"svdcut {__version__}")
        raise typer.Exit


@app.callback()
def svdcut(
    version: bool = typer.Option(
        False,
        "--version",
        metavar="",
        callback=lambda wanted: _print_version(wanted=wanted),
        is_eager=True,
        help="Show the version and exit.",
    ),
) -> None:
    """Cut the tail of the singular value decomposition of a fine-tuning update.

    Fine-tuning teaches a model its task and, with it, shortcuts. Both are in the
    update, finetuned - base; much of what is spurious may be in the tail of its
    singular value decomposition. svdcut cuts that tail, tensor by tensor, and
    writes a complete checkpoint with a manifest of what was kept.
    """


app.command(
    help=describe(truncate),
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
)(truncate)

app.command(
    help=describe(extract),
    options_metavar="-k RULE -o ADAPTER [OPTIONS]",
    epilog="""\
svdcut extract base/ ft/ -k 64 -o lora/  # write the update as a LoRA adapter of rank 64

svdcut extract base/ ft/ -k energy=0.9 -o lora/  # give each layer the rank that it needs

svdcut extract base/ lora/ -k 8 -o small/  # cut an adapter to a lower rank

svdcut extract base/ ft/ -k 64 --drop '*norm*' -o lora/  # leave norms as in base
""",
)(extract)

app.command(
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
)(spectrum)

app.command(
    options_metavar="[OPTIONS]",
    epilog="""\
svdcut evaluate ft/ test.csv  # measure the accuracy of a classifier

svdcut evaluate ft/ test.csv --group negation --group label  # in each group too

svdcut evaluate ft/ test.csv --group-columns male,female,muslim  # of groups that overlap

svdcut evaluate ft/ nli.jsonl --text premise --text-pair hypothesis  # judge pairs

svdcut evaluate llm/ test.csv --prompt '{text} So' --labels bad,good  # ask a language model

svdcut evaluate adapter/ test.csv  # merge a PEFT adapter, and measure that

svdcut evaluate ft/ test.csv --group label --predictions rows.csv  # keep each prediction

svdcut evaluate ft/ test.csv --group label --json | jq .gap  # use the numbers
""",
)(evaluate)

app.command(
    options_metavar="-o DIR [OPTIONS]",
    epilog="""\
svdcut sweep base/ ft/ test.csv --group label -o sweep/  # find the rank to use

svdcut sweep base/ ft/ test.csv -k 1,2,3,energy=0.9 -o sweep/  # try other ranks

svdcut sweep base/ ft/ test.csv --controls bottom,random -o sweep/  # with controls

svdcut sweep base/ ft/ test.csv -o sweep/ --write out/  # write the cut, too

svdcut sweep base/ ft/ -o sweep/ --eval-command './my-eval {model}'  # your own
""",
)(sweep)

app.command(
    options_metavar="[--base BASE --ft FT] [OPTIONS]",
    epilog="""\
svdcut verify out/  # check every byte against the manifest

svdcut verify out/ --base base/ --ft ft/  # compute everything again

svdcut verify out/ --base base/ --ft ft/ --sample 20  # compute 20 tensors again

svdcut verify out/ --json | jq .failures  # list what is wrong
""",
)(verify)


def run() -> None:
    """Run the command line on the arguments of the process."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            # A terminal that lacks a character must not end a run that is done.
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="svdcut")
