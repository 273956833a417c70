"""What the machine does not give: memory, threads, room, a folder; said in words, not as a bug."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import svdcut.truncation.run
from refusals import CALL, call, pair
from svdcut.machine import allow_many_files

ENVIRONMENT = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}


def process(*words, cwd, prefix="", **more):
    """Run a command line as a shell does."""
    command = f"{prefix} exec {sys.executable} -m svdcut {' '.join(words)}"
    return subprocess.run(
        ["sh", "-c", command],
        cwd=cwd,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env=os.environ | {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"},
        **more,
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
@pytest.mark.parametrize(
    "words", [CALL, ["spectrum", "base", "ft", "--json"], ["--help"], ["--version"]]
)
def test_stdout_on_a_full_disk(tmp_path, words):
    pair(tmp_path)
    with Path("/dev/full").open("wb") as full:
        done = process(*words, cwd=tmp_path, stdout=full)
    said = "svdcut: stdout cannot be written to: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, said)


def test_a_working_folder_that_is_gone(tmp_path):
    (pair(tmp_path) / "gone").mkdir()
    words = ["truncate", str(tmp_path / "base"), str(tmp_path / "ft"), *CALL[3:]]
    done = process(*words, cwd=tmp_path / "gone", prefix="rmdir ../gone;")
    assert done.returncode == 3
    assert done.stderr.startswith("svdcut: the working folder cannot be used: No such file")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "there is not enough memory"),
        (MemoryError("std::bad_alloc"), "there is not enough memory: std::bad_alloc"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory\nmore"),
            "there is not enough memory: [enforce fail]",
        ),
        (ImportError("x.so: failed to map segment from shared object"), "not enough memory: x.so"),
        (RuntimeError("can't start new thread"), "the system allows no more threads"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "cache"), "cache: Read-only file system"),
    ],
)
def test_what_the_system_refuses(tmp_path, monkeypatch, error, said):
    pair(tmp_path)

    def fail(*arguments, **more):
        raise error

    monkeypatch.setattr(svdcut.truncation.run, "process_tensor", fail)
    outcome = call(CALL, tmp_path)
    assert outcome.exit_code == 1
    assert said in outcome.stderr
    assert "report" not in outcome.stderr
    assert "unexpected" not in outcome.stderr


def test_a_mount_point_is_refused_before_the_work(tmp_path, monkeypatch):
    (pair(tmp_path) / "out").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "out")
    outcome = call([*CALL, "--force", "--dry-run"], tmp_path)
    assert outcome.exit_code == 2
    assert outcome.message.startswith("out is a mount point, which cannot be replaced")


@pytest.mark.parametrize("seconds", [-(10**10), 10**13])
def test_times_of_no_calendar(tmp_path, seconds):
    """A file system may hold them; that of the tests may not."""
    pair(tmp_path)
    for side in ("base", "ft"):
        os.utime(tmp_path / side / "model.safetensors", ns=(0, seconds * 10**9))
    assert call([*CALL, "-q"], tmp_path).exit_code == 0


def test_a_file_of_each_rank():
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, limits[1]))
        allow_many_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 1000
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_too_many_files_for_the_system(tmp_path):
    pair(tmp_path)
    ranks = ",".join(map(str, range(1, 16)))
    words = [*CALL[:4], ranks, "-o", "'out-{k}'"]
    done = process(*words, cwd=tmp_path, prefix="ulimit -n 20;", stdout=subprocess.DEVNULL)
    assert done.returncode == 1
    assert "15 outputs take 61 open files, and the system allows 20\n" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "ft"]


def test_pictures_without_a_home(tmp_path):
    pytest.importorskip("matplotlib")
    pair(tmp_path)
    words = ["spectrum", "base", "ft", "-q", "--plot", "p.png"]
    prefix = "export HOME=/proc/none XDG_CONFIG_HOME=/proc/none XDG_CACHE_HOME=/proc/none;"
    done = process(*words, cwd=tmp_path, prefix=prefix)
    assert (done.returncode, done.stderr) == (0, "")
