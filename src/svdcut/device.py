"""Where to compute, by name, and what a thread needs to compute there beside others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from svdcut.errors import UsageError
from svdcut.machine import num_cores

_CUDA_WORKERS = 8
"""Threads for one GPU: while one computes, the others read, hash and write, which takes most
of their time."""

_STREAMS = 4
"""Streams for one GPU. Memory freed in one stream is not reused in another: each costs some."""


def resolve_device(name: str, local_index: int = 0) -> torch.device:
    """Return the device that a name means.

    Parameters
    ----------
    name : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    local_index : int
        Index among the workers of this machine, who each take another GPU.

    Raises
    ------
    UsageError
        If there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and local_index and torch.cuda.is_available():
        return torch.device("cuda", local_index % torch.cuda.device_count())
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name!r}: expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {name}: torch {torch.__version__} sees {torch.cuda.device_count()} "
            "CUDA devices"
        )
    return device


def device_name(device: torch.device) -> str:
    """Return how a manifest calls a device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def num_workers(device: torch.device, local_count: int = 1) -> int:
    """Return how many threads keep a device busy, where processes share the cores."""
    cores = max(1, num_cores() // local_count)
    return cores if device.type == "cpu" else min(cores, _CUDA_WORKERS)


@contextmanager
def workers_on(device: torch.device) -> Iterator[Callable[[], None]]:
    """Make the process ready for threads that compute on a device, and put it back.

    Whatever it was set to: products of float32 are rounded as float32 is, not as bfloat16
    or TF32; and a worker computes on one core.

    Yields
    ------
    callable
        Makes the thread that calls it such a worker. On a GPU in one of a few streams, so
        that the copies and products of different threads overlap.
    """
    # Loaded before its threads are counted: its BLAS is another than torch's.
    import scipy.linalg  # noqa: F401

    threads = torch.get_num_threads()
    streams: Iterator[torch.cuda.Stream] | None = None

    def start() -> None:
        torch.set_num_threads(1)
        if streams is not None:
            torch.cuda.set_stream(next(streams))

    try:
        with _full_precision(), threadpool_limits(1, user_api="blas"):
            if device.type == "cuda":
                # Loads a library, at which threads that do so at once fail:
                # https://github.com/pytorch/pytorch/issues/90613
                torch.linalg.cholesky(torch.ones(1, 1, dtype=torch.float64, device=device))
                streams = cycle([torch.cuda.Stream(device) for _ in range(_STREAMS)])  # type: ignore[no-untyped-call]
            yield start
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Have float32 products in float32, for as long as the context lasts."""
    backends = (torch.backends.cuda, torch.backends.mkldnn)
    products = [getattr(backend, "matmul", None) for backend in backends]
    before = [getattr(product, "fp32_precision", None) for product in products]
    if None in before:  # torch before 2.9; since then it warns of what it had before
        of_all = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(of_all)
        return
    _set_precisions(products, ["ieee"] * len(products))
    try:
        yield
    finally:
        _set_precisions(products, before)


def _set_precisions(products: Sequence[Any], precisions: Sequence[Any]) -> None:
    for product, precision in zip(products, precisions, strict=True):
        product.fp32_precision = precision


def host_buffer(num_bytes: int, device: torch.device) -> torch.Tensor:
    """Return room for bytes on the host, (num_bytes,) uint8; pinned where a GPU reads it."""
    return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
