"""Files, folders and answers that are made to do harm: memory, hanging, what is shown."""

from __future__ import annotations

import csv
import errno
import json
import os
import shlex
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import svdcut
from long import long_but
from refusals import CALL, POINTER, SHARDS, WEIGHTS, call, entry, pair, shard, write, write_header
from svdcut.errors import CheckpointError, HubError, UsageError
from svdcut.files.checkpoint import open_checkpoint
from svdcut.files.header import read_header
from svdcut.files.hub import fetch_snapshot
from svdcut.files.wrong_input import class_name, conversion_hint
from svdcut.record.card import card_metadata
from svdcut.shown import byte_size, percent, printable

# Memory

MEASURE = """
import resource, sys
from pathlib import Path
from svdcut.files.checkpoint import open_checkpoint
from svdcut.errors import SvdcutError
try:
    side = open_checkpoint(Path(sys.argv[1]))
    side.card()
    print(len(side.tensors))
except SvdcutError as error:
    print(error.exit_code)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
status = Path("/proc/self/status")  # the other number may be that of the parent
if status.exists():
    peak = int(status.read_text().partition("VmHWM:")[2].split()[0])
print(peak // 1024 if sys.platform != "darwin" else peak >> 20)
"""


def many_entries(folder):
    """Write a header of 97 MB, in which one character makes every other take four bytes."""
    entries = [
        b'"%d%s\xf0\x9f\x98\x80":{"dtype":"F32","shape":[1,1],"data_offsets":[%d,%d]}'
        % (i, b"x" * 400, 4 * i, 4 * i + 4)
        for i in range(200_000)
    ]
    write_header(folder / WEIGHTS, None, 800_000, raw=b"{" + b",".join(entries) + b"}")


def header_of(piece):
    """Return a writer of a header of 99 MB that is one list."""

    def make(folder):
        raw = b'{"a":[' + piece * (99_000_000 // len(piece))
        write_header(folder / WEIGHTS, None, raw=raw)

    return make


def large(name):
    """Return a writer of a file of 2 GB of nothing beside the weights."""

    def make(folder):
        write_header(folder / WEIGHTS, {"a": entry(0, 8)}, 8)
        with (folder / name).open("wb") as file:
            file.truncate(2 << 30)

    return make


def wide_index(folder):
    text = '{"weight_map": {"a": [' + "[]," * 30_000_000
    (folder / "model.safetensors.index.json").write_text(text)


LARGE = {
    "a header of many entries": (many_entries, 200_000),
    "a header of lists": (header_of(b"[],"), 3),
    "a header of numbers": (header_of(b"999,"), 3),
    "a header of texts": (header_of(b'"ab",'), 3),
    "a header of brackets": (header_of(b"["), 3),
    "a header of digits": (header_of(b"1"), 3),
    "an index of lists": (wide_index, 3),
    "a large config": (large("config.json"), 3),
    "a large index": (large("model.safetensors.index.json"), 3),
    "a large card": (large("README.md"), 1),
    "a large tokenizer": (large("tokenizer.json"), 1),
}


@pytest.mark.parametrize(
    "kind", long_but(["a header of many entries", "a header of lists", "an index of lists"], LARGE)
)
def test_memory(tmp_path, kind):
    make, expected = LARGE[kind]
    make(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path], capture_output=True, text=True, check=True
    )
    found, peak = map(int, done.stdout.split())
    assert found == expected
    assert peak < 1000


def test_too_many_tensors(tmp_path, monkeypatch):
    """Over all files together."""
    monkeypatch.setattr("svdcut.files.checkpoint.MAX_TENSORS", 6)
    write(tmp_path, {f"w{i}": torch.ones(2) for i in range(6)})
    assert len(open_checkpoint(tmp_path).tensors) == 6
    write(tmp_path, {f"w{i}": torch.ones(2) for i in range(7)})
    shard(tmp_path)
    with pytest.raises(CheckpointError, match="more than 6 tensors"):
        open_checkpoint(tmp_path)


