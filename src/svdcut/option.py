"""How an option is declared: once, as a field of a frozen dataclass.

From the declaration follow the keyword of the Python function, the parameter of the command
(`svdcut.cli.commands`), the manual pages, and how a value is checked and converted.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, ParamSpec, TypeVar

from svdcut.errors import UsageError

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:
    dataclass_transform = lambda **_settings: lambda function: function  # noqa: E731

In_contra = TypeVar("In_contra", contravariant=True)
Out_co = TypeVar("Out_co", covariant=True)
T = TypeVar("T")
E = TypeVar("E", bound=Enum)
P = ParamSpec("P")
R = TypeVar("R")

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


class Option(Generic[In_contra, Out_co]):
    """A field of an options class, which takes what users give and holds what the code reads.

    Parameters
    ----------
    help : str
        What it does, for the help of the command and of the Python function.
    default : object, optional
        As users would give it; without it the option is required.
    panel : Panel, optional
        Heading in the command's help. Without it, it is an argument of the command.
    metavar : str, optional
        What stands for the value there.
    flag : str, optional
        Name on the command line, if it is not that of the field.
    short : str, optional
        A letter for it, as ``-k``.
    shown_default : str, optional
        What the help says of the default, where that is not its value.
    suggestions : sequence of str, optional
        What a shell completes.
    """

    shell_type: ClassVar[type | None] = str
    """What the command line parses a word to; None where only Python has the option."""

    repeats: bool = False
    """Whether the command line takes it several times."""

    name: str

    def __init__(
        self,
        help: str,  # noqa: A002 - as in typer
        *,
        default: Any = _REQUIRED,  # noqa: ANN401 - converted by `read`
        panel: Panel | None = None,
        metavar: str | None = None,
        flag: str | None = None,
        short: str | None = None,
        shown_default: str | None = None,
        suggestions: Sequence[str] = (),
    ) -> None:
        self.help = help
        self.default = default
        self.panel = panel
        self.metavar = metavar
        self.short = short
        self.shown_default = shown_default
        self.suggestions = suggestions
        self._flag = flag

    @property
    def is_required(self) -> bool:
        """Whether there is no default."""
        return self.default is _REQUIRED

    @property
    def flag(self) -> str:
        """The name on the command line."""
        return self._flag or f"--{self.name.replace('_', '-')}"

    def read(self, value: Any) -> Any:  # noqa: ANN401 - of the types of the subclass
        """Check and convert a value; a `ValueError` says what was expected."""
        return value

    def from_shell(self, typed: Any) -> Any:  # noqa: ANN401 - of `shell_type`, or a list of it
        """Return what was typed, as Python would give it."""
        return typed

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


class Text(Option[T, T]):
    """A text, or None by default."""

    def read(self, value: Any) -> str:  # noqa: ANN401
        """Return the text."""
        if not isinstance(value, str):
            raise TypeError("expected a text")
        return value


class Side(Option[T, T]):
    """A checkpoint: a path, or an id on the Hub; or None by default."""


class Texts(Option[str | Sequence[str], tuple[str, ...]]):
    """Texts; one is a list of one."""

    repeats = True

    def read(self, value: Any) -> tuple[str, ...]:  # noqa: ANN401
        """Return the texts."""
        listed = (value,) if isinstance(value, str) else value
        if isinstance(listed, Mapping) or not all(isinstance(text, str) for text in listed):
            raise TypeError("expected a list of texts")
        return tuple(listed)


class Words(Texts):
    """Texts, which the command line separates by commas."""

    def from_shell(self, typed: Sequence[str]) -> list[str]:
        """Return the words."""
        return [word for text in typed for word in text.split(",") if word]


class Prefixes(Option[Mapping[str, str] | Sequence[str], Mapping[str, str]]):
    """A mapping of prefixes; the command line has ``OLD=NEW`` for each."""

    repeats = True

    def read(self, value: Any) -> dict[str, str]:  # noqa: ANN401
        """Return the mapping."""
        if not isinstance(value, Mapping):
            if isinstance(value, str):
                raise TypeError("expected a mapping of prefixes, old to new")
            return dict(map(self._split, value))
        return dict(value)

    def _split(self, text: str) -> tuple[str, str]:
        old, equals, new = text.partition("=")
        if not equals:
            raise UsageError(
                f"{self.flag} {text!r}: expected OLD=NEW, as 'model.=language_model.model.'"
            )
        return old, new


class Switch(Option[bool, bool]):
    """True or False; the flag of one that is on by default begins with ``--no-``."""

    shell_type = bool

    @property
    def flag(self) -> str:
        """The name on the command line."""
        return super().flag.replace("--", "--no-", 1) if self.default else super().flag

    def from_shell(self, typed: bool) -> bool:  # noqa: FBT001 - whether the flag is there
        """Return the value."""
        return typed is not self.default

    def read(self, value: Any) -> bool:  # noqa: ANN401
        """Return the value."""
        if not isinstance(value, bool):
            raise TypeError("expected True or False")
        return value


class Whole(Option[T, T]):
    """A whole number, or None by default."""

    shell_type = int

    def __init__(self, help: str, *, least: int | None = None, **settings: Any) -> None:  # noqa: A002, ANN401
        super().__init__(help, **settings)
        self.least = least

    def read(self, value: Any) -> int:  # noqa: ANN401
        """Return the number."""
        try:
            number = operator.index(value)
        except TypeError:
            raise TypeError("expected a whole number") from None
        if self.least is not None and number < self.least:
            raise ValueError(f"expected at least {self.least}")
        return number


class Number(Option[float, float]):
    """A finite number."""

    shell_type = float

    def __init__(
        self,
        help: str,  # noqa: A002
        *,
        accepts: Callable[[float], bool] = math.isfinite,
        expected: str = "a finite number",
        **settings: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(help, **settings)
        self._accepts, self._expected = accepts, expected

    def read(self, value: Any) -> float:  # noqa: ANN401
        """Return the number."""
        if not isinstance(value, (int, float)) or not self._accepts(value):
            raise ValueError(f"expected {self._expected}")
        return float(value)


class Choice(Option[E | str, E]):
    """A member of an enumeration, or its value."""

    def __init__(self, kind: type[E], help: str, *, default: str, **settings: Any) -> None:  # noqa: A002, ANN401
        self._kind = kind
        self._names = [str(member.value) for member in kind]
        settings = {"metavar": "|".join(self._names), "suggestions": self._names} | settings
        super().__init__(help, default=default, **settings)

    def read(self, value: Any) -> E:  # noqa: ANN401
        """Return the member."""
        try:
            return self._kind(value)
        except ValueError:
            raise ValueError(f"expected one of {', '.join(self._names)}") from None


class File(Option[str | Path, Path]):
    """A path to write to."""

    shell_type = Path

    def read(self, value: Any) -> Path:  # noqa: ANN401
        """Return the path."""
        return _expand_user(value)


class OptionalFile(Option[str | Path | None, Path | None]):
    """A path to write to, or None."""

    shell_type = Path

    def read(self, value: Any) -> Path:  # noqa: ANN401
        """Return the path."""
        return _expand_user(value)


class PythonOnly(Option[T, T]):
    """An object that no command line can name."""

    shell_type = None


def _expand_user(out: str | Path) -> Path:
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
        OptionalFile,
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
    return dataclasses.dataclass(frozen=True)(kind)


def declared(kind: type) -> dict[str, Option[Any, Any]]:
    """Return the options of a class by name, in their order."""
    return {
        field.name: inspect.getattr_static(kind, field.name) for field in dataclasses.fields(kind)
    }


def convert(source: object, kind: type[T]) -> T:
    """Return the options that two classes share, as the second one."""
    shared = [name for name in declared(kind) if hasattr(source, name)]
    return kind(**{name: getattr(source, name) for name in shared})


def plain(source: object) -> dict[str, Any]:
    """Return options as JSON has them."""
    return {name: _plain(getattr(source, name)) for name in declared(type(source))}


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return dict(value)
    return list(map(str, value)) if isinstance(value, tuple) else value


def public(kind: Callable[P, T]) -> Callable[[Callable[[T], R]], Callable[P, R]]:
    """Make a function of an options object one that takes the options by name."""

    def decorate(function: Callable[[T], R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            return function(kind(*args, **kwargs))

        assert isinstance(kind, type)
        returned = inspect.signature(function).return_annotation
        signature = inspect.signature(kind).replace(return_annotation=returned)
        call.__signature__ = signature  # type: ignore[attr-defined]
        summary, _, rest = (inspect.getdoc(function) or "").partition("\n\n")
        call.__doc__ = f"{summary}\n\n{_parameters(kind)}\n\n{rest}"
        return call

    return decorate


def _parameters(kind: type) -> str:
    """Return the section of a docstring that describes the options."""
    annotations = {field.name: field.type for field in dataclasses.fields(kind)}
    lines = [
        f"{name} : {annotations[name]}\n    {option.help}"
        for name, option in declared(kind).items()
    ]
    return "\n".join(["Parameters", "----------", *lines])
