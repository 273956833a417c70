"""Regular expressions that a stranger wrote, matched in linear time.

Python's own engine can take for ever on a few characters; RE2 cannot. It knows what PEFT's
users write: no look-around and no back references.
"""

from __future__ import annotations

import re
import warnings

import re2


class Pattern:
    r"""A regular expression that names a module by its last parts, as PEFT reads it.

    As ``re.match(rf"(.*\.)?({text})$", name)`` (peft.utils.other.get_pattern_key, 0.21.2).

    Parameters
    ----------
    text : str
        The expression.

    Raises
    ------
    ValueError
        If it is none, or has what RE2 does not know.
    """

    def __init__(self, text: str) -> None:
        whole = rf"(.*\.)?({text})"
        _check(whole)
        options = re2.Options()
        options.log_errors = False
        try:
            self._compiled = re2.compile(whole, options)
        except re2.error as error:
            raise ValueError(str(error)) from None

    def matches(self, name: str) -> bool:
        """Whether it is all of a name, or all that follows some dot."""
        return self._compiled.fullmatch(name) is not None


def _check(text: str) -> None:
    """Refuse what Python reads in another way than RE2, or not at all."""
    if "{," in text:
        raise ValueError("a repetition without a least number: write {0,n}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of sets within sets, and flags in the middle
            re.compile(text)
    except (re.error, Warning, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from None
