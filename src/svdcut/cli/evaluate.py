"""``svdcut evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from svdcut import api
from svdcut.cli.evaluating import DataParameters, note_cut_texts
from svdcut.cli.evaluation_screen import print_evaluation
from svdcut.cli.groups import grouped
from svdcut.cli.guard import guard
from svdcut.cli.output import print_json, show_progress, warn_of_adapters
from svdcut.cli.shared import (
    COMPUTATION,
    DeviceOption,
    QuietOption,
    VerboseOption,
    new_app,
    screen_flag,
)

_OUTPUT = "Output"

app = new_app()


@app.command(
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
)
@grouped
def evaluate(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A directory, or a Hub id org/name, org/name@revision: a sequence classifier "
            "or a causal language model, or a PEFT adapter of one.",
        ),
    ],
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA", help="A table of labelled texts: .csv, .tsv, .jsonl, .json or .parquet."
        ),
    ],
    *,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="BASE",
            help="Of an adapter: the base to evaluate it on, a directory or a Hub id.",
            show_default="as its config says",
            rich_help_panel="Model",
        ),
    ] = None,
    asked: DataParameters,
    seed: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Seed of --limit, and of the intervals.",
            rich_help_panel=COMPUTATION,
        ),
    ] = 0,
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
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Measure the accuracy of CHECKPOINT on DATA, over all texts and in each group.

    A classifier answers by its head. A language model is given each text in a
    prompt, by its chat template where it has one, and answers with the word of
    --labels that it finds likeliest there, as in lm-evaluation-harness. Three
    gaps say how much a model fails on groups: that of the best group over the
    worst, that of all texts over the worst, and that of texts on which a shortcut
    leads to the right label over those on which it leads to a wrong one.

    Models are computed in bfloat16 on CUDA and in float32 on a CPU. An adapter is
    merged into its base in that dtype, in a temporary folder (TMPDIR) that is
    removed when the model is loaded. It needs transformers, which the extra eval
    of the package brings.
    """
    with guard(verbose=verbose):
        options = asked.data_options(seed=seed, device=device, quiet=quiet)
        request = api.prepare_evaluation(
            checkpoint, data, base=base, predictions=predictions, **options
        )
        warn_of_adapters(request.model.base, request.model.checkpoint)
        with show_progress(quiet=quiet, verbose=False) as observe:
            evaluation, found = api.carry_out_evaluation(request, observe=observe)
        if json:
            print_json(evaluation.to_json())
        elif not quiet:
            print_evaluation(checkpoint, request.dataset, evaluation, found)
        if not quiet:
            note_cut_texts(evaluation)
