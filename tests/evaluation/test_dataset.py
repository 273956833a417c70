"""Labelled examples: every format, groups by their definitions, samples, and what is refused."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import tempfile
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples import write_csv, write_everything, write_lines, write_parquet
from svdcut.errors import DataError, UsageError
from svdcut.evaluation import dataset
from svdcut.evaluation.dataset import read_dataset
from svdcut.evaluation.options import DataOptions

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
VALUES = st.sampled_from(["positive", "négatif", "x, y", 'a "b"', "=", "-1", "1.50", "07"])
PAIR = {"text": ["a", "b"], "label": ["0", "1"]}
"""The least that is accepted."""


def two_values(values):
    """Columns in which not every row is the same."""
    return st.lists(values, min_size=2, max_size=8).filter(lambda column: len(set(column)) > 1)


@st.composite
def columns_of_text(draw):
    labels = draw(two_values(VALUES))
    size = len(labels)
    group = draw(st.lists(VALUES, min_size=size, max_size=size).filter(lambda c: len(set(c)) > 1))
    texts = st.lists(TEXTS, min_size=size, max_size=size)
    return {"text": draw(texts), "other": draw(texts), "label": labels, "group": group}


def at(folder, content, name="data.csv"):
    """Write a file."""
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# Formats


@given(columns_of_text())
@settings(max_examples=40)
def test_every_format_says_the_same(table):
    with tempfile.TemporaryDirectory() as folder:
        for path in write_everything(Path(folder), table):
            found = read_dataset(path, DataOptions(text_pair="other", group=("group",)))
            assert found.texts == tuple(table["text"]), path
            assert found.pairs == tuple(table["other"]), path
            assert found.labels == tuple(table["label"]), path
            assert found.groups == tuple((f"group={value}",) for value in table["group"]), path
            assert found.rows == tuple(range(1, len(found.texts) + 1))
            assert found.columns == {
                "label": found.labels,
                "group": tuple(table["group"]),
            }
            assert (found.source, found.aligned) == (str(path), None)


@given(columns_of_text())
@settings(max_examples=15)
def test_parquet_says_the_same(table):
    pytest.importorskip("pyarrow")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.parquet"
        write_parquet(path, table)
        found = read_dataset(path, DataOptions(text_pair="other", group=("group",)))
        write_csv(path.with_suffix(".csv"), table)
        same = read_dataset(
            path.with_suffix(".csv"), DataOptions(text_pair="other", group=("group",))
        )
        assert (found.texts, found.pairs, found.labels) == (same.texts, same.pairs, same.labels)
        assert (found.groups, found.columns) == (same.groups, same.columns)


@pytest.mark.parametrize("write", [write_csv, write_lines, write_parquet])
@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([1.0, 0.0, 12.0], ("1", "0", "12")),
        ([1, 0, -1], ("1", "0", "-1")),
        ([1.5, 1.0, 2.0], ("1.5", "1", "2")),
        ([0.0253, 10.05, 10.0], ("0.0253", "10.05", "10")),
        (["1.0", "one", "x"], ("1.0", "one", "x")),
        ([2**80, 1, 0], (str(2**80), "1", "0")),
    ],
)
def test_labels_that_are_numbers(tmp_path, write, labels, expected):
    if write is write_parquet:
        pytest.importorskip("pyarrow")
        if 2**80 in labels:
            pytest.skip("Parquet has no such integers")
    path = tmp_path / {write_csv: "a.csv", write_lines: "a.jsonl"}.get(write, "a.parquet")
    write(path, {"text": ["a", "b", "c"], "label": labels})
    found = read_dataset(path, DataOptions())
    assert found.labels == found.columns["label"] == expected


@given(two_values(st.floats(0, 1)))
@settings(max_examples=40)
def test_members_have_at_least_half(shares):
    with tempfile.TemporaryDirectory() as folder:
        for write, name in ((write_csv, "a.csv"), (write_lines, "a.jsonl")):
            path = Path(folder) / name
            labels = [number % 2 for number in range(len(shares))]
            write(path, {"text": ["a"] * len(shares), "label": labels, "male": shares})
            found = read_dataset(path, DataOptions(group_columns=("male",)))
            assert [bool(names) for names in found.groups] == [x >= 0.5 for x in shares]


def test_truths_are_labels_and_members(tmp_path):
    path = tmp_path / "a.jsonl"
    write_lines(path, {"text": ["a", "b"], "label": [True, False], "male": [False, True]})
    found = read_dataset(path, DataOptions(group_columns=("male",), aligned="male"))
    assert found.labels == ("true", "false")
    assert found.groups == ((), ("male, label=false",))
    assert found.aligned == (False, True)


def test_parquet_of_many_types(tmp_path):
    pa = pytest.importorskip("pyarrow")
    size = 30_000
    codes = [number % 3 for number in range(size)]
    words = ["bad", "good", "so so"]
    table = {
        "label": pa.DictionaryArray.from_arrays(pa.array(codes, pa.int8()), pa.array(words)),
        "text": pa.array([str(number) for number in range(size)], pa.large_string()),
        "male": pa.array([number % 2 for number in range(size)], pa.float32()),
        "aligned": pa.array([bool(number % 2) for number in range(size)]),
        "unused": pa.array([[1]] * size),
    }
    path = tmp_path / "a.parquet"
    write_parquet(path, table)
    found = read_dataset(path, DataOptions(group_columns=("male",), aligned="aligned"))
    assert found.texts == tuple(map(str, range(size)))
    assert found.labels == tuple(words[code] for code in codes)
    assert found.groups[:2] == ((), ("male, label=good",))
    assert found.aligned == (False, True) * (size // 2)


def test_blank_lines_are_no_rows(tmp_path):
    path = at(tmp_path, "text,label\n\na,0\r\n\r\nb,1\n\n")
    assert read_dataset(path, DataOptions()).texts == ("a", "b")
    path = at(tmp_path, '{"text": "a", "label": 0}\n \n{"text": "", "label": 1}', "a.jsonl")
    assert read_dataset(path, DataOptions()).texts == ("a", "")


def test_columns_of_any_names_and_places(tmp_path):
    path = at(tmp_path, ',"a, b",x,\n0,1,some,\n1,0,more,\n')
    found = read_dataset(str(path), DataOptions(text="x", label="a, b"))
    assert (found.texts, found.labels) == (("some", "more"), ("1", "0"))


def test_old_line_ends_and_breaks_within_a_field(tmp_path):
    path = at(tmp_path, 'text,label\ra,0\r"b\r\nc",1\r')
    assert read_dataset(path, DataOptions()).texts == ("a", "b\r\nc")


# Groups


def test_groups_of_both_kinds_are_all_those_of_a_row(tmp_path):
    table = {
        "text": list("abcd"),
        "label": [0, 1, 1, 0],
        "site": ["x", "y", "x", "y"],
        "male": [0.5, 0.49, 1, 0],
        "black": [1, 0, "0.6", 0],
    }
    write_csv(tmp_path / "a.csv", table)
    columns = DataOptions(group=("site", "label"), group_columns=("male", "black"))
    found = read_dataset(tmp_path / "a.csv", columns)
    assert found.groups == (
        ("site=x, label=0", "male, label=0", "black, label=0"),
        ("site=y, label=1",),
        ("site=x, label=1", "male, label=1", "black, label=1"),
        ("site=y, label=0",),
    )
    assert found.columns["male"] == ("0.5", "0.49", "1", "0")
    assert list(found.columns) == ["label", "site", "male", "black"]


def test_without_group_columns_there_are_no_groups(tmp_path):
    write_csv(tmp_path / "a.csv", PAIR)
    assert read_dataset(tmp_path / "a.csv", DataOptions()).groups == ((), ())


def test_groups_name_the_column_of_labels(tmp_path):
    write_csv(tmp_path / "a.csv", {"text": ["a", "b"], "toxic": [0, 1], "male": [0, 1]})
    found = read_dataset(tmp_path / "a.csv", DataOptions(label="toxic", group_columns=("male",)))
    assert found.groups == ((), ("male, toxic=1",))


def test_two_groups_of_one_name_are_refused(tmp_path):
    table = {"a": ["1, b=2", "1"], "b": ["3", "2, b=3"]}
    write_csv(tmp_path / "a.csv", PAIR | table)
    with pytest.raises(DataError, match="two groups would be named 'a=1, b=2, b=3'"):
        read_dataset(tmp_path / "a.csv", DataOptions(group=("a", "b")))


def test_groups_are_bounded_in_number(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "_MAX_GROUPS", 3)
    write_csv(tmp_path / "a.csv", {"text": "abcd", "label": "0101", "id": "1234"})
    with pytest.raises(DataError, match="4 groups, where at most 3"):
        read_dataset(tmp_path / "a.csv", DataOptions(group=("id",)))


# Samples


@given(st.integers(2, 40), st.integers(1, 45), st.integers(1, 45), st.integers(0, 2**32))
@settings(max_examples=40)
def test_samples(size, some, more, seed):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        labels = [number % 2 for number in range(size)]
        table = {"text": list(range(size)), "pair": list(range(size)), "label": labels}
        write_csv(path, table | {"male": labels, "same": labels})
        columns = DataOptions(text_pair="pair", group_columns=("male",), aligned="same")
        whole = read_dataset(path, columns)
        sample = read_dataset(path, replace(columns, limit=some, seed=seed))
        assert len(sample.rows) == min(some, size)
        assert list(sample.rows) == sorted(set(sample.rows))
        for place, row in enumerate(sample.rows):
            for field in ("texts", "pairs", "labels", "groups", "aligned"):
                assert getattr(sample, field)[place] == getattr(whole, field)[row - 1]
            assert all(c[place] == whole.columns[n][row - 1] for n, c in sample.columns.items())
        assert sample == read_dataset(path, replace(columns, limit=some, seed=seed))
        assert sample.classes == read_dataset(path, columns).classes
        other = read_dataset(path, replace(columns, limit=more, seed=seed))
        smaller, larger = sorted([set(sample.rows), set(other.rows)], key=len)
        assert smaller <= larger


def test_samples_are_the_same_in_every_version(tmp_path):
    write_csv(tmp_path / "a.csv", {"text": range(100), "label": [0, 1] * 50})
    rows = [read_dataset(tmp_path / "a.csv", DataOptions(limit=5, seed=s)).rows for s in (0, 1)]
    assert rows == [(36, 41, 53, 76, 98), (10, 14, 21, 36, 92)]


# Refusals

HEAD = "text,label\n"
LINE = '{"text": "a", "label": 0}\n'
REFUSALS = [
    # file, content, columns, what is said of it
    ("a.csv", "", {}, "a.csv: row 1: no names of columns"),
    ("a.csv", "\n\n", {}, "a.csv: row 1: no names of columns"),
    ("a.csv", HEAD, {}, "a.csv: no rows"),
    ("a.jsonl", "", {}, "a.jsonl: no rows"),
    ("a.json", "[]", {}, "a.json: no rows"),
    ("a.csv", "text,labels\na,1\n", {}, ": no column 'label' among 'text', 'labels'; did you mean"),
    ("a.csv", "text, Label\na,1\n", {}, "no column 'label'"),
    ("a.csv", "text,label,text\n", {}, ": 2 columns are named 'text'"),
    ("a.csv", f"{HEAD}a,1\nb\n", {}, "row 2: 1 fields, where"),
    ("a.csv", f"{HEAD}a,1\n\nb,1,2\n", {}, "row 2: 3 fields, where"),
    ("a.csv", f'{HEAD}"a,1\n', {}, "row 1: unexpected end of data"),
    ("a.csv", f'{HEAD}"a"b,1\n', {}, "row 1: ',' expected after"),
    ("a.csv", f"{HEAD}a,1\n{'b' * 140_000},0\n", {}, "row 2: field larger"),
    ("a.csv", HEAD.encode() + b"a,1\nb,\xe9\n", {}, "can't decode byte 0xe9"),
    ("a.csv", b"\xff\xfet\0e\0", {}, "can't decode byte 0xff"),
    ("a.csv", f"{HEAD}a,0\nb,\n", {}, "row 2, column 'label': nothing, where a label"),
    ("a.csv", f"{HEAD}a,0\nb, \n", {}, "row 2, column 'label': nothing, where a label"),
    ("a.csv", f"{HEAD}a,1\nb,1.0\n", {}, "'label': every row has the label '1'"),
    (
        *("a.csv", f"{HEAD}a,1\nb,2\n", {"group": ("text", "label")}),
        "the column 'text' is named for two things",
    ),
    (
        *("a.csv", "text,label,g\na,1,x\nb,2,x\n", {"group": ("g",)}),
        "column 'g': every row has the value 'x'",
    ),
    (
        *("a.csv", "text,label,g\na,1,x\nb,2,\n", {"group": ("g",)}),
        "row 2, column 'g': nothing, where a value",
    ),
    (
        *("a.csv", "text,label,g\na,1,0\nb,2,2\n", {"group_columns": ("g",)}),
        "row 2, column 'g': '2', where a number from 0 to 1",
    ),
    (
        *("a.csv", "text,label,g\na,1,0\nb,2,nan\n", {"group_columns": ("g",)}),
        "row 2, column 'g': 'nan', where a number from 0 to 1",
    ),
    (
        *("a.csv", "text,label,g\na,1,0.5\nb,2,1\n", {"aligned": "g"}),
        "row 1, column 'g': '0.5', where 0 or 1",
    ),
    ("a.tsv", "text\tlabel\na\t1\nb\n", {}, "a.tsv: row 2: 1 fields"),
    ("a.jsonl", f"{LINE}[1]\n", {}, "row 2: [1], where an object"),
    ("a.jsonl", f"{LINE}\n{{\n", {}, "row 2: Expecting"),
    ("a.jsonl", f'{LINE}{{"text": "b"}}\n', {}, "row 2: no column 'label' among 'text'"),
    ("a.jsonl", '{"text": null, "label": 1}', {}, "'text': null, where text is"),
    ("a.jsonl", '{"text": 5, "label": 1}', {}, "'text': 5, where text is"),
    ("a.jsonl", '{"text": "a", "label": null}', {}, "'label': null, where text or a num"),
    ("a.jsonl", '{"text": "a", "label": NaN}', {}, "'label': nan, where text or a num"),
    ("a.jsonl", '{"text": "a", "label": [1]}', {}, "'label': [1], where text or a num"),
    ("a.jsonl", '{"text": "\\ud83d", "label": 1}', {}, "'text': '\\ud83d', where text is"),
    ("a.jsonl", b'{"text": "\xe9", "label": 1}', {}, "can't decode byte 0xe9"),
    ("a.jsonl", '{"text": ' + "[" * 99_999, {}, "row 1: "),
    ("a.jsonl", f'{{"label": {"1" * 5000}}}', {}, "row 1: Exceeds the limit"),
    ("a.json", f"[{LINE}, 7]", {}, "a.json: row 2: 7, where an object"),
    ("a.json", '{"data": []}', {}, "a.json: row 1: no column 'text' among 'data'"),
    ("a.json", "[1", {}, "a.json: row 1: Expecting"),
    ("a.csv.gz", "text,label\n", {}, "a.csv.gz: cannot be read: Not a gzipped file"),
    ("a.csv.gz", gzip.compress(HEAD.encode() * 99, mtime=0)[:-9], {}, "cannot be read: "),
    ("a.csv.gz", gzip.compress(b"text", mtime=0)[:-10] + b"\xff" * 10, {}, "can't decode"),
    ("a.jsonl.bz2", b"BZh9what", {}, "cannot be read: Invalid data stream"),
    ("a.txt", HEAD, {}, "a.txt: its name does not end as that of a table"),
    ("a.gz", HEAD, {}, "a.gz: its name does not end as that of a table"),
    ("a", HEAD, {}, "a: its name does not end as that of a table"),
    ("a.parquet.gz", HEAD, {}, "its name does not end as that of a table"),
]


@pytest.mark.parametrize(("name", "content", "columns", "what"), REFUSALS)
def test_refusals(tmp_path, name, content, columns, what):
    path = at(tmp_path, content, name)
    with pytest.raises((DataError, UsageError)) as caught:
        read_dataset(path, DataOptions(**columns))
    assert what in caught.value.what
    assert isinstance(caught.value, UsageError) or str(path) in caught.value.what
    assert len(str(caught.value)) < 700
    assert all(line.isprintable() for line in str(caught.value).split("\n"))
    assert caught.value.exit_code == (2 if isinstance(caught.value, UsageError) else 3)


@pytest.mark.parametrize(
    "columns",
    [
        {"text": "label"},
        {"text_pair": "text"},
        {"text_pair": "label"},
        {"group": ("a", "a")},
        {"group_columns": ("a", "a")},
        {"aligned": "label"},
    ],
)
def test_a_column_that_is_two_things_is_refused(tmp_path, columns):
    write_csv(tmp_path / "a.csv", PAIR)
    with pytest.raises(UsageError, match="is named for two things"):
        read_dataset(tmp_path / "a.csv", DataOptions(**columns))


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(limit):
    with pytest.raises(UsageError, match=f"--limit {limit}: "):
        DataOptions(limit=limit)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no\.csv: no such file"):
        read_dataset(tmp_path / "no.csv", DataOptions())
    for name in ("pipe.csv", "pipe.json", "pipe.parquet"):
        os.mkfifo(tmp_path / name)
        if name.endswith("parquet"):
            pytest.importorskip("pyarrow")
        with pytest.raises(DataError, match="not a regular file"):
            read_dataset(tmp_path / name, DataOptions())
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match="not a regular file"):
        read_dataset(tmp_path / "folder.csv", DataOptions())


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match="needs pyarrow") as caught:
        read_dataset(at(tmp_path, "", "a.parquet"), DataOptions())
    assert "pip install pyarrow" in str(caught.value)


def test_bad_parquet_is_refused(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "a.parquet"
    write_parquet(path, {"text": ["a" * 999, "b" * 999, "c"], "label": [0, 1, None]})
    with pytest.raises(DataError, match="row 3, column 'label': null"):
        read_dataset(path, DataOptions())
    with pytest.raises(DataError, match="no column 'labels'") as caught:
        read_dataset(path, DataOptions(label="labels"))
    assert "did you mean 'label'?" in str(caught.value)
    whole = path.read_bytes()
    for damaged in (b"", b"PAR1", whole[:-20], whole[:4] + b"\xff" * 60 + whole[64:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"not readable as Parquet|cannot be read|expected"):
            read_dataset(path, DataOptions())


def test_labels_share_memory(tmp_path):
    label = "some rather long label " * 10
    path = tmp_path / "a.csv"
    write_csv(path, {"text": [""] * 20_000, "label": [label, "other"] * 10_000})
    tracemalloc.start()
    found = read_dataset(path, DataOptions(group=("label",)))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found.rows) == 20_000
    assert held < 2.5e6


def test_no_heavy_library_is_imported():
    code = (
        "import sys, svdcut.evaluation.dataset, svdcut.evaluation.metrics\n"
        "print([name for name in ('numpy', 'torch', 'pyarrow', 'pydantic') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
