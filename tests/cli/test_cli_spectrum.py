"""``svdcut spectrum`` as a user meets it: screens, pipelines, files, messages."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import svdcut
from checkpoints import toy, write_folder
from svdcut.cli.app import app
from svdcut.spectra.files import HEAD

ENVIRONMENT = {"COLUMNS": "120", "TERM": "dumb", "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def cli(monkeypatch):
    def call(*arguments, columns=120):
        words = ["spectrum", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", ["svdcut", *words])
        return CliRunner().invoke(app, words, env=ENVIRONMENT | {"COLUMNS": str(columns)})

    return call


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return toy(tmp_path_factory.mktemp("toy"), layers=3)


def shell(line, pair, tmp_path):
    """Run a pipeline as a shell does, without a terminal and without COLUMNS."""
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    command = f"'{sys.executable}' -m svdcut spectrum '{pair.base}' '{pair.finetuned}' {line}"
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_json_is_one_document(cli, pair):
    result = cli(pair.base, pair.finetuned, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    expected = svdcut.spectrum(pair.base, pair.finetuned).to_json()
    assert found | {"seconds": 0} == expected | {"seconds": 0}


def test_csv_is_a_table(cli, pair):
    result = cli(pair.base, pair.finetuned, "--csv")
    assert (result.exit_code, result.stderr) == (0, "")
    head, *rows = csv.reader(io.StringIO(result.stdout))
    assert tuple(head) == HEAD
    assert len(rows) == len(svdcut.spectrum(pair.base, pair.finetuned).matrices)
    assert {len(row) for row in rows} == {len(HEAD)}


@pytest.mark.parametrize(
    ("line", "lines"),
    [
        ("--json | jq -r '.tensors | length'", 1),
        ("--csv | column -ts,", None),
        ("--csv | head -2", 2),
        ("| head -3", 3),
        ("| grep -c 256", None),
        ("--json | head -c 100", None),
        ("-q", 0),
    ],
)
def test_pipelines_are_quiet_and_right(line, lines, pair, tmp_path):
    tool = line.partition("| ")[2].split(" ")[0]
    if tool and subprocess.run(["which", tool], capture_output=True, check=False).returncode:
        pytest.skip(f"there is no {tool}")
    done = shell(line, pair, tmp_path)
    assert done.stderr == ""
    assert done.returncode in (0, 1 if "grep" in line else 0)
    if lines is not None:
        assert len(done.stdout.splitlines()) == lines


def test_a_pipe_has_room_for_every_column(pair, tmp_path):
    shown = shell("", pair, tmp_path).stdout
    for title in ("norm", "relative", "first", "last", "stable", "effective", "99 %", "zeros"):
        assert title in shown
    assert "No room" not in shown


@pytest.mark.parametrize("key", ["relative_norm", "intruders"])
def test_weights_have_no_key_of_updates(cli, real_pair, key):
    result = cli(real_pair.finetuned, "--sort", key)
    assert result.exit_code == 2
    assert f"--sort {key} needs " in result.stderr


def test_tensors_are_shown_on_request(cli, real_pair):
    first = cli(real_pair.base, real_pair.finetuned, "--only", "*layer*")
    assert "By tensor" not in first.stdout
    assert "--sort model shows each of the 72 tensors" in first.stdout
    assert first.stdout.index("a cut at") < first.stdout.index("By module")
    assert "By tensor" in cli(real_pair.base, real_pair.finetuned, "--sort", "norm").stdout


@pytest.mark.parametrize("columns", [60, 80, 100, 120, 200])
def test_no_line_of_a_table_is_wider_than_the_screen(cli, real_pair, columns):
    result = cli(
        real_pair.base,
        real_pair.finetuned,
        "--only",
        "*layer.1[01].*",
        "--sort",
        "model",
        columns=columns,
    )
    assert result.exit_code == 0, result.stderr
    table = [line for line in result.stdout.splitlines() if re.match(r"1[01]\.\w", line)]
    assert len(table) >= 12
    assert max(map(len, result.stdout.splitlines()[3:20])) <= columns
    assert ("No room" in result.stdout) is (columns < 120)


def test_every_number_of_the_screen_is_that_of_the_json(cli, real_pair):
    options = ("--only", "*layer.3.attention.self.key*")
    screen = cli(real_pair.base, real_pair.finetuned, *options).stdout
    found = json.loads(cli(real_pair.base, real_pair.finetuned, *options, "--json").stdout)
    (facts,) = found["tensors"].values()
    for shown in (
        f"{facts['norm']:.3g}",
        f"{facts['relative_norm']:.1%}",
        f"{facts['singular_values'][0]:.3g}",
        f"{facts['effective_rank']:.0f}",
        f" {facts['rank_90']} ",
        f" {facts['rank_99']} ",
        f" {facts['above_noise_edge']} ",
    ):
        assert shown in screen


def test_sorted(cli, pair):
    result = cli(pair.base, pair.finetuned, "--csv", "--sort", "relative_norm")
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    values = [float(row["relative_norm"]) for row in rows]
    assert values == sorted(values, reverse=True)


def test_files(cli, pair, tmp_path):
    plot, page, values = (tmp_path / name for name in ("p.svg", "p.html", "v.safetensors"))
    result = cli(pair.base, pair.finetuned, "--plot", plot, "--html", page, "--save", values, "-q")
    assert (result.exit_code, result.output) == (0, "")
    assert "<svg" in plot.read_text()
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert text.count("data:image/svg") >= 6
    assert load_file(values).keys() == svdcut.spectrum(pair.base, pair.finetuned).tensors.keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.html", "p.svg", "v.safetensors"]
    (tmp_path / "new").touch()
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_compared(cli, pair, tmp_path):
    plot = tmp_path / "c.png"
    sides = (pair.base, pair.finetuned, "--compare", pair.finetuned)
    result = cli(*sides, "--plot", plot)
    assert result.exit_code == 0, result.stderr
    assert "1.00" in result.stdout
    assert plot.read_bytes().startswith(b"\x89PNG")
    found = json.loads(cli(*sides, "--json", "--rank", "3").stdout)
    assert found["schema"] == "svdcut/comparison/1"
    for overlap in found["overlaps"].values():
        overlaps = overlap["left_overlap"]
        for value in overlaps if isinstance(overlaps, list) else [overlaps]:
            assert value == pytest.approx(1)
    rows = list(csv.DictReader(io.StringIO(cli(*sides, "--csv").stdout)))
    assert {float(row["energy_distance"]) for row in rows} == {0}


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_names_of_a_comparison_stay_on_a_narrow_screen(cli, real_pair, columns):
    sides = (real_pair.base, real_pair.finetuned, "--compare", real_pair.finetuned_encoder)
    shown = cli(*sides, "--only", "*layer.1[01].*", columns=columns).stdout
    table = [line for line in shown.splitlines() if re.match(r"1[01]\.\w", line)]
    assert len(table) == 12
    assert max(map(len, table)) <= columns
    assert "…" not in shown


def test_a_comparison_is_sorted_by_the_first_update(cli, pair):
    sides = (pair.base, pair.finetuned, "--compare", pair.finetuned, "--csv")
    rows = csv.DictReader(io.StringIO(cli(*sides, "--sort", "norm").stdout))
    norms = {}
    for row in rows:
        norms.setdefault(row["tensor"], []).append(float(row["norm_first"]))
    sums = [sum(norm**2 for norm in found) for found in norms.values()]
    assert sums == sorted(sums, reverse=True)


def test_intruders_are_counted(cli, pair):
    result = cli(pair.base, pair.finetuned, "--intruders", "--csv")
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert all(row["intruders"].isdigit() for row in rows)
    assert "intruders" in cli(pair.base, pair.finetuned, "--intruders").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("{base}", "{ft}", "--json", "--csv"), 2, "--json and --csv"),
        (("{base}", "{ft}", "--plot", "x.gif"), 2, ".png, .svg or .pdf"),
        (("{base}", "{ft}", "--html", "x.txt"), 2, "ends in .html"),
        (("{base}", "{ft}", "--save", "x.pt"), 2, "ends in .safetensors"),
        (("{base}", "{ft}", "--save", "none/x.safetensors"), 1, "there is no folder"),
        (("{base}", "{ft}", "--save", "{ft}/model.safetensors"), 2, "a file of the input"),
        (("{base}", "{ft}", "--plot", "{ft}/model.safetensors"), 2, ".png, .svg or .pdf"),
        (("{base}", "--compare", "{ft}"), 2, "--compare needs an update"),
        (("{base}", "{ft}", "--rank", "3"), 2, "--rank is of --compare"),
        (("{base}", "--intruders"), 2, "--intruders needs two checkpoints"),
        (("{base}", "{ft}", "--compare", "{ft}", "--html", "x.html"), 2, "--html is of one"),
        (("{base}", "{ft}", "--only", "nothing"), 2, "matches no tensor"),
        (("{base}", "none/"), 3, "no such file"),
        (("{base}", "{ft}", "--sort", "size"), 2, "--sort"),
        (("{base}", "--sort", "relative_norm"), 2, "Without: model, name, norm, sigma_first,"),
        (("{base}", "{ft}", "--sort", "intruders"), 2, "Without: model, name, norm, relative"),
        (("{base}", "{ft}", "--top", "0"), 2, "--top"),
    ],
)
def test_errors_are_a_few_lines(arguments, code, words, cli, pair, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = cli(*(word.format(base=pair.base, ft=pair.finetuned) for word in arguments))
    assert result.exit_code == code, result.output
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_weights_are_not_overwritten_by_their_values(cli, pair):
    before = (pair.finetuned / "model.safetensors").read_bytes()
    cli(pair.base, pair.finetuned, "--save", pair.finetuned / "model.safetensors")
    assert (pair.finetuned / "model.safetensors").read_bytes() == before


def test_a_base_that_is_named_and_here_is_told_of(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = {"layers.0.up.weight": torch.randn(8, 6)}
    write_folder(tmp_path / "base", weights)
    write_folder(tmp_path / "ft", weights, {"_name_or_path": "base"})
    result = cli("ft")
    assert "svdcut spectrum base ft" in result.stderr
    assert cli("ft", "-q").stderr == ""
    write_folder(tmp_path / "itself", weights, {"_name_or_path": "itself"})
    write_folder(tmp_path / "elsewhere", weights, {"_name_or_path": "/nowhere/base"})
    for name in ("itself", "elsewhere", "base"):
        assert cli(name).stderr == ""
    (tmp_path / "elsewhere" / "README.md").write_text("---\nbase_model: base/\n---\n")
    assert "svdcut spectrum base/ elsewhere" in cli("elsewhere").stderr


def test_what_base_lacks_is_warned_of(cli, tmp_path):
    weights = {"layers.0.up.weight": torch.randn(8, 6)}
    more = weights | {"layers.1.up.weight": torch.randn(8, 6)}
    base, tuned = write_folder(tmp_path / "b", weights), write_folder(tmp_path / "f", more)
    result = cli(base, tuned)
    assert result.exit_code == 0
    assert "1 matrix is left out" in result.stderr


def test_a_name_cannot_draw_on_the_terminal(cli, tmp_path):
    name = "layers.0.\x1b[31mred[bold]\u202e.weight"
    folder = write_folder(tmp_path / "w", {name: torch.randn(8, 6), "b.weight": torch.randn(4, 4)})
    result = cli(folder)
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    assert "\u202e" not in result.stdout
    assert "[bold]" in result.stdout


def test_the_share_of_zeros_is_that_of_the_entries(cli, tmp_path):
    """A large matrix counts more than a small one."""
    weights = {"a.up.weight": torch.ones(40, 50), "b.up.weight": torch.ones(4, 5)}
    tuned = {"a.up.weight": torch.ones(40, 50), "b.up.weight": 2 * torch.ones(4, 5)}
    base, ft = write_folder(tmp_path / "b", weights), write_folder(tmp_path / "f", tuned)
    assert svdcut.spectrum(base, ft).zero_fraction == pytest.approx(2000 / 2020)
    text = cli(base, ft).stdout
    assert "1 matrix is unchanged: the same on both sides." in text
    assert "exactly zero" not in text  # of what changed none is


def test_zeros_are_lost_in_storage_only_where_the_edge_says_so(cli, tmp_path):
    """A row that no training reached is zero, and not lost; a small change in bfloat16 is."""
    torch.manual_seed(0)
    weights = torch.randn(64, 48)
    rows, small = torch.zeros(64, 48), 2e-3 * torch.randn(64, 48)
    rows[:8] = torch.randn(8, 48)

    def said(dtype, update):
        sides = [
            write_folder(tmp_path / f"{dtype}{i}", {"up.weight": side.to(dtype)})
            for i, side in enumerate((weights, weights + update))
        ]
        return cli(*sides).stdout

    reached, lost = said(torch.float32, rows), said(torch.bfloat16, small)
    assert "88% of the entries of the update are exactly zero." in reached
    assert "exactly zero: most of it is within the rounding of the stored weights" in lost


def test_values_beneath_the_resolution_say_so(cli, tmp_path):
    """On the screen, in the table and on the page alike; the JSON keeps the number."""
    base, ft, page = tmp_path / "b", tmp_path / "f", tmp_path / "page.html"
    update = torch.diag(torch.tensor([4.0, 1.0, 2.0**-40]))
    write_folder(base, {"up.weight": torch.zeros(3, 3)})
    write_folder(ft, {"up.weight": update})
    assert " <4.0e-07 " in cli(base, ft, "--html", page).stdout
    assert "&lt;4.0e-07" in page.read_text()
    (line,) = csv.DictReader(io.StringIO(cli(base, ft, "--csv").stdout))
    assert line["sigma_last"] == "<4.0e-07"
    facts = json.loads(cli(base, ft, "--json").stdout)["tensors"]["up.weight"]
    assert facts["resolution"] == pytest.approx(4e-7)
    assert facts["singular_values"][-1] < 1e-11


def test_a_model_against_itself_is_warned_of(cli, call_cli, tmp_path, pair):
    said = "BASE and FT are the same in every matrix"
    copy = shutil.copytree(pair.base, tmp_path / "copy")
    for result in (
        cli(pair.base, copy),
        call_cli("truncate", pair.base, copy, "-k", "2", "-o", tmp_path / "out"),
    ):
        assert result.exit_code == 0
        assert said in result.stderr
    assert said not in cli(pair.base, pair.finetuned).stderr


def test_sides_the_wrong_way_round_are_warned_of(cli, call_cli, tmp_path):
    weights = {"layers.0.up.weight": torch.randn(8, 6)}
    base = write_folder(tmp_path / "base", weights)
    named = write_folder(tmp_path / "named", weights, {"_name_or_path": "org/base"})
    headed = write_folder(tmp_path / "headed", weights | {"score.weight": torch.randn(2, 6)})
    for swapped, sign in ((named, "from 'org/base'"), (headed, "'score.weight'")):
        out = tmp_path / f"out-{swapped.name}"
        for result in (
            cli(swapped, base),
            call_cli("truncate", swapped, base, "-k", "1", "-o", out),
        ):
            assert "are BASE and FT the wrong way round?" in result.stderr
            assert sign in result.stderr
            assert result.exit_code == 0
        assert "wrong way" not in cli(base, swapped).stderr
    both = write_folder(tmp_path / "again" / "base", weights, {"_name_or_path": "org/base"})
    assert "wrong way" not in cli(base, both).stderr
    assert "wrong way" not in cli(both, named).stderr


def test_names_that_do_not_fold_fill_one_screen_unless_asked_for(cli, tmp_path):
    letters = "abcdefgh"
    names = [f"{one}.{two}_proj.weight" for one in letters for two in letters]
    write_folder(tmp_path / "m", {name: torch.randn(4, 3) for name in names})
    unasked = cli(tmp_path / "m").stdout
    assert sum("_proj" in line for line in unasked.splitlines()) == 40
    assert "and 24 more rows: --sort model shows all" in unasked
    asked = cli(tmp_path / "m", "--sort", "model").stdout
    assert sum("_proj" in line for line in asked.splitlines()) == 64
    assert "more rows" not in asked


def test_edges_of_weights_can_be_sorted_by(cli, pair):
    result = cli(pair.base, "--csv", "--sort", "noise_edge")
    edges = [float(row["noise_edge"]) for row in csv.DictReader(io.StringIO(result.stdout))]
    assert edges == sorted(edges, reverse=True)


@pytest.mark.parametrize(
    ("named", "shown"),
    [("my base", "svdcut truncate 'my base' "), ("a\nb", "svdcut truncate BASE ")],
)
def test_an_adapter_alone_is_told_with_the_base_that_it_names(named, shown, cli, tmp_path):
    folder = tmp_path / "lora"
    write_folder(folder, {"a.weight": torch.randn(4, 3)})
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": named}))
    result = cli(folder)
    assert result.exit_code == 3
    assert f"{shown}{folder} ..." in " ".join(result.stderr.split())
