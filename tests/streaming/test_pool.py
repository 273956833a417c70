"""The pool: order, memory, errors, threads."""

import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from stand_in_gpu import stand_in_gpu
from svdcut.device import host_buffer
from svdcut.streaming.pool import MemoryGate, Pool, Reserve


def test_results_come_in_order():
    with Pool(3, 100) as pool:
        found = pool.map(lambda i: (time.sleep(0.002 * (5 - i)), i)[1], [1] * 5)
    assert found == [0, 1, 2, 3, 4]


def test_memory_in_use_stays_within_the_bound():
    lock, used, peak = threading.Lock(), [0], [0]
    sizes = [3, 5, 2, 9, 4, 30, 1, 6]

    def task(number):
        with lock:
            used[0] += sizes[number]
            peak[0] = max(peak[0], used[0] if sizes[number] <= 10 else 0)
            if sizes[number] > 10:
                assert used[0] == sizes[number]  # what is larger than the bound runs alone
        time.sleep(0.002)
        with lock:
            used[0] -= sizes[number]

    with Pool(4, 10) as pool:
        pool.map(task, sizes)
    assert 0 < peak[0] <= 10


def test_the_first_error_is_raised_and_the_rest_dropped():
    begun = []

    def task(number):
        begun.append(number)
        if number == 1:
            raise KeyError(number)
        time.sleep(0.01)

    with pytest.raises(KeyError), Pool(1, 1) as pool:
        pool.map(task, [1] * 50)
    assert len(begun) < 10


def test_tasks_in_the_queue_are_dropped_too():
    begun = []

    def task(number):
        begun.append(number)
        time.sleep(0.4 if number == 0 else 0.05 if number == 1 else 0.01)
        if number == 1:
            raise KeyError(number)

    with pytest.raises(KeyError), Pool(2, 100) as pool:
        pool.map(task, [1] * 50)
    assert len(begun) < 10


def test_each_task_computes_on_one_thread_and_the_setting_comes_back():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with Pool(2, 10) as pool:
            assert set(pool.map(lambda _: torch.get_num_threads(), [1] * 8)) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


MATMUL = getattr(torch.backends.mkldnn, "matmul", None)
needs_new = pytest.mark.skipif(not hasattr(MATMUL, "fp32_precision"), reason="before torch 2.9")


def precision_in_pool():
    def look(_):
        return MATMUL.fp32_precision, torch.backends.cuda.matmul.fp32_precision

    with Pool(1, 10) as pool:
        return pool.map(look, [1])[0]


@pytest.fixture
def precisions():
    yield
    torch.set_float32_matmul_precision("highest")


@needs_new
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_float32_products_are_in_float32_and_the_setting_comes_back(precisions, precision):
    torch.set_float32_matmul_precision(precision)
    assert precision_in_pool() == ("ieee", "ieee")
    assert torch.get_float32_matmul_precision() == precision


@needs_new
def test_the_same_where_it_was_set_for_one_backend(precisions):
    MATMUL.fp32_precision = "bf16"
    assert precision_in_pool() == ("ieee", "ieee")
    assert MATMUL.fp32_precision == "bf16"


def test_the_same_on_a_torch_that_knows_one_setting_for_all(precisions, monkeypatch):
    monkeypatch.setattr(torch.backends, "mkldnn", SimpleNamespace())
    torch.set_float32_matmul_precision("high")
    with Pool(1, 10) as pool:
        assert pool.map(lambda _: torch.get_float32_matmul_precision(), [1]) == ["highest"]
    assert torch.get_float32_matmul_precision() == "high"


def test_no_warning_of_old_settings(recwarn):
    with Pool(1, 10) as pool:
        pool.map(lambda _: None, [1])
    assert [str(warning.message) for warning in recwarn] == []


def test_threads_share_some_streams_of_a_gpu(monkeypatch):
    streams = {}
    device = torch.device("cuda", 1)
    with stand_in_gpu(monkeypatch):
        monkeypatch.setattr(
            "torch.cuda.set_stream", lambda stream: streams.update({threading.get_ident(): stream})
        )
        with Pool(6, 10, device) as pool:
            at_work = set(pool.map(lambda _: (time.sleep(0.05), threading.get_ident())[1], [1] * 9))
    assert len(at_work) == 6
    assert set(streams) == at_work
    assert {stream.device for stream in streams.values()} == {device}
    assert len({id(stream) for stream in streams.values()}) == 4


def test_a_thread_that_cannot_start_is_an_error_of_its_task(monkeypatch):
    @contextmanager
    def workers(device):
        yield fail

    def fail():
        raise RuntimeError("no stream")

    monkeypatch.setattr("svdcut.streaming.pool.workers_on", workers)
    with pytest.raises(RuntimeError, match="no stream"), Pool(2, 1) as pool:
        pool.map(lambda _: None, [1] * 8)


def test_a_gpu_reads_from_pinned_memory(monkeypatch):
    asked, empty = [], torch.empty
    monkeypatch.setattr(
        "torch.empty",
        lambda *size, pin_memory, **kw: (asked.append(pin_memory), empty(*size, **kw))[1],
    )
    for name in ("cpu", "cuda"):
        assert host_buffer(7, torch.device(name)).shape == (7,)
    assert asked == [False, True]


def test_the_gate_waits():
    gate = MemoryGate(10)
    gate.enter(8)
    entered = threading.Event()
    thread = threading.Thread(target=lambda: (gate.enter(5), entered.set()))
    thread.start()
    assert not entered.wait(0.05)
    gate.leave(8)
    assert entered.wait(5)
    thread.join()


def test_a_reserve_is_shared_as_far_as_it_goes():
    reserve, begun, done = Reserve(100), threading.Event(), threading.Event()

    def ask():
        with reserve.lend() as take:
            begun.set()
            take(50)
            done.set()

    thread = threading.Thread(target=ask)
    with reserve.lend() as take:
        take(60)
        thread.start()
        begun.wait()
        assert not done.wait(0.05)
        take(40)  # in place of the 60
        assert done.wait(10)
    thread.join(10)


def test_who_asks_for_more_than_a_reserve_has_it_alone():
    for reserve in (Reserve(100), Reserve()):
        alone, order = threading.Event(), []

        def ask(reserve=reserve, alone=alone, order=order):
            with reserve.lend() as take:
                alone.wait()
                take(10)
                order.append("small")

        thread = threading.Thread(target=ask)
        thread.start()
        with reserve.lend() as take:
            take(1 << 62)
            alone.set()
            order.append("all")
            time.sleep(0.05)
            order.append("done")
        thread.join(10)
        assert order == ["all", "done", "small"]
