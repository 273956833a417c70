"""Files of lm-evaluation-harness: read as it writes them, and refused where they are not so."""

from __future__ import annotations

import importlib.util
import inspect
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import harness_files
import svdcut
import text_models
from svdcut.errors import EvaluationError, UsageError
from svdcut.evaluation.dataset import Columns, read_dataset
from svdcut.evaluation.metrics import evaluate_predictions, wilson_interval
from svdcut.sweeps.harness import read_harness

NOTHING = Columns()
ALL = Columns(group=("source", "label"), group_columns=("male",), aligned="easy")
DATE = harness_files.DATE


def golden(name):
    return harness_files.GOLDEN / name


def rows_of(name, task):
    path = golden(name) / f"samples_{task}_{DATE}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def written(tmp_path):
    """A folder with the files of one task, as lm_eval leaves it."""
    folder = tmp_path / "out"
    shutil.copytree(golden("task"), folder / "__model")
    return folder


def results_in(folder):
    (path,) = folder.rglob("results_*.json")
    return path


def samples_in(folder):
    (path,) = folder.rglob("samples_*.jsonl")
    return path


def change(path, function):
    """Change each line of a file of JSON, or the whole document."""
    if path.suffix == ".json":
        document = json.loads(path.read_text(encoding="utf-8"))
        function(document)
        path.write_text(json.dumps(document), encoding="utf-8")
        return
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [row for n, row in enumerate(rows) if function(n, row) is not False]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


# Results


def test_a_task():
    found = read_harness(golden("task"), NOTHING)
    assert (found.accuracy, found.size) == (7 / 12, 12)
    assert found.interval == wilson_interval(7, 12)
    assert (found.groups, found.intervals) == ({}, {})


def test_a_group_counts_by_its_own_accuracy():
    found = read_harness(golden("group"), NOTHING)
    assert (found.accuracy, found.size, found.groups) == (0.5, 18, {})


def test_a_group_without_an_accuracy_counts_by_its_tasks(tmp_path):
    shutil.copytree(golden("group"), tmp_path / "out")
    path = results_in(tmp_path)
    change(path, lambda document: document["results"].update(pair={"alias": "pair"}))
    assert read_harness(tmp_path, NOTHING) == read_harness(golden("tasks"), NOTHING)


def test_several_tasks_are_the_groups():
    found = read_harness(golden("tasks"), NOTHING)
    assert {name: (g.accuracy, g.size) for name, g in found.groups.items()} == {
        "more": (2 / 6, 6),
        "words": (7 / 12, 12),
    }
    assert found.accuracy == pytest.approx(9 / 18)
    assert (found.size, found.worst_group) == (18, "more")
    assert found.gap.best_worst == pytest.approx(0.25)


def test_the_first_filter_counts_where_none_is_none():
    found = read_harness(golden("filters"), NOTHING)
    values = json.loads(results_in(golden("filters")).read_text())["results"]["answer"]
    assert found.accuracy == values["exact_match,strict-match"] == 0.5
    assert values["exact_match,flexible-extract"] == 0
    by_rows = read_harness(golden("filters"), Columns(group=("source",)))
    assert (by_rows.accuracy, by_rows.size) == (0.5, 6)


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
    assert read_harness(written, NOTHING).accuracy == accuracy


def test_samples_of_all_tasks_of_a_group_count_alike():
    found = read_harness(golden("group"), ALL)
    rows = rows_of("group", "words") + rows_of("group", "more")
    assert (found.accuracy, found.size) == (9 / 18, 18)
    of_g0 = [row["acc"] for row in rows if (row["doc"]["source"], row["doc"]["label"]) == ("g0", 1)]
    assert found.groups["source=g0, label=1"].accuracy == sum(of_g0) / len(of_g0)


# Samples


