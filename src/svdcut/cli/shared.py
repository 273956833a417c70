"""Options that mean the same in every command."""

from __future__ import annotations

from typing import Annotated

import typer

COMPUTATION = "Computation"
SCREEN = "Screen"

DeviceOption = Annotated[
    str,
    typer.Option(
        metavar="auto|cpu|cuda|cuda:N",
        help="Where to compute; auto takes CUDA where there is one.",
        rich_help_panel=COMPUTATION,
    ),
]
