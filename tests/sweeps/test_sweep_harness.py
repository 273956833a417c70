"""Results files of lm-evaluation-harness: read as it writes them, and refused otherwise."""

from __future__ import annotations

import importlib.util
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import harness_files
import svdcut
import text_models
from svdcut.errors import EvaluationError, UsageError
from svdcut.evaluation.metrics import wilson_interval
from svdcut.sweeps.command import read_harness


def golden(name):
    return harness_files.GOLDEN / name


@pytest.fixture
def written(tmp_path):
    """A folder with the results of one task, as lm_eval leaves it."""
    folder = tmp_path / "out"
    shutil.copytree(golden("task"), folder / "__model")
    return folder


def results_in(folder):
    (path,) = folder.rglob("results_*.json")
    return path


def change(path, function):
    document = json.loads(path.read_text(encoding="utf-8"))
    function(document)
    path.write_text(json.dumps(document), encoding="utf-8")


def test_a_task():
    found = read_harness(golden("task"))
    assert (found.accuracy, found.size) == (7 / 12, 12)
    assert found.interval == wilson_interval(7, 12)
    assert (found.groups, found.intervals) == ({}, {})


def test_a_group_counts_by_its_own_accuracy():
    found = read_harness(golden("group"))
    assert (found.accuracy, found.size, found.groups) == (0.5, 18, {})


def test_a_group_without_an_accuracy_counts_by_its_tasks(tmp_path):
    shutil.copytree(golden("group"), tmp_path / "out")
    path = results_in(tmp_path)
    change(path, lambda document: document["results"].update(pair={"alias": "pair"}))
    assert read_harness(tmp_path) == read_harness(golden("tasks"))


def test_several_tasks_are_the_groups():
    found = read_harness(golden("tasks"))
    assert {name: (g.accuracy, g.size) for name, g in found.groups.items()} == {
        "more": (2 / 6, 6),
        "words": (7 / 12, 12),
    }
    assert found.accuracy == pytest.approx(9 / 18)
    assert (found.size, found.worst_group) == (18, "more")
    assert found.gap.best_worst == pytest.approx(0.25)


def test_the_first_filter_counts_where_none_is_none():
    found = read_harness(golden("filters"))
    values = json.loads(results_in(golden("filters")).read_text())["results"]["answer"]
    assert found.accuracy == values["exact_match,strict-match"] == 0.5
    assert values["exact_match,flexible-extract"] == 0


@pytest.mark.parametrize(
    ("metrics", "accuracy"),
    [
        ({"f1,none": 0.1, "acc_norm,none": 0.2, "acc,none": 0.3}, 0.3),
        ({"exact_match,none": 0.1, "acc_norm,none": 0.2}, 0.2),
        ({"acc,b": 0.1, "acc,a": 0.2, "acc_norm,none": 0.3}, 0.1),
        ({"acc,b": 0.1, "acc,none": 0.2}, 0.2),
        ({"acc_stderr,none": 0.1, "accuracy,none": 0.2}, 0.2),
        ({"exact_match_stderr,x": 0.1, "exact_match,x": 1, "exact_match,y": 0.5}, 1.0),
    ],
)
def test_which_metric_is_the_accuracy(written, metrics, accuracy):
    change(results_in(written), lambda document: document["results"].update(words=metrics))
    assert read_harness(written).accuracy == accuracy


def refused(folder):
    with pytest.raises(EvaluationError) as caught:
        read_harness(folder)
    assert caught.value.exit_code == 3
    assert "--output_path {out}" in caught.value.hint
    return str(caught.value)


def test_no_results(tmp_path):
    assert "0 files results_DATE.json" in refused(tmp_path)


def test_several_results(written):
    path = results_in(written)
    shutil.copy(path, path.with_name("results_2026-02-02.json"))
    assert "2 files results_DATE.json" in refused(written)


@pytest.mark.parametrize("content", ["", "{", "[1]", "{}", '{"results": 1}', "[" * 5000, b"\xff"])
def test_no_results_file(written, content):
    path = results_in(written)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert str(path) in refused(written)


