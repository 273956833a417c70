"""What the documents show is what happens."""

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import harness_files
import svdcut
import text_models
from architectures import ARCHITECTURES
from processes import call
from svdcut.spectra.columns import COLUMNS
from text_models import make_examples, write_csv

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text, name):
    for block in blocks(text, "console"):
        for line in block.splitlines():
            if line.startswith(f"$ svdcut {name} "):
                yield line.removeprefix("$ ").partition("  #")[0].partition(" #")[0].strip()


SPECTRUM = [c for path in DOCUMENTS for c in commands(path.read_text("utf-8"), "spectrum")]


MEMBERS = ("negation", "source", "male", "female", "muslim", "black")
"""Columns of the data that the documents evaluate on."""

SCREEN = re.compile(r"<!-- screen (\d+): (.*?) -->\n```text\n(.*?)```\n", re.DOTALL)


COLUMN_TABLE = re.compile(r"<!-- columns -->\n(.*?)<!-- end -->", re.DOTALL)


def column_table():
    """The table of the columns of ``spectrum``: from the one list that every output reads."""
    lines = ["| key | screen, page | meaning | several matrices |", "|---|---|---|---|"]
    for column in COLUMNS:
        titles = dict.fromkeys((column.short, column.title if column.join else ""))
        shown = ", ".join(filter(None, titles)) or "-"
        joined = column.join.value if column.join else "in files only"
        lines.append(f"| `{column.key}` | {shown} | {column.meaning} | {joined} |")
    return "\n".join(lines) + "\n"


def test_the_table_of_columns_is_that_of_the_code():
    """Written anew by ``PYTHONPATH=tests python tests/docs/test_docs.py``."""
    text = (ROOT / "docs" / "spectrum.md").read_text(encoding="utf-8")
    assert COLUMN_TABLE.search(text)[1] == column_table()


def screens():
    """Yield each screen in a document: how wide it is, the words of the command, what it shows."""
    for path in DOCUMENTS:
        for match in SCREEN.finditer(path.read_text(encoding="utf-8")):
            yield path.name, int(match[1]), match[2].split(), match[3]


@pytest.fixture
def demo(real_pair, tmp_path):
    """A folder with the pair where the documents have it."""
    (tmp_path / "demo").mkdir()
    for name, side in (
        ("base", real_pair.base),
        ("finetuned", real_pair.finetuned),
        ("other", real_pair.finetuned_encoder),
    ):
        (tmp_path / "demo" / name).symlink_to(side)
    return tmp_path


def unstable(screen):
    """Mask what differs between machines: times, and norms of rounding."""
    screen = re.sub(r"\d+\.\d s", "T s", screen)
    screen = re.sub(r"\S+e-\d\d", "E", screen)
    return [" ".join(line.split()) for line in screen.strip().splitlines()]


@pytest.mark.parametrize(("document", "columns", "words", "shown"), list(screens()))
def test_screens_in_the_documents_are_the_real_ones(document, columns, words, shown, demo):
    """Written anew by ``PYTHONPATH=tests python tests/docs/test_docs.py``; look at what changed."""
    done = call(*words, cwd=demo, columns=columns)
    assert done.exit_code == 0, done.stderr
    assert unstable(done.stdout) == unstable(shown)


def test_there_are_screens():
    assert {document for document, *_ in screens()} == {"README.md", "adapters.md", "spectrum.md"}


