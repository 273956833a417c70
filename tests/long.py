"""Mark what only the long run tries: all but a core of many cases that take the same path."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest


def long_but(core: Sequence[object], cases: Iterable[object]) -> list[object]:
    """Return the cases for `parametrize`; those that are not of the core are marked `long`."""
    return [case if case in core else long(case) for case in cases]


def long(case: object) -> object:
    """Return a case, a tuple of several values, or one, marked `long`."""
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.long)
