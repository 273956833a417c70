"""Truncate onto a real disk that is full at every tenth of the output, then make room.

full_disk.py BASE FT FOLDER, in a mount namespace: unshare -rm python full_disk.py ...
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

from kills import comparable

import svdcut
from svdcut.errors import OutputError
from svdcut.truncation.preflight import Preflight
from svdcut.write.destination import partial_path

BASE, FINETUNED, FOLDER = map(Path, sys.argv[1:])
DISK = FOLDER / "disk"
OUT = DISK / "out"


def mount(size: int, *options: str) -> None:
    command = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={max(size, 4096)}", *options])]
    subprocess.run([*command, "tmpfs", DISK], check=True)


def fail() -> str:
    try:
        svdcut.truncate(BASE, FINETUNED, OUT, rank=8)
    except OutputError as error:
        assert not OUT.exists()
        return str(error)
    raise AssertionError("the disk was not full")


def main() -> None:
    DISK.mkdir()
    whole = FOLDER / "whole"
    svdcut.truncate(BASE, FINETUNED, whole, rank=8)
    size = sum(path.stat().st_size for path in whole.iterdir())
    kept = 0
    for tenth in range(10):
        mount(size * tenth // 10)
        assert "free there" in fail()
        with mock.patch.object(Preflight, "refuse"):
            assert "No space left on device" in fail()
            assert not partial_path(OUT).exists()
            with mock.patch.object(os, "posix_fallocate", return_value=None):
                assert "No space left on device" in fail()
        kept += partial_path(OUT).exists()
        mount(16 * size, "remount", "ro")
        assert "Read-only file system" in fail()
        mount(16 * size, "remount", "rw")
        svdcut.truncate(BASE, FINETUNED, OUT, rank=8)
        assert comparable(OUT) == comparable(whole)
        assert not partial_path(OUT).exists()
        subprocess.run(["umount", DISK], check=True)
    print(f"{kept} of 10 kept finished tensors")


if __name__ == "__main__":
    main()
