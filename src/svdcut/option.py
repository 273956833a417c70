"""How an option is declared: once, as a field of a frozen dataclass.

From the declaration follow the keyword of the Python function, the parameter of the command
(`svdcut.cli.app`), the manual pages, and how a value is checked and converted.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from enum import Enum
from typing import Any, ClassVar, Generic, TypeVar

from svdcut.errors import UsageError

In_contra = TypeVar("In_contra", contravariant=True)
Out_co = TypeVar("Out_co", covariant=True)

_REQUIRED = object()


class Panel(str, Enum):
    """Headings of a command's help, in their order."""

    INPUTS = "Inputs"
    RANK = "Rank"
    TENSORS = "Tensors"
    QUESTIONS = "Further questions"
    COLUMNS = "Columns of DATA"
    MODEL = "What the model is asked"
    CHOICE = "Choice"
    COMPUTATION = "Computation"
    OUTPUT = "Output"
    SCREEN = "Screen"


@dataclass(eq=False)
class Option(Generic[In_contra, Out_co]):
    """A field of an options class, which takes what users give and holds what the code reads."""

    help: str
    """Text for the help of the command and of the Python function."""

    _: KW_ONLY
    default: Any = _REQUIRED
    """The default, as users would give it; an option without one is required."""

    panel: Panel | None = None
    """Heading in the command's help; None makes it an argument of the command."""

    metavar: str | None = None
    """Placeholder of the value in the help."""

    long: str | None = None
    """Name on the command line, if it is not that of the field."""

    short: str | None = None
    """One letter for it, as ``-k``."""

    shown_default: str | None = None
    """Text of the help for a default that its value does not explain."""

    suggestions: Sequence[str] = ()
    """Values that a shell completes."""

    may_lack: bool = False
    """True for an argument that the command line may omit and Python must pass, as None."""

    name: str = field(init=False)

    shell_type: ClassVar[type | None] = str
    """Type of the value on the command line; None if only Python has the option."""

    python_type = "str"
    """Type of the value in Python, for the docstring of the function."""

    repeats = False
    """True if the command line takes the option several times."""

    @property
    def is_required(self) -> bool:
        """Return True if there is no default."""
        return self.default is _REQUIRED

    @property
    def flag(self) -> str:
        """The name on the command line."""
        return self.long or f"--{self.name.replace('_', '-')}"

    def read(self, value: Any) -> Any:
        """Check and convert a value; a `ValueError` says what was expected."""
        return value

    def from_shell(self, typed: Any) -> Any:
        """Return what was typed, as Python would give it."""
        return list(typed or ()) if self.repeats else typed

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: object, owner: type) -> Out_co:
        if instance is not None:
            value: Out_co = vars(instance)[self.name]
            return value
        if self.is_required:  # tells `dataclass` that there is no default
            raise AttributeError(self.name)
        default: Out_co = self.default
        return default

    def __set__(self, instance: object, value: In_contra) -> None:
        vars(instance)[self.name] = self._checked(value)

    def _checked(self, value: object) -> object:
        if value is None and self.default is None:
            return None
        try:
            return self.read(value)
        except (ValueError, TypeError) as error:
            where = self.flag if self.panel else self.name
            raise UsageError(f"{where} {value!r}: {error}") from None


def declared(kind: type) -> dict[str, Option[Any, Any]]:
    """Return the options of a class by name, in their order."""
    return {item.name: inspect.getattr_static(kind, item.name) for item in fields(kind)}


def shared(source: object, kind: type) -> dict[str, Any]:
    """Return the fields of a dataclass that another object has too."""
    names = [item.name for item in fields(kind)]
    return {name: getattr(source, name) for name in names if hasattr(source, name)}


def plain(source: object) -> dict[str, Any]:
    """Return options as JSON has them."""
    return {name: _plain(getattr(source, name)) for name in declared(type(source))}


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return dict(value)
    return list(map(str, value)) if isinstance(value, tuple) else value
