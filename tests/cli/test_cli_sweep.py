"""``svdcut sweep`` as a user meets it: screens, documents, the answer, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial

import pytest

import svdcut
import text_models
from checkpoints import file_bytes


@pytest.fixture
def cli(call_cli):
    return partial(call_cli, "sweep")


@pytest.fixture(scope="module")
def tail(tmp_path_factory):
    """A pair with its task in the first triplet and its shortcut in the second; and data."""
    folder = tmp_path_factory.mktemp("tail")
    pair = text_models.planted(folder, task=1.0, shortcut=0.3)
    return (*pair, text_models.planted_data(folder / "data.csv"))


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """The same, the other way around."""
    folder = tmp_path_factory.mktemp("head")
    pair = text_models.planted(folder, task=0.3, shortcut=1.0)
    return (*pair, text_models.planted_data(folder / "data.csv"))


ASK = ("--group", "group", "--aligned", "aligned", "--device", "cpu")


def test_a_shortcut_in_the_tail_is_cut(cli, tail, tmp_path):
    result = cli(*tail, "-o", tmp_path / "out", "-k", "0,1,2,full", *ASK, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert found == json.loads((tmp_path / "out" / "sweep.json").read_text())
    accuracies = {row["rule"]: row["accuracy"] for row in found["rows"]}
    assert accuracies == {"0": 0.5, "1": 1.0, "2": 0.9, "full": 0.9}
    assert (found["base"]["accuracy"], found["finetuned"]["accuracy"]) == (0.5, 0.9)
    assert found["finetuned"]["gap"]["best_worst"] == 1.0
    assert found["finetuned"]["gap"]["aligned_conflicting"] == 1.0
    assert [found[name]["rule"] for name in ("chosen", "chosen_with_groups")] == ["1", "1"]
    assert found["chosen"]["gap"]["best_worst"] == 0.0
    assert found["answer"][1].startswith("1 of 2 groups have fewer than 30 texts")
    assert "smallest gap" in found["answer"][2]


def test_a_shortcut_in_the_head_is_not(cli, head, tmp_path):
    controls = ("--controls", "bottom,random")
    result = cli(*head, "-o", tmp_path, "-k", "1", "--only", "*word*", *ASK, *controls, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert [row["keep"] for row in found["rows"]] == ["top", "bottom", "random"]
    assert found["chosen"]["gap"]["best_worst"] == found["finetuned"]["gap"]["best_worst"] == 1.0
    start = "No cut of the tail within the tolerance shrinks the gap"
    assert any(sentence.startswith(start) for sentence in found["answer"])


def test_the_head_dropped(cli, head, tmp_path):
    """The update has rank 2 of 16, so that keeping the last 15 triplets drops the first."""
    controls = ("--controls", "bottom")
    result = cli(*head, "-o", tmp_path, "-k", "1,15", *ASK, *controls)
    assert result.exit_code == 0, result.stderr
    said = " ".join(result.stdout.split())
    assert "(bottom) does better: at rank 15 the gap is 0.0 points, with an accuracy of" in said
    assert "random set instead was not tried: --controls random" in said


@pytest.mark.parametrize("columns", [80, 100])
def test_the_screen(cli, tail, tmp_path, columns):
    words = ("-k", "0,1,2,full,energy=0.95", "--controls", "random")
    result = cli(*tail, "-o", tmp_path / "out", *words, *ASK, columns=columns)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert max(map(len, lines[:-1])) <= columns
    starts = ["rank", "base", "0", "1", "2", "full", "energy=0.95", "random 1", "random 2"]
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=False))
    shown = "1 100.0% 98.1 to 100.0 100.0% 0.0 0.0 to 0.0 use"
    assert " ".join(lines[3].split()) == shown
    (last,) = (line for line in lines if line.startswith("fine-tuned  "))
    assert last.split()[1] == "90.0%"
    assert "Use -k 1: the smallest rank within 2 points" in result.stdout
    assert lines[-1].endswith("sweep.json, sweep.csv, sweep.png")


@pytest.mark.parametrize("columns", [40, 60])
def test_on_a_narrow_screen_intervals_go_and_ranks_stay(cli, tail, tmp_path, columns):
    result = cli(*tail, "-o", tmp_path / "out", "-k", "1,full", *ASK, columns=columns)
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [line[0] for line in lines[:5]] == ["rank", "base", "1", "full", "fine-tuned"]
    assert lines[2][-1] == "use"
    said = " ".join(result.stdout.split())
    assert "No room for 95 % interval: see sweep.csv, or widen the screen." in said


def test_texts_that_were_cut_are_counted_as_by_evaluate(cli, tail, tmp_path):
    base, finetuned, data = tail
    long = tmp_path / "data.csv"
    long.write_text(f"{data.read_text()}{'film ' * 100},,positive,easy=1,1\n")
    words = (base, finetuned, long, "-o", tmp_path / "out", "-k", "0,1", "--device", "cpu")
    first = cli(*words)
    again = cli(*words, "--json")  # of rows that are on disk
    said = "svdcut: 1 text too long for the model: cut\n"
    assert [(r.exit_code, r.stderr) for r in (first, again)] == [(0, said)] * 2
    found = json.loads(again.stdout)
    alone = svdcut.evaluate(finetuned, long, device="cpu")
    assert found["finetuned"] == json.loads(json.dumps(alone.to_json()))
    rows = (found["base"], found["finetuned"], *found["rows"])
    assert [row["num_truncated"] for row in rows] == [1] * 4
    assert cli(*words, "-q").stderr == ""


def test_a_sweep_needs_no_picture(cli, tail, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    base, finetuned, data = tail
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "sweep.png").write_text("of an earlier one")
    result = cli(base, finetuned, data, "-k", "1", "-o", tmp_path / "sweep")
    assert result.exit_code in (0, 4), result.stderr
    assert "No picture was drawn: pip install matplotlib." in result.stdout
    assert not (tmp_path / "sweep" / "sweep.png").exists()


def test_quiet_prints_nothing(cli, tail, tmp_path):
    result = cli(*tail, "-o", tmp_path / "out", "-k", "1", "-q", *ASK)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_exit_4_where_no_rank_is_within(cli, tail, tmp_path):
    result = cli(*tail, "-o", tmp_path / "out", "-k", "0,full", *ASK, "--write", tmp_path / "w")
    assert result.exit_code == 4
    assert "No rank is within 2 points of the fine-tuned accuracy, 90.0%" in result.stderr
    assert "the closest is -k 0, with 50.0%" in result.stderr
    found = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert found["chosen"] is found["chosen_with_groups"] is None
    assert len(found["rows"]) == 2
    assert not (tmp_path / "w").exists()
    more = cli(*tail, "-o", tmp_path / "out", "-k", "0,full", *ASK, "--tolerance", "0.5", "-q")
    assert more.exit_code == 0


def test_write_truncates_at_the_chosen_rank(cli, tail, tmp_path):
    base, finetuned, _ = tail
    words = ("-k", "0,1,full", *ASK, "--dtype", "float32", "--write", tmp_path / "written")
    result = cli(*tail, "-o", tmp_path / "out", *words)
    assert result.exit_code == 0, result.stderr
    assert "at -k 1" in result.stderr
    svdcut.truncate(base, finetuned, tmp_path / "own", rank=1, dtype="float32", device="cpu")
    written, own = file_bytes(tmp_path / "written"), file_bytes(tmp_path / "own")
    assert written["model.safetensors"] == own["model.safetensors"]
    again = cli(*tail, "-o", tmp_path / "out", *words)
    assert again.exit_code == 2
    assert "written exists" in again.stderr


def run_process(*words, code=None):
    program = "import sys; sys.argv[0] = 'svdcut'; from svdcut.__main__ import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code or program, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "80"},
    )


def test_help_and_bad_options_import_no_torch(tail, tmp_path):
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "sys.argv[0] = 'svdcut'\n"
        "from svdcut.__main__ import main; main()"
    )
    shown = run_process("sweep", "--help", code=code)
    assert shown.returncode == 0, shown.stderr
    assert "--controls" in shown.stdout
    refused = run_process("sweep", *tail, "-o", tmp_path / "out", "-k", "x", code=code)
    assert refused.returncode == 2
    assert "not a rank rule" in refused.stderr


EVALUATOR = """
import os, pathlib, sys, time
log = pathlib.Path(os.environ["LOG"])
calls = int(log.read_text()) if log.exists() else 0
log.write_text(str(calls + 1))
if calls == 3:
    parent = os.getppid()
    os.kill(parent, int(os.environ["SIGNAL"]))
    while os.getppid() == parent:
        time.sleep(0.05)
print('{"accuracy": 0.5}')
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_stopped_by_a_signal_and_started_again(cli, tail, tmp_path, monkeypatch, number):
    script = tmp_path / "evaluate.py"
    script.write_text(EVALUATOR)
    base, finetuned, _ = tail
    command = f"{sys.executable} {script} {{model}}"
    words = (base, finetuned, "-o", tmp_path / "out", "-k", "0,1,2,full", "--tolerance")
    words = (*words, "0.1", "--eval-command", command)
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    monkeypatch.setenv("SIGNAL", str(int(number)))
    stopped = run_process("sweep", *words)
    if number is signal.SIGTERM:
        assert stopped.returncode == 143
        assert f"2 finished rows are kept in {tmp_path / 'out'}." in stopped.stderr
        assert "To go on: svdcut sweep" in stopped.stderr
    else:
        assert stopped.returncode == -signal.SIGKILL
    done = cli(*words)
    assert done.exit_code == 0, done.stderr
    # Fine-tuned, 0, 1; then 2, which is begun twice; then full.
    assert (tmp_path / "log").read_text() == "6"
    assert not (tmp_path / "out" / "checkpoint").exists()
    assert not (tmp_path / "out" / "checkpoint.partial").exists()
