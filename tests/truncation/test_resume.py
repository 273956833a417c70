"""Nothing that is finished is lost, and what is resumed is what one run would have made."""

from __future__ import annotations

import errno
import itertools
import math
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from kills import Course, comparable

import stand_in_gpu
import svdcut
import svdcut.record.provenance
import svdcut.truncation.budget
import svdcut.truncation.run
import svdcut.truncation.tensor_job
import svdcut.write.writer
from checkpoints import Pair, file_bytes
from long import long
from observers import Stop
from svdcut.errors import (
    InputChangedError,
    Interrupted,
    NonFiniteError,
    OutputError,
    OutputExistsError,
)
from svdcut.files.tensorfile import Dtype, lay_out
from svdcut.svd import engine
from svdcut.write.destination import partial_path
from svdcut.write.journal import JOURNAL_NAME, Journal, count_finished
from svdcut.write.writer import TENSOR, CheckpointWriter

LAYOUT = lay_out("model.safetensors", {"a": (Dtype.U8, (5,)), "b": (Dtype.U8, (3,))}, {})
A, B = LAYOUT.entries
IDENTITY = {"svdcut": "1", "--rank": "8"}
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def pair(pairs, tmp_path):
    """A pair of this test's own."""
    made = pairs("toy", layers=6)
    shutil.copytree(made.base, tmp_path / "base")
    shutil.copytree(made.finetuned, tmp_path / "ft")
    return Pair(tmp_path / "base", tmp_path / "ft")


def truncate(pair, out, **options):
    return svdcut.truncate(pair.base, pair.finetuned, out, **({"rank": "4"} | options))


@pytest.fixture
def one_worker(monkeypatch):
    monkeypatch.setattr(svdcut.truncation.run, "num_workers", lambda *_: 1)


# The writer and its journal


def write(writer, entry, data):
    sink = writer.open(entry)
    sink.write(data)
    writer.record(TENSOR, entry.name, {"sha256": sink.finish()})


def test_records_last_and_are_found_again(out):
    with CheckpointWriter(out, [LAYOUT], IDENTITY) as writer:
        write(writer, A, b"aaaaa")
        assert writer.finished(A) is None  # of an earlier run alone
        writer.record("spectra", "a", [[1.5]])
    assert not out.exists()
    assert count_finished(partial_path(out), TENSOR) == 1
    with CheckpointWriter(out, [LAYOUT], IDENTITY) as writer:
        assert writer.finished(A)["sha256"]
        assert writer.finished(B) is None
        assert writer.find("spectra", "a") == [[1.5]]
        write(writer, B, b"bbb")
        writer.commit()
    assert (out / "model.safetensors").read_bytes() == LAYOUT.header + b"aaaaabbb"
    assert not partial_path(out).exists()


def test_bytes_are_synced_before_the_record_that_speaks_of_them(out, monkeypatch):
    """Of a power failure, what is in no file that was synced is lost."""
    calls = []

    def spy(name):
        function = getattr(os, name)

        def spied(descriptor, *arguments):
            file = Path(f"/proc/self/fd/{descriptor}").readlink().name
            calls.append((name, file))
            return function(descriptor, *arguments)

        monkeypatch.setattr(os, name, spied)

    with CheckpointWriter(out, [LAYOUT], IDENTITY) as writer:
        for name in ("write", "pwrite", "fsync"):
            spy(name)
        monkeypatch.setattr(svdcut.write.writer, "_SYNC_SECONDS", 0)
        write(writer, A, b"aaaaa")
    assert calls[:4] == [
        ("pwrite", "model.safetensors"),
        ("fsync", "model.safetensors"),
        ("write", JOURNAL_NAME),
        ("fsync", JOURNAL_NAME),
    ]


def test_records_wait_for_one_sync_a_second(out, monkeypatch):
    monkeypatch.setattr(svdcut.write.writer, "_SYNC_SECONDS", 3600)
    with CheckpointWriter(out, [LAYOUT], IDENTITY) as writer:
        write(writer, A, b"aaaaa")
        assert count_finished(partial_path(out), TENSOR) == 0
        monkeypatch.setattr(svdcut.write.writer, "_SYNC_SECONDS", 0)
        write(writer, B, b"bbb")
        assert count_finished(partial_path(out), TENSOR) == 2


