"""adapter_config.json: what it says of scales, and what of it we cannot follow.

Fields and defaults: peft.tuners.lora.LoraConfig, 0.21.2. It reads no tensors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from svdcut.adapter.patterns import Pattern
from svdcut.errors import CheckpointError
from svdcut.files.filenames import check_own
from svdcut.files.jsonfile import Bounds, quoted, read_json

CLASSIFIERS = {"SEQ_CLS": "ForSequenceClassification", "TOKEN_CLS": "ForTokenClassification"}
"""Tasks of classifiers, and the ends of transformers' classes for them."""

_BOUNDS = Bounds(num_bytes=16_000_000, num_values=200_000)
_MAX_PATTERNS, _MAX_NAMES = 200, 20_000
"""Of real expressions, and of plain names. Every module is matched with all of them."""

_MAX_RANK = 2**31
_DEFAULT = 8
"""Of `r` and of `lora_alpha`."""

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
"""What changes the result in a way that two factors do not tell."""

_IGNORED = frozenset(
    {
        *("auto_mapping", "inference_mode"),
        *("target_modules", "exclude_modules", "lora_dropout", "bias"),
        *("layers_to_transform", "layers_pattern", "megatron_core", "loftq_config", "eva_config"),
        *("corda_config", "lora_ga_config", "velora_config", "monteclora_config"),
        *("qalora_group_size", "runtime_config", "merge_weights"),
    }
)
"""What decides on training, or says what the keys of the tensors say too.

VeLoRA and MonteCLoRA are merged as any other (peft.tuners.lora.variants).
"""

_READ = frozenset(
    {
        *("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"),
        *("use_dora", "fan_in_fan_out", "modules_to_save", "target_parameters", "lora_bias"),
        *("init_lora_weights", "ensure_weight_tying", "peft_version", "task_type"),
        *("base_model_name_or_path", "revision"),
    }
)

_KEEPS_BASE = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
"""Ways to begin that leave base's weights as they are (LoraLayer.update_layer)."""


@dataclass(frozen=True, slots=True)
class Patterns:
    """Values of modules by expressions on their names; the first that matches counts."""

    plain: tuple[tuple[int, str, re.Pattern[str], float], ...]
    """Names, with their place, last part and value; a dot in them is any character."""

    others: tuple[tuple[int, Pattern, float], ...]
    _known: dict[str, float] = field(default_factory=dict, compare=False, repr=False)

    def find(self, name: str, default: float) -> float:
        """Return the value of a module; `default` is the same at every call."""
        if name not in self._known:
            self._known[name] = self._search(name, default)
        return self._known[name]

    def _search(self, name: str, default: float) -> float:
        found = [
            (place, value)
            for place, end, pattern, value in self.plain
            if name.endswith(end) and pattern.match(name)
        ]
        first = min(found, default=(math.inf, default))
        for place, pattern, value in self.others:
            if place > first[0]:
                break
            if pattern.matches(name):
                return value
        return first[1]


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """What a config says, as far as it decides on the result."""

    path: Path
    rank: int
    alpha: float
    rank_pattern: Patterns
    alpha_pattern: Patterns
    rank_stabilized: bool
    dora: bool
    fan_in_fan_out: bool
    parameters: tuple[str, ...]
    """`target_parameters`: ends of the names of parameters."""

    saved_modules: tuple[str, ...]
    """`modules_to_save`."""

    version: tuple[int, int, int] | None
    """Of the PEFT that wrote it, from 0.18 on; None of a version between two releases."""

    ties: bool
    """`ensure_weight_tying`."""

    task: str | None
    """`task_type`, as ``SEQ_CLS``."""

    base: str | None
    """`base_model_name_or_path`: a folder or a Hub id."""

    base_revision: str | None
    """`revision`, of a Hub id."""

    def rank_of(self, parameter: str) -> int:
        """Return the rank of a parameter's update, of each expert; by its name in memory."""
        return int(self.rank_pattern.find(self._key(parameter), self.rank))

    def scale_of(self, parameter: str) -> float:
        """Return what the product of a parameter's factors is multiplied with."""
        alpha = self.alpha_pattern.find(self._key(parameter), self.alpha)
        rank = self.rank_of(parameter)
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)

    def _key(self, parameter: str) -> str:
        """Return what patterns are matched with: mostly the name of the module."""
        if any(f".{parameter}".endswith(f".{target}") for target in self.parameters):
            return parameter
        return parameter.removesuffix(".weight")


