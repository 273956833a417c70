"""Find the parameter that a pair of factors is for, and its orientation in storage.

Mostly it is the weight of a module. Where a config has `target_parameters`, a module may
have several, and the file numbers their factors without naming them. Names and shapes
alone. Orientations are those of PEFT's merge (peft.tuners.lora.layer, 0.21.2).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

from svdcut.adapter.memory import CONV1D_MODELS, TRANSPOSED_STACKS, Parameter, Shape
from svdcut.adapter.peft_config import PeftConfig
from svdcut.adapter.tensors import Factors
from svdcut.errors import CheckpointError, MismatchError
from svdcut.files.jsonfile import quoted
from svdcut.names import is_task_head, is_vocabulary

_MAX_PARAMETERS = 6
"""Most parameters of one module; real ones have four."""

_USUAL_ORDER = ("gate_up_proj", "gate_up_proj_bias", "up_proj", "down_proj", "down_proj_bias")
"""The order in which modules of transformers register them; PEFT wraps the first one innermost."""


def possible_orientations(factors: Factors, rank: int, shape: Shape) -> set[bool]:
    """Return how a parameter may be stored that factors of a rank are for.

    Parameters
    ----------
    factors : Factors
        The pair.
    rank : int
        The rank of each expert that the config names.
    shape : tuple of int
        The parameter's.

    Returns
    -------
    set of bool
        True for (in, out), False for (out, in); both for a square one, none if it does not fit.
    """
    if factors.a is None:
        return {False} if shape == factors.b.shape else set()
    a, b = factors.a.shape, factors.b.shape
    experts = shape[0] if len(a) == 2 and len(shape) == 3 else 1
    if factors.rank != rank * experts:
        return set()
    if len(a) > 2:
        return {False} if shape == factors.shape and set(b[2:]) <= {1} else set()
    stored = shape[-2:] if len(shape) in {2, 3} else ()
    ways = {False: (b[0], a[1]), True: (a[1], b[0])}
    if factors.embedding:
        del ways[False]
    return {transposed for transposed, expected in ways.items() if stored == expected}


@dataclass(frozen=True, slots=True)
class Finder:
    """Facts about an adapter's base that tell parameters apart."""

    config: PeftConfig
    types: frozenset[str]
    """The model types of base."""

    shapes: Mapping[str, set[Shape]]
    """Shapes of base's parameters by the last two parts of their names."""

    stacks_transposed: bool | None
    """Whether the factors take stacks for (experts, in, out); None where nothing says."""

    def transposed(self, name: str, shape: Shape) -> bool:
        """Return whether a square parameter is stored as (in, out).

        Raises
        ------
        CheckpointError
            If nothing tells.
        """
        expected = self._expected(name, shape)
        if expected is None:
            raise CheckpointError(
                f"{self.config.path}: nothing tells which way round the factors of {quoted(name)} "
                f"are: its matrices are square, {list(shape)}, and no release of PEFT is named",
                hint="PEFT stores them differently since 0.19. Write the version that made the "
                'adapter into the file, as "peft_version": "0.18.1".',
            )
        return expected

    def _expected(self, name: str, shape: Shape) -> bool | None:
        if len(shape) == 3:
            return self.stacks_transposed
        head = is_task_head(name) or is_vocabulary(name)
        return not head and (self.config.fan_in_fan_out or bool(self.types & CONV1D_MODELS))

    def name_parameters(self, factors: Iterable[Factors]) -> dict[str, Factors]:
        """Return the factors by the names of the parameters that they change.

        Raises
        ------
        MismatchError
            If nothing tells which of a module's parameters is which.
        """
        modules: dict[str, list[Factors]] = defaultdict(list)
        named: dict[str, Factors] = {}
        for pair in factors:
            if pair.a is None:
                named[f"{pair.module}.bias"] = pair
            else:
                modules[pair.module].append(pair)
        for module, pairs in modules.items():
            pairs.sort(key=lambda pair: -pair.level)  # the innermost first
            wanted = [n for n in _targets(module, self.config) if _last_two(n) in self.shapes]
            if not wanted and len(pairs) == 1:
                wanted = [f"{module}.weight"]
            named |= dict(zip(self._order(pairs, wanted), pairs, strict=True))
        return named

    def _order(self, pairs: Sequence[Factors], wanted: Sequence[str]) -> Sequence[str]:
        """Return the names of the parameters, the innermost pair's first."""
        if len(pairs) == len(wanted) == 1:
            return wanted
        if len(pairs) <= len(wanted) <= _MAX_PARAMETERS:
            usual = all(name.rpartition(".")[2] in _USUAL_ORDER for name in wanted)
            for strict in (True, False):
                fitting = [
                    order
                    for order in permutations(wanted, len(pairs))
                    if all(
                        self._fits(*one, strict=strict) for one in zip(order, pairs, strict=True)
                    )
                ]
                if fitting and (len(fitting) == 1 or usual):
                    return fitting[0]
        raise MismatchError(
            f"{self.config.path}: of {quoted(pairs[0].module)}, {len(pairs)} parameters are "
            "changed, and nothing tells which: 'target_parameters' name "
            f"{quoted(list(wanted))}",
            hint="Merge the adapter into its base with PEFT, and name the merged model.",
        )

    def _fits(self, name: str, pair: Factors, *, strict: bool) -> bool:
        """Return whether factors fit a parameter, and its expected orientation if that is asked."""
        rank = self.config.rank_of(name)
        for shape in self.shapes[_last_two(name)]:
            ways = possible_orientations(pair, rank, shape)
            if self._expected(name, shape) in ways if strict else ways:
                return True
        return False


