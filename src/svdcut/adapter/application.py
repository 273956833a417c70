"""Apply an adapter to the tensors of a base: headers and names alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from svdcut.adapter.memory import Parameter, model_types, parameters_by_any_name
from svdcut.adapter.parameters import Finder, make_finder, possible_orientations
from svdcut.adapter.peft_config import PeftConfig
from svdcut.adapter.tensors import AdapterTensors, Factors
from svdcut.errors import MismatchError, listed
from svdcut.files.checkpoint import Checkpoint
from svdcut.files.jsonfile import quoted
from svdcut.files.lora_factors import LowRankEntry
from svdcut.files.tensorfile import TensorEntry
from svdcut.names import HEAD, collapse_numbers, is_task_head, tied_part
from svdcut.pair.matching import Matching, match_names, rename_tensors


@dataclass(frozen=True, slots=True)
class Application:
    """Changes to base's tensors, by their names in its file."""

    updates: Mapping[str, LowRankEntry]
    replaced: Mapping[str, TensorEntry]
    """Tensors that the adapter stores whole."""

    added: Mapping[str, TensorEntry]
    """Tensors that base has not."""

    model_names: Mapping[str, str]
    """Names with the prefix of the adapter's keys, by the name in base's file."""


@dataclass(slots=True)
class _Change:
    """Change of one parameter in memory: at least one of the two."""

    factors: Factors | None = None
    whole: TensorEntry | None = None

    @property
    def key(self) -> str:
        """The key that messages name."""
        if self.whole is not None:
            return self.whole.name
        assert self.factors is not None
        return self.factors.key

    def shape(self, rank: int) -> tuple[int, ...]:
        """Return the parameter's shape, up to the order of its sizes."""
        if (pair := self.factors) is not None:
            experts = () if pair.rank == rank or pair.rank % rank else (pair.rank // rank,)
            return (*experts, *pair.shape)
        assert self.whole is not None
        return self.whole.shape


class _Misfit(Exception):
    """A tensor of the adapter that has no place: its key, and what is wrong with it."""


@dataclass(slots=True)
class _Applier:
    """Turns changes of parameters into changes of base's tensors."""

    config: PeftConfig
    finder: Finder
    tensors: Mapping[str, TensorEntry]
    """Base's, by the names that the parameters' pieces have."""

    updates: dict[str, LowRankEntry] = field(default_factory=dict)
    replaced: dict[str, TensorEntry] = field(default_factory=dict)
    problems: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    """Keys of the adapter, by what is wrong with them and how they look."""

    def complain(self, key: str, problem: str) -> None:
        """Note what is wrong with a tensor of the adapter."""
        self.problems.setdefault((collapse_numbers(key), problem), []).append(key)

    def apply(self, name: str, change: _Change, parameter: Parameter) -> None:
        """Take in the change of one parameter that base has, or what is wrong with it."""
        try:
            self._apply(name, change, parameter)
        except _Misfit as misfit:
            self.complain(*misfit.args)

    def _apply(self, name: str, change: _Change, parameter: Parameter) -> None:
        if change.whole is not None:
            if len(parameter.pieces) > 1:
                raise _Misfit(change.key, "base stores it as several tensors")
            own_name = self.tensors[parameter.pieces[0].tensor].name
            self.replaced[own_name] = replace(change.whole, name=own_name)
            parameter = replace(parameter, shape=change.whole.shape)
        if change.factors is None:
            return
        update = self._update(name, change.factors, parameter)
        for piece in parameter.pieces:
            own_name = self.tensors[piece.tensor].name
            if own_name in self.updates:
                raise _Misfit(change.factors.key, f"{quoted(own_name)} is changed twice")
            self.updates[own_name] = replace(update, first_expert=piece.expert, rows=piece.rows)

    def _update(self, name: str, pair: Factors, parameter: Parameter) -> LowRankEntry:
        shape = parameter.shape
        rank = 1 if pair.a is None else self.config.rank_of(name)
        experts = shape[0] if len(shape) == 3 and pair.a and len(pair.a.shape) == 2 else 1
        if pair.rank != rank * experts:
            each = f" for each of {experts} experts" if experts > 1 else ""
            raise _Misfit(pair.key, f"rank {pair.rank}, where the config says {rank}{each}")
        ways = possible_orientations(pair, rank, shape)
        if not ways:
            raise _Misfit(pair.key, f"base {list(shape)}, adapter {list(pair.shape)}")
        if pair.a is not None:
            self._check_magnitude(pair, stacked=experts > 1)
        named = name if pair.a else f"{pair.module}.weight"
        return LowRankEntry(
            a=pair.a,
            b=pair.b,
            rank=rank,
            scale=self.config.scale_of(named),
            transposed=ways.pop() if len(ways) == 1 else self.finder.transposed(name, shape),
            experts=experts,
            magnitude=pair.magnitude,
        )

    def _check_magnitude(self, pair: Factors, *, stacked: bool) -> None:
        wanted, found = self.config.use_dora, pair.magnitude
        if found is None:
            if wanted:
                problem = "no lora_magnitude_vector, where the config says DoRA"
                raise _Misfit(pair.key, problem)
        elif not wanted:
            raise _Misfit(found.name, "the config does not say DoRA")
        elif stacked or ([size for size in found.shape if size != 1] or [1]) != [pair.shape[0]]:
            raise _Misfit(found.name, f"shape {list(found.shape)}")


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
    types = model_types(base.config)
    shapes = {name: entry.shape for name, entry in renamed.items()}
    in_memory = parameters_by_any_name(shapes, types)
    finder = make_finder(adapter.factors, in_memory, config, types)
    changes = {n: _Change(pair) for n, pair in finder.name_parameters(adapter.factors).items()}
    for name, entry in adapter.whole.items():
        changes.setdefault(name, _Change()).whole = entry
    matching = _match(in_memory, changes, config, next(iter(base.tensors.values())))
    applier = _Applier(config, finder, renamed)
    added: dict[str, TensorEntry] = {}
    model_names = _model_names(renamed, matching)
    for name, change in changes.items():
        if partner := matching.partners.get(name):
            applier.apply(name, change, in_memory[partner.name])
        elif change.factors is None and change.whole and _may_be_new(name, config, base):
            new_name = _as_in_base(name, matching, renames)
            added[new_name] = replace(change.whole, name=new_name)
            model_names[new_name] = name
        elif not _is_tied_copy(name, change, base, config):
            applier.complain(change.key, _why_unmatched(name, base))
    _refuse(applier.problems, config, base)
    return Application(applier.updates, applier.replaced, added, model_names)


def _model_names(renamed: Mapping[str, TensorEntry], matching: Matching) -> dict[str, str]:
    """Return the names of base's tensors with the prefix that the adapter's keys have."""
    found: dict[str, str] = {}
    for name, entry in renamed.items():
        rename = next((r for r in matching.renames if name.startswith(r.base)), None)
        # A head is beside what a prefix is put before.
        if rename is None or (rename.base == "" and _is_head(name)):
            found[entry.name] = name
        else:
            found[entry.name] = rename.finetuned + name.removeprefix(rename.base)
    return found


def _is_head(name: str) -> bool:
    return is_task_head(name) or tied_part(name) == HEAD


def _match(
    in_memory: Mapping[str, Parameter],
    changes: Mapping[str, _Change],
    config: PeftConfig,
    some: TensorEntry,
) -> Matching:
    """Match names as those of two checkpoints, by shapes without an order of the sizes.

    Orientations are not known before the partner is.
    """

    def unordered(name: str, shape: tuple[int, ...]) -> TensorEntry:
        return replace(some, name=name, shape=tuple(sorted(shape)))

    theirs = {name: unordered(name, parameter.shape) for name, parameter in in_memory.items()}
    ours = {name: unordered(name, c.shape(config.rank_of(name))) for name, c in changes.items()}
    return match_names(theirs, ours, lambda ours, theirs: ours.shape == theirs.shape)


def _may_be_new(name: str, config: PeftConfig, base: Checkpoint) -> bool:
    """Whether base may lack a tensor that the adapter stores whole: the head of a task, mostly."""
    part = tied_part(name)
    if part is not None:
        # Every base has an embedding, and one that has a head has it by another name.
        return part == HEAD and not any(tied_part(other) == HEAD for other in base.tensors)
    saved = any(f".{module}." in f".{name}" for module in config.modules_to_save)
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
    """Whether a tied head's factors are the embedding's too, which the adapter has as well."""
    head = tied_part(name) == HEAD and base.ties_embeddings
    return head and config.ensure_weight_tying and change.factors is not None


def _why_unmatched(name: str, base: Checkpoint) -> str:
    if tied_part(name) == HEAD and base.ties_embeddings:
        return "base stores no head, for it is tied to the embedding"
    return "base has no such tensor"


def _refuse(
    problems: Mapping[tuple[str, str], list[str]], config: PeftConfig, base: Checkpoint
) -> None:
    if not problems:
        return
    lines = [
        f"{quoted(keys[0]) if len(keys) == 1 else f'{quoted(name)} ({len(keys)} tensors)'}: "
        f"{problem}"
        for (name, problem), keys in problems.items()
    ]
    count = sum(map(len, problems.values()))
    noun = "tensor does" if count == 1 else "tensors do"
    raise MismatchError(
        f"{count} {noun} not fit, of the adapter {config.path.parent} on {base.source}:"
        f"{listed(lines)}",
        hint="Is this the base that the adapter was trained on? If only a prefix differs, "
        "name it: --map OLD=NEW renames base's.",
    )