@pytest.mark.parametrize("damage", ["cut", "garbage", "no newline", "blank"])
def test_last_record_that_a_crash_cut_off(out, damage):
    with CheckpointWriter(out, [LAYOUT], IDENTITY) as writer:
        write(writer, A, b"aaaaa")
        write(writer, B, b"bbb")
    path = partial_path(out) / JOURNAL_NAME
    lines = path.read_bytes().splitlines(keepends=True)
    last = {
        "cut": lines[-1][:-9],
        "garbage": b"\0" * 40 + b"\n",
        "no newline": lines[-1][:-1],
        "blank": b"\n",
    }
    path.write_bytes(b"".join(lines[:-1]) + last[damage])
    with CheckpointWriter(out, [LAYOUT], IDENTITY) as writer:
        assert writer.finished(A) is not None
        assert writer.finished(B) is None
        write(writer, B, b"bbb")
    with CheckpointWriter(out, [LAYOUT], IDENTITY) as writer:
        assert writer.finished(A) is not None
        assert writer.finished(B) is not None


@pytest.mark.parametrize("text", [b"", b"{", b'{"schema": "other"}\n', b"[]\n"])
def test_journal_that_a_crash_cut_off_at_its_beginning(out, text):
    with CheckpointWriter(out, [LAYOUT], IDENTITY) as writer:
        write(writer, A, b"aaaaa")
    (partial_path(out) / JOURNAL_NAME).write_bytes(text)
    with CheckpointWriter(out, [LAYOUT], IDENTITY) as writer:
        assert writer.finished(A) is None


@pytest.mark.parametrize("damage", ["bit", "short", "missing", "header", "link"])
def test_lost_bytes_are_made_again(out, tmp_path, damage):
    with CheckpointWriter(out, [LAYOUT], IDENTITY) as writer:
        write(writer, A, b"aaaaa")
        write(writer, B, b"bbb")
    file = partial_path(out) / "checkpoint" / LAYOUT.name
    data = bytearray(file.read_bytes())
    if damage == "bit":
        data[A.offset] ^= 1
    elif damage == "short":
        del data[-1:]
    elif damage == "header":
        data[9] ^= 1
    file.unlink()
    if damage == "link":
        (tmp_path / "precious").write_bytes(b"precious")
        file.symlink_to(tmp_path / "precious")
        with (
            pytest.raises(OutputError, match="cannot be written"),
            CheckpointWriter(out, [LAYOUT], IDENTITY),
        ):
            pass
        assert (tmp_path / "precious").read_bytes() == b"precious"
        return
    if damage != "missing":
        file.write_bytes(data)
    with CheckpointWriter(out, [LAYOUT], IDENTITY) as writer:
        assert writer.finished(A) is None
        assert (writer.finished(B) is not None) is (damage == "bit")


def test_what_a_run_left_of_small_files_goes(out):
    with CheckpointWriter(out, [LAYOUT], IDENTITY) as writer:
        write(writer, A, b"aaaaa")
        writer.write_file(Path("deep/old.json"), b"{}")
    with CheckpointWriter(out, [LAYOUT], IDENTITY) as writer:
        write(writer, B, b"bbb")
        writer.commit()
    assert file_bytes(out).keys() == {"model.safetensors"}


def test_other_identity_is_refused_and_harms_nothing(out):
    with CheckpointWriter(out, [LAYOUT], IDENTITY) as writer:
        write(writer, A, b"aaaaa")
    before = file_bytes(partial_path(out))
    for other, words in (
        (IDENTITY | {"--rank": "16"}, "--rank was 8, is 16"),
        (IDENTITY | {"--scale": "2"}, "--scale was absent, is 2"),
        ({"svdcut": "1"}, "--rank was 8, is absent"),
    ):
        with (
            pytest.raises(OutputExistsError, match=words) as caught,
            CheckpointWriter(out, [LAYOUT], other),
        ):
            pass
        assert "--restart" in str(caught.value)
        assert file_bytes(partial_path(out)) == before
    with CheckpointWriter(out, [LAYOUT], IDENTITY | {"--rank": "16"}, restart=True) as writer:
        assert writer.finished(A) is None


def test_lock_holds_between_processes_and_ends_with_them(out, tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from svdcut.write.journal import Journal; "
        "journal = Journal(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "x.partial"], stdout=subprocess.PIPE
    )
    try:
        assert child.stdout.readline() == b"held\n"
        for restart in (False, True):
            with (
                pytest.raises(OutputExistsError, match="in use"),
                CheckpointWriter(tmp_path / "x", [LAYOUT], IDENTITY, restart=restart),
            ):
                pass
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    Journal(tmp_path / "x.partial").close()


