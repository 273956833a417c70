"""Which parameter of a module a pair of factors is for.

Of most modules it is the weight. Where a config has `target_parameters`, one module may
have several, and the file numbers them without naming them. Names and shapes alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import permutations

from svdcut.adapter.collection import Factors
from svdcut.adapter.in_memory import Parameter
from svdcut.adapter.orientation import Conventions, possible_orientations
from svdcut.adapter.peft_config import PeftConfig
from svdcut.errors import MismatchError
from svdcut.files.jsonfile import quoted

_MAX_PARAMETERS = 6
"""Of one module; of real ones, four."""

_USUAL_ORDER = ("gate_up_proj", "gate_up_proj_bias", "up_proj", "down_proj", "down_proj_bias")
"""In which modules of transformers register them; PEFT wraps the first one innermost."""


def name_parameters(
    factors: Sequence[Factors],
    in_memory: Mapping[str, Parameter],
    config: PeftConfig,
    conventions: Conventions,
) -> dict[str, Factors]:
    """Return the factors by the names of the parameters that they change.

    Raises
    ------
    MismatchError
        If nothing tells which of a module's parameters is which.
    """
    modules: dict[str, list[Factors]] = defaultdict(list)
    for pair in factors:
        modules[pair.module].append(pair)
    ends = _shapes_by_end(in_memory)
    named: dict[str, Factors] = {}
    for module, pairs in modules.items():
        pairs.sort(key=lambda pair: -pair.level)  # the innermost first
        wanted = [name for name in _targets(module, config) if _last_two(name) in ends]
        if not wanted and len(pairs) == 1:
            wanted = [f"{module}.weight"]
        order = _order(pairs, wanted, ends, config, conventions)
        named |= dict(zip(order, pairs, strict=True))
    return named


def find_stacks_transposed(
    factors: Iterable[Factors], in_memory: Mapping[str, Parameter], config: PeftConfig
) -> bool | None:
    """Return whether factors take stacks for (experts, in, out), as those not square show."""
    ends = _shapes_by_end(in_memory)
    ways = [
        {
            way
            for name in _targets(pair.module, config)
            for shape in ends.get(_last_two(name), ())
            if len(shape) == 3
            for way in possible_orientations(pair, config.rank_of(name), shape)
        }
        for pair in factors
    ]
    shown = {way for found in ways if len(found) == 1 for way in found}
    return shown.pop() if len(shown) == 1 else None


def _shapes_by_end(in_memory: Mapping[str, Parameter]) -> dict[str, set[tuple[int, ...]]]:
    ends: dict[str, set[tuple[int, ...]]] = defaultdict(set)
    for name, parameter in in_memory.items():
        ends[_last_two(name)].add(parameter.shape)
    return ends


def _last_two(name: str) -> str:
    return ".".join(name.rsplit(".", 2)[-2:])


def _targets(module: str, config: PeftConfig) -> list[str]:
    """Return the parameters that the config may mean of a module, in their usual order."""
    found = set()
    for target in config.parameters:
        owner, _, parameter = target.rpartition(".")
        if not owner or module == owner or module.endswith(f".{owner}"):
            found.add(parameter)
    return [f"{module}.{parameter}" for parameter in sorted(found, key=_place)]


def _place(parameter: str) -> tuple[int, str]:
    known = parameter in _USUAL_ORDER
    return (_USUAL_ORDER.index(parameter) if known else len(_USUAL_ORDER)), parameter


def _order(
    pairs: Sequence[Factors],
    wanted: Sequence[str],
    ends: Mapping[str, Iterable[tuple[int, ...]]],
    config: PeftConfig,
    conventions: Conventions,
) -> tuple[str, ...]:
    """Return the names of the parameters, the innermost pair's first."""
    if len(pairs) == len(wanted) == 1:
        return (wanted[0],)

    def fits(name: str, pair: Factors, *, strict: bool) -> bool:
        rank = config.rank_of(name)
        for shape in ends[_last_two(name)]:
            ways = possible_orientations(pair, rank, shape)
            if conventions.transposed(name, shape) in ways if strict else ways:
                return True
        return False

    if len(pairs) <= len(wanted) <= _MAX_PARAMETERS:
        orders = list(permutations(wanted, len(pairs)))
        for strict in (True, False):
            fitting = [
                order
                for order in orders
                if all(fits(*one, strict=strict) for one in zip(order, pairs, strict=True))
            ]
            if fitting and (len(fitting) == 1 or _is_usual(wanted)):
                return fitting[0]
    raise MismatchError(
        f"{config.path}: of {quoted(pairs[0].module)}, {len(pairs)} parameters are changed, and "
        f"nothing tells which: 'target_parameters' name {quoted(list(wanted))}",
        hint="Merge the adapter into its base with PEFT, and name the merged model.",
    )


def _is_usual(wanted: Iterable[str]) -> bool:
    return all(name.rpartition(".")[2] in _USUAL_ORDER for name in wanted)
