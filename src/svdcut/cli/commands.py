"""Make a command of a function that takes an options object."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY
from functools import partial, wraps
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand

from svdcut.option import Option, Panel, declared
from svdcut.option_kinds import Switch, Whole, options

T = TypeVar("T")


@options
class ScreenOptions:
    """What every command prints; `json` is what its help says."""

    _: KW_ONLY
    json: Switch = Switch("Print every number on stdout.", default=False, panel=Panel.SCREEN)
    verbose: Switch = Switch(
        "Print the traceback of an error.", default=False, panel=Panel.SCREEN, short="-v"
    )


class PlainFlags:
    """Options of a command or a group: those that take no value show none."""

    def get_params(self, ctx: Any) -> list[Any]:  # noqa: ANN401 - of the Click that Typer carries
        """Return arguments and options."""
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if getattr(param, "is_flag", False):
                param.metavar = ""
        return params


class Command(PlainFlags, TyperCommand):
    """A command whose help wraps by the screen, and not by the lines of its source."""

    def __init__(self, *args: Any, **settings: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **settings)
        paragraphs = (self.help or "").split("\n\n")
        self.help = "\n\n".join(" ".join(text.split()) for text in paragraphs)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: ANN401
        """Return what follows the name of the command, arguments by their plain names."""
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]


new_app = partial(
    typer.Typer,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
)
"""Make an application, for one command or for the root."""


def command(
    kind: type[T], *, usage: str, examples: str, more_help: str = ""
) -> Callable[[Callable[[T], None]], typer.Typer]:
    """Make an application of a function.

    Parameters
    ----------
    kind : type
        The class of its options, which become those of the command.
    usage, examples : str
        What the help has at its top and at its end.
    more_help : str
        What it has after the docstring of the function.
    """

    def decorate(function: Callable[[T], None]) -> typer.Typer:
        @wraps(function)
        def call(**typed: Any) -> None:  # noqa: ANN401 - whatever the options are
            from svdcut.cli.guard import guard

            with guard(verbose=typed["verbose"]):
                asked = kind(**{name: _given(found[name], typed[name]) for name in typed})
            function(asked)

        found = declared(kind)
        call.__signature__ = inspect.Signature([*_parameters(found)])  # type: ignore[attr-defined]
        call.__annotations__ = {}  # the signature has them
        app = new_app(add_completion=False)
        text = f"{inspect.getdoc(function)}\n\n{more_help}"
        app.command(cls=Command, help=text, options_metavar=usage, epilog=examples)(call)
        return app

    return decorate


def _given(option: Option[Any, Any], typed: Any) -> object:  # noqa: ANN401
    """Return what was typed as Python would give it."""
    return option.from_shell(list(typed or ()) if option.repeats else typed)


def _parameters(found: dict[str, Option[Any, Any]]) -> Iterator[inspect.Parameter]:
    """Yield arguments, then options in the order of their headings."""
    order = [None, *Panel]
    shown = [option for option in found.values() if option.shell_type is not None]
    for option in sorted(shown, key=lambda o: (order.index(o.panel), not o.is_required)):
        kind: Any = option.shell_type
        if option.repeats:
            kind = list[kind]
        if option.default is None or option.repeats or option.may_lack:
            kind |= None
        default = _argument(option) if option.panel is None else _option(option)
        yield inspect.Parameter(
            option.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind
        )


def _argument(option: Option[Any, Any]) -> Any:  # noqa: ANN401 - of typer
    may_lack = option.default is None or option.may_lack
    default = None if may_lack else ...
    return typer.Argument(default, metavar=option.metavar, help=option.help)


def _option(option: Option[Any, Any]) -> Any:  # noqa: ANN401 - of typer
    default = None if option.repeats else ... if option.is_required else option.default
    shows_default = option.shown_default or not (option.is_required or default is None)
    return typer.Option(
        False if isinstance(option, Switch) else default,
        option.flag,
        *filter(None, [option.short]),
        metavar=option.metavar,
        help=option.help,
        min=option.least if isinstance(option, Whole) else None,
        autocompletion=(lambda: list(option.suggestions)) if option.suggestions else None,
        show_default=shows_default,
        rich_help_panel=option.panel and option.panel.value,
    )
