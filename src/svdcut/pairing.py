"""Match the tensors of two checkpoints, and say what happens to each.

A pure function of headers and options: it reads no weights and imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase

from svdcut.checkpoint import Checkpoint
from svdcut.errors import MismatchError, QuantizedError, UsageError
from svdcut.options import Rest
from svdcut.tensorfile import TensorEntry

PREFIXES = ("model.", "bert.", "module.", "_orig_mod.", "base_model.model.")
"""What wrappers and task heads put before every name."""

_IN_NUMBERED_LAYER = re.compile(r"(^|\.)\d+(\.|$)")
_EXPERTS = re.compile(r"(^|\.)experts(\.|$)")
_MAX_LISTED = 20


class Action(str, Enum):
    """What happens to a tensor."""

    TRUNCATE = "truncate"
    COPY_FINETUNED = "copy_finetuned"
    COPY_BASE = "copy_base"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class Pair:
    """One tensor of the result and where it comes from."""

    name: str
    action: Action
    finetuned: TensorEntry
    base: TensorEntry | None

    @property
    def stacked(self) -> bool:
        """Whether it is a stack of expert matrices, each with a rank of its own."""
        return len(self.finetuned.shape) == 3 and bool(_EXPERTS.search(self.name))

    @property
    def shared_rows(self) -> int:
        """How many leading rows both sides have."""
        assert self.base is not None
        return min(self.finetuned.shape[0], self.base.shape[0])

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """Shapes of the matrices to truncate, one unless it is a stack."""
        shape = self.finetuned.shape
        if self.stacked:
            return [(shape[1], shape[2])] * shape[0]
        return [(self.shared_rows, _columns(shape))]


@dataclass(frozen=True, slots=True)
class Pairing:
    """All tensors of the result, in the order of the fine-tuned files."""

    pairs: tuple[Pair, ...]
    base_only: tuple[str, ...]
    base_prefix: str | None
    finetuned_prefix: str | None


def _columns(shape: tuple[int, ...]) -> int:
    columns = 1
    for size in shape[1:]:
        columns *= size
    return columns


def pair_tensors(
    base: Checkpoint,
    finetuned: Checkpoint,
    *,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    rest: Rest = Rest.FINETUNED,
    renames: Mapping[str, str] | None = None,
) -> Pairing:
    """Match two checkpoints by name and decide on every tensor.

    Parameters
    ----------
    base, finetuned : Checkpoint
        The two sides.
    only, skip : sequence of str
        Globs on the names of the fine-tuned side: which tensors to truncate.
    rest : Rest
        Where the others come from.
    renames : mapping of str to str
        Prefixes of base's names, old to new.

    Returns
    -------
    Pairing
        What happens to each tensor.

    Raises
    ------
    QuantizedError
        If a side is quantised.
    MismatchError
        If the sides share no tensor, or shapes do not fit; all of them are listed.
    UsageError
        If a glob or a rename matches nothing.
    """
    for side in (base, finetuned):
        _refuse_quantized(side)
    names = list(finetuned.tensors)
    for option, patterns in (("--only", only), ("--skip", skip)):
        check_patterns(option, patterns, names)
    renamed = _rename(base, renames or {})
    base_prefix, finetuned_prefix = _find_prefix(renamed, names)
    by_key = {name.removeprefix(base_prefix or ""): entry for name, entry in renamed.items()}
    pairs: list[Pair] = []
    mismatches: list[str] = []
    used: set[str] = set()
    for name, entry in finetuned.tensors.items():
        other = by_key.get(name.removeprefix(finetuned_prefix or ""))
        other = other or _tied_partner(name, entry, base, by_key)
        if other is not None:
            used.add(other.name)
            if not _fits(entry, other):
                mismatches.append(
                    f"{name!r}: base {list(other.shape)}, fine-tuned {list(entry.shape)}"
                )
        wanted = _matches(name, only, default=True) and not _matches(name, skip, default=False)
        pairs.append(Pair(name, _decide(entry, other, rest, wanted=wanted), entry, other))
    _refuse_mismatches(base, finetuned, mismatches, shared=bool(used))
    return Pairing(
        pairs=tuple(pairs),
        base_only=tuple(name for name in base.tensors if name not in used),
        base_prefix=base_prefix,
        finetuned_prefix=finetuned_prefix,
    )


def check_patterns(option: str, patterns: Sequence[str], names: Sequence[str]) -> None:
    """Refuse a glob that matches no name: it is a slip of the pen."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            examples = ", ".join(repr(name) for name in names[:3])
            raise UsageError(
                f"{option} {pattern!r} matches no tensor",
                hint=f"Names look like {examples}. Quote the pattern: '*embed*'.",
            )


def _matches(name: str, patterns: Sequence[str], *, default: bool) -> bool:
    if not patterns:
        return default
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _rename(base: Checkpoint, renames: Mapping[str, str]) -> dict[str, TensorEntry]:
    for old in renames:
        if not any(name.startswith(old) for name in base.tensors):
            raise UsageError(f"--map {old}=...: no tensor of {base.source} starts with {old!r}")
    renamed: dict[str, TensorEntry] = {}
    for name, entry in base.tensors.items():
        longest = max((old for old in renames if name.startswith(old)), key=len, default="")
        new_name = renames.get(longest, "") + name[len(longest) :]
        if new_name in renamed:
            raise UsageError(f"--map gives two tensors of {base.source} the name {new_name!r}")
        renamed[new_name] = entry
    return renamed


