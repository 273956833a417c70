"""Call ``svdcut`` in this process, as a shell would; or run Python in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from typer.testing import CliRunner, Result

from svdcut.cli.app import app


def call(*words: object, cwd: Path | None = None, columns: int = 80) -> Result:
    """Call the command line in a folder, without a terminal."""
    line = [*map(str, words)]
    environment = {"COLUMNS": str(columns), "TERM": "dumb", "HF_HUB_OFFLINE": "1"}
    with inside(cwd or Path.cwd()), mock.patch.object(sys, "argv", ["svdcut", *line]):
        return CliRunner().invoke(app, line, env=environment)


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in a folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def run_process(code: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a program of Python."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "80"},
    )
