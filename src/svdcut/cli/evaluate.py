"""``svdcut evaluate``."""

from __future__ import annotations

from svdcut.api.evaluation import carry_out_evaluation, prepare_evaluation
from svdcut.cli.commands import ScreenOptions, command
from svdcut.cli.evaluation_screen import note_cut_texts, print_evaluation
from svdcut.cli.guard import guard
from svdcut.cli.progress import show_progress
from svdcut.cli.screen import print_json
from svdcut.cli.warnings import warn_of_adapters
from svdcut.evaluation.options import EvaluateOptions
from svdcut.option_kinds import options


@options
class EvaluateCommand(ScreenOptions, EvaluateOptions):
    """Options of the command."""


@command(
    EvaluateCommand,
    usage="[OPTIONS]",
    examples="""\
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
def evaluate(options: EvaluateCommand) -> None:
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
    with guard(verbose=options.verbose):
        request = prepare_evaluation(options)
        warn_of_adapters(request.model.base, request.model.checkpoint)
        with show_progress(quiet=options.quiet, verbose=False) as observe:
            evaluation, found = carry_out_evaluation(request, observe=observe)
        if options.json:
            print_json(evaluation.to_json())
        elif not options.quiet:
            print_evaluation(str(options.checkpoint), request.dataset, evaluation, found)
        if not options.quiet:
            note_cut_texts(evaluation)