# What is no file


def make_pipe(path):
    os.mkfifo(path)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        before = Path.cwd()
        os.chdir(path.parent)  # an address has 100 characters or so
        try:
            server.bind(path.name)
        finally:
            os.chdir(before)


@pytest.mark.parametrize("make", [make_pipe, make_socket, Path.mkdir])
@pytest.mark.parametrize("name", [WEIGHTS, "model.safetensors.index.json", "config.json"])
@pytest.mark.parametrize("side", ["base", "ft"])
def test_what_is_no_file_is_not_opened(tmp_path, make, name, side):
    folder = pair(tmp_path) / side
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    outcome = call([*CALL, "--dry-run"], tmp_path)
    assert (outcome.exit_code, outcome.stdout) == (3, "")
    assert outcome.message == f"{side}/{name}: cannot be read: not a regular file"


@pytest.mark.parametrize("make", [make_pipe, make_socket])
@pytest.mark.parametrize("name", ["README.md", "tokenizer.json", "vocab.txt", "LICENSE"])
def test_what_is_copied_is_asked_for_before_the_work(tmp_path, make, name):
    make(pair(tmp_path) / "ft" / name)
    outcome = call([*CALL, "--dry-run"], tmp_path)
    assert (outcome.exit_code, outcome.stdout) == (3, "")
    assert outcome.message == f"ft/{name}: cannot be read: not a regular file"


def test_a_folder_of_licenses_is_no_obstacle(tmp_path):
    (pair(tmp_path) / "ft" / "LICENSES").mkdir()
    assert call([*CALL, "-q"], tmp_path).exit_code == 0


@pytest.mark.parametrize("name", ["tokenizer.json", "README.md", "config.json", "."])
def test_what_may_not_be_read(tmp_path, monkeypatch, name):
    """As a plain user; root may read everything, hence the stand-in."""
    pair(tmp_path)
    (tmp_path / "ft" / "tokenizer.json").write_text("{}")
    (tmp_path / "ft" / "README.md").write_text("A model.")
    path, usual_open, usual_stat = tmp_path / "ft" / name, Path.open, Path.stat

    def refuse():
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    def open_(self, *arguments, **more):
        return refuse() if self.absolute() == path else usual_open(self, *arguments, **more)

    def stat_(self, **more):
        closed = name == "." and self.absolute().parent == path
        return refuse() if closed else usual_stat(self, **more)

    monkeypatch.setattr(Path, "open", open_)
    monkeypatch.setattr(Path, "stat", stat_)
    outcome = call([*CALL, "--dry-run"], tmp_path)
    assert (outcome.exit_code, outcome.stdout) == (3, "")
    assert "cannot be read: Permission denied" in outcome.message


@pytest.mark.parametrize("within", ["", "part"])
def test_links_within_the_cache_of_the_hub_are_followed(tmp_path, within):
    """Its snapshots are made of them."""
    pair(tmp_path)
    cache = tmp_path / "models--org--ft"
    snapshot = cache / "snapshots" / "0123" / within
    snapshot.mkdir(parents=True)
    (tmp_path / "ft" / "vocab.txt").write_text("a\n")
    (tmp_path / "ft").rename(cache / "blobs")
    for path in (cache / "blobs").iterdir():
        (snapshot / path.name).symlink_to(os.path.relpath(path, snapshot))
    assert call([*CALL[:2], str(snapshot), *CALL[3:], "-q"], tmp_path).exit_code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"vocab.txt", "config.json"}
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())


def test_links_within_the_folder_are_followed(tmp_path):
    ft = pair(tmp_path) / "ft"
    for name, target in (("vocab.txt", "old/words"), ("merges.txt", ".git/annex/objects/a")):
        (ft / target).parent.mkdir(parents=True)
        (ft / target).write_text(name)
        (ft / name).symlink_to(target)
    assert call([*CALL, "-q"], tmp_path).exit_code == 0
    assert (tmp_path / "out" / "vocab.txt").read_text() == "vocab.txt"
    assert (tmp_path / "out" / "merges.txt").read_text() == "merges.txt"


