"""``svdcut evaluate`` as a user meets it: screens, documents, files, messages."""

from __future__ import annotations

import csv
import json
from functools import partial

import pytest

import svdcut
import text_models
from processes import run_process
from text_models import ANSWERS, make_examples, write_csv


@pytest.fixture
def cli(call_cli):
    return partial(call_cli, "evaluate")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a classifier, a language model, and data for both."""
    folder = tmp_path_factory.mktemp("evaluate")
    text_models.bert(folder / "bert", names=["negative", "positive"])
    text_models.gpt2(folder / "gpt2")
    examples = make_examples(30, labels=("negative", "positive"))
    members = {"male": [n % 2 for n in range(30)], "black": [int(n > 9) for n in range(30)]}
    write_csv(folder / "two.csv", examples, **members, easy=[int(n % 4 < 2) for n in range(30)])
    write_csv(folder / "three.csv", make_examples(30, labels=("0", "1", "2")))
    return folder


@pytest.fixture
def model(place):
    return place / "bert", place / "two.csv"


GROUPS = ("--group", "group", "--aligned", "easy")


def test_json_is_one_document(cli, model):
    result = cli(*model, *GROUPS, "--json", "--device", "cpu")
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert found.keys() >= {"accuracy", "size", "groups", "worst_group", "worst_group_accuracy"}
    assert found["gap"].keys() == {"best_worst", "average_worst", "aligned_conflicting"}
    assert found["size"] == 30
    assert sum(group["size"] for group in found["groups"].values()) == 30
    assert found["worst_group_accuracy"] == min(g["accuracy"] for g in found["groups"].values())
    evaluation = svdcut.evaluate(*model, group=["group"], aligned="easy", device="cpu")
    assert found == json.loads(json.dumps(evaluation.to_json()))


def test_the_screen_shows_what_the_document_says(cli, model):
    result = cli(*model, *GROUPS)
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(cli(*model, *GROUPS, "--json").stdout)
    lines = result.stdout.splitlines()
    assert f"{model[0]} on {model[1]}: 30 texts" in lines[0]
    assert lines[1] == "classifier in float32; classes: negative, positive"
    assert f"accuracy {found['accuracy']:.1%}" in result.stdout
    for name, group in found["groups"].items():
        (line,) = (line for line in lines if line.startswith(f"{name} "))
        assert line.split()[1:3] == [str(group["size"]), f"{group['accuracy']:.1%}"]
        assert line.endswith("worst") is (name == found["worst_group"])
    (gap,) = (line for line in lines if line.startswith("best group over worst group"))
    assert f" {100 * found['gap']['best_worst']:.1f} " in gap


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_no_line_of_a_table_is_wider_than_the_screen(cli, model, columns):
    result = cli(*model, *GROUPS, columns=columns)
    assert result.exit_code == 0, result.stderr
    assert max(map(len, result.stdout.splitlines()[2:])) <= columns


def test_without_groups_there_is_accuracy_alone(cli, model):
    result = cli(*model)
    assert result.exit_code == 0
    assert "accuracy " in result.stdout
    assert "No groups: --group COLUMN names them." in result.stdout
    assert "worst" not in result.stdout


def test_quiet_prints_nothing(cli, model):
    result = cli(*model, "-q")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_group_columns_may_be_repeated_or_separated_by_commas(cli, model):
    first = cli(*model, "--group-columns", "male,black", "--json")
    second = cli(*model, "--group-columns", "male", "--group-columns", "black", "--json")
    assert (first.exit_code, first.stdout) == (0, second.stdout)
    assert len(json.loads(first.stdout)["groups"]) >= 2


def test_texts_that_were_cut_are_counted(cli, place, tmp_path):
    data = tmp_path / "data.csv"
    rows = ["film " * 100 + f",{label}" for label in ("negative", "positive")]
    data.write_text("\n".join(["text,label", *rows, "good,positive"]))
    result = cli(place / "bert", data, "--json")
    assert (result.exit_code, json.loads(result.stdout)["num_truncated"]) == (0, 2)
    assert result.stderr == "svdcut: 2 texts too long for the model: cut\n"
    assert cli(place / "bert", data, "-q").stderr == ""


def test_a_language_model_answers_with_words(cli, place):
    result = cli(
        place / "gpt2",
        place / "three.csv",
        "--prompt",
        r"{text}\nSentiment:",
        "--labels",
        ",".join(ANSWERS),
    )
    assert (result.exit_code, result.stderr) == (0, "")
    said = result.stdout.splitlines()[1]
    assert said == "language model in float32; words: 0 as 'bad', 1 as 'great', 2 as 'rather fine'"


def test_a_chat_template_is_used_unless_it_is_declined(cli, place, tmp_path):
    llm = text_models.llama_chat(tmp_path / "llm")
    ask = (llm, place / "three.csv", "--labels", ",".join(ANSWERS))
    assert "language model in float32, by its chat template;" in cli(*ask).stdout
    assert "by its chat template" not in cli(*ask, "--no-chat-template").stdout
    found = [
        json.loads(cli(*ask, *more, "--json").stdout) for more in ((), ("--no-chat-template",))
    ]
    assert [document["chat_template"] for document in found] == [True, False]
    plain = json.loads(cli(place / "bert", place / "two.csv", "--json").stdout)
    assert plain["chat_template"] is None


def test_a_new_line_in_a_prompt_is_one(cli, place, tmp_path):
    words = ["--labels", ",".join(ANSWERS), "-q"]
    data = place / "three.csv"
    outcomes = []
    for n, prompt in enumerate([r"{text}\nSo:", "{text}\nSo:"]):
        path = tmp_path / f"{n}.jsonl"
        done = cli(place / "gpt2", data, "--prompt", prompt, *words, "--predictions", path)
        assert done.exit_code == 0, done.stderr
        outcomes.append(path.read_text())
    assert outcomes[0] == outcomes[1]


# Predictions


def test_predictions_as_csv(cli, model, tmp_path):
    path = tmp_path / "rows.csv"
    result = cli(*model, *GROUPS, "--predictions", path, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:5] == ["row", "label", "predicted", "correct", "groups"]
    assert list(rows[0])[-2:] == ["score:negative", "score:positive"]
    assert [row["row"] for row in rows] == [str(n + 1) for n in range(30)]
    assert {row["group"] for row in rows} == {"g0", "g1", "g2"}
    right = sum(row["correct"] == "1" for row in rows)
    assert json.loads(result.stdout)["accuracy"] == pytest.approx(right / 30)
    for row in rows:
        assert (row["correct"] == "1") is (row["predicted"] == row["label"])
        scores = {name: float(row[f"score:{name}"]) for name in ("negative", "positive")}
        assert row["predicted"] == max(scores, key=scores.get)


def test_predictions_as_json_lines(model, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("old")
    svdcut.evaluate(*model, group=["group"], predictions=path, device="cpu", limit=12, seed=1)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 12
    keys = ("row", "label", "predicted", "correct", "groups", "columns", "scores")
    assert tuple(rows[0]) == keys
    assert all(row["groups"] == [f"group={row['columns']['group']}"] for row in rows)
    assert list(tmp_path.iterdir()) == [path]


# What is refused: see tests/refusals.py too


def test_one_text_is_one_column_and_one_word(model):
    with pytest.raises(svdcut.DataError, match="'nowhere'"):
        svdcut.evaluate(*model, group="nowhere")
    with pytest.raises(svdcut.EvaluationError, match="1 words, 'a,b'"):
        svdcut.evaluate(*model, labels="a,b")


def test_help_and_bad_options_import_no_torch(place):
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "sys.argv[0] = 'svdcut'\n"
        "from svdcut.__main__ import main; main()"
    )
    shown = run_process(code, "evaluate", "--help")
    assert shown.returncode == 0, shown.stderr
    assert "--group-columns" in shown.stdout
    data = place / "two.csv"
    refused = run_process(code, "evaluate", place / "bert", data, "--prompt", "none")
    assert refused.returncode == 2
    assert "has no {text}" in refused.stderr


def test_without_transformers_the_extra_is_named(model):
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "sys.argv[0] = 'svdcut'\n"
        "from svdcut.__main__ import main; main()"
    )
    done = run_process(code, "evaluate", *model)
    assert done.returncode == 2
    assert "pip install transformers" in done.stderr


def test_nothing_but_the_result_is_said(place):
    """Neither bars nor warnings of transformers, in a process of its own."""
    code = "import sys; sys.argv[0] = 'svdcut'; from svdcut.__main__ import main; main()"
    words = ["--labels", ",".join(ANSWERS), "--json"]
    done = run_process(code, "evaluate", place / "gpt2", place / "three.csv", *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["size"] == 30