def test_file_system_without_locks(out, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with CheckpointWriter(out, [LAYOUT], IDENTITY) as writer:
        writer.commit()
    assert out.is_dir()


# Whole runs


@pytest.mark.parametrize("number", [1, 5, 19])
@pytest.mark.parametrize(
    "options",
    [{}, {"rank": "budget=0.3"}, {"rank": "noise", "dtype": "float32"}, {"keep": "random"}],
    ids=lambda options: "-".join(options.values()) or "plain",
)
def test_resumed_run_equals_an_undisturbed_one(
    pair, tmp_path, out, monkeypatch, one_worker, number, options
):
    truncate(pair, tmp_path / "whole", **options)
    stop = Stop(number)
    with pytest.raises(Interrupted):
        truncate(pair, out, observe=stop, **options)
    assert not out.exists()
    done = count_finished(partial_path(out), TENSOR)
    assert done == number
    made = []
    work = svdcut.truncation.run.process_tensor
    monkeypatch.setattr(
        svdcut.truncation.run,
        "process_tensor",
        lambda job, planned, outputs: made.append(planned) or work(job, planned, outputs),
    )
    seen = []
    manifest = truncate(pair, out, observe=seen.append, **options)
    assert len(made) == len(manifest.tensors) - done
    assert sum(progress.resumed for progress in seen if progress.stage == "truncate") == done
    assert comparable(out) == comparable(tmp_path / "whole")
    assert not partial_path(out).exists()


def test_first_pass_of_a_budget_is_resumed_too(pair, tmp_path, out, monkeypatch, one_worker):
    options = {"rank": "budget=0.3"}
    truncate(pair, tmp_path / "whole", **options)
    with pytest.raises(Interrupted):
        truncate(pair, out, observe=Stop(3), **options)
    spectra = svdcut.truncation.budget._spectra
    made = []
    monkeypatch.setattr(
        svdcut.truncation.budget, "_spectra", lambda *a: made.append(a) or spectra(*a)
    )
    truncate(pair, out, **options)
    assert made == []
    assert comparable(out) == comparable(tmp_path / "whole")


def test_resume_of_several_outputs_makes_what_any_of_them_lacks(pair, tmp_path, one_worker):
    def run(name, **options):
        outs = {k: tmp_path / f"{name}-{k}" for k in ("2", "8")}
        svdcut.truncate_many(pair.base, pair.finetuned, outs, **options)
        return outs

    whole = run("whole")
    with pytest.raises(Interrupted):
        run("out", observe=Stop(7))
    shutil.rmtree(tmp_path / "out-8.partial")
    for k, out in run("out").items():
        assert comparable(out) == comparable(whole[k])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rank": "5"}, "rank was 4, is 5"),
        ({"keep": "bottom"}, "keep was top, is bottom"),
        ({"rank_for": ["*up*=2"]}, "--rank-for was"),
        ({"scale": 0.5}, "scale was 1.0, is 0.5"),
    ],
)
def test_other_options_are_refused(pair, out, one_worker, change, words):
    with pytest.raises(Interrupted):
        truncate(pair, out, observe=Stop(3))
    with pytest.raises(OutputExistsError, match="unfinished work of another run") as caught:
        truncate(pair, out, **change)
    assert words in str(caught.value)
    truncate(pair, out, restart=True, **change)


@pytest.mark.parametrize("side", ["base", "finetuned"])
def test_changed_inputs_are_refused(pair, out, one_worker, side):
    with pytest.raises(Interrupted):
        truncate(pair, out, observe=Stop(3))
    file = getattr(pair, side) / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(OutputExistsError, match=r"model\.safetensors of .* was"):
        truncate(pair, out)


def test_changed_inputs_of_unchanged_times_are_found_by_their_hash(
    pair, out, one_worker, monkeypatch
):
    slow = Stop(3)

    def observe(progress):
        time.sleep(0.2)  # the hashes of the inputs are known when the third is done
        slow(progress)

    with pytest.raises(Interrupted):
        truncate(pair, out, observe=observe)
    assert count_finished(partial_path(out), "input") == 2
    file = pair.finetuned / "model.safetensors"
    status, data = file.stat(), bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(InputChangedError, match="not what it was"):
        truncate(pair, out)
    assert not partial_path(out).exists()


