"""What ``evaluate`` and ``sweep`` share: their options of data and models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from svdcut.api import DataOptions
from svdcut.cli.guard import note
from svdcut.cli.shared import COMPUTATION
from svdcut.evaluation.metrics import Evaluation
from svdcut.shown import counted

_COLUMNS = "Columns of DATA"
_MODEL = "What the model is asked"


def _column(what: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        metavar="COLUMN", help=what, show_default=False, rich_help_panel=_COLUMNS
    )
    return option


@dataclass(frozen=True, slots=True)
class DataParameters:
    """Options of the data, and of what a model is asked."""

    text: Annotated[
        str, typer.Option(metavar="COLUMN", help="The text.", rich_help_panel=_COLUMNS)
    ] = "text"
    text_pair: Annotated[str | None, _column("The other text, where the task is on pairs.")] = None
    label: Annotated[
        str, typer.Option(metavar="COLUMN", help="The label.", rich_help_panel=_COLUMNS)
    ] = "label"
    group: Annotated[
        list[str] | None,
        _column("What parts the texts into groups; of several columns, the values together."),
    ] = None
    group_columns: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN,COLUMN",
            help="Columns of numbers from 0 to 1, each of a group that a text is in from 0.5 up, "
            "and that its label parts; they may overlap.",
            show_default=False,
            rich_help_panel=_COLUMNS,
        ),
    ] = None
    aligned: Annotated[
        str | None,
        _column("1 where the shortcut leads to the right label, 0 where to a wrong one."),
    ] = None
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEMPLATE",
            help=r"Prompt of a language model, with {text} in it, and {text_pair} for pairs; \n "
            "is a new line. A word follows after a space, where the prompt ends without one.",
            show_default="the text and a new line",
            rich_help_panel=_MODEL,
        ),
    ] = None
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="WORD,WORD",
            help="What the model calls the labels, in their order, or as LABEL=WORD,LABEL=WORD: "
            "words after the prompt, or classes of the head.",
            show_default="as DATA calls them",
            rich_help_panel=_MODEL,
        ),
    ] = None
    normalize: Annotated[
        bool,
        typer.Option(
            "--normalize",
            help="Divide the log-likelihood of a word by its number of characters.",
            rich_help_panel=_MODEL,
        ),
    ] = False
    no_chat_template: Annotated[
        bool,
        typer.Option(
            "--no-chat-template",
            help="Ask by the bare prompt even a model that has a chat template, as "
            "lm-evaluation-harness does without --apply_chat_template.",
            rich_help_panel=_MODEL,
        ),
    ] = False
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Take only N rows, at random.",
            show_default="all",
            rich_help_panel=COMPUTATION,
        ),
    ] = None
    batch_size: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            help="Texts that go through the model at once.",
            rich_help_panel=COMPUTATION,
        ),
    ] = 32

    def data_options(self, *, seed: int, device: str, quiet: bool) -> DataOptions:
        """Return them, and others, as the API takes them."""
        return {
            "text": self.text,
            "text_pair": self.text_pair,
            "label": self.label,
            "group": self.group or [],
            "group_columns": split_names(*(self.group_columns or [])),
            "aligned": self.aligned,
            "prompt": None if self.prompt is None else self.prompt.replace(r"\n", "\n"),
            "labels": [] if self.labels is None else self.labels.split(","),
            "normalize": self.normalize,
            "chat_template": not self.no_chat_template,
            "limit": self.limit,
            "seed": seed,
            "batch_size": self.batch_size,
            "device": device,
            "quiet": quiet,
        }


def note_cut_texts(evaluation: Evaluation) -> None:
    """Say how many texts were too long for the model, if any were."""
    if count := evaluation.num_truncated:
        note(f"{counted(count, 'text')} too long for the model: cut")


def split_names(*lists: str) -> list[str]:
    """Return the names in lists that commas separate."""
    return [name for text in lists for name in text.split(",") if name]