@st.composite
def documents(draw):
    size = draw(st.integers(2, 12))
    column = lambda values: st.lists(values, min_size=size, max_size=size).filter(  # noqa: E731
        lambda found: len(set(found)) > 1
    )
    columns = {
        "source": draw(column(st.sampled_from(["a", "b", "é, c"]))),
        "label": draw(column(st.integers(0, 2))),
        "male": draw(column(st.sampled_from([0, 0.25, 0.5, 1.0]))),
        "easy": draw(column(st.booleans())),
    }
    names, lists = list(columns), columns.values()
    docs = [dict(zip(names, row, strict=True)) for row in zip(*lists, strict=True)]
    return docs, draw(st.lists(st.booleans(), min_size=size, max_size=size))


def write_files(folder, docs, correct, *, num=float):
    """Write what lm_eval would: a task of a metric, by two filters."""
    folder.mkdir(parents=True, exist_ok=True)
    right = sum(correct) / len(correct)
    document = {
        "results": {"t": {"alias": "t", "acc,other": 1 - right, "acc,none": right}},
        "group_subtasks": {},
        "n-samples": {"t": {"original": 99, "effective": len(docs)}},
    }
    (folder / f"results_{DATE}.json").write_text(json.dumps(document))
    lines = [
        {
            "doc_id": n,
            "doc": doc,
            "filter": name,
            "metrics": ["acc"],
            "acc": num(hit == (name == "none")),
        }
        for name in ("other", "none")
        for n, (doc, hit) in enumerate(zip(docs, correct, strict=True))
    ]
    (folder / f"samples_t_{DATE}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))


@given(documents(), st.sampled_from([float, int, bool]))
@settings(max_examples=40, deadline=None)
def test_groups_are_those_of_evaluate(tmp_path_factory, drawn, num):
    """The same rows as a table for ``svdcut evaluate`` give the same numbers, to the last bit."""
    docs, correct = drawn
    folder = tmp_path_factory.mktemp("files")
    write_files(folder / "m", docs, correct, num=num)
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(doc | {"text": "x"}) + "\n" for doc in docs))
    expected = evaluate_predictions(correct, read_dataset(data, ALL), seed=3)
    assert read_harness(folder / "m", ALL, seed=3) == expected
    plain = read_harness(folder / "m", NOTHING)
    assert (plain.accuracy, plain.interval) == (expected.accuracy, expected.interval)


def test_fields_that_are_not_named_may_be_anything(written):
    change(samples_in(written), lambda n, row: row["doc"].update(source=[n], text=None))
    assert read_harness(written, Columns(group=("label",))).groups.keys() == {"label=0", "label=1"}


# What is refused


def refused(folder, columns=ALL):
    with pytest.raises(EvaluationError) as caught:
        read_harness(folder, columns)
    assert caught.value.exit_code == 3
    assert caught.value.hint
    return str(caught.value)


def test_no_results(tmp_path):
    assert "found no file at all" in refused(tmp_path)
    (tmp_path / "other.txt").touch()
    message = refused(tmp_path)
    assert "found 'other.txt'" in message
    assert "--output_path {out}" in message


def test_several_results(written):
    path = results_in(written)
    shutil.copy(path, path.with_name("results_2026-02-02.json"))
    assert "expected one file" in refused(written)


def test_no_samples():
    message = refused(golden("tasks"))
    assert "the samples of 'words' are expected there" in message
    assert "--log_samples" in message


@pytest.mark.parametrize("content", ["", "{", "[1]", "{}", '{"results": 1}', "[" * 5000, b"\xff"])
def test_no_results_file(written, content):
    path = results_in(written)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert str(path) in refused(written, NOTHING)


