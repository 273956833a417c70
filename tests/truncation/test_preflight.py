"""What a run needs is known before it begins, and refused or said where it is not there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import svdcut
from checkpoints import Pair, toy, toy_tensors, write_folder
from svdcut import TruncateManyOptions, machine
from svdcut.api.truncation import plan_many
from svdcut.errors import Interrupted, OutputError
from svdcut.truncation import preflight
from svdcut.write.destination import partial_path


@pytest.fixture
def pair(pairs):
    return pairs("toy")


def prepare(pair, *outs, rank="4", **options):
    rules = dict(zip([rank] if len(outs) == 1 else map(str, range(2, 9)), outs, strict=False))
    return plan_many(TruncateManyOptions(pair.base, pair.finetuned, rules, **options)).preflight


def folder_bytes(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# Disk


def test_room_that_is_said_to_be_needed_is_enough(pairs, tmp_path):
    for kind in ("toy", "sharded", "gpt2"):
        pair, out = pairs(kind), tmp_path / kind
        for options in ({}, {"dtype": "float32"}):
            (disk,) = prepare(pair, out, **options).disks
            svdcut.truncate(pair.base, pair.finetuned, out, rank="4", **options)
            written = folder_bytes(out)
            assert written <= disk.needed_bytes <= written + (2 << 20)
            assert disk.free_bytes == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)
            shutil.rmtree(out)


def test_run_without_room_is_refused_before_it_begins(pair, tmp_path, monkeypatch):
    needed = prepare(pair, tmp_path / "out").disks[0].needed_bytes
    monkeypatch.setattr(preflight, "free_space", lambda path: (1, needed - 1))
    with pytest.raises(OutputError, match=r"MB to write, but only .* free there") as caught:
        svdcut.truncate(pair.base, pair.finetuned, tmp_path / "out", rank="4")
    assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(preflight, "free_space", lambda path: (1, needed))
    svdcut.truncate(pair.base, pair.finetuned, tmp_path / "out", rank="4")


def test_outputs_on_one_disk_are_added_up(pair, tmp_path, monkeypatch):
    outs = [tmp_path / "a", tmp_path / "b", tmp_path / "deep" / "c"]
    (one,) = prepare(pair, outs[0]).disks
    (three,) = prepare(pair, *outs).disks
    assert three.needed_bytes == 3 * one.needed_bytes
    monkeypatch.setattr(preflight, "free_space", lambda path: (path.name == "c", 10**12))
    assert [disk.needed_bytes for disk in prepare(pair, *outs).disks] == [
        2 * one.needed_bytes,
        one.needed_bytes,
    ]


def test_unfinished_work_has_its_room_already(pair, tmp_path):
    out = tmp_path / "out"
    before = prepare(pair, out).disks[0].needed_bytes

    def stop(progress):
        raise Interrupted(2)

    with pytest.raises(Interrupted):
        svdcut.truncate(pair.base, pair.finetuned, out, rank="4", observe=stop)
    weights = partial_path(out) / "checkpoint" / "model.safetensors"
    after = prepare(pair, out).disks[0].needed_bytes
    assert before - after >= weights.stat().st_size


# Memory


def test_memory_is_that_of_the_largest_tensor(tmp_path):
    few, many = toy(tmp_path / "few"), toy(tmp_path / "many", layers=9)
    small = prepare(few, tmp_path / "out").memory_needed
    assert prepare(many, tmp_path / "out").memory_needed == small
    tensors = toy_tensors() | {"huge.weight": toy_tensors()["embed.weight"].repeat(100, 100)}
    folders = [write_folder(tmp_path / name, tensors) for name in ("base", "ft")]
    wide = prepare(Pair(*folders), tmp_path / "out").memory_needed
    largest = 4 * tensors["huge.weight"].numel()
    # The promise of the project: 700 MB and eight times the largest tensor in float32.
    assert 4 * largest < wide - small < 8 * largest
    assert wide < 700e6 + 8 * largest


def test_too_little_memory_is_a_warning(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "available_memory", lambda: 10**8)
    (text,) = prepare(pair, tmp_path / "out").warnings()
    assert "of memory, and 0.1 GB can be had" in text
    monkeypatch.setattr(preflight, "free_device_memory", lambda device: 10**7)
    host, device = prepare(pair, tmp_path / "out").warnings()
    assert host == text
    assert "on the GPU, which has 10.0 MB free" in device
    monkeypatch.setattr(preflight, "available_memory", lambda: None)
    monkeypatch.setattr(preflight, "free_device_memory", lambda device: 10**12)
    assert list(prepare(pair, tmp_path / "out").warnings()) == []


def test_available_memory_is_the_least_of_system_and_container(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    assert machine.available_memory() is None
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:    5000 kB\n")
    assert machine.available_memory() == 5000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("3000000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 1000000\n")
    assert machine.available_memory() == 5000 * 1024
    (tmp_path / "memory.max").write_text("4000000\n")
    assert machine.available_memory() == 2000000
    (tmp_path / "memory.max").write_text("1000\n")
    assert machine.available_memory() == 0


def test_this_machine_tells_its_memory():
    available = machine.available_memory()
    assert available is None or 10**6 < available < 10**14


def test_device_memory_without_a_driver_needs_no_torch(tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from svdcut import machine\n"
        f"machine._CUDA_DRIVER = Path({str(tmp_path / 'none')!r})\n"
        "print(machine.free_device_memory('auto'), machine.free_device_memory('cpu'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "None None\n"


# The screen


def test_dry_run_tells_what_is_needed(pair, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from svdcut.cli.app import app

    def cli(*words):
        return CliRunner().invoke(app, ["truncate", *map(str, words)])

    call = (pair.base, pair.finetuned, "-k", 4, "-o", tmp_path / "out", "--dry-run")
    monkeypatch.setattr(preflight, "available_memory", lambda: 20 * 10**9)
    shown = cli(*call)
    assert shown.exit_code == 0
    last = shown.stdout.splitlines()[-1]
    assert last.startswith("Disk: 1.")
    assert "of 20.0 GB available." in last
    needs = json.loads(cli(*call, "--json").stdout)["needs"]
    assert needs["memory_available_bytes"] == 20 * 10**9
    assert needs["disks"][0]["needed_bytes"] < needs["disks"][0]["free_bytes"]
    monkeypatch.setattr(preflight, "free_space", lambda path: (1, 5))
    monkeypatch.setattr(preflight, "available_memory", lambda: 10**8)
    refused = cli(*call)
    assert refused.exit_code == 1
    assert "to truncate" in refused.stdout
    warned, told, hint = refused.stderr.splitlines()
    assert warned.startswith("svdcut: warning: the run may take")
    assert "to write, but only 0.0 MB free there" in told
    assert hint == "  Make room, or choose a place on another disk."
    assert list(tmp_path.iterdir()) == []


def test_free_space_is_that_of_the_place_to_be(tmp_path):
    assert machine.free_space(tmp_path / "not" / "yet")[0] == tmp_path.stat().st_dev
    assert machine.free_space(Path("relative/not/yet"))[1] > 0
