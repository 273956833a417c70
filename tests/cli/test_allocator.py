"""Blocks that come and go are not mapped anew each time, and large ones are given back."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
from svdcut.machine import tune_allocator
tune_allocator()
import torch
def fault():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        torch.empty(4 << 20, dtype=torch.uint8).zero_()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
fault()
print(fault())
"""

RETAIN = """
import threading
from svdcut.machine import tune_allocator
tune_allocator()
import torch
def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))
def fill(num_bytes):
    return torch.empty(num_bytes, dtype=torch.uint8).zero_()
small = []
def work():
    for megabytes in range(7, 31):
        block = fill(megabytes << 20)
        small.append(fill(64 << 10))
        del block
before = anonymous()
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print((anonymous() - before) << 10)
"""

glibc_only = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout)


@glibc_only
def test_blocks_are_reused():
    pages = 50 * (4 << 20) // 4096
    assert run(FAULTS) < pages / 10


@glibc_only
def test_matrices_are_given_back_from_among_blocks_that_stay():
    assert run(RETAIN) < 32 << 20


def test_another_c_library(monkeypatch):
    from svdcut import machine

    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    machine.tune_allocator()