@pytest.mark.parametrize("change", ["touched", "replaced", "gone"])
@pytest.mark.parametrize("side", ["base", "finetuned"])
def test_input_that_changes_during_the_run(pair, tmp_path, out, change, side):
    file = getattr(pair, side) / "model.safetensors"
    copy = tmp_path / "copy"
    shutil.copyfile(file, copy)

    def observe(progress):
        if progress.name == "position_ids":
            if change == "touched":
                os.utime(file)
            elif change == "replaced":
                copy.replace(file)
            else:
                file.unlink()

    with pytest.raises(svdcut.SvdcutError) as caught:
        truncate(pair, out, observe=observe)
    assert caught.value.exit_code == 3
    assert not out.exists()
    if change != "gone":
        assert isinstance(caught.value, InputChangedError)
        assert not partial_path(out).exists()


def test_work_on_input_that_is_no_use_is_not_kept(pair, out, one_worker):
    from checkpoints import rewrite

    def spoil(tensors):
        tensors["layers.5.up.weight"][0, 0] = float("nan")
        return tensors

    rewrite(pair.finetuned / "model.safetensors", spoil)
    with pytest.raises(NonFiniteError):
        truncate(pair, out)
    assert not partial_path(out).exists()


def test_unexpected_failure_keeps_what_is_finished(pair, tmp_path, out, one_worker):
    def fail(progress):
        if progress.name == "layers.3.up.weight":
            raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        truncate(pair, out, observe=fail)
    assert count_finished(partial_path(out), TENSOR) > 3
    truncate(pair, out)
    truncate(pair, tmp_path / "whole")
    assert comparable(out) == comparable(tmp_path / "whole")


def test_failed_run_waits_for_no_hash(pair, out, one_worker, monkeypatch):
    """Of a large checkpoint it takes minutes."""
    stopped = []

    def endless(path, stop):
        stopped.append(stop.wait(20))
        return ""

    monkeypatch.setattr(svdcut.record.provenance, "hash_file", endless)
    with pytest.raises(Interrupted):
        truncate(pair, out, observe=Stop(2))
    assert stopped == [True, True]


# Full disks


def limit_writes(monkeypatch, room):
    """Make the disk full after so many bytes of weights."""
    pwrite, left = os.pwrite, [room]

    def limited(descriptor, data, offset):
        if left[0] <= 0:
            raise FULL
        data = memoryview(data)[: left[0]]
        left[0] -= len(data)
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", limited)