def metrics(**values):
    named = {key.replace("__", ","): value for key, value in values.items()}
    return lambda document: document["results"].update(words=named)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (metrics(f1__none=0.5, f1_stderr__none=0.1), "found f1,none"),
        (metrics(), "found no metric"),
        (metrics(acc__none="high"), "acc,none of 'words': 'high'"),
        (metrics(acc__none=float("nan")), "acc,none of 'words': nan"),
        (metrics(acc__none=58.3), "where a number from 0 to 1 is expected"),
        (metrics(acc__none=True), "True"),
        (
            lambda document: document["results"].update(words=None),
            "results.words: Input should be a valid",
        ),
        (lambda document: document["results"].clear(), "no tasks in it"),
        (lambda document: document.pop("n-samples"), "n-samples: Field required"),
        (lambda document: document["n-samples"].clear(), "n-samples of 'words': None"),
        (
            lambda document: document["n-samples"].update(words={"effective": 0}),
            "n-samples.words.effective: Input",
        ),
        (lambda document: document["n-samples"].update(words=12), "n-samples.words: "),
        (
            lambda document: document.update(group_subtasks=[]),
            "group_subtasks: Input",
        ),
        (
            lambda document: document.update(group_subtasks={"words": 3}),
            "group_subtasks.words: Input",
        ),
        (lambda document: document.update(group_subtasks={"words": ["words"]}), "no tasks in it"),
        (
            lambda document: document.update(group_subtasks={"words": ["gone"]}),
            "n-samples of 'gone': None",
        ),
    ],
)
def test_results_that_make_no_sense(written, edit, message):
    change(results_in(written), edit)
    assert message in refused(written, NOTHING)


def row(number, **fields):
    def edit(n, found):
        if n + 1 == number:
            found.update(fields)

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (row(3, acc=0.5), "row 3: acc: 0.5, where 0 or 1 is expected"),
        (row(3, acc=[1]), "row 3: acc: [1]"),
        (row(3, acc="1"), "row 3: acc: '1'"),
        (row(3, doc="text"), "row 3: doc: 'text', where a JSON object is expected"),
        (row(3, doc={"label": 1}), "row 3: doc: no column 'source'"),
        (row(3, doc={"label": 1, "source": None, "male": 0, "easy": 1}), "row 3, column 'source'"),
        (
            row(3, doc={"label": 1, "source": "a", "male": 7, "easy": 1}),
            "row 3, column 'male': '7'",
        ),
        (
            row(3, doc={"label": 1, "source": "a", "male": 0, "easy": 2}),
            "row 3, column 'easy': '2'",
        ),
        (lambda n, found: found.pop("acc") * 0, "no column 'acc'"),
        (lambda n, found: found.pop("filter") and None, "no column 'filter'"),
        (lambda n, found: found.update(filter="x"), "0 of 0 samples right by acc,none"),
        (lambda n, found: n < 6, "of 6 samples right"),
        (lambda n, found: found.update(acc=1.0), "12 of 12 samples right by acc,none, where"),
        (lambda n, found: found["doc"].update(source="a"), "every row has the value 'a'"),
    ],
)
def test_samples_that_make_no_sense(written, edit, message):
    change(samples_in(written), edit)
    found = refused(written)
    assert message in found
    assert str(written) in found


@pytest.mark.parametrize("content", ["{\n", "3\n", b'{"a": "\xff"}\n', "[" * 5000 + "\n"])
def test_no_samples_file(written, content):
    path = samples_in(written)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert f"{path}: row 1" in refused(written)


# A sweep

