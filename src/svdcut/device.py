"""Where to compute, by name."""

from __future__ import annotations

import torch

from svdcut.errors import UsageError


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
