"""The manual pages and the command reference say what the commands do, and are well-formed."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.main import get_command

import generate_reference

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "generate_reference.py"
NASTY = (
    r""".leading dot, 'quotes', "double", back\slash, \fBfont, `code \x|y`, """
    "-- and --opt, a|b *c* <d> é"
)


@pytest.fixture(scope="module")
def commands():
    """The commands of the real application, by name; the application itself is ``svdcut``."""
    from svdcut.cli.app import COMMANDS, app, load_command

    return {"svdcut": get_command(app), **{f"svdcut {n}": load_command(n) for n in COMMANDS}}


def nasty_app():
    app = typer.Typer(epilog=f"svdcut run .x 'y' \\z -- -a  # {NASTY}")

    @app.callback()
    def main() -> None:
        """Do things."""

    def run(
        x: Annotated[str, typer.Argument(metavar="X", help=NASTY)],
        rank: Annotated[str, typer.Option("--rank", "-k", metavar="RULE", help="How many.")],
        value: Annotated[int, typer.Option(help=NASTY, min=0, rich_help_panel='"A" .panel')] = 1,
        out: Annotated[str, typer.Option("--out", "-o", metavar="OUT", help="Out.")] = ".\\a'",
        fast: Annotated[bool, typer.Option("--fast", help="Speed.")] = False,
    ) -> None:
        pass

    dots = " ".join(f".{'w' * n} ." for n in range(40))
    run.__doc__ = f"Do it.\n\n{NASTY}\n\n- {NASTY}\n\n- {dots}\n\n{dots}"
    app.command(epilog=f".svdcut run \\x  # {NASTY}\n")(run)
    return app


def render_nasty():
    root = get_command(nasty_app())
    return generate_reference.render(root, root.commands)


def examples(command):
    return [line for line in (command.epilog or "").splitlines() if line]


def sections(page):
    return re.findall(r"(?m)^\.SH (.+)$", page)


def test_committed_files_are_those_the_commands_give():
    result = subprocess.run(
        [sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, (
        f"run scripts/generate_reference.py\n{result.stdout}{result.stderr}"
    )


def test_every_command_is_explained_and_has_examples_with_a_comment(commands):
    for name, command in commands.items():
        assert command.help, name
        assert examples(command), name
        assert all("  # " in line for line in examples(command)), name


def test_the_list_of_commands_says_what_each_says_of_itself(commands):
    from svdcut.cli.app import COMMANDS

    own = {name: commands[f"svdcut {name}"].help.split("\n\n")[0] for name in COMMANDS}
    assert own == COMMANDS


def test_every_option_is_explained(commands):
    unexplained = [
        f"{name} {parameter.opts[0]}"
        for name, command in commands.items()
        for parameter in command.params
        if not parameter.help and not parameter.hidden
    ]
    assert unexplained == []


def test_examples_use_options_that_exist(commands):
    for command in commands.values():
        for line in examples(command):
            words = shlex.split(line.partition("  # ")[0].partition(" | ")[0])
            assert "svdcut" in words, line
            words = words[words.index("svdcut") :]
            called = commands.get(" ".join(words[:2]), commands["svdcut"])
            known = {"-h", "--help"}.union(*(p.opts + p.secondary_opts for p in called.params))
            used = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
            assert used <= known, line


def test_files_are_described_for_commands_that_exist(commands):
    assert set(generate_reference.FILES) <= set(commands)


def test_examples_fit_a_terminal_of_80_columns(commands):
    typed = [line.partition("  # ")[0] for c in commands.values() for line in examples(c)]
    assert [line for line in typed if len(line) > 69] == []  # a page indents them by 11


def test_pages_have_the_sections_a_reader_expects():
    files = render_nasty()
    assert set(map(str, files)) == {"man/svdcut.1", "man/svdcut-run.1", "docs/cli-reference.md"}
    page = files[Path("man/svdcut-run.1")]
    assert sections(page) == [
        *("NAME", "SYNOPSIS", "DESCRIPTION", "ARGUMENTS", "OPTIONS"),
        *("EXIT STATUS", "ENVIRONMENT", "EXAMPLES", "SEE ALSO"),
    ]
    assert "COMMANDS" in sections(files[Path("man/svdcut.1")])
    assert "svdcut run X -k RULE [OPTIONS]" in files[Path("docs/cli-reference.md")]
    assert r"\fB\-o\fR, \fB\-\-out\fR \fIOUT\fR" in page
    assert "\n\\fB\\-\\-fast\\fR\nSpeed." in page
    assert "At least 0. Default: `1`." in files[Path("docs/cli-reference.md")]
    assert re.search(r'^\.TH SVDCUT-RUN 1 "" "svdcut [\w.]+" "User Commands"$', page, re.MULTILINE)


def test_rendering_is_repeatable_and_in_ascii():
    files = render_nasty()
    assert files == render_nasty()
    assert all(text.isascii() for path, text in files.items() if path.suffix == ".1")


def test_only_macros_open_with_a_dot():
    known = {".TH", ".nr", ".nh", ".ad", ".SH", ".SS", ".PP", ".TP", ".IP", ".RS", ".RE", ".EX"}
    for path, text in render_nasty().items():
        if path.suffix == ".1":
            opening = {line.split()[0] for line in text.splitlines() if line.startswith((".", "'"))}
            assert opening <= {*known, ".EE", r".\""}
            assert "'" not in text  # groff would show it as a curly quote


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="mandoc is not installed")
def test_mandoc_accepts_the_pages_and_shows_the_text_as_written(tmp_path):
    files = render_nasty()
    for path, text in files.items():
        if path.suffix != ".1":
            continue
        page = tmp_path / path.name
        page.write_text(text, "utf-8")
        lint = subprocess.run(
            ["mandoc", "-T", "lint", str(page)], capture_output=True, text=True, check=False
        ).stdout
        # The header has no date, so that the same version gives the same bytes.
        assert [line for line in lint.splitlines() if "missing date" not in line] == []
        shown = subprocess.run(
            ["mandoc", "-T", "utf8", "-O", "width=1000", str(page)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        plain = re.sub(".\b", "", shown)
        assert NASTY.replace("`", "")[1:] in plain.replace("`", "")
        if path.name == "svdcut-run.1":
            assert "Default: .\\a'." in plain
            assert plain.count(f".{'w' * 39} .") == 2


def test_rows_of_markdown_tables_have_two_cells():
    rows = re.findall(r"(?m)^\|.*$", render_nasty()[Path("docs/cli-reference.md")])
    assert len(rows) > 20
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3}


def test_check_tells_of_missing_changed_and_superfluous_pages(tmp_path):
    (tmp_path / "man").mkdir()
    for name, text in {"a": "same\n", "b": "old\n", "d": ""}.items():
        (tmp_path / f"man/{name}.1").write_text(text, "utf-8")
    files = {Path("man/a.1"): "same\n", Path("man/b.1"): "new\n", Path("man/c.1"): "missing\n"}
    assert generate_reference.differences(files, tmp_path) == [Path(f"man/{n}.1") for n in "bcd"]
