"""Settings of the memory allocator of a process whose blocks come and go.

For the command line's own process; a library has no say in that of its caller.
"""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of ``mallopt`` in the C library of GNU."""


def tune_allocator() -> None:
    """Let blocks of some megabytes be reused, and large ones be mapped in huge pages.

    By default each block of a pass over a matrix is mapped anew from the system and
    faulted in page by page, which takes longer than the pass (a factor of seven for
    a subtraction, measured). Call it before torch is imported.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # another C library
    mallopt(_MMAP_THRESHOLD, 32 << 20)
    mallopt(_TRIM_THRESHOLD, 128 << 20)
