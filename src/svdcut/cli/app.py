"""The command line's root."""

from __future__ import annotations

import io
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from svdcut import __version__
from svdcut.cli.commands import PlainFlags, new_app

COMMANDS = {
    "truncate": "Write OUT = BASE + truncated update, a complete checkpoint.",
    "extract": "Write the truncated update of FT as a PEFT LoRA adapter of BASE.",
    "spectrum": "Show the singular values of CHECKPOINT's weights, or of the update from it to FT.",
    "evaluate": "Measure the accuracy of CHECKPOINT on DATA, over all texts and in each group.",
    "sweep": "Try many ranks of the update FT - BASE on DATA, and name the one to use.",
    "verify": "Check a result against its manifest, and against what it was made from.",
}
"""What each does, as the first line of its own help says it."""

_MODULES = {"extract": "truncate"}
"""Those of commands that share one."""

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
"""What the manual says of each; `svdcut.errors` decides which error ends with which."""


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


def _print_version(*, wanted: bool) -> None:
    if wanted:
        typer.echo(f"svdcut {__version__}")
        raise typer.Exit


@app.callback()
def svdcut(
    version: bool = typer.Option(
        False,
        "--version",
        callback=lambda wanted: _print_version(wanted=wanted),
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
        from svdcut.cli.guard import report

        sys.exit(report(error))
