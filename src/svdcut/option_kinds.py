"""The kinds of options, by what they accept, and the classes that hold them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeVar

from svdcut.errors import UsageError
from svdcut.option import Option

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:
    dataclass_transform = lambda **_settings: lambda function: function  # noqa: E731

In_contra = TypeVar("In_contra", contravariant=True)
Out_co = TypeVar("Out_co", covariant=True)
T = TypeVar("T")


class Text(Option[T, T]):
    """A text, or None by default."""

    def read(self, value: object) -> str:
        """Return the text."""
        if not isinstance(value, str):
            raise TypeError("expected a text")
        return value


class Side(Option[T, T]):
    """A checkpoint: a path, or an id on the Hub; or None by default."""

    python_type = "str or Path"


class Texts(Option[str | Sequence[str], tuple[str, ...]]):
    """Texts; one is a list of one."""

    python_type = "str or sequence of str"

    repeats = True

    def read(self, value: str | Sequence[str]) -> tuple[str, ...]:
        """Return the texts."""
        listed = (value,) if isinstance(value, str) else value
        if isinstance(listed, Mapping) or not all(isinstance(text, str) for text in listed):
            raise TypeError("expected a list of texts")
        return tuple(listed)


class Words(Texts):
    """Texts, which the command line separates by commas."""

    def from_shell(self, typed: Sequence[str] | None) -> list[str]:
        """Return the words."""
        return [word for text in typed or () for word in text.split(",") if word]


class Prefixes(Option[Mapping[str, str] | Sequence[str], Mapping[str, str]]):
    """A mapping of prefixes; the command line has ``OLD=NEW`` for each."""

    python_type = "mapping of str to str"

    repeats = True

    def read(self, value: Mapping[str, str] | Sequence[str]) -> dict[str, str]:
        """Return the mapping."""
        if isinstance(value, str):
            raise TypeError("expected a mapping of prefixes, old to new")
        return dict(value) if isinstance(value, Mapping) else dict(map(self._split, value))

    def _split(self, text: str) -> tuple[str, str]:
        old, equals, new = text.partition("=")
        if not equals:
            raise UsageError(
                f"{self.flag} {text!r}: expected OLD=NEW, as 'model.=language_model.model.'"
            )
        return old, new


class Switch(Option[bool, bool]):
    """True or False; the flag of one that is on by default begins with ``--no-``."""

    python_type = "bool"

    shell_type = bool

    @property
    def flag(self) -> str:
        """The name on the command line."""
        return super().flag.replace("--", "--no-", 1) if self.default else super().flag

    def from_shell(self, typed: bool) -> bool:  # noqa: FBT001 - whether the flag is there
        """Return the value."""
        return typed is not self.default

    def read(self, value: object) -> bool:
        """Return the value."""
        if not isinstance(value, bool):
            raise TypeError("expected True or False")
        return value


@dataclass(eq=False)
class Whole(Option[T, T]):
    """A whole number, or None by default."""

    python_type = "int"

    least: int | None = None

    shell_type = int

    def read(self, value: SupportsIndex) -> int:
        """Return the number."""
        try:
            number = operator.index(value)
        except TypeError:
            raise TypeError("expected a whole number") from None
        if self.least is not None and number < self.least:
            raise ValueError(f"expected at least {self.least}")
        return number


@dataclass(eq=False)
class Number(Option[float, float]):
    """A finite number."""

    python_type = "float"

    accepts: Callable[[float], bool] = math.isfinite
    expected: str = "a finite number"

    shell_type = float

    def read(self, value: object) -> float:
        """Return the number."""
        if not isinstance(value, (int, float)) or not self.accepts(value):
            raise ValueError(f"expected {self.expected}")
        return float(value)


@dataclass(eq=False)
class Choice(Option[T | str, T]):
    """A member of an enumeration, or its value; or None by default."""

    python_type = "str or enum member"

    kind: type[Enum]

    def __post_init__(self) -> None:
        self.suggestions = [str(member.value) for member in self.kind]
        self.metavar = self.metavar or "|".join(self.suggestions)

    def read(self, value: object) -> Enum:
        """Return the member."""
        try:
            return self.kind(value)
        except ValueError:
            raise ValueError(f"expected one of {', '.join(self.suggestions)}") from None


class File(Option[T | str, T]):
    """A path to write to, or None by default."""

    python_type = "str or Path"

    shell_type = Path

    def read(self, value: str | Path) -> Path:
        """Return the path."""
        return expand_user(value)


@dataclass(eq=False)
class Parsed(Option[In_contra, Out_co]):
    """A value with a reader of its own."""

    reader: Callable[[Any], Out_co]
    repeats: bool = False
    python_type: str = "str or sequence of str"

    def read(self, value: Any) -> Out_co:
        """Return what the reader makes of it."""
        return self.reader(value)


class PythonOnly(Option[In_contra, Out_co]):
    """An object that no command line can name; None stands for the default."""

    python_type = "object"

    shell_type = None

    def read(self, value: Any) -> Any:
        """Return the object."""
        return self.default if value is None else value


def expand_user(out: str | Path) -> Path:
    """Return a path to write to, its ``~`` expanded."""
    try:
        path = Path(out).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{out}: there is no such user", hint="As a folder: ./~name.") from error
    try:
        path.resolve()
    except RuntimeError as error:  # before Python 3.13
        raise UsageError(f"{out}: a link that leads to itself") from error
    return path


@dataclass_transform(
    field_specifiers=(
        Choice,
        File,
        Number,
        Parsed,
        Prefixes,
        PythonOnly,
        Side,
        Switch,
        Text,
        Texts,
        Whole,
        Words,
    )
)
def options(kind: type[T]) -> type[T]:
    """Make a class of `Option` fields a frozen dataclass."""
    # Type checkers are not told that it is frozen: mypy would take a field for what it accepts.
    return dataclass(frozen=True)(kind)
