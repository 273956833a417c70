"""Make a Python function of one that takes an options object."""

from __future__ import annotations

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
        signature = _signature(kind, inspect.signature(function).return_annotation)
        call.__signature__ = signature  # type: ignore[attr-defined]
        summary, _, rest = (inspect.getdoc(function) or "").partition("\n\n")
        described = _describe(kind, signature)
        call.__doc__ = f"{summary}\n\n{described}\n\n{rest}"
        return call

    return decorate


def _signature(kind: type, returned: object) -> inspect.Signature:
    """Return the signature of an options class, required keywords first."""
    kinds = declared(kind)
    found = [
        parameter.replace(annotation=kinds[name].python_type)
        for name, parameter in inspect.signature(kind).parameters.items()
    ]
    found.sort(key=lambda p: (p.kind, p.default is not p.empty))
    return inspect.Signature(found, return_annotation=returned)


def _describe(kind: type, signature: inspect.Signature) -> str:
    """Return the section of a docstring that describes the options."""
    lines = ["Parameters", "----------"]
    options = declared(kind)
    for name in signature.parameters:
        option = options[name]
        optional = ", or None" if option.may_lack else "" if option.is_required else ", optional"
        lines += [f"{name} : {option.python_type}{optional}", f"    {option.help}"]
    return "\n".join(lines)