SMALL = ("config.json", "README.md", "merges.txt", "1_Pooling/config.json", "x_tokenizer/vocab.txt")


@pytest.mark.parametrize("name", [*SMALL, "model.safetensors.index.json", "modules.json"])
@pytest.mark.parametrize(
    "target", ["/proc/self/environ", "../secret.json", "../base/config.json", ".git/config"]
)
@pytest.mark.parametrize("command", [CALL, ["extract", *CALL[1:]]], ids=["truncate", "extract"])
def test_links_to_files_of_the_user_are_not_followed(tmp_path, name, target, command):
    """What a stranger's folder may link to: it would be copied, and published."""
    ft = pair(tmp_path) / "ft"
    (tmp_path / "secret.json").write_text('{"token": "of the user"}')
    (ft / ".git").mkdir()
    (ft / ".git" / "config").write_text("https://user:password@hub")
    (ft / "modules.json").write_text('[{"path": "1_Pooling"}]')
    place = ft / name
    place.unlink(missing_ok=True)
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(os.path.relpath(ft / target, place.parent))
    outcome = call(command, tmp_path)
    assert (outcome.exit_code, outcome.stdout) == (3, "")
    assert outcome.message.startswith(f"ft/{name}: a link to ")
    assert len(outcome.message.splitlines()) == 2
    assert not (tmp_path / "out").exists()


def test_a_link_in_the_folder_of_an_adapters_base(tmp_path):
    base = make_lora(tmp_path)
    (tmp_path / "secret").write_text("token")
    (base / "vocab.txt").symlink_to("../secret")
    outcome = call([*CALL[:2], "adapter", *CALL[3:]], tmp_path)
    assert outcome.exit_code == 3
    assert outcome.message.startswith("base/vocab.txt: a link to 'secret'")


@pytest.mark.parametrize("name", ["adapter_config.json", "README.md"])
def test_a_link_in_the_folder_of_an_adapter(tmp_path, name):
    make_lora(tmp_path)
    path = tmp_path / "adapter" / name
    path.rename(tmp_path / "elsewhere")
    path.symlink_to("../elsewhere")
    outcome = call([*CALL[:2], "adapter", *CALL[3:]], tmp_path)
    assert outcome.exit_code == 3
    assert outcome.message.startswith(f"adapter/{name}: a link to 'elsewhere'")


def make_lora(folder):
    """Write a base, and an adapter of it; return the folder of base."""
    pair(folder)
    assert call(["extract", *CALL[1:-1], "adapter", "-q"], folder).exit_code == 0
    return folder / "base"


def test_weights_may_lie_elsewhere(tmp_path):
    """On another disk: they are read, and not copied."""
    pair(tmp_path)
    shard(tmp_path / "ft")
    for name in SHARDS:
        (tmp_path / "ft" / name).rename(tmp_path / name)
        (tmp_path / "ft" / name).symlink_to(f"../{name}")
    assert call([*CALL, "-q"], tmp_path).exit_code == 0
    assert svdcut.verify(tmp_path / "out", base=tmp_path / "base", finetuned=tmp_path / "ft").ok


@pytest.mark.parametrize("target", ["/proc/self/environ", "/sys/kernel/uevent_seqnum", "/dev/zero"])
def test_weights_are_no_files_of_the_system(tmp_path, target):
    """Some of these call themselves regular, and would never end."""
    if not Path(target).exists():
        pytest.skip("another system")
    pair(tmp_path)
    (tmp_path / "ft" / WEIGHTS).unlink()
    (tmp_path / "ft" / WEIGHTS).symlink_to(target)
    outcome = call(CALL, tmp_path)
    assert (outcome.exit_code, outcome.stdout) == (3, "")
    assert outcome.message == f"ft/{WEIGHTS}: cannot be read: not a regular file"


