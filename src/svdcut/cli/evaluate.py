"""``svdcut evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from svdcut import api
from svdcut.api import EvaluateOptions
from svdcut.cli.evaluation_screen import print_evaluation
from svdcut.cli.guard import guard, note
from svdcut.cli.output import print_json, show_progress
from svdcut.cli.shared import COMPUTATION, DeviceOption, screen_flag

_COLUMNS = "Columns of DATA"
_MODEL = "What the model is asked"
_OUTPUT = "Output"


def _column(what: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        metavar="COLUMN", help=what, show_default=False, rich_help_panel=_COLUMNS
    )
    return option


def evaluate(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A directory, or a Hub id org/name, org/name@revision: a sequence classifier "
            "or a causal language model.",
        ),
    ],
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA", help="A table of labelled texts: .csv, .tsv, .jsonl, .json or .parquet."
        ),
    ],
    text: Annotated[
        str,
        typer.Option(metavar="COLUMN", help="The text.", rich_help_panel=_COLUMNS),
    ] = "text",
    text_pair: Annotated[str | None, _column("The other text, where the task is on pairs.")] = None,
    label: Annotated[
        str,
        typer.Option(metavar="COLUMN", help="The label.", rich_help_panel=_COLUMNS),
    ] = "label",
    group: Annotated[
        list[str] | None,
        _column("What parts the texts into groups; of several columns, the values together."),
    ] = None,
    group_columns: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN,COLUMN",
            help="Columns of numbers from 0 to 1, each of a group that a text is in from 0.5 up, "
            "and that its label parts; they may overlap.",
            show_default=False,
            rich_help_panel=_COLUMNS,
        ),
    ] = None,
    aligned: Annotated[
        str | None,
        _column("1 where the shortcut leads to the right label, 0 where to a wrong one."),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEMPLATE",
            help=r"Prompt of a language model, with {text} in it, and {text_pair} for pairs; \n "
            "is a new line. A word follows after a space, where the prompt ends without one.",
            show_default=r"'{text}\n'",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="WORD,WORD",
            help="What the model calls the labels, in their order, or as LABEL=WORD,LABEL=WORD: "
            "words after the prompt, or classes of the head.",
            show_default="as DATA calls them",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    normalize: Annotated[
        bool,
        typer.Option(
            "--normalize",
            metavar="",
            help="Divide the log-likelihood of a word by its number of characters.",
            rich_help_panel=_MODEL,
        ),
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Take only N rows, at random.",
            show_default="all",
            rich_help_panel=COMPUTATION,
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Seed of that choice, and of the intervals.",
            rich_help_panel=COMPUTATION,
        ),
    ] = 0,
    batch_size: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            help="Texts that go through the model at once.",
            rich_help_panel=COMPUTATION,
        ),
    ] = 32,
    device: DeviceOption = "auto",
    predictions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the predicted label and the scores of each row to a .csv or .jsonl file.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    json: Annotated[bool, screen_flag("--json", help="Print every number on stdout.")] = False,
    quiet: Annotated[
        bool, screen_flag("--quiet", "-q", help="Print nothing but warnings and errors.")
    ] = False,
    verbose: Annotated[
        bool, screen_flag("--verbose", "-v", help="Print the traceback of an error.")
    ] = False,
) -> None:
    """Measure the accuracy of CHECKPOINT on DATA, over all texts and in each group.

    A classifier answers by its head. A language model is given each text in a
    prompt, by its chat template where it has one, and answers with the word of
    --labels that it finds likeliest there, as in lm-evaluation-harness. Three
    gaps say how much a model fails on groups: that of the best group over the
    worst, that of all texts over the worst, and that of texts on which a shortcut
    leads to the right label over those on which it leads to a wrong one.

    Models are computed in bfloat16 on CUDA and in float32 on a CPU. It needs
    transformers, which the extra "eval" of the package brings.
    """
    with guard(verbose=verbose):
        options: EvaluateOptions = {
            "text": text,
            "text_pair": text_pair,
            "label": label,
            "group": group or [],
            "group_columns": _split(*(group_columns or [])),
            "aligned": aligned,
            "prompt": None if prompt is None else prompt.replace(r"\n", "\n"),
            "labels": [] if labels is None else labels.split(","),
            "normalize": normalize,
            "limit": limit,
            "seed": seed,
            "batch_size": batch_size,
            "device": device,
            "predictions": predictions,
            "quiet": quiet,
        }
        request = api.prepare_evaluation(checkpoint, data, **options)
        with show_progress(quiet=quiet, verbose=False) as observe:
            evaluation, found = api.carry_out_evaluation(request, observe=observe)
        if json:
            print_json(evaluation.to_json())
        elif not quiet:
            print_evaluation(checkpoint, request.dataset, evaluation, found)
        if found.num_truncated and not quiet:
            count, noun = found.num_truncated, "text" if found.num_truncated == 1 else "texts"
            note(f"{count} {noun} too long for the model: cut")


def _split(*lists: str) -> list[str]:
    return [name for text in lists for name in text.split(",") if name]
