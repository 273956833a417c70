"""A CUDA device that is none: tensors that say they are on one, and compute on the CPU.

It is as strict as a device is about what lies where: a function of one of its tensors and
of one on the host raises, and so does a look at its memory. So what is to run on a GPU runs
to its end where there is none. What streams, libraries and the speed of a device do, it
cannot show; it counts what is asked of it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

import svdcut.streaming.pool
from svdcut.device import workers_on

NAME = "a stand-in for a GPU"

_DEVICE = torch.device("cuda:0")
_HOST = torch.device("cpu")

_COPIES = {"to", "copy_", "__setitem__"}
"""Functions that may move values between devices."""

_HOST_MEMORY = {"numpy", "__array__", "data_ptr"}

_WAITS = {"item", "__float__", "__int__", "__bool__", "tolist", "cpu", "equal", "__index__"}
"""Functions that need a value from the device, and so wait for all queued work."""

_ATTRIBUTES = {"__get__", "size", "dim", "is_contiguous", "numel", "stride", "__len__"}

calls: Counter[str] = Counter()
"""Functions that the device was asked for; "waits" counts those that had to wait for it."""

_lock = threading.Lock()
_library = threading.Event()


class DeviceTensor(Tensor):
    """A tensor of the stand-in."""

    held: Tensor
    """On the host, where it is computed with."""

    @staticmethod
    def __new__(cls, held: Tensor) -> DeviceTensor:
        """Return the tensor that has the values of another."""
        made: DeviceTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.size(), dtype=held.dtype, device=_DEVICE
        )
        made.held = held
        return made

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Do as `func` does, with what is held."""
        return _call(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Callable[..., Any], *args: Any) -> Any:
        """Refuse what did not come by way of `__torch_function__`."""
        raise NotImplementedError(f"{func} of a stand-in's tensor")


class _Factories(TorchFunctionMode):
    """Makes tensors on the stand-in where they are asked for there."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Do as `func` does, on the device that is meant."""
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        return _call(func, args, kwargs or {})


def _call(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    name = func.__name__
    flat, _ = tree_flatten((args, dict(kwargs)))
    ours = [value for value in flat if isinstance(value, DeviceTensor)]
    target = next((value for value in flat if _is_device(value)), None)
    if ours:
        if func == Tensor.device.__get__:  # type: ignore[attr-defined]
            return _DEVICE
        if name in _HOST_MEMORY:
            raise TypeError(f"can't convert cuda:0 device type tensor: {name}")
        if name not in _COPIES:
            _refuse_host(name, flat)
        if name.startswith("linalg_"):
            _refuse_race(name)
        if name not in _ATTRIBUTES:
            with _lock:
                calls.update([name] + ["waits"] * (name in _WAITS))
    args, kwargs = tree_map(_on_host, (tuple(args), dict(kwargs)))
    kwargs.pop("pin_memory", None)
    with torch._C.DisableTorchFunction():
        result = func(*args, **kwargs)
        there = bool(ours) if target is None else torch.device(target).type == "cuda"
        if name in ("copy_", "cpu"):
            there = name == "copy_" and isinstance(flat[0], DeviceTensor)
        if name in ("to", "cpu") and there != isinstance(flat[0], DeviceTensor):
            result = result.clone()  # another place is another memory
    known = {id(tensor.held): tensor for tensor in ours}
    return tree_map(lambda value: _on_device(value, known), result) if there else result


def _refuse_host(name: str, values: Sequence[Any]) -> None:
    for value in values:
        if isinstance(value, Tensor) and not isinstance(value, DeviceTensor) and value.dim():
            raise RuntimeError(f"{name}: expected all tensors to be on the same device")


def _refuse_race(name: str) -> None:
    """Refuse what would load the library of linear algebra in several threads at once."""
    if threading.current_thread() is threading.main_thread():
        _library.set()
    elif not _library.is_set():
        raise RuntimeError(f"{name}: lazy wrapper should be called at most once")


def _is_device(value: Any) -> bool:
    if isinstance(value, torch.device):
        return value.type in ("cpu", "cuda")  # and not "meta"
    return isinstance(value, str) and value in ("cpu", "cuda", "cuda:0")


def _on_host(value: Any) -> Any:
    if isinstance(value, DeviceTensor):
        return value.held
    return _HOST if _is_device(value) else value


def _on_device(value: Any, known: Mapping[int, DeviceTensor]) -> Any:
    if not isinstance(value, Tensor) or isinstance(value, DeviceTensor):
        return value
    return known[id(value)] if id(value) in known else DeviceTensor(value)


@contextmanager
def stand_in_gpu(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have a GPU, for as long as the context lasts."""
    calls.clear()
    _library.clear()
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "device_count", lambda: 1)
    patch.setattr(torch.cuda, "get_device_name", lambda device: NAME)
    patch.setattr(torch.cuda, "mem_get_info", lambda device: (8 << 30, 16 << 30))
    patch.setattr(torch.cuda, "Stream", lambda device: SimpleNamespace(device=device))
    patch.setattr(torch.cuda, "set_stream", lambda stream: None)
    patch.setattr(torch.cuda, "empty_cache", lambda: None)

    @contextmanager
    def workers(device: torch.device) -> Iterator[Callable[[], None]]:
        with workers_on(device) as start:

            def start_here() -> None:
                start()
                _Factories().__enter__()  # of the thread, which ends with it

            yield start_here

    patch.setattr(svdcut.streaming.pool, "workers_on", workers)
    with _Factories():
        yield
