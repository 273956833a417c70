"""What an adapter does to each tensor of a base.

The names in an adapter are those of a model in memory, and a file may have others. Headers
and names alone; it reads no factors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from svdcut.adapter.collection import AdapterTensors, Factors
from svdcut.adapter.in_memory import Parameter, Piece, parameters_in_memory
from svdcut.adapter.orientation import Conventions, possible_orientations, stacks_transposed
from svdcut.adapter.parameter_names import find_stacks_transposed, name_parameters
from svdcut.adapter.peft_config import PeftConfig
from svdcut.errors import CheckpointError, MismatchError, listed
from svdcut.files.checkpoint import Checkpoint
from svdcut.files.jsonfile import quoted
from svdcut.files.lora_factors import LowRankEntry
from svdcut.files.tensorfile import TensorEntry
from svdcut.names import HEAD, collapse_numbers, is_task_head, tied_part
from svdcut.pair.matching import Matching, match_names, rename_tensors


@dataclass(frozen=True, slots=True)
class Application:
    """What becomes of base's tensors, by their names in its file."""

    updates: Mapping[str, LowRankEntry]
    replaced: Mapping[str, TensorEntry]
    """What the adapter stores whole of them."""

    added: Mapping[str, TensorEntry]
    """What base has nothing of."""

    model_names: Mapping[str, str]
    """By name in base's file: with the prefix that the adapter's keys have."""


