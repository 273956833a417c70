"""A result appears complete or not at all, whatever the disk or a signal does."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import shutil
from pathlib import Path

import pytest

import svdcut
from checkpoints import file_bytes
from svdcut.errors import Interrupted, OutputError, OutputExistsError, UsageError
from svdcut.files.header import read_header
from svdcut.files.tensorfile import Dtype, lay_out, read_bytes
from svdcut.write.destination import check_output, partial_path
from svdcut.write.writer import TENSOR, CheckpointWriter

LAYOUTS = [
    lay_out("one.safetensors", {"a": (Dtype.U8, (5,)), "b": (Dtype.U8, (3,))}, {"format": "pt"}),
    lay_out("two.safetensors", {"c": (Dtype.F32, (2,)), "empty": (Dtype.F32, (0,))}, {}),
]
ENTRIES = {entry.name: entry for layout in LAYOUTS for entry in layout.entries}
DATA = {"a": b"aaaaa", "b": b"bbb", "c": b"cccccccc", "empty": b""}


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def old(out):
    """A folder that svdcut wrote before."""
    out.mkdir()
    (out / "svdcut.json").write_text("{}")
    (out / "old.txt").write_text("old")
    return file_bytes(out)


IDENTITY = {"svdcut": "1", "--rank": "8"}


def make_writer(out, identity=IDENTITY, **options):
    return CheckpointWriter(out, LAYOUTS, identity, **options)


def fill(writer, names=("c", "empty", "b", "a"), *, record=False):
    # In any order, and in pieces.
    for name in names:
        sink = writer.open(ENTRIES[name])
        sink.write(DATA[name][:2])
        sink.write(memoryview(DATA[name])[2:])
        digest = sink.finish()
        if record:
            writer.record(TENSOR, name, {"sha256": digest})
    writer.write_file(Path("svdcut.json"), '{"é": 1}\n'.encode())


def write_all(out, **options):
    with make_writer(out, force=True, **options) as writer:
        fill(writer)
        writer.commit()


def open_files():
    links = [path for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return {str(path.readlink()) for path in links}


def test_commit(out, tmp_path):
    (tmp_path / "side.txt").write_text("side")
    with make_writer(out) as writer:
        fill(writer)
        copied = writer.copy_file(tmp_path / "side.txt", Path("deep/er/side.txt"))
        assert copied == (4, hashlib.sha256(b"side").hexdigest())
        assert partial_path(out).is_dir()
        assert not out.exists()
        writer.commit()
        assert out.is_dir()
    assert sorted(tmp_path.iterdir()) == [out, tmp_path / "side.txt"]
    for layout in LAYOUTS:
        file = read_header(out / layout.name)
        assert {e.name: bytes(read_bytes(e)) for e in file.entries} == {
            e.name: DATA[e.name] for e in layout.entries
        }
    assert (out / "svdcut.json").read_text(encoding="utf-8") == '{"é": 1}\n'
    assert (out / "deep" / "er" / "side.txt").read_text() == "side"
    assert not [name for name in open_files() if str(tmp_path) in name]


def test_folders_above_are_made(tmp_path):
    write_all(tmp_path / "new" / "folders" / "out")
    assert (tmp_path / "new" / "folders" / "out" / "one.safetensors").is_file()


def test_permissions_are_those_of_any_new_file(out, tmp_path):
    write_all(out)
    (tmp_path / "plain").write_text("")
    plain = (tmp_path / "plain").stat().st_mode
    assert {path.stat().st_mode for path in out.iterdir()} == {plain}


@pytest.mark.parametrize("error", [None, RuntimeError("no"), KeyboardInterrupt(), Interrupted(2)])
def test_without_a_finished_tensor_nothing_stays(out, tmp_path, error):
    try:
        with make_writer(out) as writer:
            fill(writer)
            if error is not None:
                raise error
    except type(error):
        pass
    assert list(tmp_path.iterdir()) == []
    assert not [name for name in open_files() if str(tmp_path) in name]


def test_hash_is_that_of_the_bytes(out):
    with make_writer(out) as writer:
        sink = writer.open(ENTRIES["a"])
        sink.write(b"aa")
        sink.write(bytearray(b"bcd"))
        assert sink.finish() == hashlib.sha256(b"aabcd").hexdigest()
        assert writer.open(ENTRIES["empty"]).finish() == hashlib.sha256(b"").hexdigest()


def test_too_few_and_too_many_bytes(out):
    with make_writer(out) as writer:
        sink = writer.open(ENTRIES["a"])
        sink.write(b"aaa")
        with pytest.raises(ValueError, match="'a': 3 of 5"):
            sink.finish()
        with pytest.raises(ValueError, match="too many bytes for tensor 'a'"):
            sink.write(b"aaa")


# Replacing an old result


def test_swap(out, old, tmp_path):
    write_all(out)
    assert not (out / "old.txt").exists()
    assert (out / "one.safetensors").exists()
    assert list(tmp_path.iterdir()) == [out]


def test_swap_into_an_empty_folder(out, tmp_path):
    out.mkdir()
    write_all(out)
    assert (out / "one.safetensors").exists()
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "broken"), KeyboardInterrupt(), Interrupted(15)]
)
def test_swap_that_fails_half_way_puts_the_old_folder_back(out, old, tmp_path, monkeypatch, error):
    rename = Path.rename

    def fail(path, target):
        if path.parent == partial_path(out):
            raise error
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises((OutputError, KeyboardInterrupt, Interrupted)):
        write_all(out)
    assert file_bytes(out) == old
    assert list(tmp_path.iterdir()) == [out]


def test_swap_where_an_older_swap_was_killed(out, old, tmp_path):
    """Refused before any work: what a killed process left may be all there is."""
    shutil.copytree(out, tmp_path / "out.replaced")
    with pytest.raises(OutputExistsError, match=r"out\.replaced exists"):
        check(out, force=True)
    assert file_bytes(out) == file_bytes(tmp_path / "out.replaced") == old


def test_disk_error_after_the_swap_leaves_the_new_folder(out, old, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        fail_at(patch, "fsync", 6, FULL)
        with pytest.raises(OutputError):
            write_all(out)
    assert file_bytes(out).keys() == {"one.safetensors", "two.safetensors", "svdcut.json"}
    assert list(tmp_path.iterdir()) == [out]


def test_swap_of_a_link_leaves_its_target_alone(out, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "svdcut.json").write_text("{}")
    out.symlink_to(target)
    write_all(out)
    assert (out / "one.safetensors").exists()
    assert list(target.iterdir()) == [target / "svdcut.json"]
    assert sorted(tmp_path.iterdir()) == [out, target]


def test_folder_that_appears_during_the_run_is_left_alone(out, tmp_path):
    with make_writer(out) as writer:
        fill(writer)
        out.mkdir()
        (out / "photo.jpg").write_text("precious")
        with pytest.raises(OutputExistsError, match="appeared during the run"):
            writer.commit()
    assert file_bytes(out) == {"photo.jpg": b"precious"}
    assert list(tmp_path.iterdir()) == [out]


def test_two_runs_at_once(out, tmp_path):
    """The second is refused, and does the first one no harm."""
    with make_writer(out) as first:
        with pytest.raises(OutputExistsError, match="in use"):
            write_all(out)
        fill(first)
        first.commit()
    write_all(out)
    file = read_header(out / "one.safetensors")
    assert [bytes(read_bytes(e)) for e in file.entries] == [b"aaaaa", b"bbb"]
    assert list(tmp_path.iterdir()) == [out]


# Disk errors


def fail_at(monkeypatch, name, number, error):
    """Make one call of a function of `os` fail."""
    function, calls = getattr(os, name), itertools.count()

    def limited(*args, **options):
        if next(calls) == number:
            raise error
        return function(*args, **options)

    monkeypatch.setattr(os, name, limited)


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("name", "calls"),
    [("posix_fallocate", 0), ("posix_fallocate", 1), ("fsync", 0), ("fsync", 1), ("fsync", 3)]
    + [("pwrite", calls) for calls in range(8)]
    + [("open", 1)],
)
def test_disk_error_leaves_the_old_folder_alone(out, old, tmp_path, monkeypatch, name, calls):
    with monkeypatch.context() as patch:
        fail_at(patch, name, calls, FULL)
        with pytest.raises(OutputError, match="cannot be written: No space left"):
            write_all(out)
    assert file_bytes(out) == old
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("name", ["posix_fallocate", "pwrite"])
def test_interrupted_while_files_are_made(out, old, tmp_path, monkeypatch, name):
    with monkeypatch.context() as patch:
        fail_at(patch, name, 1, Interrupted(2))
        with pytest.raises(Interrupted):
            write_all(out)
    assert file_bytes(out) == old
    assert list(tmp_path.iterdir()) == [out]


def test_disk_without_fallocate(out, monkeypatch):
    fail_at(monkeypatch, "posix_fallocate", 0, OSError(errno.EOPNOTSUPP, "not here"))
    write_all(out)
    assert read_header(out / "one.safetensors").size_bytes == LAYOUTS[0].size_bytes


def test_disk_that_writes_a_little_at_a_time(out, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, bytes(data[:1]), at))
    write_all(out)
    assert bytes(read_bytes(read_header(out / "two.safetensors").entries[0])) == DATA["c"]


def test_text_or_copy_that_cannot_be_written(out, tmp_path):
    with make_writer(out) as writer:
        writer.write_file(Path("svdcut.json"), b"{}")
        with pytest.raises(OutputError, match=r"svdcut.json/x\.txt: cannot be written"):
            writer.write_file(Path("svdcut.json/x.txt"), b"x")
        with pytest.raises(OutputError, match="cannot be written"):
            writer.copy_file(tmp_path / "missing", Path("x.txt"))


def test_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_all(tmp_path / "file" / "out")
    assert (tmp_path / "file").read_text() == ""


def test_second_of_two_results_that_fails_takes_nothing_with_it(pairs, tmp_path):
    pair = pairs("toy")
    (tmp_path / "file").write_text("")
    outs = {"4": tmp_path / "first", "8": tmp_path / "file" / "second"}
    with pytest.raises(OutputError):
        svdcut.truncate_many(pair.base, pair.finetuned, outs)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


# What may be written where


def check(out, *inputs, force=False):
    check_output(out, list(inputs), force=force)


def test_new_folder_is_fine(out, tmp_path):
    check(out, tmp_path / "base", tmp_path / "ft")
    check(tmp_path / "base.out", tmp_path / "base")


@pytest.mark.parametrize(
    "place", ["ft", "ft/out", "ft/a/b", "x/../ft/out", "link", "link/out", "."]
)
@pytest.mark.parametrize("force", [False, True])
def test_output_in_around_or_equal_to_an_input(tmp_path, place, force):
    (tmp_path / "ft").mkdir()
    (tmp_path / "ft" / "svdcut.json").write_text("{}")
    (tmp_path / "link").symlink_to("ft")
    (tmp_path / "x").mkdir()
    inputs = [tmp_path / "base", tmp_path / "ft"]
    for order in (inputs, inputs[::-1]):
        with pytest.raises(UsageError, match="the output"):
            check(tmp_path / place, *order, force=force)
    with pytest.raises(UsageError, match="the output"):
        check(tmp_path / "ft", tmp_path / "ft" / "model.safetensors", force=force)


def test_output_that_exists(out, old):
    with pytest.raises(OutputExistsError, match="--force"):
        check(out)
    check(out, force=True)


@pytest.mark.parametrize("kind", ["folder", "file", "link", "dangling"])
def test_force_on_what_svdcut_did_not_write(out, tmp_path, kind):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "photo.jpg").write_text("precious")
    if kind == "file":
        out.write_text("precious")
    elif kind == "folder":
        (tmp_path / "folder").rename(out)
    else:
        out.symlink_to(tmp_path / ("folder" if kind == "link" else "nowhere"))
    with pytest.raises(OutputExistsError):
        check(out)
    with pytest.raises(UsageError, match="not written by svdcut"):
        check(out, force=True)


def test_force_on_nothing(out):
    check(out, force=True)


def test_force_on_an_empty_folder(out):
    out.mkdir()
    check(out, force=True)


@pytest.mark.parametrize("kind", ["folder", "file", "link", "link within"])
def test_something_else_in_the_place_of_unfinished_work(out, tmp_path, kind):
    partial = partial_path(out)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "photo.jpg").write_text("precious")
    if kind == "folder":
        partial.mkdir()
        (partial / "half").write_text("half")
    elif kind == "file":
        partial.write_text("half")
    elif kind == "link":
        partial.symlink_to(tmp_path / "elsewhere")
    else:
        with make_writer(out) as writer:
            fill(writer, "a", record=True)
        shutil.rmtree(partial / "checkpoint")
        (partial / "checkpoint").symlink_to(tmp_path / "elsewhere")
    for force in (False, True):
        with pytest.raises(OutputExistsError, match="no unfinished work of svdcut"):
            check(out, force=force)
    for restart in (False, True):
        with pytest.raises(OutputExistsError, match="no unfinished work of svdcut"):
            write_all(out, restart=restart)
    assert os.path.lexists(partial)
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["photo.jpg"]


@pytest.mark.parametrize("place", [".", "", "/", ".."])
def test_places_without_a_name(tmp_path, monkeypatch, place):
    (tmp_path / "svdcut.json").write_text("{}")
    (tmp_path / "deeper").mkdir()
    monkeypatch.chdir(tmp_path / "deeper" if place == ".." else tmp_path)
    for force in (False, True):
        with pytest.raises(UsageError):
            check(Path(place), tmp_path.parent / "elsewhere", force=force)