MODULES = {
    "out of the folder": (["../base", "/etc", "a/../../base", "", ".", ".git"], None),
    "a loop of links": (["1_Pooling"], lambda path: path.symlink_to(path.name)),
    "a file": (["1_Pooling"], Path.touch),
    "a pipe": (["1_Pooling"], os.mkfifo),
    "not there": (["1_Pooling"], None),
}


@pytest.mark.parametrize("case", MODULES)
def test_modules_that_are_no_folders(tmp_path, case):
    paths, make = MODULES[case]
    ft = pair(tmp_path) / "ft"
    (ft / "modules.json").write_text(json.dumps([{"path": path} for path in paths]))
    if make:
        make(ft / "1_Pooling")
    assert call([*CALL, "-q"], tmp_path).exit_code == 0
    found = {path.name for path in (tmp_path / "out").rglob("*")}
    assert found == {WEIGHTS, "config.json", "modules.json", "README.md", "svdcut.json"}


@pytest.mark.parametrize("listed", [{}, [], [1], [{}], [{"path": 3}], "x"])
def test_a_file_of_that_name_that_lists_no_modules(tmp_path, listed):
    (pair(tmp_path) / "ft" / "modules.json").write_text(json.dumps(listed))
    assert call([*CALL, "-q"], tmp_path).exit_code == 0


def test_a_loop_of_links_in_place_of_a_shard(tmp_path):
    pair(tmp_path)
    shard(tmp_path / "ft")
    (tmp_path / "ft" / SHARDS[0]).unlink()
    (tmp_path / "ft" / SHARDS[0]).symlink_to(SHARDS[0])
    outcome = call(CALL, tmp_path)
    assert outcome.exit_code == 3
    assert f"ft/{SHARDS[0]}: a link to '{SHARDS[0]}'" in outcome.message


def test_a_name_that_is_too_long(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read: File name too long"):
        open_checkpoint(tmp_path / ("x" * 300))


def test_users_that_are_not_there(tmp_path):
    pair(tmp_path)
    with pytest.raises(UsageError, match="there is no such user"):
        svdcut.truncate(tmp_path / "base", tmp_path / "ft", "~nobody-of-that-name/o", rank=1)


@pytest.mark.parametrize("out", ["loop", "loop/out"])
def test_an_output_in_a_loop_of_links(tmp_path, out):
    pair(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    outcome = call([*CALL[:-1], out], tmp_path)
    assert outcome.exit_code in (1, 2)
    assert "unexpected failure" not in outcome.stderr
    assert (tmp_path / "loop").is_symlink()


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take Unicode alone")
def test_a_folder_whose_name_is_not_unicode(tmp_path):
    pair(tmp_path)
    name = os.fsdecode(b"f\xff")
    (tmp_path / "ft").rename(tmp_path / name)
    command = [*CALL[:2], name, *CALL[3:], "-q"]
    assert call(command, tmp_path).exit_code == 0
    manifest = json.loads((tmp_path / "out" / "svdcut.json").read_text(encoding="utf-8"))
    assert manifest["finetuned"]["source"] == name


# Headers


def test_a_short_file_that_starts_like_another_format(tmp_path):
    """These lengths are the first bytes of "<" and of a pickle."""
    for length in (0x3C, 0x280):
        header = json.dumps({"a": entry(0, 8)}).encode().ljust(length)
        (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", length) + header + bytes(8))
        assert len(read_header(tmp_path / "x.safetensors").entries) == 1


def test_very_long_names_are_refused(tmp_path):
    name = "\U0001f600" * 1_000_000
    write_header(tmp_path / "x.safetensors", {name: entry(0, 8)}, 8)
    with pytest.raises(CheckpointError, match="has 1000000 characters, more than 1000") as caught:
        read_header(tmp_path / "x.safetensors")
    assert len(str(caught.value)) < 1000


def test_very_long_lines_are_shortened(tmp_path):
    pair(tmp_path)
    write(tmp_path / "base", {f"{i}{'x' * 900}": torch.ones(2, 2) for i in range(9)})
    outcome = call(CALL, tmp_path)
    assert outcome.exit_code == 3
    assert "share no tensor" in outcome.message
    assert len(outcome.message) < 1500


# Work without end


@pytest.mark.parametrize("part", ["emb", "vocab", "a.", "1.", "experts.1.", "_1", "moe", "x.emb."])
def test_names_that_are_made_to_be_slow(tmp_path, part):
    """Five hundred of the longest, of which no two sides share one."""
    for side, end in (("base", "!"), ("ft", "?")):
        names = [f"m{i}.{(part * 1000)[:980]}{end}" for i in range(500)]
        write(tmp_path / side, {name: torch.ones(2, 2) for name in names})
    outcome = call([*CALL, "--dry-run"], tmp_path)
    assert outcome.exit_code == 3
    assert "share no tensor" in outcome.message


def test_prefixes_that_are_made_to_be_slow(tmp_path):
    """Each tensor could be found under a prefix of its own."""
    for side, start in (("base", ""), ("ft", "m.")):
        names = [f"{start}a{i}.w{i}" for i in range(2000)]
        write(tmp_path / side, {name: torch.ones(2, 2) for name in names})
    assert call([*CALL, "--dry-run"], tmp_path).exit_code == 0


def test_names_of_classes_that_are_made_to_be_slow(tmp_path):
    folder = write(tmp_path, {"a": torch.ones(2)}, {"architectures": ["ForA" * 1_000_000 + "!"]})
    assert class_name(open_checkpoint(folder).config) == ""


@pytest.mark.parametrize(
    "front",
    [
        "license: " + "1:" * 400_000 + "1",
        "".join(f"k{i}: v\n" for i in range(90_000)),
        "a: &a {x: y}\nb:\n  <<: [" + "*a, " * 200_000 + "*a]",
        "b:\n  <<: [" + "{x: y}," * 100_000 + "]",
        "[" * 400_000,
        "- " * 400_000,
        "? \n" * 300_000,
        "a: 0x" + "f" * 400_000,
        "a: 2001-01-01" * 70_000,
        "\n---" + " " * 900_000 + "x",
        "a0: &a0 [x]\n"
        + "".join(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9}]\n" for i in range(1, 99))
        + "tags: *a98",
    ],
    ids=lambda front: repr(front[:12]),
)
def test_cards_that_are_made_to_be_slow(front):
    assert card_metadata(f"---\n{front}\n---\n").keys() <= {"tags", "license"}
    assert card_metadata(f"---\nlicense: mit\n{front}\n---\n").get("license") in (None, "mit")


def test_pointers_of_shards(tmp_path):
    pair(tmp_path)
    shard(tmp_path / "ft")
    (tmp_path / "ft" / SHARDS[1]).write_text(POINTER)
    outcome = call(CALL, tmp_path)
    assert outcome.exit_code == 3
    assert f"ft/{SHARDS[1]}: " in outcome.message
    assert "git lfs pull" in outcome.message


# What is shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31m", "a\\x1b[31m"),
        ("\u202eevil", "\\u202eevil"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
        ("ü☃", "ü☃"),
    ],
)
def test_printable(text, shown):
    assert printable(text) == shown


@pytest.mark.parametrize("more", [("--dry-run",), ()])
def test_names_with_marks_in_what_they_share(tmp_path, more):
    """The parts that all names share are a heading of their own."""
    names = [f"\x1b[2J\u202e.{i}.{part}.\x9b1m" for i in range(2) for part in "ab"]
    for side, seed in (("base", 0), ("ft", 1)):
        torch.manual_seed(seed)
        write(tmp_path / side, {name: torch.randn(8, 8) for name in names})
    outcome = call([*CALL[:4], "2", *CALL[5:], *more], tmp_path)
    assert outcome.exit_code == 0
    assert all(line.isprintable() for line in outcome.stdout.split("\n"))
    assert "\\x1b[2J\\u202e." in outcome.stdout


@pytest.mark.parametrize("form", ["--csv", "--json"])
def test_documents_are_harmless_on_a_terminal_and_in_a_spreadsheet(tmp_path, form):
    names = ["=1+cmd|x", "\x1b[31m\u202e\x9b.b", "@a", "-2", "-x"]
    write(tmp_path / "ft", {name: torch.eye(4) for name in names})
    outcome = call(["spectrum", "ft", form], tmp_path)
    assert outcome.exit_code == 0
    assert all(line.isprintable() for line in outcome.stdout.split("\n"))
    if form == "--json":
        assert json.loads(outcome.stdout)["tensors"].keys() == set(names)
        return
    found = {row[0] for row in csv.reader(outcome.stdout.splitlines()[1:])}
    assert found == {"'=1+cmd|x", "\\x1b[31m\\u202e\\x9b.b", "'@a", "-2", "'-x"}


def test_tracebacks_show_no_escapes(tmp_path):
    pair(tmp_path)
    write_header(tmp_path / "ft" / WEIGHTS, {"\x1b[2J": entry(1, 8)}, 8)
    outcome = call([*CALL, "-k", "\x1b[31m", "-v"], tmp_path)
    assert outcome.exit_code == 2
    assert "Traceback" in outcome.stderr
    assert all(line.isprintable() for line in outcome.stderr.split("\n"))


@pytest.mark.parametrize("source", ["a b", "it's", "$(touch x)", "`touch x`", '"; touch x; "'])
def test_hints_hold_no_commands_of_strangers(tmp_path, source):
    hint = conversion_hint(source, {"architectures": ["os; import evil"]})
    words = shlex.split(hint.partition("convert it: ")[2], posix=True)
    assert words[:2] == ["python", "-c"]
    assert len(words) == 3
    assert f"from_pretrained({source!r})" in words[2]
    compile(words[2], "hint", "exec")
    # In double quotes a shell would act on the others.
    assert ("python -c '" in hint) is (source != "a b")


def test_hint_of_a_file_with_a_hostile_name(tmp_path):
    (tmp_path / "ft").mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "ft" / "x; touch y.safetensors")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "ft")
    command = caught.value.hint.partition(": ")[2]
    assert shlex.split(command) == [str(tmp_path / "ft" / "x; touch y.safetensors")]