SCRIPT = """
import json, os, pathlib, sys
DATE = {date!r}
{write_files}
model, out, mode = sys.argv[1:]
out = pathlib.Path(out)
assert out.is_absolute() and not list(out.iterdir()) and os.path.isdir(model)
print("|Tasks|", "by", model)
docs = [dict(source="ab"[n % 2], label=n % 3 % 2, easy=n % 4 > 0) for n in range(12)]
share = 6 if model.endswith("checkpoint") else 11
if mode != "silent":
    write_files(out / model.replace("/", "__"), docs, [n < share for n in range(12)])
if mode == "bare":
    next(out.rglob("samples*")).unlink()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    text_models.planted(folder, task=1.0, shortcut=0.3)
    script = folder / "script.py"
    # Its source, not an import: this module brings torch, which takes seconds.
    script.write_text(SCRIPT.format(date=DATE, write_files=inspect.getsource(write_files)))
    return folder


def command(place, mode="whole"):
    return shlex.join([sys.executable, str(place / "script.py"), "{model}", "{out}", mode])


def sweep(place, out, mode="whole", **options):
    options = {"ranks": "0,1", "device": "cpu", "tolerance": 0.5, "quiet": True} | options
    given = command(place, mode)
    return svdcut.sweep(place / "base", place / "ft", None, out, eval_command=given, **options)


def test_a_sweep(place, tmp_path, call_cli, capfd):
    words = (place / "base", place / "ft", "-o", tmp_path / "out", "-k", "0,1", "--json")
    asked = ("--group", "source", "--aligned", "easy", "--tolerance", "0.5")
    done = call_cli("sweep", *words, *asked, "--eval-command", command(place))
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)  # and nothing else
    out, err = capfd.readouterr()  # of the command
    assert (out, err.count("|Tasks|")) == ("", 3)
    accuracies = [row["accuracy"] for row in (document["finetuned"], *document["rows"])]
    assert accuracies == [11 / 12, 6 / 12, 6 / 12]
    assert document["finetuned"]["groups"].keys() == {"source=a", "source=b"}
    assert document["finetuned"]["intervals"]["gap"].keys() == {
        "best_worst",
        "average_worst",
        "aligned_conflicting",
    }
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "rows.jsonl",
        "sweep.json",
        "sweep.csv",
        "decomposition",
    }
    again = call_cli("sweep", *words, "--group", "label", "--eval-command", command(place))
    assert again.exit_code == 2
    assert "--group was source, is label" in again.stderr


def test_a_sweep_without_samples(place, tmp_path):
    found = sweep(place, tmp_path / "out", "bare")
    assert (found.finetuned.accuracy, found.finetuned.size) == (11 / 12, 12)
    with pytest.raises(EvaluationError, match="--log_samples"):
        sweep(place, tmp_path / "other", "bare", group=["source"])
    assert not (tmp_path / "other" / "evaluation").exists()


def test_a_command_that_writes_nothing(place, tmp_path):
    with pytest.raises(EvaluationError, match="no file at all"):
        sweep(place, tmp_path / "out", "silent")


def test_quiet_keeps_tables_back(place, tmp_path, capfd):
    sweep(place, tmp_path / "a")
    assert capfd.readouterr() == ("", "")
    sweep(place, tmp_path / "b", quiet=False)
    out, err = capfd.readouterr()
    assert (out, err.count("|Tasks|")) == ("", 3)


@pytest.mark.parametrize(
    ("first", "second", "named"),
    [
        ({}, {"group": ["source"]}, "group was absent, is source"),
        ({"group": ["source", "label"]}, {"group": ["label", "source"]}, "group was"),
        ({"aligned": "easy"}, {}, "aligned was easy, is absent"),
        (
            {"group_columns": ["easy"]},
            {"group_columns": ["easy"], "label": "source"},
            "label was",
        ),
        ({"group": ["source"]}, {"group": ["source"], "seed": 1}, "seed was 0, is 1"),
    ],
)
def test_rows_of_other_groups_are_refused(place, tmp_path, first, second, named):
    sweep(place, tmp_path / "out", **first)
    with pytest.raises(svdcut.OutputExistsError, match=named):
        sweep(place, tmp_path / "out", **second)


def test_a_field_that_is_to_be_two_things(place, tmp_path):
    with pytest.raises(UsageError, match="named for two things"):
        sweep(place, tmp_path / "out", group=["source", "source"])


# The recorded files


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed")
def test_the_recorded_files_are_what_the_harness_writes(tmp_path):
    script = Path(harness_files.__file__)
    subprocess.run([sys.executable, script, tmp_path], check=True, capture_output=True)
    names = {path.relative_to(tmp_path) for path in tmp_path.rglob("*.json*")}
    kept = {
        path.relative_to(harness_files.GOLDEN) for path in harness_files.GOLDEN.rglob("*.json*")
    }
    assert names == kept
    for name in harness_files.RUNS:
        columns = NOTHING if name == "tasks" else ALL
        assert read_harness(tmp_path / name, columns) == read_harness(golden(name), columns)
