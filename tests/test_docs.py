"""What the documents show is what happens."""

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text):
    for block in blocks(text, "console"):
        for line in block.splitlines():
            if line.startswith("$ svdcut truncate"):
                yield line.removeprefix("$ ").partition("  #")[0].partition(" #")[0].strip()


def run(*words, cwd):
    environment = {**os.environ, "COLUMNS": "80", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "svdcut", *words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def unstable(screen):
    """Mask what differs between machines: times, and norms of rounding."""
    screen = re.sub(r"\d+\.\d s", "T s", screen)
    screen = re.sub(r"\S+e-\d\d", "E", screen)
    return [" ".join(line.split()) for line in screen.strip().splitlines()]


def test_the_screen_in_the_readme_is_the_real_one(real_pair, tmp_path):
    shown = re.search(r"<!-- screen: demo -->\n```text\n(.*?)```", README, re.DOTALL)[1]
    (tmp_path / "demo").mkdir()
    for side in ("base", "finetuned"):
        (tmp_path / "demo" / side).symlink_to(getattr(real_pair, side))
    words = ("truncate", "demo/base", "demo/finetuned", "-k", "64", "-o", "demo/cut-64")
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert unstable(done.stdout) == unstable(shown)


@pytest.mark.parametrize("command", [c for c in commands(README) if "org/" not in c])
def test_commands_in_the_readme_are_understood(command, real_pair, tmp_path):
    (tmp_path / "base").symlink_to(real_pair.base)
    for name in ("ft", "finetuned"):
        (tmp_path / name).symlink_to(real_pair.finetuned)
    words = shlex.split(command.partition("|")[0])[1:]
    done = run(*words, "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_readme_shows_commands():
    assert len(list(commands(README))) >= 6


@pytest.mark.parametrize("block", blocks(README, "python"))
def test_python_in_the_readme_runs(block, real_pair, tmp_path):
    ast.parse(block)
    (tmp_path / "demo").mkdir()
    for side in ("base", "finetuned"):
        (tmp_path / "demo" / side).symlink_to(getattr(real_pair, side))
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert 0.9 < float(done.stdout) < 1


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target


def test_contributing_names_every_module():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for module in (ROOT / "src" / "svdcut").iterdir():
        if not module.name.startswith("_") and (module.suffix == ".py" or module.is_dir()):
            assert f"`{module.stem}" in text, module.name


def test_the_changelog_has_this_version():
    import svdcut

    assert f"\n## {svdcut.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_make_knows_the_commands_of_the_readme():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^\$ make (\w+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile
