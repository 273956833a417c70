"""The options that shape a cut, and those that every command has.

Importable without torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias

from svdcut.choose.keep import Keep
from svdcut.choose.ranks import RankOverride, Rule, parse_override, parse_rules
from svdcut.files.tensorfile import Dtype
from svdcut.option import Panel, declared, plain
from svdcut.option_kinds import (
    Choice,
    Number,
    Parsed,
    Prefixes,
    PythonOnly,
    Switch,
    Text,
    Texts,
    Whole,
    options,
)
from svdcut.svd.route import Route

if TYPE_CHECKING:
    from svdcut.record.progress import Observer, Progress


class Rest(str, Enum):
    """Where tensors come from that are not truncated."""

    FINETUNED = "ft"
    BASE = "base"


class Experts(str, Enum):
    """Form of experts in an adapter where the model's file has them one by one."""

    FUSED = "fused"
    """As the stacks that transformers makes of them."""

    SEPARATE = "separate"
    """Two matrices for each matrix of each expert, all of one rank."""


class StoredDtype(str, Enum):
    """Storage dtype of truncated tensors."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"

    @classmethod
    def _missing_(cls, value: object) -> StoredDtype | None:
        """Understand the short names."""
        return {"fp32": cls.FLOAT32, "bf16": cls.BFLOAT16, "fp16": cls.FLOAT16}.get(str(value))


STORED_DTYPES = {
    StoredDtype.FLOAT32: Dtype.F32,
    StoredDtype.BFLOAT16: Dtype.BF16,
    StoredDtype.FLOAT16: Dtype.F16,
}


def ignore(progress: Progress) -> None:
    """Observe nothing."""


def read_rules(value: str | int | Iterable[str | int | Rule]) -> tuple[Rule, ...]:
    """Parse rank rules."""
    several = [value] if isinstance(value, (str, int)) else value
    return parse_rules(",".join(map(str, several)))


def _read_overrides(value: str | Iterable[str | RankOverride]) -> tuple[RankOverride, ...]:
    several = [value] if isinstance(value, str) else value
    return tuple(parse_override(str(text)) for text in several)


Rules: TypeAlias = Parsed[str | int | Iterable[str | int | Rule], tuple[Rule, ...]]
"""Rank rules; a text holds them separated by commas."""

Overrides: TypeAlias = Parsed[str | Iterable[str | RankOverride], tuple[RankOverride, ...]]
"""Rank rules for tensors by their names."""


@options
class CallOptions:
    """Options of every command that shape no result."""

    _: KW_ONLY
    quiet: Switch = Switch(
        "Print nothing but warnings and errors.", default=False, panel=Panel.SCREEN, short="-q"
    )
    observe: PythonOnly[Observer | None, Observer] = PythonOnly(
        "Called with a `svdcut.Progress` whenever a tensor, a file or a batch is done.",
        default=ignore,
    )


@options
class DeviceOptions:
    """The option of every command that computes."""

    _: KW_ONLY
    device: Text[str] = Text(
        "Where to compute: auto, cpu, cuda or cuda:N; auto takes CUDA where there is one.",
        default="auto",
        metavar="DEVICE",
        panel=Panel.COMPUTATION,
        suggestions=("auto", "cpu", "cuda", "cuda:0"),
    )


@options
class PairOptions(DeviceOptions):
    """Options of every command that matches the tensors of two sides."""

    _: KW_ONLY
    only: Texts = Texts(
        "Work only on tensors whose name matches.",
        default=(),
        metavar="GLOB",
        panel=Panel.TENSORS,
    )
    skip: Texts = Texts(
        "Leave alone tensors whose name matches, as '*embed*'.",
        default=(),
        metavar="GLOB",
        panel=Panel.TENSORS,
    )
    map: Prefixes = Prefixes(
        "Rename a prefix of base's tensor names.",
        default=(),
        metavar="OLD=NEW",
        panel=Panel.TENSORS,
    )


@options
class ShapeOptions(PairOptions):
    """Options that shape a cut, of `truncate`, `extract` and `sweep`."""

    _: KW_ONLY
    rank_for: Overrides = Parsed(
        "Use another rule for tensors whose name matches; the last match wins.",
        reader=_read_overrides,
        repeats=True,
        default=(),
        metavar="GLOB=RULE",
        panel=Panel.RANK,
    )
    scale: Number = Number(
        "Multiply the kept update by this.", default=1.0, metavar="F", panel=Panel.RANK
    )
    seed: Whole[int] = Whole("Seed of --keep random.", default=0, metavar="N", panel=Panel.RANK)
    rest: Choice[Rest] = Choice(
        "Which side every other tensor comes from.", kind=Rest, default="ft", panel=Panel.TENSORS
    )
    svd: Choice[Route] = Choice(
        "Algorithm to start with; a more careful one follows where its error bound is not met.",
        kind=Route,
        default="auto",
        panel=Panel.COMPUTATION,
    )
    dtype: Choice[StoredDtype] = Choice(
        "Store truncated tensors in float32, bfloat16 or float16; auto is the fine-tuned "
        "tensor's own dtype.",
        kind=StoredDtype,
        default="auto",
        metavar="DTYPE",
        panel=Panel.OUTPUT,
    )


@options
class CutOptions(ShapeOptions):
    """Options of `truncate` and `extract`."""

    _: KW_ONLY
    keep: Choice[Keep] = Choice(
        "Which triplets stay; bottom and random are the controls of an experiment.",
        kind=Keep,
        default="top",
        panel=Panel.RANK,
    )
    tolerance: Number = Number(
        "Certify the error of every cut to be within this share of the best possible error at "
        "its rank. From 1e-5 on singular values may be off by that share too, and large matrices "
        "take less time.",
        default=1e-6,
        accepts=lambda share: 0 < share < 1,
        expected="a number between 0 and 1",
        metavar="F",
        panel=Panel.COMPUTATION,
    )


@options
class CheckpointOptions:
    """Options of a result that is a checkpoint."""

    _: KW_ONLY
    max_shard_size: Text[str | None] = Text(
        "Split the weights into files of at most this size, as 5GB.",
        default=None,
        metavar="SIZE",
        panel=Panel.OUTPUT,
        shown_default="the fine-tuned checkpoint's own files",
    )


@options
class AdapterOptions:
    """Options of a result that is an adapter."""

    _: KW_ONLY
    drop: Texts = Texts(
        "Leave tensors whose name matches as they are in BASE: those that an adapter cannot "
        "hold, or that its loader does not take.",
        default=(),
        metavar="GLOB",
        panel=Panel.TENSORS,
    )
    experts: Choice[Experts] = Choice(
        "Experts that FT stores one by one: fused to the stacks that transformers makes of "
        "them, or separate, as SGLang needs them, padded with zeros to one rank.",
        kind=Experts,
        default="fused",
        panel=Panel.OUTPUT,
    )


@options
class Options(CheckpointOptions, AdapterOptions, CutOptions):
    """Every option that shapes a result: what the code below the API reads."""

    def to_json(self, rule: Rule) -> dict[str, Any]:
        """Return the ``options`` of a manifest."""
        return {"rank": str(rule), **plain(self)}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Options:
        """Return the options of a manifest; its rank is `parse_rule` of ``found["rank"]``.

        Raises
        ------
        UsageError
            If a value is none of those allowed.
        """
        return cls(**{name: found[name] for name in declared(cls) if name in found})