# Cards and configs


def test_names_do_not_break_the_card(tmp_path):
    name = "a`|\n# Heading\u202e"
    for side, scale in (("base", 1.0), ("ft", 2.0)):
        write(tmp_path / side, {name: scale * torch.eye(4)})
    svdcut.truncate(tmp_path / "base", tmp_path / "ft", tmp_path / "out", rank=1)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "\n# Heading" not in card
    assert "\u202e" not in card
    assert "| `a\\x60\\x7c\\n# Heading\\u202e` | 1 |" in card


def test_metadata_of_wrong_types_is_left_out():
    card = "---\nlicense: {}\nlanguage: [en, [4], {a: b}]\ntags: text\nlibrary_name: [x]\n---\n"
    assert card_metadata(card) == {"language": ["en"]}


def test_every_word_of_a_card_is_text():
    """In other readings of YAML, Norwegian is false."""
    card = "---\nlicense: 1:30\nlanguage: [no, 4]\nlibrary_name: null\nlicense_name:\n---\n"
    assert card_metadata(card) == {"license": "1:30", "language": ["no", "4"]}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"quantization_config": "int4"}, "int4"),
        ({"quantization_config": ["int4"]}, "quantization_config"),
        ({"quantization_config": {"quant_method": 4}}, "quantization_config"),
        ({"quantization_config": {"quant_method": "awq"}}, "awq"),
        ({"compression_config": {"format": "pack-quantized"}}, "compression_config"),
        ({"text_config": {"quantization_config": {"quant_method": "fp8"}}}, "fp8"),
        ({"text_config": [1], "quantization_config": None}, None),
        ({"quantization_config": {}}, None),
        ({"architectures": 4, "tie_word_embeddings": "yes"}, None),
    ],
)
def test_quantisation_in_configs_of_any_type(tmp_path, config, expected):
    side = open_checkpoint(write(tmp_path, {"a": torch.ones(2)}, config))
    assert side.quantization == expected
    assert side.ties_embeddings is False


