"""The root of the command line, and the decorator that makes a command of a function."""

from __future__ import annotations

import inspect
import io
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY
from functools import partial, wraps
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from svdcut import __version__
from svdcut.cli.guard import guard, report
from svdcut.option import Option, Panel, declared
from svdcut.option_kinds import Switch, Whole, options

T = TypeVar("T")


@options
class ScreenOptions:
    """Options of every command; each says in its own words what `json` prints."""

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
            with guard(verbose=typed["verbose"]):
                asked = kind(**{name: found[name].from_shell(typed[name]) for name in typed})
            function(asked)

        found = declared(kind)
        call.__signature__ = inspect.Signature([*_parameters(found)])  # type: ignore[attr-defined]
        call.__annotations__ = {}  # the signature has them
        app = new_app(add_completion=False)
        text = f"{inspect.getdoc(function)}\n\n{more_help}"
        app.command(cls=Command, help=text, options_metavar=usage, epilog=examples)(call)
        return app

    return decorate


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


COMMANDS = {
    "truncate": "Write OUT = BASE + truncated update, a complete checkpoint.",
    "extract": "Write the truncated update of FT as a PEFT LoRA adapter of BASE.",
    "spectrum": "Show the singular values of CHECKPOINT's weights, or of the update from it to FT.",
    "evaluate": "Measure the accuracy of CHECKPOINT on DATA, over all texts and in each group.",
    "sweep": "Try many ranks of the update FT - BASE on DATA, and name the one to use.",
    "verify": "Check a result against its manifest, and against what it was made from.",
}
"""Commands, with the first line of the help of each."""

_MODULES = {"extract": "truncate"}
"""Modules of commands that are not in one of their own name."""

EXIT_CODES: dict[int, str] = {
    0: "Done.",
    1: "Unexpected failure.",
    2: "Wrong usage.",
    3: "The inputs cannot be used, or do not match.",
    4: "Verification failed, or the asked-for quality was not reached.",
    129: "The terminal or the connection was closed (SIGHUP); as for 130.",
    130: "Interrupted by SIGINT. Finished tensors are kept; the same command goes on.",
    143: "Interrupted by SIGTERM, likewise.",
}
"""Texts of the manual; `svdcut.errors` gives each error its code."""


def load_command(name: str) -> Any:  # noqa: ANN401 - of the Click that Typer carries
    """Return a command, from the module of its name."""
    module = import_module(f"svdcut.cli.{_MODULES.get(name, name)}")
    command = typer.main.get_command(getattr(module, name))
    command.name = name
    return command


class _Group(PlainFlags, TyperGroup):
    """Imports the module of a command when that is called, and not for a list of them."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401
        name, _, rest = super().resolve_command(ctx, args)
        return name, name and load_command(name), rest


app = new_app(
    name="svdcut",
    cls=_Group,
    add_completion=True,
    no_args_is_help=True,
    epilog="svdcut truncate base/ ft/ -k 64 -o out/  # keep 64 triplets of every update",
)

for _name, _help in COMMANDS.items():
    app.command(_name, help=_help)(lambda: None)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"svdcut {__version__}")
        raise typer.Exit


@app.callback()
def svdcut(
    version: bool = typer.Option(
        False,
        "--version",
        callback=_print_version,
        is_eager=True,
        help="Show the version and exit.",
    ),
) -> None:
    """Cut the tail of the singular value decomposition of a fine-tuning update.

    Fine-tuning teaches a model its task and, with it, shortcuts. Both are in the
    update, finetuned - base; much of what is spurious may be in the tail of its
    singular value decomposition. svdcut cuts that tail, tensor by tensor, and
    writes a complete checkpoint with a manifest of what was kept.
    """


def run() -> None:
    """Run the command line on the arguments of the process."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            # A terminal that lacks a character must not end a run that is done.
            stream.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="svdcut")
    except OSError as error:  # of help, for which there is no room
        sys.exit(report(error))