def read_peft_config(path: Path) -> PeftConfig:
    """Read and check the config of an adapter.

    Raises
    ------
    CheckpointError
        If it cannot be read, is not of LoRA, or asks for what is not supported.
    """
    check_own(path, path.parent)
    fields = _Fields(path, read_json(path, _BOUNDS))
    _refuse_others(fields)
    _refuse_unsupported(fields)
    return PeftConfig(
        path=path,
        rank=_rank(fields, "r", fields.get("r", _DEFAULT)),
        alpha=_alpha(fields, "lora_alpha", fields.get("lora_alpha", _DEFAULT)),
        rank_pattern=_patterns(fields, "rank_pattern", _rank),
        alpha_pattern=_patterns(fields, "alpha_pattern", _alpha),
        rank_stabilized=fields.flag("use_rslora"),
        dora=fields.flag("use_dora"),
        fan_in_fan_out=fields.flag("fan_in_fan_out"),
        parameters=fields.texts("target_parameters"),
        saved_modules=fields.texts("modules_to_save"),
        version=_version(fields),
        ties=fields.flag("ensure_weight_tying"),
        task=fields.text("task_type"),
        base=fields.text("base_model_name_or_path"),
        base_revision=fields.text("revision"),
    )


@dataclass(frozen=True, slots=True)
class _Fields:
    """What a stranger wrote; any value may be of any type."""

    path: Path
    values: Mapping[str, Any]

    def get(self, key: str, default: object) -> object:
        found = self.values.get(key)
        return default if found is None else found

    def flag(self, key: str) -> bool:
        found = self.get(key, default=False)
        if not isinstance(found, bool):
            raise self.wrong(key, found, "true or false")
        return found

    def text(self, key: str) -> str | None:
        """Return a text; None where there is none, or something else that decides on nothing."""
        found = self.values.get(key)
        return found if isinstance(found, str) and found else None

    def texts(self, key: str) -> tuple[str, ...]:
        found = self.get(key, [])
        if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
            raise self.wrong(key, found, "a list of texts")
        return tuple(found)

    def wrong(self, key: str, found: object, expected: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {key!r} is {quoted(found)}, not {expected}")


def _rank(fields: _Fields, key: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < _MAX_RANK:
        raise fields.wrong(key, value, "a rank, which is 1 or more")
    return value


def _alpha(fields: _Fields, key: str, value: object) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not abs(value) < _MAX_RANK:  # type: ignore[arg-type]
        raise fields.wrong(key, value, "a number")
    return float(value)  # type: ignore[arg-type]


def _version(fields: _Fields) -> tuple[int, int, int] | None:
    found = re.fullmatch(r"(\d{1,4})\.(\d{1,4})\.(\d{1,4})", fields.text("peft_version") or "")
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def _patterns(fields: _Fields, key: str, check: Any) -> Patterns:  # noqa: ANN401 - one of two
    found = fields.get(key, {})
    if not isinstance(found, dict):
        raise fields.wrong(key, found, "an object")
    plain, others = [], []
    for place, (text, value) in enumerate(found.items()):
        number = check(fields, f"{key}: {quoted(text)}", value)
        if re.fullmatch(r"[\w.-]*", text):
            pattern = re.compile(rf"(.*\.)?({text})$")
            plain.append((place, text.rpartition(".")[2], pattern, number))
        else:
            others.append((place, _parse(fields, key, text), number))
    for what, one_kind, most in (
        ("expressions", others, _MAX_PATTERNS),
        ("names", plain, _MAX_NAMES),
    ):
        if len(one_kind) > most:
            raise CheckpointError(f"{fields.path}: {key!r} has more than {most} {what}")
    return Patterns(tuple(plain), tuple(others))


def _parse(fields: _Fields, key: str, text: str) -> Pattern:
    try:
        return Pattern(text)
    except ValueError as error:
        raise CheckpointError(
            f"{fields.path}: {key!r} has an expression that cannot be read: "
            f"{quoted(text)} ({error})",
            hint="Write the names of the modules in full instead.",
        ) from None


def _refuse_others(fields: _Fields) -> None:
    kind = fields.get("peft_type", None)
    if kind is None:
        raise CheckpointError(
            f"{fields.path}: names no 'peft_type'", hint="Is it the config of a PEFT adapter?"
        )
    if kind != "LORA":
        raise CheckpointError(
            f"{fields.path}: an adapter of {quoted(kind)}; of those of PEFT, only 'LORA' is read",
            hint=_MERGE,
        )


def _refuse_unsupported(fields: _Fields) -> None:
    for key, what in _REFUSED.items():
        if fields.get(key, None) not in (None, False, [], {}):
            raise CheckpointError(f"{fields.path}: {key!r} asks for {what}", hint=_MERGE)
    start = fields.get("init_lora_weights", None)
    if start not in _KEEPS_BASE:
        raise CheckpointError(
            f"{fields.path}: 'init_lora_weights' is {quoted(start)}: such an adapter is to be "
            "added to weights that its training took from base, not to base itself",
            hint=_CONVERT,
        )
    for key, value in fields.values.items():
        known = key in _READ or key in _REFUSED or key in _IGNORED
        # What turns something on is true or an object; numbers and texts only set it up.
        if not known and (value is True or (isinstance(value, (dict, list)) and value)):
            raise CheckpointError(
                f"{fields.path}: {quoted(key)} is {quoted(value)}, which is not known here: "
                "it may change the result",
                hint=_MERGE,
            )
