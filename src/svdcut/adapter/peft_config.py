"""adapter_config.json: what it says of ranks and scales, and what of it is refused.

Fields and defaults: peft.tuners.lora.LoraConfig, 0.21.2. It reads no tensors.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import re2

from svdcut.errors import CheckpointError
from svdcut.files.filenames import check_own
from svdcut.files.jsonfile import Bounds, quoted, read_json

CLASSIFIERS = {"SEQ_CLS": "ForSequenceClassification", "TOKEN_CLS": "ForTokenClassification"}
"""Tasks of classifiers, and the ends of transformers' classes for them."""

_BOUNDS = Bounds(num_bytes=16_000_000, num_values=200_000)
_MAX_PATTERNS, _MAX_NAMES = 200, 20_000
"""Limits of expressions and plain names: every module is compared with all of them."""

_MAX = 2**31
_NAME = re.compile(r"[\w.-]*")
"""Patterns that are plain names: their last parts tell at once that most modules differ."""

_MERGE = (
    "If PEFT can merge it, do that first: PeftModel.merge_and_unload(), save_pretrained(); "
    "and name the merged model."
)
_CONVERT = (
    "Save it as an adapter of the original base: "
    "save_pretrained(..., path_initial_model_for_weight_conversion=...)."
)

_REFUSED = {
    "use_qalora": "QALoRA, whose update is of pooled inputs",
    "use_bdlora": "BD-LoRA, whose factors are blocks",
    "kasa_config": "KaSA, which cuts the weights of base",
    "arrow_config": "Arrow, which chooses among adapters for every token",
    "alora_invocation_tokens": "aLoRA, which leaves some tokens alone: it cannot be merged",
    "layer_replication": "layer_replication, whose model has more layers than base",
    "trainable_token_indices": "trainable_token_indices, which replaces single rows",
    "megatron_config": "layers of Megatron",
    "enable_lora": "enable_lora, a LoRA on parts of a matrix",
}
"""Fields that change the result in a way that two factors cannot express."""

_IGNORED = frozenset(
    {
        *("peft_type", "init_lora_weights", "lora_bias", "auto_mapping", "inference_mode"),
        *("target_modules", "exclude_modules", "lora_dropout", "bias"),
        *("layers_to_transform", "layers_pattern", "megatron_core", "loftq_config", "eva_config"),
        *("corda_config", "lora_ga_config", "velora_config", "monteclora_config"),
        *("qalora_group_size", "runtime_config", "merge_weights"),
    }
)
"""Fields that only matter in training, are checked elsewhere, or repeat the tensors' keys.

VeLoRA and MonteCLoRA are merged as any other (peft.tuners.lora.variants).
"""

_KEEPS_BASE = (True, False, "gaussian", "eva", "orthogonal", "mica")
"""Values of `init_lora_weights` that leave base's weights as they are."""


class Pattern:
    r"""A regular expression that names a module by its last parts, as PEFT reads it.

    As ``re.match(rf"(.*\.)?({text})$", name)`` (peft.utils.other.get_pattern_key, 0.21.2).
    RE2 matches it in linear time; Python's engine can take for ever on a few characters.

    Parameters
    ----------
    text : str
        The expression.

    Raises
    ------
    ValueError
        If it cannot be read, or has what RE2 does not know: look-around, back references.
    """

    def __init__(self, text: str) -> None:
        whole = rf"(.*\.)?({text})"
        _check_expression(whole)
        options = re2.Options()
        options.log_errors = False
        self._end = text.rpartition(".")[2] if _NAME.fullmatch(text) else ""
        try:
            self._compiled = re2.compile(whole, options)
        except re2.error as error:
            raise ValueError(str(error)) from None

    def matches(self, name: str) -> bool:
        """Whether it is all of a name, or all that follows some dot."""
        return name.endswith(self._end) and self._compiled.fullmatch(name) is not None


