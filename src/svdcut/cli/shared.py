"""Options that mean the same in every command."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand

from svdcut.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])

TENSORS = "Tensors"
COMPUTATION = "Computation"
SCREEN = "Screen"


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


class App(typer.Typer):
    """An application of such commands."""

    def command(self, *args: Any, **settings: Any) -> Callable[[F], F]:  # noqa: ANN401
        """Return the decorator that makes a command of a function."""
        return super().command(*args, **{"cls": Command, **settings})


def new_app(*, add_completion: bool = False, **settings: Any) -> App:  # noqa: ANN401
    """Return an application for one command, or for the root."""
    return App(
        add_completion=add_completion,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        rich_markup_mode="rich",
        **settings,
    )


def screen_flag(*names: str, help: str) -> Any:  # noqa: A002, ANN401 - as typer's own
    """Return a switch of what is printed."""
    return typer.Option(*names, help=help, rich_help_panel=SCREEN)


DeviceOption = Annotated[
    str,
    typer.Option(
        metavar="DEVICE",
        help="Where to compute: auto, cpu, cuda or cuda:N; auto takes CUDA where there is one.",
        autocompletion=lambda: ["auto", "cpu", "cuda", "cuda:0"],
        rich_help_panel=COMPUTATION,
    ),
]

QuietOption = Annotated[
    bool, screen_flag("--quiet", "-q", help="Print nothing but warnings and errors.")
]
VerboseOption = Annotated[
    bool, screen_flag("--verbose", "-v", help="Print the traceback of an error.")
]
RenameOption = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="OLD=NEW",
        help="Rename a prefix of base's tensor names.",
        rich_help_panel=TENSORS,
    ),
]


def parse_rename(text: str) -> tuple[str, str]:
    """Return the two prefixes of a value of ``--map``."""
    old, equals, new = text.partition("=")
    if not equals:
        raise UsageError(f"--map {text!r}: expected OLD=NEW, as 'model.=language_model.model.'")
    return old, new
