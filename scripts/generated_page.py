"""Write a page of docs/ that a script generates, or compare it with the one on disk."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path


def write_or_check(path: Path, render: Callable[[], str], about: str | None) -> None:
    """Write the page; with --check compare it, and exit with 1 if it differs."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if it differs")
    check = parser.parse_args().check
    text = render()
    if not check:
        path.write_text(text, "utf-8")
    elif not path.exists() or path.read_text("utf-8") != text:
        sys.exit(f"{path} is out of date: python scripts/{Path(sys.argv[0]).name}")
