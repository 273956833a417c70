"""Regular expressions that a stranger wrote, matched in linear time.

Python's own engine can take for ever on a few characters. This one follows all ways at
once, and knows what PEFT's users write: no look-around and no back references.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, field

_MAX_STATES = 5_000
_MAX_CACHED = 20_000
_MAX_DEPTH = 50

_TOKEN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?:|\{\d+(?:,\d*)?\}|.", re.DOTALL)
_QUANTIFIER = re.compile(r"[?*+]|\{(\d+)(?:(,)(\d*))?\}")
_CHARACTER = re.compile(r"\\[^A-Za-z0-9]|\\[dDwWsStnr]|\[.*\]|[^\\()|?*+{}\[\]^$]", re.DOTALL)

_Step = tuple["re.Pattern[str] | str | None", int]
"""What is eaten or asked for (None: nothing), and the state that follows."""


@dataclass(slots=True)
class Pattern:
    r"""A regular expression that names a module by its last parts, as PEFT reads it.

    As ``re.match(rf"(.*\.)?({text})$", name)`` (peft.utils.other.get_pattern_key, 0.21.2).

    Parameters
    ----------
    text : str
        The expression.

    Raises
    ------
    ValueError
        If it is none, or has what is not known here.
    """

    text: str
    _steps: list[list[_Step]] = field(init=False, repr=False)
    _last: int = field(init=False, repr=False)
    _begin: frozenset[int] = field(init=False, repr=False)
    _restart: frozenset[int] = field(init=False, repr=False)
    """States at the start of a name, and after any dot."""

    _next: dict[tuple[frozenset[int], str], frozenset[int]] = field(
        init=False, repr=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        parser = _Parser(_TOKEN.findall(self.text))
        first, self._last = parser.parse()
        self._steps = parser.steps
        self._begin = self._closure({first}, at_start=True)
        self._restart = self._closure({first})

    def matches(self, name: str) -> bool:
        """Whether it is all of a name, or all that follows some dot."""
        states = self._begin
        for character in name:
            states = self._after(states, character)
        return self._last in self._closure(set(states), at_start=not name, at_end=True)

    def _after(self, states: frozenset[int], character: str) -> frozenset[int]:
        key = states, character
        found = self._next.get(key)
        if found is None:
            reached = {
                target
                for state in states
                for test, target in self._steps[state]
                if isinstance(test, re.Pattern) and test.fullmatch(character)
            }
            found = self._closure(reached)
            if character == ".":
                found |= self._restart
            if len(self._next) >= _MAX_CACHED:
                self._next.clear()
            self._next[key] = found
        return found

    def _closure(
        self, states: set[int], *, at_start: bool = False, at_end: bool = False
    ) -> frozenset[int]:
        """Add what can be reached without eating a character."""
        free = {None: True, "^": at_start, "$": at_end}
        todo = list(states)
        while todo:
            for test, target in self._steps[todo.pop()]:
                if not isinstance(test, re.Pattern) and free[test] and target not in states:
                    states.add(target)
                    todo.append(target)
        return frozenset(states)


class _Parser:
    """Makes states and steps of an expression, as Thompson does."""

    def __init__(self, tokens: list[str]) -> None:
        self.steps: list[list[_Step]] = []
        self._tokens = tokens
        self._place = 0
        self._depth = 0

    def parse(self) -> tuple[int, int]:
        ends = self._choice()
        if self._place < len(self._tokens):
            raise ValueError(f"an unmatched {self._tokens[self._place]!r}")
        return ends

    def _peek(self) -> str:
        return self._tokens[self._place] if self._place < len(self._tokens) else ""

    def _state(self) -> int:
        if len(self.steps) >= _MAX_STATES:
            raise ValueError("it is too large")
        self.steps.append([])
        return len(self.steps) - 1

    def _edge(self, source: int, target: int, test: re.Pattern[str] | str | None = None) -> None:
        self.steps[source].append((test, target))

    def _choice(self) -> tuple[int, int]:
        first, last = self._state(), self._state()
        while True:
            begin, end = self._sequence()
            self._edge(first, begin)
            self._edge(end, last)
            if self._peek() != "|":
                return first, last
            self._place += 1

    def _sequence(self) -> tuple[int, int]:
        first = last = self._state()
        while self._peek() not in {"", "|", ")"}:
            begin, end = self._repeated()
            self._edge(last, begin)
            last = end
        return first, last

    def _repeated(self) -> tuple[int, int]:
        start = self._place
        ends = self._atom()
        quantifier = _QUANTIFIER.fullmatch(self._peek())
        if quantifier is None:
            return ends
        if self._tokens[start] in {"^", "$"}:
            raise ValueError(f"{quantifier[0]!r} after {self._tokens[start]!r}")
        stop = self._place
        least, most = _bounds(quantifier)
        first = last = self._state()
        for number in range(max(least, most or 0, 1) if most != 0 else 0):
            # Read again, for states of its own.
            self._place = start
            begin, end = self._atom()
            self._edge(last, begin)
            if number >= least:
                self._edge(last, end)
            if most is None and number == max(least, 1) - 1:
                self._edge(end, begin)
            last = end
        self._place = stop + 1
        if self._peek() == "?":  # as few as possible: it matches the same
            self._place += 1
        if _QUANTIFIER.fullmatch(self._peek()):
            raise ValueError(f"{self._peek()!r} after {quantifier[0]!r}")
        return first, last

    def _atom(self) -> tuple[int, int]:
        token = self._peek()
        self._place += 1
        if token in {"(", "(?:"}:
            return self._group()
        first, last = self._state(), self._state()
        if token in {"^", "$"}:
            self._edge(first, last, token)
        elif _CHARACTER.fullmatch(token):
            self._edge(first, last, _compile(token))
        else:
            raise ValueError(f"{token!r} is not known here")
        return first, last

    def _group(self) -> tuple[int, int]:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise ValueError("it is nested too deep")
        ends = self._choice()
        if self._peek() != ")":
            raise ValueError("a group without an end")
        self._place += 1
        self._depth -= 1
        return ends


def _bounds(quantifier: re.Match[str]) -> tuple[int, int | None]:
    if quantifier[1] is None:
        return {"?": (0, 1), "*": (0, None), "+": (1, None)}[quantifier[0]]
    least = _small(quantifier[1])
    if quantifier[2] is None:
        return least, least
    most = _small(quantifier[3]) if quantifier[3] else None
    if most is not None and most < least:
        raise ValueError(f"{quantifier[0]!r} ends before it begins")
    return least, most


def _small(digits: str) -> int:
    if len(digits) > 3:
        raise ValueError("it repeats too often")
    return int(digits)


def _compile(token: str) -> re.Pattern[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of sets within sets, which may mean more one day
            return re.compile(token)
    except (re.error, FutureWarning) as error:
        raise ValueError(str(error)) from None
