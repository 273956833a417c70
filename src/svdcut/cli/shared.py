"""Options that mean the same in every command."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from svdcut.errors import UsageError

TENSORS = "Tensors"
COMPUTATION = "Computation"
SCREEN = "Screen"


def new_app(*, add_completion: bool = False, **settings: Any) -> typer.Typer:  # noqa: ANN401
    """Return an application for one command, or for the root."""
    return typer.Typer(
        add_completion=add_completion,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        rich_markup_mode="rich",
        **settings,
    )


def screen_flag(*names: str, help: str) -> Any:  # noqa: A002, ANN401 - as typer's own
    """Return a switch of what is printed."""
    return typer.Option(*names, metavar="", help=help, rich_help_panel=SCREEN)


DeviceOption = Annotated[
    str,
    typer.Option(
        metavar="auto|cpu|cuda|cuda:N",
        help="Where to compute; auto takes CUDA where there is one.",
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