@dataclass(slots=True)
class _Change:
    """What an adapter has for one parameter in memory."""

    factors: Factors | None = None
    shift: Factors | None = None
    """Whose bias is added to it."""

    whole: TensorEntry | None = None

    @property
    def entry(self) -> TensorEntry:
        """A tensor of the adapter that speaks for the change."""
        shift = self.shift.bias if self.shift else None
        entry = self.whole or (self.factors.a if self.factors else shift)
        assert entry is not None
        return entry

    def shape(self, rank: int) -> tuple[int, ...]:
        """Return the parameter's shape, up to the order of its sizes."""
        pair = self.factors
        if pair is None:
            return self.entry.shape
        experts = () if pair.rank == rank or pair.rank % rank else (pair.rank // rank,)
        return (*experts, pair.rows, *pair.a.shape[1:])


@dataclass(slots=True)
class _Applier:
    """Turns changes of parameters into changes of tensors, and collects what does not fit."""

    config: PeftConfig
    conventions: Conventions
    updates: dict[str, LowRankEntry] = field(default_factory=dict)
    replaced: dict[str, TensorEntry] = field(default_factory=dict)
    problems: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    """Keys of the adapter, by what is wrong with them and how they look."""

    def complain(self, key: str, problem: str) -> None:
        """Note what is wrong with a tensor of the adapter."""
        self.problems.setdefault((collapse_numbers(key), problem), []).append(key)

    def apply(self, name: str, change: _Change, parameter: Parameter) -> None:
        """Take in the change of one parameter that base has."""
        if change.whole is not None and len(parameter.pieces) == 1:
            base_name = parameter.pieces[0].tensor.name
            self.replaced[base_name] = replace(change.whole, name=base_name)
            parameter = Parameter(change.whole.shape, parameter.pieces)
        elif change.whole is not None:
            self.complain(change.whole.name, "base stores it as several tensors")
        if change.shift is not None:
            self._shift(change.shift, parameter)
        if change.factors is not None:
            self._multiply(name, change.factors, parameter)

    def _shift(self, pair: Factors, parameter: Parameter) -> None:
        assert pair.bias is not None
        if parameter.shape != pair.bias.shape:
            self._misfit(pair.bias, pair.bias.shape, parameter)
            return
        scale = self.config.scale_of(f"{pair.module}.weight")
        self._update(pair.bias.name, parameter.pieces[0], LowRankEntry(None, pair.bias, 1, scale))

    def _multiply(self, name: str, pair: Factors, parameter: Parameter) -> None:
        rank = self.config.rank_of(name)
        experts = parameter.shape[0] if len(parameter.shape) == 3 and len(pair.a.shape) == 2 else 1
        if pair.rank != rank * experts:
            of = f" for each of {experts} experts" if experts > 1 else ""
            self.complain(pair.a.name, f"rank {pair.rank}, where the config says {rank}{of}")
            return
        ways = possible_orientations(pair, rank, parameter.shape)
        if not ways:
            self._misfit(pair.a, (pair.rows, *pair.a.shape[1:]), parameter)
            return
        if not self._is_magnitude_right(pair, stacked=experts > 1):
            return
        entry = LowRankEntry(
            a=pair.a,
            b=pair.b,
            rank=rank,
            scale=self.config.scale_of(name),
            transposed=ways.pop() if len(ways) == 1 else self._expected(name, parameter),
            experts=experts,
            magnitude=pair.magnitude,
        )
        for piece in parameter.pieces:
            part = replace(entry, first_expert=piece.expert, rows=piece.rows)
            self._update(pair.a.name, piece, part)

    def _expected(self, name: str, parameter: Parameter) -> bool:
        """Return which way round a square matrix is, which its factors fit either way."""
        found = self.conventions.transposed(name, parameter.shape)
        if found is None:
            raise CheckpointError(
                f"{self.config.path}: nothing tells which way round the factors of {quoted(name)} "
                f"are: its matrices are square, {list(parameter.shape)}, and no release of PEFT is "
                "named",
                hint="PEFT stores them differently since 0.19. Write the version that made the "
                'adapter into the file, as "peft_version": "0.18.1".',
            )
        return found

    def _is_magnitude_right(self, pair: Factors, *, stacked: bool) -> bool:
        if pair.magnitude is None:
            if self.config.dora and not stacked:
                self.complain(pair.a.name, "no lora_magnitude_vector, where the config says DoRA")
            return not self.config.dora
        sizes = [size for size in pair.magnitude.shape if size != 1] or [1]
        if not self.config.dora:
            self.complain(pair.magnitude.name, "the config does not say DoRA")
        elif stacked or sizes != [pair.rows]:
            self.complain(pair.magnitude.name, f"shape {list(pair.magnitude.shape)}")
        else:
            return True
        return False

    def _update(self, key: str, piece: Piece, update: LowRankEntry) -> None:
        if self.updates.setdefault(piece.tensor.name, update) is not update:
            self.complain(key, f"{quoted(piece.tensor.name)} is changed twice")

    def _misfit(self, entry: TensorEntry, shape: tuple[int, ...], parameter: Parameter) -> None:
        self.complain(entry.name, f"base {list(parameter.shape)}, adapter {list(shape)}")


def apply_adapter(
    adapter: AdapterTensors,
    config: PeftConfig,
    base: Checkpoint,
    renames: Mapping[str, str],
) -> Application:
    """Find the tensors of a base that an adapter changes.

    Parameters
    ----------
    adapter : AdapterTensors
        Its tensors.
    config : PeftConfig
        Its config.
    base : Checkpoint
        The base that it was trained on.
    renames : mapping of str to str
        Prefixes of base's names, old to new.

    Raises
    ------
    MismatchError
        If a tensor of the adapter has no place in base, or does not fit; all are listed.
    UsageError
        If a rename matches nothing.
    """
    renamed = rename_tensors(base.tensors, renames, base.source)
    in_memory = parameters_in_memory(renamed)
    shown = find_stacks_transposed(adapter.factors, in_memory, config)
    stacks = stacks_transposed(config.version, base.model_types) if shown is None else shown
    conventions = Conventions(base.model_types, config.fan_in_fan_out, stacks)
    changes = _changes(adapter, name_parameters(adapter.factors, in_memory, config, conventions))
    matching = _match(in_memory, changes, config)
    applier = _Applier(config, conventions)
    added: dict[str, TensorEntry] = {}
    model_names = _model_names(renamed, matching)
    for name, change in changes.items():
        if partner := matching.partners.get(name):
            applier.apply(name, change, in_memory[partner.name])
        elif (
            change.whole is not None and change.factors is None and _may_be_new(name, config, base)
        ):
            new_name = _as_in_base(name, matching, renames)
            added[new_name] = replace(change.whole, name=new_name)
            model_names[new_name] = name
        elif not _is_tied_copy(name, change, base, config):
            applier.complain(change.entry.name, _why_unmatched(name, base))
    _refuse(applier.problems, config, base)
    return Application(applier.updates, applier.replaced, added, model_names)


def _model_names(renamed: Mapping[str, TensorEntry], matching: Matching) -> dict[str, str]:
    """Return the names of base's tensors with the prefix that the adapter's keys have."""
    found: dict[str, str] = {}
    for name, entry in renamed.items():
        fitting = (r for r in matching.renames if name.startswith(r.base))
        rename = next(fitting, None)
        # A head is beside what a prefix is put before.
        if rename is not None and not (rename.base == "" and _is_head(name)):
            name = rename.finetuned + name.removeprefix(rename.base)  # noqa: PLW2901
        found[entry.name] = name
    return found


def _is_head(name: str) -> bool:
    return is_task_head(name) or tied_part(name) == HEAD


def _changes(adapter: AdapterTensors, named: Mapping[str, Factors]) -> dict[str, _Change]:
    changes = {name: _Change(factors=pair) for name, pair in named.items()}
    for pair in adapter.factors:
        if pair.bias is not None:
            changes.setdefault(f"{pair.module}.bias", _Change()).shift = pair
    for name, entry in adapter.whole.items():
        changes.setdefault(name, _Change()).whole = entry
    return changes


def _match(
    in_memory: Mapping[str, Parameter], changes: Mapping[str, _Change], config: PeftConfig
) -> Matching:
    """Match names as those of two checkpoints, of shapes without an order.

    Orientations are not known before the partner is.
    """
    theirs = {
        name: _unordered(name, parameter.shape, parameter.pieces[0].tensor)
        for name, parameter in in_memory.items()
    }
    some = next(iter(theirs.values()))
    ours = {
        name: _unordered(name, change.shape(config.rank_of(name)), some)
        for name, change in changes.items()
    }
    return match_names(theirs, ours, lambda ours, theirs: ours.shape == theirs.shape)


def _unordered(name: str, shape: tuple[int, ...], entry: TensorEntry) -> TensorEntry:
    return replace(entry, name=name, shape=tuple(sorted(shape)))


def _may_be_new(name: str, config: PeftConfig, base: Checkpoint) -> bool:
    """Whether base may lack a tensor that the adapter stores whole: the head of a task, mostly."""
    part = tied_part(name)
    if part is not None:
        # Every base has an embedding, and one that has a head has it by another name.
        return part == HEAD and not any(tied_part(other) == HEAD for other in base.tensors)
    saved = any(f".{module}." in f".{name}" for module in config.saved_modules)
    return saved or is_task_head(name)


def _as_in_base(name: str, matching: Matching, renames: Mapping[str, str]) -> str:
    """Return the name with the prefix that base's names have."""
    backwards = [(rename.finetuned, rename.base) for rename in matching.renames[:1]]
    backwards += [(new, old) for old, new in renames.items() if new]
    for new, old in backwards:
        if name.startswith(new):
            name = old + name.removeprefix(new)
    return name


def _is_tied_copy(name: str, change: _Change, base: Checkpoint, config: PeftConfig) -> bool:
    """Whether it is what the adapter has of the embedding too, for a head that is tied to it."""
    head = tied_part(name) == HEAD and base.ties_embeddings
    return head and config.ties and change.factors is not None


def _why_unmatched(name: str, base: Checkpoint) -> str:
    if tied_part(name) == HEAD and base.ties_embeddings:
        return "base stores no head, for it is tied to the embedding"
    return "base has no such tensor"


def _refuse(
    problems: Mapping[tuple[str, str], list[str]], config: PeftConfig, base: Checkpoint
) -> None:
    if not problems:
        return
    count = sum(map(len, problems.values()))
    noun = "tensor does" if count == 1 else "tensors do"
    raise MismatchError(
        f"{count} {noun} not fit, of the adapter {config.path.parent} on {base.source}:"
        f"{listed(_describe(problems))}",
        hint="Is this the base that the adapter was trained on? If only a prefix differs, "
        "name it: --map OLD=NEW renames base's.",
    )


def _describe(problems: Mapping[tuple[str, str], list[str]]) -> Iterable[str]:
    for (name, problem), keys in problems.items():
        shown = quoted(keys[0]) if len(keys) == 1 else f"{quoted(name)} ({len(keys)} tensors)"
        yield f"{shown}: {problem}"
