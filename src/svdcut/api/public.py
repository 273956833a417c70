"""Make a Python function of one that takes an options object."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from svdcut.option import declared

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")


def public(kind: Callable[P, T]) -> Callable[[Callable[[T], R]], Callable[P, R]]:
    """Make a function of an options object one that takes the options by name."""

    def decorate(function: Callable[[T], R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            return function(kind(*args, **kwargs))

        assert isinstance(kind, type)
        returned = inspect.signature(function).return_annotation
        signature = inspect.signature(kind).replace(return_annotation=returned)
        call.__signature__ = signature  # type: ignore[attr-defined]
        summary, _, rest = (inspect.getdoc(function) or "").partition("\n\n")
        call.__doc__ = f"{summary}\n\n{_parameters(kind)}\n\n{rest}"
        return call

    return decorate


def _parameters(kind: type) -> str:
    """Return the section of a docstring that describes the options."""
    annotations = {field.name: field.type for field in dataclasses.fields(kind)}
    lines = [
        f"{name} : {annotations[name]}\n    {option.help}"
        for name, option in declared(kind).items()
    ]
    return "\n".join(["Parameters", "----------", *lines])
