"""Processors, memory, open files and disks: what there is, and what a process may use.

It imports no torch unless a CUDA device is asked for.
"""

from __future__ import annotations

import ctypes
import math
import os
import resource
import shutil
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")
_MANY_FILES = 65536
_CUDA_DRIVER = Path("/dev/nvidiactl")

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of ``mallopt`` in the C library of GNU."""

_MAPPED_BYTES = 6 << 20
"""Blocks from this size on are given back to the system when they are freed. The buffers of
passes and of MKL are smaller, and faulting them in again would take longer than their use."""


def num_cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def allow_many_files() -> None:
    """Let this process open as many files as the system allows: a shard of each rank is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MANY_FILES if hard == resource.RLIM_INFINITY else min(hard, _MANY_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def tune_allocator() -> None:
    """Let blocks of some megabytes be reused, and large ones be mapped in huge pages.

    For the command line's own process, before it imports torch; a library leaves its caller's
    process alone. By default each block of a pass over a matrix is mapped anew from the system
    and faulted in page by page, which takes longer than the pass (a factor of seven for a
    subtraction, measured). A block that is not mapped returns to its thread's arena, where
    smaller blocks that outlive it keep larger ones from using the space: so whole matrices are
    mapped.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # another C library
    mallopt(_MMAP_THRESHOLD, _MAPPED_BYTES)
    mallopt(_TRIM_THRESHOLD, 128 << 20)


def max_open_files() -> float:
    """Return how many files this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return math.inf if soft == resource.RLIM_INFINITY else soft


def available_memory() -> int | None:
    """Return the bytes of memory that can be had, or None where the system does not tell.

    The least of what the system has and what the control group of a container leaves.
    """
    found = [_system_memory(), _group_memory()]
    return min((value for value in found if value is not None), default=None)


def _system_memory() -> int | None:
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None
    sizes = {key: rest.split() for key, _, rest in (line.partition(":") for line in lines)}
    return int(sizes["MemAvailable"][0]) * 1024 if "MemAvailable" in sizes else None


def _group_memory() -> int | None:
    """Return what is left under the limit of control groups, version 2."""
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        pairs = (line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        cache = int(dict(pairs).get("inactive_file", 0))
    except (OSError, ValueError):
        return None  # no such group, or no limit: it says "max"
    return max(limit - (used - cache), 0)


def free_space(path: Path) -> tuple[int, int]:
    """Return the file system that a path would be on, and the bytes free there.

    Parameters
    ----------
    path : Path
        It need not exist.
    """
    place = path.absolute()
    while not place.exists():
        place = place.parent
    return place.stat().st_dev, shutil.disk_usage(place).free


def free_device_memory(device: str) -> int | None:
    """Return the bytes free on a CUDA device, or None where there is none.

    Parameters
    ----------
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    """
    if device == "cpu" or not _CUDA_DRIVER.exists():
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    return torch.cuda.mem_get_info("cuda" if device == "auto" else device)[0]
