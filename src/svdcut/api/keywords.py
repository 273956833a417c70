"""Keywords of the Python API: which there are, what they hold, and how errors call them.

Everything below the API calls an option as the command line does, ``--skip``; a caller in
Python reads ``skip=``.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from svdcut.errors import SvdcutError, UsageError

_F = TypeVar("_F", bound=Callable[..., Any])

_NAMES: dict[str, str] = {"ft": "finetuned"}
"""Keyword of each option, where some function of the API has it."""

_SWITCHES = frozenset({"force", "restart", "normalize", "intruders", "quiet"})
_VALUES = r"[A-Z]+(?![\w=,])|'[^']*'|\d[\d.e-]*(?![\w=])|cpu\b|float32\b|bottom\b|random\b"
_OPTION = re.compile(rf"--(?P<name>[a-z][a-z-]*)(?: (?P<value>{_VALUES}))?")


def public(options: type) -> Callable[[_F], _F]:
    """Make a function one of the API: it refuses other keywords, and says options its own way.

    Parameters
    ----------
    options : type
        The `TypedDict` of its ``**options``.
    """

    def decorate(function: _F) -> _F:
        signature = _signature(function, options)
        _NAMES.update({name.replace("_", "-"): name for name in signature.parameters})

        @functools.wraps(function)
        def called(*args: object, **kwargs: object) -> object:
            for name in kwargs.keys() - signature.parameters.keys():
                raise _unknown(function, name, list(signature.parameters))
            try:
                return function(*args, **kwargs)
            except SvdcutError as error:
                error.what, error.hint = in_python(error.what), in_python(error.hint or "") or None
                error.args = (error.what,)
                raise

        called.__signature__ = signature  # type: ignore[attr-defined]
        return cast(_F, called)

    return decorate


def _signature(function: Callable[..., Any], options: type) -> inspect.Signature:
    """Return the signature that a notebook shows: every option by name."""
    found = inspect.signature(function)
    kind = inspect.Parameter.KEYWORD_ONLY
    shown = [p for p in found.parameters.values() if p.kind is not p.VAR_KEYWORD]
    shown += [
        inspect.Parameter(name, kind, default=..., annotation=getattr(a, "__forward_arg__", a))
        for name, a in options.__annotations__.items()
    ]
    return found.replace(parameters=shown)


def _unknown(function: Callable[..., Any], name: str, known: list[str]) -> TypeError:
    near = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"
    return TypeError(f"{function.__name__}() got an unexpected keyword argument {name!r}{hint}")


def in_python(text: str) -> str:
    """Return a message with options as Python has them: ``force=True`` for ``--force``."""
    text = re.sub(r"--map ([A-Z]+)=([A-Z]+)", r"map={'\1': '\2'}", text)
    return _OPTION.sub(_keyword, re.sub(r"(?<= )-o (?=\S)", "out=", text))


def _keyword(match: re.Match[str]) -> str:
    name, value = _NAMES.get(match["name"]), match["value"]
    if name is None:  # another tool's
        return match[0]
    if name in _SWITCHES:
        return f"{name}=True" + (f" {value}" if value else "")
    if value is None:
        return name
    word = value.isalnum() and value.islower() and not value.isdigit()
    return f"{name}={value!r}" if word else f"{name}={value}"


def texts(options: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Return an option that is a list of texts; one text is a list of one."""
    found = options.get(name, ())
    listed = (found,) if isinstance(found, str) else found
    if isinstance(listed, Mapping) or not all(isinstance(text, str) for text in listed):
        raise UsageError(f"--{name.replace('_', '-')} {found!r}: expected a list of texts")
    return tuple(listed)


def prefixes(options: Mapping[str, Any]) -> dict[str, str]:
    """Return the option ``map``."""
    found = options.get("map", {})
    if not isinstance(found, Mapping):
        raise UsageError(f"--map {found!r}: expected a mapping of prefixes, old to new")
    return dict(found)
