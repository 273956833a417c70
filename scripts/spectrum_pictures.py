"""Make the pictures of docs/spectrum.md anew, from the real pair, as a user would.

    python scripts/spectrum_pictures.py demo

Needs Chromium, which photographs the pages; look at what comes out.
"""

from __future__ import annotations

import argparse
import os
import pty
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
CHROMIUM = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]
SCREEN = ("spectrum", "base", "finetuned", "--only", "*layer.[0-2].*")


def on_terminal(words: tuple[str, ...], columns: int, folder: Path) -> str:
    """Run svdcut on a terminal of so many columns; return what it shows, with its colours."""
    theirs, ours = pty.openpty()
    environment = os.environ | {"COLUMNS": str(columns), "LINES": "60", "TERM": "xterm-256color"}
    child = subprocess.Popen(
        [sys.executable, "-m", "svdcut", *words],
        cwd=folder,
        env=environment,
        stdout=ours,
        stderr=subprocess.DEVNULL,
    )
    os.close(ours)
    shown = b""
    while True:
        try:
            part = os.read(theirs, 65536)
        except OSError:  # the other end was closed
            break
        shown += part
    if child.wait():
        raise SystemExit(f"svdcut {' '.join(words)} failed")
    return shown.decode().replace("\r\n", "\n")


def draw_screen(text: str, columns: int, path: Path, *, dark: bool) -> None:
    """Draw a screen as an SVG."""
    from rich.console import Console
    from rich.terminal_theme import DEFAULT_TERMINAL_THEME, DIMMED_MONOKAI
    from rich.text import Text

    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=columns, file=nowhere, force_terminal=True)
        console.print(Text.from_ansi(text), overflow="ignore", no_wrap=True, crop=False)
        theme = DIMMED_MONOKAI if dark else DEFAULT_TERMINAL_THEME
        title = f"svdcut {' '.join(SCREEN)}"
        console.save_svg(str(path), title=title, theme=theme, unique_id=path.stem)


def photograph(page: Path, path: Path, *, dark: bool, size: tuple[int, int]) -> None:
    """Take a picture of a page."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM)
        scheme = "dark" if dark else "light"
        viewport = {"width": size[0], "height": size[1]}
        tab = browser.new_page(color_scheme=scheme, viewport=viewport)
        tab.goto(page.as_uri())
        tab.wait_for_timeout(500)
        tab.screenshot(path=path)
        browser.close()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pair", metavar="DIR", type=Path, help="made by real_pair.py")
    pair = parser.parse_args().pair.resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for side in ("base", "finetuned"):
            (folder / side).symlink_to(pair / side)
        (folder / "other").symlink_to(pair / "finetuned-encoder")
        for columns in (80, 120):
            text = on_terminal(SCREEN, columns, folder)
            for dark in (False, True):
                path = DOCS / f"spectrum-screen-{columns}-{'dark' if dark else 'light'}.svg"
                draw_screen(text, columns, path, dark=dark)
        on_terminal(
            ("spectrum", "base", "finetuned", "--plot", "a.png", "--html", "a.html", "-q"),
            80,
            folder,
        )
        on_terminal(
            ("spectrum", "base", "finetuned", "--compare", "other", "--plot", "c.png", "-q"),
            80,
            folder,
        )
        shutil.copy(folder / "a.png", DOCS / "spectrum.png")
        shutil.copy(folder / "c.png", DOCS / "comparison.png")
        for dark in (False, True):
            shot = DOCS / f"spectrum-page-{'dark' if dark else 'light'}.png"
            photograph(folder / "a.html", shot, dark=dark, size=(1280, 1400))


if __name__ == "__main__":
    main()
