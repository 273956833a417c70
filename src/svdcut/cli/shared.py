"""Options that mean the same in every command."""

from __future__ import annotations

from typing import Annotated, Any

import typer

COMPUTATION = "Computation"
SCREEN = "Screen"


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
