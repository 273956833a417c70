"""Where to compute, by name, and what a thread needs to compute there beside others."""

from __future__ import annotations

import torch

from svdcut.errors import UsageError
from svdcut.machine import num_cores

_CUDA_WORKERS = 4
"""Threads for one GPU: while one computes, the others read, hash and write."""


def resolve_device(name: str) -> torch.device:
    """Return the device that a name means.

    Raises
    ------
    UsageError
        If there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
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


def num_workers(device: torch.device) -> int:
    """Return how many threads keep a device busy."""
    return num_cores() if device.type == "cpu" else min(num_cores(), _CUDA_WORKERS)


def start_worker(device: torch.device) -> None:
    """Make the calling thread ready to compute on a device beside others.

    On one core each; on a GPU in a stream of its own, so that the copies and products of
    different threads overlap.
    """
    torch.set_num_threads(1)
    if device.type == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]


def host_buffer(num_bytes: int, device: torch.device) -> torch.Tensor:
    """Return room for bytes on the host, (num_bytes,) uint8; pinned where a GPU reads it."""
    return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
