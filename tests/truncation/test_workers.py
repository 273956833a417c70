"""Workers that share a run make the same bytes as one process, or end with a clear error."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kills import comparable

import svdcut
import svdcut.truncation.run
from architectures import ARCHITECTURES
from checkpoints import Pair
from kinds import KINDS
from observers import Stop
from processes import call
from svdcut import ExtractOptions, TruncateOptions
from svdcut.api.truncation import carry_out, plan_extraction, plan_truncation
from svdcut.errors import Interrupted, NonFiniteError, OutputError, UsageError, WorkerError
from svdcut.truncation import team
from svdcut.truncation.sharing import share
from svdcut.worker import Worker, launched_worker, parse_part
from svdcut.write import journal
from svdcut.write.destination import partial_path

CARRIED_OUT = [slug for slug, kind in KINDS.items() if not kind.error]


@pytest.fixture
def pair(pairs, tmp_path) -> Pair:
    """A pair of this test's own."""
    made = pairs("toy", layers=6)
    shutil.copytree(made.base, tmp_path / "base")
    shutil.copytree(made.finetuned, tmp_path / "ft")
    return Pair(tmp_path / "base", tmp_path / "ft")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Pair:
    """A pair that PEFT has places for."""
    return ARCHITECTURES["llama"].pair(tmp_path_factory.mktemp("llama"))


def run(pair, out, worker, *, observe=lambda _: None, **options):
    """Do the share of one worker; return the manifests that it publishes."""
    options = {"rank": "4"} | options
    asked = TruncateOptions(pair.base, pair.finetuned, out, **options)
    return carry_out(plan_truncation(asked), worker=worker, observe=observe)


def run_parts(pair, out, count, order=None, **options):
    """Do all parts, one after the other; return the manifests of each."""
    numbers = order or range(count)
    return [run(pair, out, Worker(number, count), **options) for number in numbers]