def make_finder(
    factors: Iterable[Factors],
    in_memory: Mapping[str, Parameter],
    config: PeftConfig,
    types: Iterable[str],
) -> Finder:
    """Find out what tells parameters apart, and which way round the factors take stacks.

    Parameters
    ----------
    factors : iterable of Factors
        The adapter's. Stacks that are not square show how all of them are.
    in_memory : mapping of str to Parameter
        Base's parameters.
    config : PeftConfig
        The adapter's.
    types : iterable of str
        Base's model types.
    """
    shapes: dict[str, set[Shape]] = defaultdict(set)
    for name, parameter in in_memory.items():
        shapes[_last_two(name)].add(parameter.shape)
    found = [
        {
            way
            for name in _targets(pair.module, config)
            for shape in shapes.get(_last_two(name), ())
            if len(shape) == 3
            for way in possible_orientations(pair, config.rank_of(name), shape)
        }
        for pair in factors
    ]
    shown = {way for ways in found if len(ways) == 1 for way in ways}
    types = frozenset(types)
    transposed = shown.pop() if len(shown) == 1 else _stacks_transposed(config.version, types)
    return Finder(config, types, shapes, transposed)


def _stacks_transposed(version: tuple[int, ...] | None, types: frozenset[str]) -> bool | None:
    """Return whether a version of PEFT takes a model's stacks for (experts, in, out).

    Before 0.19 it took all of them so. 0.19.0 swapped the sizes of the wrong ones.
    """
    if version is None or version < (0, 19, 0):
        return None if version is None else True
    return bool(types & TRANSPOSED_STACKS) == (version > (0, 19, 0))


def _last_two(name: str) -> str:
    return ".".join(name.rsplit(".", 2)[-2:])


def _targets(module: str, config: PeftConfig) -> list[str]:
    """Return the parameters that the config may mean of a module, in their usual order."""
    owned = [target.rpartition(".") for target in config.target_parameters]
    found = {
        name for owner, _, name in owned if f".{module}".endswith(f".{owner}" if owner else "")
    }
    order = {name: place for place, name in enumerate(_USUAL_ORDER)}
    ordered = sorted(found, key=lambda name: (order.get(name, len(order)), name))
    return [f"{module}.{name}" for name in ordered]