def _check_expression(text: str) -> None:
    """Refuse what Python cannot read, or reads in another way than RE2."""
    if "{," in text:
        raise ValueError("a repetition without a least number: write {0,n}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of sets within sets, and flags in the middle
            re.compile(text)
    except (re.error, Warning, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from None


def _lookup(patterns: Sequence[tuple[Pattern, float]], default: float) -> Callable[[str], float]:
    """Return a function from a module's name to its value: that of the first match."""

    @cache
    def find(name: str) -> float:
        return next((value for pattern, value in patterns if pattern.matches(name)), default)

    return find


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """The fields of a config that decide on the result; names are PEFT's."""

    path: Path
    rank: Callable[[str], float]
    """`r` and `rank_pattern`, by the name of a module or parameter."""

    alpha: Callable[[str], float]
    """`lora_alpha` and `alpha_pattern`, likewise."""

    use_rslora: bool
    use_dora: bool
    fan_in_fan_out: bool
    ensure_weight_tying: bool
    target_parameters: list[str]
    """Ends of the names of parameters."""

    modules_to_save: list[str]
    peft_version: str | None
    """Written from PEFT 0.18 on."""

    task_type: str | None
    """As ``SEQ_CLS``."""

    base_model_name_or_path: str | None
    revision: str | None

    @property
    def version(self) -> tuple[int, ...] | None:
        """The release of PEFT that wrote it; None for a version between two releases."""
        found = re.fullmatch(r"(\d{1,4})\.(\d{1,4})\.(\d{1,4})", self.peft_version or "")
        return tuple(map(int, found.groups())) if found else None

    def rank_of(self, parameter: str) -> int:
        """Return the rank of a parameter's update, of each expert; by its name in memory."""
        return int(self.rank(self._key(parameter)))

    def scale_of(self, parameter: str) -> float:
        """Return what the product of a parameter's factors is multiplied with."""
        rank = self.rank_of(parameter)
        return self.alpha(self._key(parameter)) / (math.sqrt(rank) if self.use_rslora else rank)

    def _key(self, parameter: str) -> str:
        """Return what patterns are matched with: mostly the name of the module."""
        if any(f".{parameter}".endswith(f".{target}") for target in self.target_parameters):
            return parameter
        return parameter.removesuffix(".weight")


@dataclass(frozen=True, slots=True)
class _Kind:
    """Type that a field must have."""

    name: str
    fits: Callable[[Any], bool]


_RANK = _Kind("a rank, which is 1 or more", lambda v: type(v) is int and 1 <= v < _MAX)
_NUMBER = _Kind("a number", lambda v: type(v) in (int, float) and abs(v) < _MAX)
_SWITCH = _Kind("true or false", lambda v: isinstance(v, bool))
_TEXTS = _Kind(
    "a list of texts", lambda v: isinstance(v, list) and all(isinstance(t, str) for t in v)
)
_OBJECT = _Kind("an object", lambda v: isinstance(v, dict))

_SWITCHES = ("use_rslora", "use_dora", "fan_in_fan_out", "ensure_weight_tying")
_LISTS = ("target_parameters", "modules_to_save")
_SINGLE_TEXTS = ("peft_version", "task_type", "base_model_name_or_path", "revision")
"""Fields that are ignored where they are no text."""

_KNOWN = _IGNORED.union(_REFUSED, _SWITCHES, _LISTS, _SINGLE_TEXTS).union(
    ("r", "lora_alpha", "rank_pattern", "alpha_pattern")
)


def read_peft_config(path: Path) -> PeftConfig:
    """Read and check the config of an adapter.

    Raises
    ------
    CheckpointError
        If it cannot be read, is not of LoRA, or asks for what is not supported.
    """
    check_own(path, path.parent)
    fields = {k: v for k, v in read_json(path, _BOUNDS).items() if v is not None}
    _refuse_unsupported(path, fields)
    texts: dict[str, Any] = {
        key: text if isinstance(text := fields.get(key), str) and text else None
        for key in _SINGLE_TEXTS
    }
    return PeftConfig(
        path=path,
        rank=_values(path, fields, "r", "rank_pattern", _RANK),
        alpha=_values(path, fields, "lora_alpha", "alpha_pattern", _NUMBER),
        **{key: _check(path, key, fields.get(key, False), _SWITCH) for key in _SWITCHES},
        **{key: _check(path, key, fields.get(key, []), _TEXTS) for key in _LISTS},
        **texts,
    )


def _check(path: Path, key: str, value: Any, kind: _Kind) -> Any:  # noqa: ANN401 - of the kind
    if not kind.fits(value):
        raise CheckpointError(f"{path}: {key!r} is {quoted(value)}, not {kind.name}")
    return value


def _values(
    path: Path, fields: Mapping[str, Any], common: str, by_pattern: str, kind: _Kind
) -> Callable[[str], float]:
    """Return a function from a module's name to its rank or alpha."""
    default = _check(path, common, fields.get(common, 8), kind)
    values = _check(path, by_pattern, fields.get(by_pattern, {}), _OBJECT)
    names = sum(_NAME.fullmatch(text) is not None for text in values)
    for what, count, most in (
        ("expressions", len(values) - names, _MAX_PATTERNS),
        ("names", names, _MAX_NAMES),
    ):
        if count > most:
            raise CheckpointError(f"{path}: {by_pattern!r} has more than {most} {what}")
    found = [
        (_parse(path, by_pattern, text), _check(path, f"{by_pattern}: {quoted(text)}", value, kind))
        for text, value in values.items()
    ]
    return _lookup(found, default)


def _parse(path: Path, key: str, text: str) -> Pattern:
    try:
        return Pattern(text)
    except ValueError as error:
        raise CheckpointError(
            f"{path}: {key!r} has an expression that cannot be read: {quoted(text)} ({error})",
            hint="Write the names of the modules in full instead.",
        ) from None


def _refuse_unsupported(path: Path, fields: Mapping[str, Any]) -> None:
    kind = fields.get("peft_type")
    if kind is None:
        raise CheckpointError(
            f"{path}: names no 'peft_type'", hint="Is it the config of a PEFT adapter?"
        )
    if kind != "LORA":
        raise CheckpointError(
            f"{path}: an adapter of {quoted(kind)}; of those of PEFT, only 'LORA' is read",
            hint=_MERGE,
        )
    for key, what in _REFUSED.items():
        if fields.get(key, False) not in (False, [], {}):
            raise CheckpointError(f"{path}: {key!r} asks for {what}", hint=_MERGE)
    start = fields.get("init_lora_weights", True)
    if start not in _KEEPS_BASE:
        raise CheckpointError(
            f"{path}: 'init_lora_weights' is {quoted(start)}: such an adapter is to be "
            "added to weights that its training took from base, not to base itself",
            hint=_CONVERT,
        )
    for key, value in fields.items():
        # What turns something on is true or an object; numbers and texts only set it up.
        if key not in _KNOWN and (value is True or (isinstance(value, (dict, list)) and value)):
            raise CheckpointError(
                f"{path}: {quoted(key)} is {quoted(value)}, which is not known here: "
                "it may change the result",
                hint=_MERGE,
            )
