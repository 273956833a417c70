"""Leading eigenpairs by LAPACK's ssyevr, called without Python's global lock.

scipy's own wrapper holds the lock, so the threads of a pool run one after the other (measured,
scipy 1.17). This module calls the same function through the address that scipy exports for C code.
"""

from __future__ import annotations

import ctypes
import re
from functools import cache
from typing import Any

import torch
from torch import Tensor

_SIGNATURE = b"CCCISISSIISISSIISIIII"
"""Arguments of ssyevr: characters, 32-bit integers and singles, all by reference."""

_KINDS = {b"char": b"C", b"int": b"I", b"s": b"S"}


def leading_eigenpairs(product: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the largest eigenvalues of a symmetric matrix, descending, and their vectors.

    Parameters
    ----------
    product : Tensor of shape (n, n), float32
    count : int
        How many, 1 to n.

    Returns
    -------
    tuple of Tensor
        (j,) and (n, j); `j` may be less than `count` in clusters of values.

    Raises
    ------
    torch.linalg.LinAlgError
        If LAPACK fails.

    Notes
    -----
    On the CPU 4/3 n^3 operations and O(n^2 count), on one thread; memory is a copy of the
    matrix. On a GPU all eigenvectors are computed, as cuSOLVER has no faster way to a few.
    """
    function = _ssyevr() if product.device.type == "cpu" else None
    if function is None:
        values, vectors = torch.linalg.eigh(product)
        return values[-count:].flip(0), vectors[:, -count:].flip(1)
    n = len(product)
    matrix = product.clone(memory_format=torch.contiguous_format)
    values, vectors, none = (product.new_zeros(size) for size in (n, count * n, 1))
    num_found, info, support = (torch.zeros(m, dtype=torch.int32) for m in (1, 1, 2 * count))

    def run(work: Tensor, num_work: int, whole: Tensor, num_whole: int) -> None:
        wanted = (none, none, n - count + 1, n, none)
        results = (num_found, values, vectors, n, support)
        room = (work, num_work, whole, num_whole)
        given = (b"V", b"I", b"U", n, matrix, n, *wanted, *results, *room, info)
        function(*(_reference(value) for value in given))

    sizes = product.new_empty(1), torch.empty(1, dtype=torch.int32)
    run(sizes[0], -1, sizes[1], -1)
    work, whole = (size.new_empty(int(size)) for size in sizes)
    run(work, len(work), whole, len(whole))
    if int(info):
        raise torch.linalg.LinAlgError(f"ssyevr: info {int(info)}")  # type: ignore[attr-defined]
    found = int(num_found)
    return values[:found].flip(0), vectors.reshape(count, n)[:found].flip(0).T


def _reference(value: Tensor | int | bytes) -> Any:  # noqa: ANN401 - of ctypes
    """Return an argument as a Fortran reference."""
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.byref(ctypes.c_int(value)) if isinstance(value, int) else value


@cache
def _ssyevr() -> Any:  # noqa: ANN401
    """Return the function, or None if scipy exports none with this signature."""
    from scipy.linalg import cython_lapack

    capsule = cython_lapack.__pyx_capi__.get("ssyevr")
    if capsule is None:
        return None
    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype = ctypes.c_char_p
    api.PyCapsule_GetName.argtypes = [ctypes.py_object]
    name = api.PyCapsule_GetName(capsule)
    kinds = [kind.rpartition(b"_")[2] for kind in re.findall(rb"(\w+) \*", name)]
    if b"".join(_KINDS.get(kind, b"?") for kind in kinds) != _SIGNATURE:
        return None
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    address = api.PyCapsule_GetPointer(capsule, name)
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * len(_SIGNATURE))(address)