@pytest.fixture(scope="module")
def adapter(real_pair, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters") / "lora"
    svdcut.extract(real_pair.base, real_pair.finetuned, folder, rank=8)
    return folder


CUTS = [
    command
    for path in DOCUMENTS
    for name in ("truncate", "extract")
    for command in commands(path.read_text("utf-8"), name)
    if "org/" not in command
]


@pytest.mark.parametrize("command", CUTS)
def test_commands_in_the_documents_are_understood(command, real_pair, adapter, tmp_path):
    pair = real_pair
    if "--experts" in command:
        pair = ARCHITECTURES["qwen3_moe"].pair(tmp_path / "experts", layout="default")
    (tmp_path / "base").symlink_to(pair.base)
    for name in ("ft", "finetuned"):
        (tmp_path / name).symlink_to(pair.finetuned)
    if "base/ lora/" in command:
        (tmp_path / "lora").symlink_to(adapter)
    words = shlex.split(command.partition("|")[0])[1:]
    done = call(*words, "--dry-run", cwd=tmp_path)
    assert done.exit_code == 0, done.stderr


@pytest.mark.parametrize("command", SPECTRUM)
def test_spectrum_commands_in_the_documents_work(command, demo, adapter):
    (demo / "lora").symlink_to(adapter)
    for name, target in (("base", "base"), ("ft", "finetuned"), ("finetuned",) * 2, ("other",) * 2):
        (demo / name).symlink_to(demo / "demo" / target)
    done = call(*shlex.split(command.partition("|")[0])[1:], cwd=demo)
    assert (done.exit_code, done.stderr) == (0, "")
    for name in re.findall(r"\S+\.(?:png|html|safetensors)", command):
        assert (demo / name).stat().st_size > 10_000


EVALUATE = [c for path in DOCUMENTS for c in commands(path.read_text("utf-8"), "evaluate")]


def make_planted(folder: Path, command: str) -> None:
    """Make a pair, and the adapters that a command names, which name their base as it does."""
    text_models.planted(folder, task=1.0, shortcut=0.3)
    for name in ("adapter/", "lora/"):
        if name in command:
            done = call("extract", "base/", "ft/", "-k", "2", "-o", name, "-q", cwd=folder)
            assert done.exit_code == 0, done.stderr


@pytest.mark.parametrize("command", EVALUATE)
def test_evaluate_commands_in_the_documents_work(command, tmp_path):
    make_planted(tmp_path, command)
    text_models.bert(tmp_path / "out", names=["0", "1"])
    text_models.gpt2(tmp_path / "llm")
    columns = {name: [n % k % 2 for n in range(30)] for k, name in enumerate(MEMBERS, start=2)}
    write_csv(tmp_path / "test.csv", make_examples(30, labels=("0", "1")), **columns)
    done = call(*shlex.split(command.partition("|")[0])[1:], cwd=tmp_path)
    assert (done.exit_code, done.stderr) == (0, "")


SWEEP = [c for path in DOCUMENTS for c in commands(path.read_text("utf-8"), "sweep")]


@pytest.mark.parametrize("command", SWEEP)
def test_sweep_commands_in_the_documents_work(command, tmp_path, monkeypatch):
    commands = harness_files.write_stand_in(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(commands), prepend=os.pathsep)
    make_planted(tmp_path, command)
    data = text_models.planted_data(tmp_path / "test.csv")
    data.write_text(data.read_text().replace("group", "source", 1))
    done = call(*shlex.split(command)[1:], cwd=tmp_path)
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "sweep" / "sweep.json").is_file()


def test_the_readme_shows_commands():
    assert len(list(commands(README, "truncate"))) >= 6


PYTHON = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("block", [*blocks(README, "python"), *blocks(PYTHON, "python")])
def test_python_in_the_documents_runs(block, real_pair, tmp_path):
    ast.parse(block)
    (tmp_path / "demo").mkdir()
    for side in ("base", "finetuned"):
        (tmp_path / "demo" / side).symlink_to(getattr(real_pair, side))
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stdout or 0.9 < float(done.stdout) < 1


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target


def test_the_architecture_names_every_folder_and_root_module():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for module in (ROOT / "src" / "svdcut").iterdir():
        if not module.name.startswith("_") and (module.suffix == ".py" or module.is_dir()):
            assert f"`{module.stem}`" in text, module.name


def test_the_changelog_has_this_version():
    assert f"\n## {svdcut.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_make_knows_the_commands_of_the_readme():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^\$ make (\w+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile


def test_keys_of_the_spectrum_are_documented(real_pair):
    text = (ROOT / "docs" / "spectrum.md").read_text(encoding="utf-8")
    options = {"only": ["*layer.0.attention.self.*"], "top": 4}
    sides = (real_pair.base, real_pair.finetuned, real_pair.finetuned_encoder)
    comparison = svdcut.compare_spectra(*sides, only=["*layer.0.attention.self.*"]).to_json()
    document = svdcut.spectrum(*sides[:2], **options).to_json()
    tensors = [next(iter(part.values())) for part in (document["tensors"], comparison["overlaps"])]
    for keys in (document, *tensors):
        for key in keys:
            assert f"`{key}`" in text, key


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "scripts"))
    import tempfile

    from real_pair import make_real_pair

    sides = make_real_pair(ROOT / "demo")
    for path in DOCUMENTS:
        with tempfile.TemporaryDirectory() as name:
            (Path(name) / "demo").mkdir()
            for side in ("base", "finetuned"):
                (Path(name) / "demo" / side).symlink_to(getattr(sides, side))

            def fresh(match, folder=Path(name)):
                done = call(*match[2].split(), cwd=folder, columns=int(match[1]))
                assert done.exit_code == 0, done.stderr
                return f"<!-- screen {match[1]}: {match[2]} -->\n```text\n{done.stdout}```\n"

            text = SCREEN.sub(fresh, path.read_text(encoding="utf-8"))
            table = f"<!-- columns -->\n{column_table()}<!-- end -->"
            text = COLUMN_TABLE.sub(lambda _, table=table: table, text)
            path.write_text(text, encoding="utf-8")
