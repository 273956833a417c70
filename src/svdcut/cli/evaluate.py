"""``svdcut evaluate``: the command, and its screen of accuracies by group and gaps."""

from __future__ import annotations

from collections.abc import Iterator

from rich.markup import escape

from svdcut.api.evaluation import carry_out_evaluation, prepare_evaluation
from svdcut.cli.app import ScreenOptions, command
from svdcut.cli.guard import guard, note
from svdcut.cli.progress import show_progress
from svdcut.cli.screen import Column, no_room, open_screen, print_json, print_table
from svdcut.cli.warnings import warn_of_adapters
from svdcut.evaluation.answers import Kind, Predictions
from svdcut.evaluation.dataset import Dataset
from svdcut.evaluation.metrics import Evaluation
from svdcut.evaluation.options import EvaluateOptions
from svdcut.option_kinds import options
from svdcut.shown import counted, points, printable

_GAPS = (
    ("best_worst", "best group over worst group"),
    ("average_worst", "all texts over worst group"),
    ("aligned_conflicting", "aligned over conflicting texts"),
)
_COLUMNS = (
    Column("size"),
    Column("accuracy"),
    Column("95 % interval", 1),
    Column("", 0, "left", "bold"),
)
_SHOWN_ANSWERS = 10


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


def print_evaluation(
    checkpoint: str, dataset: Dataset, evaluation: Evaluation, predictions: Predictions
) -> None:
    """Print what was measured, for people.

    Parameters
    ----------
    checkpoint : str
        As the user named it.
    dataset : Dataset
        What it was evaluated on.
    evaluation : Evaluation
        What was found.
    predictions : Predictions
        How the model was asked.
    """
    screen = open_screen()
    for line in _title(checkpoint, dataset, predictions):
        screen.say(line)
    screen.print()
    interval = f"(95 % interval {evaluation.interval})"
    screen.print(f"[bold]accuracy {points(evaluation.accuracy)}%[/bold] {interval}")
    dropped: list[str] = []
    if evaluation.groups:
        screen.print()
        dropped += print_table(screen, "group", _COLUMNS, list(_groups(evaluation)))
    gaps = list(_gaps(evaluation))
    if gaps:
        screen.print()
        columns = (Column("points"), Column("95 % interval", 1))
        dropped += print_table(screen, "gap", columns, gaps, max_name=30)
    elif not evaluation.groups:
        screen.print("No groups: --group COLUMN names them.", style="dim")
    if dropped:
        screen.say(no_room(dropped, "--json"), style="dim")


def _title(checkpoint: str, dataset: Dataset, predictions: Predictions) -> Iterator[str]:
    names = [escape(printable(name)) for name in (checkpoint, dataset.source)]
    count = counted(len(dataset.rows), "text")
    yield f"[bold]{names[0]} on {names[1]}[/bold]: {count}"
    pairs = list(zip(predictions.answers.labels, predictions.answers.words, strict=True))
    shown = [label if label == word else f"{label} as {word!r}" for label, word in pairs]
    more = len(shown) - _SHOWN_ANSWERS
    answers = ", ".join(shown[:_SHOWN_ANSWERS]) + (f" and {more} more" if more > 0 else "")
    what = "classes" if predictions.kind is Kind.CLASSIFIER else "words"
    asked = ", by its chat template" if predictions.chat_template else ""
    model = f"{predictions.kind.value} in {predictions.dtype}{asked}"
    yield f"{model}; {what}: {escape(printable(answers))}"


def _groups(evaluation: Evaluation) -> Iterator[list[str]]:
    for name, group in evaluation.groups.items():
        mark = "worst" if name == evaluation.worst_group else ""
        found = [str(group.size), f"{points(group.accuracy)}%", str(group.interval)]
        yield [name, *found, mark]


def _gaps(evaluation: Evaluation) -> Iterator[list[str]]:
    for key, name in _GAPS:
        gap = getattr(evaluation.gap, key)
        if gap is not None:
            yield [name, points(gap), str(evaluation.intervals.get(key, ""))]


def note_cut_texts(evaluation: Evaluation) -> None:
    """Say how many texts were too long for the model, if any were."""
    if count := evaluation.num_truncated:
        note(f"{counted(count, 'text')} too long for the model: cut")
