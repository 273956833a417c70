"""What a sweep is to do: its options, and the request they make. It imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from svdcut.choose.options import CallOptions, Options, Rules, ShapeOptions, read_rules
from svdcut.choose.ranks import EXAMPLES
from svdcut.evaluation.dataset import Dataset
from svdcut.evaluation.options import DataOptions
from svdcut.files.checkpoint import Checkpoint
from svdcut.option import Panel
from svdcut.option_kinds import (
    File,
    Number,
    Parsed,
    PythonOnly,
    Side,
    Switch,
    Text,
    Whole,
    Words,
    options,
)
from svdcut.pair.plan import Plan
from svdcut.record.progress import Observer
from svdcut.record.provenance import InputHashes
from svdcut.sweeps.result import Variant
from svdcut.truncation.options import SidesOptions

EvaluateFunction = Callable[[Any], object]
"""Takes a model of transformers; returns an `Evaluation`, an accuracy, or a mapping."""


@options
class SweepOptions(CallOptions, ShapeOptions, DataOptions, SidesOptions):
    """Options of `sweep`: those of `truncate` that shape a cut, and those of `evaluate`."""

    finetuned: Side[str | Path] = Side(
        "The model fine-tuned from it, named likewise: a sequence classifier or a causal "
        "language model, or a PEFT adapter of BASE.",
        metavar="FT",
    )
    data: Side[str | Path | None] = Side(
        "A table of labelled texts, as evaluate takes it.", metavar="DATA", may_lack=True
    )
    out: File[Path] = File(
        "Folder for sweep.json, sweep.csv, sweep.png, the rows as they are done, and the "
        "decomposition.",
        metavar="DIR",
        panel=Panel.OUTPUT,
        short="-o",
    )
    _: KW_ONLY
    ranks: Rules = Parsed(
        "Which ranks to try: rules as those of truncate.",
        default="0,1,2,4,8,16,32,64,full",
        reader=read_rules,
        metavar="RULE,RULE",
        panel=Panel.RANK,
        long="--rank",
        short="-k",
        suggestions=EXAMPLES,
    )
    controls: Words = Words(
        "Also try the same ranks of the last triplets, or of a random set.",
        default=(),
        metavar="bottom,random",
        panel=Panel.RANK,
    )
    tolerance: Number = Number(
        "How much accuracy a cut may cost: 0.02 is two points.",
        default=0.02,
        accepts=lambda loss: 0 <= loss < 1,
        expected="an accuracy, as 0.02",
        metavar="F",
        panel=Panel.CHOICE,
    )
    evaluate: PythonOnly[EvaluateFunction | None, EvaluateFunction | None] = PythonOnly(
        "Takes the model with the weights of a cut; returns its accuracy, a mapping as "
        "``svdcut evaluate --json`` prints, or an `Evaluation`.",
        default=None,
    )
    eval_command: Text[str | None] = Text(
        "Command to evaluate by, instead of DATA. {model} in it becomes the folder of a "
        "checkpoint. "
        'It prints {"accuracy": 0.9}, or what evaluate --json prints. {out} in it becomes an empty '
        "folder, and the results of lm_eval are read from there: lm_eval --output_path {out}.",
        default=None,
        metavar="COMMAND",
        panel=Panel.MODEL,
    )
    seed: Whole[int] = Whole(
        "Seed of --controls random, of --limit, and of the intervals.",
        default=0,
        metavar="N",
        panel=Panel.COMPUTATION,
    )
    restart: Switch = Switch(
        "Drop the rows and the decomposition in DIR, instead of going on from them.",
        default=False,
        panel=Panel.OUTPUT,
    )


@dataclass(frozen=True, slots=True)
class SweepRequest:
    """A sweep that can be carried out: checked and planned, with its data read."""

    plan: Plan
    shape: Options
    """The options of the cuts and of the plan."""

    variants: tuple[Variant, ...]
    dataset: Dataset | None
    """What to evaluate on; None for a function or a command of the user's own."""

    options: SweepOptions

    def loadable(
        self, observe: Observer, hashes: InputHashes | None = None
    ) -> AbstractContextManager[Checkpoint]:
        """Yield the fine-tuned side as a checkpoint that can be loaded: an adapter merged."""
        from svdcut.truncation.merging import loadable

        return loadable(
            self.plan.base,
            self.plan.finetuned,
            self.shape,
            within=self.options.out,
            hashes=hashes,
            observe=observe,
        )
