"""Settings of the memory allocator of a process whose blocks come and go.

For the command line's own process; a library has no say in that of its caller.
"""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of ``mallopt`` in the C library of GNU."""

_MAPPED_BYTES = 6 << 20
"""Blocks from this size on are given back to the system when they are freed. The buffers of
passes and of MKL are smaller, and faulting them in again would take longer than their use."""


def tune_allocator() -> None:
    """Let blocks of some megabytes be reused, and large ones be mapped in huge pages.

    By default each block of a pass over a matrix is mapped anew from the system and
    faulted in page by page, which takes longer than the pass (a factor of seven for
    a subtraction, measured). A block that is not mapped stays in its thread's arena when
    it is freed, though, where smaller ones that outlive it keep it from larger ones: so
    whole matrices are mapped. Call it before torch is imported.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # another C library
    mallopt(_MMAP_THRESHOLD, _MAPPED_BYTES)
    mallopt(_TRIM_THRESHOLD, 128 << 20)