def test_numbers_that_are_no_json_may_be_in_a_config(tmp_path):
    """Mamba's config.json has an Infinity, as Python writes it."""
    config = {"time_step_limit": [0.0, float("inf")]}
    assert open_checkpoint(write(tmp_path, {"a": torch.ones(2)}, config)).config == config


# A Hub of strangers


@pytest.mark.parametrize(
    "change",
    [
        lambda info: {},
        lambda info: [],
        lambda info: None,
        lambda info: info | {"sha": None},
        lambda info: info | {"sha": 7},
        lambda info: info | {"sha": "../../../../x"},
        lambda info: info | {"siblings": None},
        lambda info: info | {"siblings": 3},
        lambda info: info | {"siblings": [{}]},
        lambda info: info | {"siblings": [{"rfilename": 4}]},
    ],
)
def test_answers_about_a_repository(hub, tmp_path, monkeypatch, change):
    hub.add("org/toy", write(tmp_path / "toy", {"a": torch.ones(2)}))
    check_answer(monkeypatch, tmp_path, "info", change)


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: {},
        lambda tree: None,
        lambda tree: 7,
        lambda tree: [{}],
        lambda tree: [None],
        lambda tree: [{"type": "file"}],
        lambda tree: [{"type": "file", "path": 7, "size": 1, "oid": "x"}],
        lambda tree: [{"type": "file", "path": "../../../x.json", "size": 1, "oid": "x"}],
        lambda tree: [{"type": "file", "path": "/etc/x.json", "size": 1, "oid": "x"}],
        lambda tree: [entry | {"lfs": {}} for entry in tree],
        lambda tree: [entry | {"lfs": 4} for entry in tree],
    ],
)
def test_answers_about_files(hub, tmp_path, monkeypatch, change):
    hub.add("org/toy", write(tmp_path / "toy", {"a": torch.ones(2)}))
    check_answer(monkeypatch, tmp_path, "tree", change)


def check_answer(monkeypatch, tmp_path, name, change):
    """Fetch from a Hub that answers so: a refusal, or the files; nothing outside the cache."""
    import hub_server

    usual = getattr(hub_server._Handler, name)
    monkeypatch.setattr(hub_server._Handler, name, lambda self, *words: change(usual(self, *words)))
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    message = "org/toy"
    try:
        assert (fetch_snapshot("org/toy", quiet=True) / WEIGHTS).is_file()
    except (HubError, CheckpointError) as error:
        message = str(error)
    assert "org/toy" in message
    assert len(message.splitlines()) <= 3
    assert {path for path in tmp_path.rglob("*") if "cache" not in path.parts} == before


# How numbers are shown


@pytest.mark.parametrize(
    ("share", "text"),
    [
        *((0, "0%"), (3e-8, "3e-06%"), (0.0345, "3.5%"), (0.065, "6.5%"), (0.5, "50%")),
        *(
            (0.994, "99%"),
            (0.9951, ">99%"),
            (0.9999, ">99%"),
            (1, "100%"),
            (2.607, "261%"),
            (1e300, "1e+302%"),
        ),
    ],
)
def test_a_share_is_neither_nothing_nor_all(share, text):
    assert percent(share) == text


@pytest.mark.parametrize(("size", "text"), [(0, "0.0 MB"), (2.5e6, "2.5 MB"), (3e9, "3.0 GB")])
def test_sizes(size, text):
    assert byte_size(size) == text