def _find_prefix(
    base: Mapping[str, TensorEntry], finetuned: Sequence[str]
) -> tuple[str | None, str | None]:
    """Return the prefix to take from base's names and from the fine-tuned ones."""
    ours = set(finetuned)
    if ours & base.keys():
        return None, None
    best: tuple[int, str | None, str | None] = (0, None, None)
    for prefix in PREFIXES:
        shorter_base = {n.removeprefix(prefix) for n in base if n.startswith(prefix)}
        shorter_ours = {n.removeprefix(prefix) for n in ours if n.startswith(prefix)}
        candidates: tuple[tuple[int, str | None, str | None], ...] = (
            (len(shorter_base & ours), prefix, None),
            (len(shorter_ours & base.keys()), None, prefix),
        )
        for candidate in candidates:
            if candidate[0] > best[0]:
                best = candidate
    return best[1:]


def _tied_partner(
    name: str, entry: TensorEntry, base: Checkpoint, by_key: Mapping[str, TensorEntry]
) -> TensorEntry | None:
    """Return base's embedding for a head that base ties to it and does not store."""
    if not (name.endswith("lm_head.weight") and base.ties_embeddings):
        return None
    endings = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
    found = [e for key, e in by_key.items() if key.endswith(endings)]
    return found[0] if len(found) == 1 and found[0].shape[1:] == entry.shape[1:] else None


def _fits(finetuned: TensorEntry, base: TensorEntry) -> bool:
    """Whether the shapes agree, or differ in the vocabulary alone."""
    if finetuned.shape == base.shape:
        return True
    grown = len(finetuned.shape) == len(base.shape) >= 1 and finetuned.shape[1:] == base.shape[1:]
    # Within a numbered layer a first dimension is no vocabulary.
    return grown and not _IN_NUMBERED_LAYER.search(finetuned.name)


def _decide(
    finetuned: TensorEntry, base: TensorEntry | None, rest: Rest, *, wanted: bool
) -> Action:
    if base is not None and wanted and _truncatable(finetuned, base):
        return Action.TRUNCATE
    if base is not None and rest is Rest.BASE and base.shape == finetuned.shape:
        return Action.COPY_BASE
    return Action.COPY_FINETUNED


def _truncatable(finetuned: TensorEntry, base: TensorEntry) -> bool:
    if not (finetuned.dtype.is_plain_float and base.dtype.is_plain_float):
        return False
    shape = finetuned.shape
    if len(shape) < 2 or len(base.shape) != len(shape):
        return False
    if len(shape) == 3 and _EXPERTS.search(finetuned.name):
        return shape == base.shape and shape[0] >= 1 and min(shape[1:]) >= 2
    return min(shape[0], base.shape[0], _columns(shape)) >= 2


def _refuse_mismatches(
    base: Checkpoint, finetuned: Checkpoint, mismatches: Sequence[str], *, shared: bool
) -> None:
    if not shared:
        raise MismatchError(
            f"{base.source} and {finetuned.source} share no tensor: base has names like "
            f"{next(iter(base.tensors), 'none')!r}, the fine-tuned side like "
            f"{next(iter(finetuned.tensors), 'none')!r}",
            hint="If only a prefix differs, name it: --map OLD=NEW renames base's.",
        )
    if mismatches:
        listed = list(mismatches[:_MAX_LISTED])
        if len(mismatches) > _MAX_LISTED:
            listed.append(f"... and {len(mismatches) - _MAX_LISTED} more")
        raise MismatchError(
            f"{len(mismatches)} tensors differ in shape between {base.source} and "
            f"{finetuned.source}:\n    " + "\n    ".join(listed),
            hint="Is this the base that the model was fine-tuned from?",
        )


_QUANTIZED_NAMES = {
    r"\.qweight$": "GPTQ or AWQ",
    r"\.(absmax|quant_map|quant_state\.bitsandbytes__\w+)$": "bitsandbytes 4-bit",
    r"\.SCB$": "bitsandbytes 8-bit",
    r"\.weight_scale(_inv)?$": "fp8 or int8 with scales",
    r"\.weight_packed$": "compressed-tensors",
}


def _refuse_quantized(checkpoint: Checkpoint) -> None:
    kind = checkpoint.quantization
    where = "its config.json"
    for name, entry in checkpoint.tensors.items():
        if kind is not None:
            break
        where = f"tensor {name!r}"
        if entry.dtype.is_quantized:
            kind = entry.dtype.value
        else:
            kind = next((k for p, k in _QUANTIZED_NAMES.items() if re.search(p, name)), None)
    if kind is not None:
        raise QuantizedError(
            f"{checkpoint.source} is quantised ({kind}, says {where}): its stored numbers are "
            "codes, and their difference means nothing",
            hint="Use the checkpoint in bfloat16, float16 or float32, or dequantise it first.",
        )