@contextmanager
def store(monkeypatch) -> Iterator[None]:
    """Give the address of a store, as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with monkeypatch.context() as patch:
        patch.setenv("MASTER_ADDR", "127.0.0.1")
        patch.setenv("MASTER_PORT", str(port))
        patch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
        yield


def run_team(pair, out, count, **options):
    """Do the shares of workers that run at once, a thread for each."""
    found: dict[int, object] = {}

    def work(index):
        worker = Worker(index, count, index, count, is_launched=True)
        try:
            found[index] = run(pair, out, worker, **options)
        except Exception as error:
            found[index] = error

    threads = [threading.Thread(target=work, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in found.values():
        if isinstance(error, Exception):
            raise error
    return [found[index] for index in range(count)]


# The same bytes


@pytest.mark.parametrize("slug", CARRIED_OUT)
def test_parts_of_every_kind(slug, tmp_path):
    kind = KINDS[slug]
    pair = kind.build(tmp_path)
    run(pair, tmp_path / "one", Worker(), **kind.options)
    *others, last = run_parts(pair, tmp_path / "parts", 3, order=(2, 0, 1), **kind.options)
    assert others == [[], []]
    assert len(last) == 1
    assert comparable(tmp_path / "parts") == comparable(tmp_path / "one")
    assert not partial_path(tmp_path / "parts").exists()


RUNS = [
    {"rank": "4"},
    {"rank": "budget=0.2"},
    {"rank": "energy=0.7", "rank_for": ["*mlp*=budget=0.3"]},
    {"rank": "3", "also_adapter": "adapter"},
]


@pytest.mark.parametrize("options", RUNS, ids=str)
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("count", [2, 4])
def test_rules_and_outputs(options, together, count, model, tmp_path, monkeypatch):
    def folders(name):
        more = {"also_adapter": tmp_path / f"{name}-adapter"} if "also_adapter" in options else {}
        return [tmp_path / name, *more.values()], options | more

    (one, *ones), asked = folders("one")
    run(model, one, Worker(), **asked)
    (shared, *shares), asked = folders("shared")
    if together:
        with store(monkeypatch):
            first, *others = run_team(model, shared, count, **asked)
        assert first
        assert not any(others)
    else:
        run_parts(model, shared, count, **asked)
    for ours, theirs in zip([shared, *shares], [one, *ones], strict=True):
        assert comparable(ours) == comparable(theirs)


def test_several_ranks_and_an_adapter(model, tmp_path):
    for name, worker in [("one", Worker()), ("two", Worker(0, 2)), ("two", Worker(1, 2))]:
        asked = ExtractOptions(model.base, model.finetuned, tmp_path / f"{name}-{{k}}", rank="2,5")
        carry_out(plan_extraction(asked), worker=worker)
    for rank in (2, 5):
        assert comparable(tmp_path / f"two-{rank}") == comparable(tmp_path / f"one-{rank}")


def test_each_tensor_is_made_once(pair, tmp_path):
    made = []

    def observe(progress):
        if progress.stage == "truncate" and not progress.resumed:
            made.append(progress.name)

    *first, (manifest,) = run_parts(pair, tmp_path / "out", 3, observe=observe)
    assert first == [[], []]
    own = len(made) - len(manifest.tensors)  # the last tells of the others' tensors again
    assert 0 < own < len(manifest.tensors)


@pytest.mark.parametrize("together", [False, True])
def test_who_makes_the_files_and_publishes_makes_no_tensor_of_others(
    pair, tmp_path, monkeypatch, together
):
    made, process = [], svdcut.truncation.run.process_tensor

    def spy(job, planned, outputs):
        made.append(planned.pair.name)
        return process(job, planned, outputs)

    monkeypatch.setattr(svdcut.truncation.run, "process_tensor", spy)
    out, begun = tmp_path / "out", threading.Lock()

    def end_the_other(progress):
        if begun.acquire(blocking=False):
            run(pair, out, Worker(1, 2))

    if together:
        with store(monkeypatch):
            (manifest,), _ = run_team(pair, out, 2)
    else:
        (manifest,) = run(pair, out, Worker(0, 2), observe=end_the_other)
    assert sorted(made) == sorted(manifest.tensors)


# Stopped, and resumed by others


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_run_of_other_workers_goes_on(pair, tmp_path, count):
    run(pair, tmp_path / "one", Worker())
    out = tmp_path / "out"
    run(pair, out, Worker(2, 3))
    with pytest.raises(Interrupted):
        run(pair, out, Worker(0, 3), observe=Stop(2))
    seen = []
    for number in range(count):
        run(pair, out, Worker(number, count), observe=seen.append)
    assert comparable(out) == comparable(tmp_path / "one")
    if count == 1:
        assert sum(progress.resumed for progress in seen) > 2


def test_parts_go_on_from_a_single_run(pair, tmp_path):
    run(pair, tmp_path / "one", Worker())
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        run(pair, out, Worker(), observe=Stop(5))
    run_parts(pair, out, 2)
    assert comparable(out) == comparable(tmp_path / "one")


def test_what_a_disk_has_lost_of_another_part_is_made_again(pair, tmp_path):
    run(pair, tmp_path / "one", Worker())
    out = tmp_path / "out"
    run(pair, out, Worker(0, 2))
    file = next((partial_path(out) / "checkpoint").glob("*.safetensors"))
    size = file.stat().st_size
    with file.open("r+b") as stream:
        stream.seek(size // 2)
        stream.write(b"\xff" * (size // 4))
    run(pair, out, Worker(1, 2))
    assert comparable(out) == comparable(tmp_path / "one")


def test_restart_drops_what_workers_left(pair, tmp_path):
    out = tmp_path / "out"
    run(pair, out, Worker(1, 3))
    with pytest.raises(UsageError, match="--rank was 4, is 5"):
        run(pair, out, Worker(0, 2), rank="5")
    with pytest.raises(UsageError, match="--rank was 4, is 5"):
        run(pair, out, Worker(), rank="5")
    seen = []
    run(pair, out, Worker(), restart=True, observe=seen.append)
    assert not any(progress.resumed for progress in seen)
    assert not partial_path(out).exists()


# Locks


def test_a_part_and_a_single_run_keep_out_of_each_others_way(pair, tmp_path):
    out = tmp_path / "out"
    refused = []

    def try_others(progress):
        if refused:
            return
        refused.append(True)
        with pytest.raises(UsageError, match="in use"):
            run(pair, out, Worker())
        with pytest.raises(UsageError, match="in use"):
            run(pair, out, Worker(0, 2))  # the same part once more

    run(pair, out, Worker(0, 2), observe=try_others)
    assert refused
    refused.clear()

    def try_part(progress):
        if not refused:
            refused.append(True)
            with pytest.raises(UsageError, match="in use"):
                run(pair, out, Worker(1, 2))

    run(pair, out, Worker(), observe=try_part)
    assert refused


def test_a_part_that_ends_while_another_works_leaves_the_result_to_it(pair, tmp_path):
    out = tmp_path / "out"
    ended, begun = [], threading.Lock()

    def end_the_other(progress):
        if begun.acquire(blocking=False):
            ended.append(run(pair, out, Worker(1, 2)))

    (manifest,) = run(pair, out, Worker(0, 2), observe=end_the_other)
    assert ended == [[]]
    assert manifest.totals.tensors
    assert out.exists()


def test_parts_need_locks(pair, tmp_path, monkeypatch):
    def none(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(journal.fcntl, "flock", none)
    with pytest.raises(OutputError, match="no locks"):
        run(pair, tmp_path / "out", Worker(0, 2))
    run(pair, tmp_path / "out", Worker())


def test_a_lock_ends_with_its_process(tmp_path):
    path = tmp_path / "file"
    with path.open("w") as one, path.open("w") as other:
        assert journal.try_lock(one.fileno(), fcntl.LOCK_SH)
        assert journal.try_lock(other.fileno(), fcntl.LOCK_SH)
        assert journal.try_lock(other.fileno(), fcntl.LOCK_EX) is False


# Words


@pytest.mark.parametrize("text", ["", "2", "0/2", "3/2", "1/0", "a/b", "-1/2", "1/2/3", "1.0/2"])
def test_parts_that_are_none(text):
    with pytest.raises(UsageError, match="expected I/N"):
        parse_part(text)


def test_parts():
    assert parse_part(" 2/8 ") == Worker(1, 8)
    assert str(parse_part("2/8")) == "part 2 of 8"


def test_what_torchrun_says():
    words = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    found = launched_worker(words | {"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_RESTART_COUNT": "2"})
    assert found == Worker(5, 8, 1, 4, is_launched=True, attempt=2)
    assert str(found) == "worker 6 of 8"
    assert launched_worker(words) is None  # of another launcher, who knows nothing of svdcut


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--part", "1/2", "--workers", "2"], "--part"),
        (["--part", "1/2", "--restart"], "--restart would drop"),
        (["--part", "3/2"], "expected I/N"),
        (["--workers", "0"], "--workers"),
    ],
)
def test_options_that_do_not_go_together(words, said, pairs, tmp_path):
    pair = pairs("toy")
    found = call("truncate", pair.base, pair.finetuned, "-k", 2, "-o", tmp_path / "out", *words)
    assert found.exit_code == 2
    assert said in found.stderr
    assert not any(tmp_path.iterdir())


def test_a_part_says_that_it_is_done(pairs, tmp_path):
    pair = pairs("toy")
    line = ("truncate", pair.base, pair.finetuned, "-k", 2, "-o", tmp_path / "out")
    first = call(*line, "--part", "1/2")
    assert (first.exit_code, first.stdout) == (0, "")
    assert "part 1 of 2 is done" in first.stderr
    last = call(*line, "--part", "2/2", "--json")
    assert last.exit_code == 0
    assert '"schema"' in last.stdout


# Shares


@given(st.lists(st.floats(0, 1e15), max_size=60), st.integers(1, 9))
def test_shares(costs, count):
    shares = share(costs, count)
    assert sorted(task for tasks in shares for task in tasks) == list(range(len(costs)))
    assert shares == share(costs, count)
    loads = [sum(costs[task] for task in tasks) for tasks in shares]
    least = max(sum(costs) / count, max(costs, default=0))
    assert max(loads) <= 4 / 3 * least + sum(costs) / count


# Workers that fail


def test_a_worker_that_never_starts_is_named(monkeypatch):
    monkeypatch.setattr(team, "_START_SECONDS", 1.0)
    with store(monkeypatch), pytest.raises(WorkerError, match="of 3 workers, 2, 3 did not start"):
        team.Team(Worker(0, 3, is_launched=True)).start()


def test_a_store_that_is_not_there(monkeypatch):
    monkeypatch.setattr(team, "_START_SECONDS", 0.5)
    with store(monkeypatch), pytest.raises(WorkerError, match="cannot be reached"):
        team.Team(Worker(1, 3, is_launched=True))


def start(pair, out, *words):
    line = ["truncate", pair.base, pair.finetuned, "-k", 4, "-o", out, *words]
    return subprocess.Popen(
        [sys.executable, "-m", "svdcut", *map(str, line)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )


def test_processes_of_one_command(pair, tmp_path):
    run(pair, tmp_path / "one", Worker())
    with start(pair, tmp_path / "out", "--workers", 2) as process:
        stdout, stderr = process.communicate()
    assert (process.returncode, stderr) == (0, "")
    assert stdout.count("tensors truncated") == 1
    assert comparable(tmp_path / "out") == comparable(tmp_path / "one")


def test_the_error_of_a_worker_is_the_error_of_the_command(pairs, tmp_path):
    pair = pairs("toy", layers=2)
    made = tmp_path / "ft"
    shutil.copytree(pair.finetuned, made)
    file = next(made.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-2:] = b"\xff\xff"  # NaN, in any of the floats
    file.write_bytes(data)
    bad = Pair(pair.base, made)
    with pytest.raises(NonFiniteError):
        run(bad, tmp_path / "out", Worker())
    with start(bad, tmp_path / "out", "--workers", 2) as process:
        stdout, stderr = process.communicate()
    assert (process.returncode, stdout) == (3, "")
    assert stderr.count("svdcut:") == 1
    assert " of 2: tensor" in stderr
    assert "NaN" in stderr
    assert not (tmp_path / "out").exists()


def children(process) -> list[int]:
    text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(word) for word in text.split()]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_is_killed_ends_the_job(pair, tmp_path, number):
    """A store of their own keeps the workers from their work until all are there."""
    run(pair, tmp_path / "one", Worker())
    out = tmp_path / "out"
    with start(pair, out, "--workers", 2) as process:
        while len(children(process)) < 2:
            time.sleep(0.01)
        os.kill(children(process)[1], number)
        began = time.monotonic()
        stdout, stderr = process.communicate()
    assert time.monotonic() - began < 30
    assert process.returncode != 0
    assert stdout == ""
    assert not out.exists()
    if number == signal.SIGKILL:
        assert "was killed by signal 9" in stderr
    svdcut.truncate(pair.base, pair.finetuned, out, rank=4)
    assert comparable(out) == comparable(tmp_path / "one")
