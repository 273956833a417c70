"""Blocks that come and go are not mapped from the system each time."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

CODE = """
import resource, sys
if sys.argv[1] == "tuned":
    from svdcut.allocator import tune_allocator
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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_blocks_are_reused():
    done = subprocess.run(
        [sys.executable, "-c", CODE, "tuned"], capture_output=True, text=True, check=True
    )
    pages = 50 * (4 << 20) // 4096
    assert int(done.stdout) < pages / 10


def test_another_c_library(monkeypatch):
    from svdcut import allocator

    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    allocator.tune_allocator()