@pytest.mark.parametrize("tenth", range(10))
def test_full_disk_at_every_tenth_of_the_output(pair, tmp_path, out, monkeypatch, tenth):
    """Of a disk that promises no space: where it does, the run ends before any work."""
    truncate(pair, tmp_path / "whole")
    size = (tmp_path / "whole" / "model.safetensors").stat().st_size
    before = file_bytes(pair.base), file_bytes(pair.finetuned)
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", lambda *a: None)
        limit_writes(patch, size * tenth // 10)
        with pytest.raises(OutputError, match="cannot be written: No space left") as caught:
            truncate(pair, out)
    assert caught.value.exit_code == 1
    assert not out.exists()
    truncate(pair, out)
    assert comparable(out) == comparable(tmp_path / "whole")
    assert (file_bytes(pair.base), file_bytes(pair.finetuned)) == before


def can_mount():
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return (
        shutil.which("unshare") is not None
        and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


@pytest.mark.long
@pytest.mark.skipif(not can_mount(), reason="no file system may be mounted here")
def test_real_full_disk_at_every_tenth_of_the_output(pairs, tmp_path):
    pair, here = pairs("sharded"), Path(__file__).parents[1]
    script = [sys.executable, here / "full_disk.py", pair.base, pair.finetuned, tmp_path]
    path = os.pathsep.join([str(here.parent / "bench"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        ["unshare", "-rm", *script],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) >= 5


@pytest.mark.parametrize("call", [0, 1, 2, 5, 10, 20, 30])
def test_disk_that_fails_to_sync(pair, tmp_path, out, monkeypatch, one_worker, call):
    fsync, calls = os.fsync, itertools.count()

    def fail(descriptor):
        if next(calls) == call:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        patch.setattr(svdcut.write.writer, "_SYNC_SECONDS", 0)
        with pytest.raises(OutputError, match="Input/output error"):
            truncate(pair, out)
    assert not out.exists()
    truncate(pair, out)
    truncate(pair, tmp_path / "whole")
    assert comparable(out) == comparable(tmp_path / "whole")
    assert not partial_path(out).exists()


# Kills


@pytest.mark.parametrize(
    ("command", "kills"), [("truncate", 2), long(("truncate", 8)), long(("extract", 5))]
)
def test_killed_at_any_moment(pairs, tmp_path, command, kills):
    """A few here; bench/kills.py makes as many as wanted."""
    pair = pairs("sharded")
    Course(pair.base, pair.finetuned, tmp_path, random.Random(kills), command).repeat(kills)


# Devices and solvers that fail


@pytest.fixture
def small_gpu(monkeypatch):
    """A device that has room for small matrices alone."""
    read = svdcut.truncation.tensor_job.read_update

    def limited(sides, device, **options):
        if device.type == "cuda" and math.prod(sides.finetuned.shape) > 24 * 32:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return read(sides, device, **options)

    for module in (svdcut.truncation.tensor_job, svdcut.truncation.budget):
        monkeypatch.setattr(module, "read_update", limited)
    with stand_in_gpu.stand_in_gpu(monkeypatch):
        yield


@pytest.mark.parametrize("rank", ["4", "budget=0.3"])
def test_tensor_that_finds_no_room_on_the_device_is_done_on_the_cpu(
    pair, tmp_path, out, small_gpu, rank
):
    manifest = truncate(pair, out, rank=rank)
    rejected = {n: f.truncation.svd.rejected for n, f in manifest.tensors.items() if f.truncation}
    assert rejected.pop("embed.weight")[0] == "cuda: out of memory"
    assert all("cuda: out of memory" not in routes for routes in rejected.values())
    assert manifest.device == stand_in_gpu.NAME


def test_other_errors_are_no_matter_of_solvers(pair, out, small_gpu, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("something else")

    monkeypatch.setattr(engine, "gram_triplets", fail)
    with pytest.raises(RuntimeError, match="something else"):
        truncate(pair, out)


def test_solver_that_always_fails_is_an_error_that_names_the_tensor(pair, out, monkeypatch):
    def fail(*_, **__):
        raise SOLVER_ERRORS[1]

    for route in ("gram_triplets", "exact_triplets"):
        monkeypatch.setattr(engine, route, fail)
    with pytest.raises(svdcut.SvdcutError, match=r"tensor '.*': no SVD converged \(cusolver"):
        truncate(pair, out)


def test_no_room_on_the_cpu_is_an_error(pair, out, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(svdcut.truncation.tensor_job, "read_update", full)
    with pytest.raises(torch.OutOfMemoryError):
        truncate(pair, out)
    assert not out.exists()


SOLVER_ERRORS = [
    torch.linalg.LinAlgError("eigh: failed to converge"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_EXECUTION_FAILED, when calling ..."),
]


@pytest.mark.parametrize("error", SOLVER_ERRORS, ids=["LinAlgError", "RuntimeError"])
def test_solver_that_fails_is_followed_by_the_next(pair, out, monkeypatch, error):
    def fail(*_, **__):
        raise error

    for route in ("gram_basis", "gram_triplets"):
        monkeypatch.setattr(engine, route, fail)
    manifest = truncate(pair, out)
    for fact in manifest.tensors.values():
        if fact.truncation:
            assert fact.truncation.svd.method == "exact"
            assert fact.truncation.svd.rejected[-1] == "gram: solver failed"
            assert fact.truncation.svd.certified


@pytest.mark.parametrize("error", SOLVER_ERRORS, ids=["LinAlgError", "RuntimeError"])
def test_solver_that_fails_on_the_device_is_followed_by_the_cpu(
    pair, out, small_gpu, monkeypatch, error
):
    exact = engine.exact_triplets
    calls = itertools.count()

    def fail_once(matrix):
        if next(calls) == 0:
            raise error
        return exact(matrix)

    monkeypatch.setattr(engine, "exact_triplets", fail_once)
    manifest = truncate(pair, out, svd="exact", only=["layers.0.down.weight"])
    svd = manifest.tensors["layers.0.down.weight"].truncation.svd
    assert svd.rejected == ("cuda: solver failed",)
    assert svd.certified
