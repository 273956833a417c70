"""The options of `evaluate`, and the ones that `sweep` shares with it."""

from __future__ import annotations

from dataclasses import KW_ONLY
from pathlib import Path

from svdcut.choose.options import CallOptions, DeviceOptions
from svdcut.errors import UsageError
from svdcut.files.jsonfile import quoted
from svdcut.option import Panel
from svdcut.option_kinds import File, Side, Switch, Text, Texts, Whole, Words, options


class Prompt(Text[str | None]):
    r"""A template; on the command line ``\n`` is a new line."""

    def from_shell(self, typed: str | None) -> str | None:
        """Return the template."""
        return typed and typed.replace(r"\n", "\n")


@options
class DataOptions(DeviceOptions):
    """Options about the data, and about what a model is asked."""

    _: KW_ONLY
    text: Text[str] = Text("The text.", default="text", metavar="COLUMN", panel=Panel.COLUMNS)
    text_pair: Text[str | None] = Text(
        "The second text, for a task on pairs.",
        default=None,
        metavar="COLUMN",
        panel=Panel.COLUMNS,
    )
    label: Text[str] = Text("The label.", default="label", metavar="COLUMN", panel=Panel.COLUMNS)
    group: Texts = Texts(
        "A group for each value of the column; of several columns, for each combination.",
        default=(),
        metavar="COLUMN",
        panel=Panel.COLUMNS,
    )
    group_columns: Words = Words(
        "Columns of numbers from 0 to 1 that make overlapping groups, one for each column and "
        "label; a text belongs to a column's from 0.5 up.",
        default=(),
        metavar="COLUMN,COLUMN",
        panel=Panel.COLUMNS,
    )
    aligned: Text[str | None] = Text(
        "1 if the shortcut leads to the right label, 0 if it leads to a wrong one.",
        default=None,
        metavar="COLUMN",
        panel=Panel.COLUMNS,
    )
    prompt: Prompt = Prompt(
        r"Prompt of a language model, with {text} in it, and {text_pair} for pairs; \n is a new "
        "line. A space follows a prompt that ends without one.",
        default=None,
        metavar="TEMPLATE",
        panel=Panel.MODEL,
        shown_default="the text and a new line",
    )
    labels: Words = Words(
        "The model's names for the labels, in their order or as LABEL=WORD,LABEL=WORD: words "
        "after the prompt, or classes of the head.",
        default=(),
        metavar="WORD,WORD",
        panel=Panel.MODEL,
        shown_default="as DATA calls them",
    )
    normalize: Switch = Switch(
        "Divide the log-likelihood of a word by its number of characters.",
        default=False,
        panel=Panel.MODEL,
    )
    chat_template: Switch = Switch(
        "Use the bare prompt even if the model has a chat template, as lm-evaluation-harness "
        "does without --apply_chat_template.",
        default=True,
        panel=Panel.MODEL,
    )
    limit: Whole[int | None] = Whole(
        "Take only N rows, at random.",
        default=None,
        least=1,
        metavar="N",
        panel=Panel.COMPUTATION,
        shown_default="all",
    )
    batch_size: Whole[int] = Whole(
        "Texts that go through the model at once.",
        default=32,
        least=1,
        metavar="N",
        panel=Panel.COMPUTATION,
    )
    seed: Whole[int] = Whole(
        "Seed of --limit, and of the intervals.",
        default=0,
        metavar="N",
        panel=Panel.COMPUTATION,
    )

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns that a model reads."""
        return (self.text,) if self.text_pair is None else (self.text, self.text_pair)

    @property
    def grouping(self) -> tuple[str, ...]:
        """The columns that groups are made of, each once; with the label, if it splits some."""
        label = (self.label,) if self.group_columns else ()
        aligned = () if self.aligned is None else (self.aligned,)
        return tuple(dict.fromkeys((*label, *self.group, *self.group_columns, *aligned)))

    def template(self) -> str:
        """Return the prompt's template; refuse one that does not fit the data."""
        has_pairs = self.text_pair is not None
        if self.prompt is None:
            return "{text}\n{text_pair}\n" if has_pairs else "{text}\n"
        for name in ("text", "text_pair") if has_pairs else ("text",):
            if f"{{{name}}}" not in self.prompt:
                raise UsageError(
                    f"--prompt {quoted(self.prompt)}: has no {{{name}}} in it",
                    hint="As --prompt '{text} The review is ' --labels negative,positive.",
                )
        if not has_pairs and "{text_pair}" in self.prompt:
            raise UsageError(
                f"--prompt {quoted(self.prompt)}: {{text_pair}} needs pairs of texts",
                hint="Name the column of the second text: --text-pair COLUMN.",
            )
        return self.prompt


@options
class EvaluateOptions(CallOptions, DataOptions):
    """Options of `evaluate`."""

    checkpoint: Side[str | Path] = Side(
        "A directory, or a Hub id org/name, org/name@revision: a sequence classifier or a "
        "causal language model, or a PEFT adapter of one.",
        metavar="CHECKPOINT",
    )
    data: Side[str | Path] = Side(
        "A table of labelled texts: .csv, .tsv, .jsonl, .json or .parquet.", metavar="DATA"
    )
    _: KW_ONLY
    base: Side[str | Path | None] = Side(
        "The base to evaluate an adapter on: a directory or a Hub id.",
        default=None,
        metavar="BASE",
        panel=Panel.INPUTS,
        shown_default="as its config says",
    )
    predictions: File[Path | None] = File(
        "Write the predicted label and the scores of each row to a .csv or .jsonl file.",
        default=None,
        metavar="FILE",
        panel=Panel.OUTPUT,
    )
