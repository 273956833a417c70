"""The options of `truncate`, `truncate_many` and `extract`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY
from pathlib import Path
from typing import TypeAlias

from svdcut.choose.options import (
    AdapterOptions,
    CallOptions,
    CheckpointOptions,
    CutOptions,
    Rules,
    StoredDtype,
    read_rules,
)
from svdcut.choose.ranks import EXAMPLES
from svdcut.option import Panel
from svdcut.option_kinds import Choice, File, Parsed, PythonOnly, Side, Switch, options

_Outs: TypeAlias = Mapping[str, str | Path] | Mapping[int, str | Path]


@options
class SidesOptions:
    """The two sides of an update."""

    base: Side[str | Path] = Side(
        "The model before fine-tuning: a directory, a .safetensors file, or a Hub id org/name, "
        "org/name@revision.",
        metavar="BASE",
    )
    finetuned: Side[str | Path] = Side(
        "The model fine-tuned from it, named likewise, or a PEFT adapter of it.", metavar="FT"
    )


@options
class RunOptions(CallOptions, CutOptions, SidesOptions):
    """Options of every function that writes cuts."""

    _: KW_ONLY
    force: Switch = Switch("Replace an existing OUT.", default=False, panel=Panel.OUTPUT)
    restart: Switch = Switch(
        "Drop unfinished work in OUT.partial, instead of going on from it.",
        default=False,
        panel=Panel.OUTPUT,
    )


@options
class ResultOptions(RunOptions):
    """Options of every command that writes cuts."""

    out: File[Path] = File(
        "Folder to write; {k} in it stands for the rule.",
        metavar="OUT",
        panel=Panel.OUTPUT,
        short="-o",
    )
    _: KW_ONLY
    rank: Rules = Parsed(
        "A rule for how many triplets to keep. Several rules, separated by commas, give several "
        "outputs from one decomposition; name them with {k} in --out.",
        python_type="str or int",
        reader=read_rules,
        metavar="RULE",
        panel=Panel.RANK,
        short="-k",
        suggestions=EXAMPLES,
    )


@options
class TruncateOptions(CheckpointOptions, ResultOptions):
    """Options of `truncate`."""

    _: KW_ONLY
    also_adapter: File[Path | None] = File(
        "Write the same truncated update as a PEFT adapter too, as extract does.",
        default=None,
        metavar="DIR",
        panel=Panel.OUTPUT,
    )


@options
class TruncateManyOptions(CheckpointOptions, RunOptions):
    """Options of `truncate_many`."""

    outs: PythonOnly[_Outs, _Outs] = PythonOnly("From rank rule to the folder to write.")


@options
class ExtractOptions(AdapterOptions, ResultOptions):
    """Options of `extract`."""

    out: File[Path] = File(
        "Folder to write; {k} in it stands for the rule.",
        metavar="ADAPTER",
        panel=Panel.OUTPUT,
        short="-o",
    )
    _: KW_ONLY
    dtype: Choice[StoredDtype] = Choice(
        "Store the factors in float32, bfloat16 or float16; auto is float32, which no loader "
        "rounds further than it must.",
        kind=StoredDtype,
        default="auto",
        metavar="DTYPE",
        panel=Panel.OUTPUT,
    )