def metrics(**values):
    named = {key.replace("__", ","): value for key, value in values.items()}
    return lambda document: document["results"].update(words=named)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (metrics(f1__none=0.5, f1_stderr__none=0.1), "'words' has no accuracy"),
        (metrics(), "'words' has no accuracy"),
        (metrics(acc__none="high"), "acc,none of 'words': 'high'"),
        (metrics(acc__none=float("nan")), "acc,none of 'words': nan"),
        (metrics(acc__none=58.3), "expected 0 to 1"),
        (metrics(acc__none=True), "True"),
        (lambda found: found["results"].update(words=None), "results.words: Input should be"),
        (lambda found: found["results"].clear(), "no accuracy"),
        (lambda found: found.pop("n-samples"), "n-samples: Field required"),
        (lambda found: found["n-samples"].clear(), "n-samples of 'words': missing"),
        (
            lambda found: found["n-samples"].update(words={"effective": 0}),
            "n-samples.words.effective: Input",
        ),
        (lambda found: found.update(group_subtasks=[]), "group_subtasks: Input"),
        (lambda found: found.update(group_subtasks={"words": ["words"]}), "no accuracy"),
        (
            lambda found: found.update(group_subtasks={"words": ["gone"]}),
            "n-samples of 'gone': missing",
        ),
    ],
)
def test_results_that_make_no_sense(written, edit, message):
    change(results_in(written), edit)
    assert message in refused(written)


# A sweep

SCRIPT = """
import json, os, pathlib, sys
model, out, mode = sys.argv[1:]
out = pathlib.Path(out)
assert out.is_absolute() and not list(out.iterdir()) and os.path.isdir(model)
print("|Tasks|", "by", model)
share = 6 if model.endswith("checkpoint") else 11
document = {"results": {"t": {"acc,none": share / 12}}, "n-samples": {"t": {"effective": 12}}}
if mode != "silent":
    (out / "results_2026.json").write_text(json.dumps(document))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    text_models.planted(folder, task=1.0, shortcut=0.3)
    (folder / "script.py").write_text(SCRIPT)
    return folder


def command(place, mode="whole"):
    return shlex.join([sys.executable, str(place / "script.py"), "{model}", "{out}", mode])


def sweep(place, out, mode="whole", **options):
    options = {"ranks": "0,1", "device": "cpu", "tolerance": 0.5, "quiet": True} | options
    given = command(place, mode)
    return svdcut.sweep(place / "base", place / "ft", None, out, eval_command=given, **options)


def test_a_sweep(place, tmp_path, call_cli, capfd):
    words = (place / "base", place / "ft", "-o", tmp_path / "out", "-k", "0,1", "--json")
    options = ("--tolerance", "0.5", "--eval-command", command(place))
    done = call_cli("sweep", *words, *options)
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)  # and nothing else
    out, err = capfd.readouterr()  # of the command
    assert (out, err.count("|Tasks|")) == ("", 3)
    accuracies = [row["accuracy"] for row in (document["finetuned"], *document["rows"])]
    assert accuracies == [11 / 12, 6 / 12, 6 / 12]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "rows.jsonl",
        "sweep.json",
        "sweep.csv",
        "decomposition",
    }


def test_a_command_that_writes_nothing(place, tmp_path):
    with pytest.raises(EvaluationError, match="0 files"):
        sweep(place, tmp_path / "out", "silent")
    assert not (tmp_path / "out" / "evaluation").exists()


def test_quiet_keeps_tables_back(place, tmp_path, capfd):
    sweep(place, tmp_path / "a")
    assert capfd.readouterr() == ("", "")
    sweep(place, tmp_path / "b", quiet=False)
    out, err = capfd.readouterr()
    assert (out, err.count("|Tasks|")) == ("", 3)


def test_columns_of_no_data(place, tmp_path):
    with pytest.raises(UsageError, match="'source': a column to group by, but no DATA"):
        sweep(place, tmp_path / "out", group=["source"])


# The recorded files


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed")
def test_the_recorded_files_are_what_the_harness_writes(tmp_path):
    script = Path(harness_files.__file__)
    subprocess.run([sys.executable, script, tmp_path], check=True, capture_output=True)
    for name in harness_files.RUNS:
        assert read_harness(tmp_path / name) == read_harness(golden(name))
