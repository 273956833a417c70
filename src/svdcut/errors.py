"""The exceptions that svdcut raises on purpose.

This module imports nothing, so that every layer may use it. It holds no logic
besides the wording of a message.

SvdcutError                      exit 1
├── UsageError                   exit 2   the request cannot be meant
│   ├── OutputExistsError                 OUT is there already
│   └── NothingKeptError                  an adapter of rank 0
├── InputError                   exit 3   the inputs cannot be used
│   ├── CheckpointError                   not a readable safetensors checkpoint
│   ├── HubError                          the Hub could not deliver it
│   ├── MismatchError                     the two sides do not fit each other
│   ├── QuantizedError                    weights that are not plain numbers
│   ├── UnholdableError                   an adapter has no place for a change
│   ├── DataError                         not readable as labelled examples
│   ├── EvaluationError                   a model that cannot be evaluated on this data
│   ├── NonFiniteError                    NaN or infinity in a tensor
│   └── InputChangedError                 a file changed while it was read
├── QualityError                 exit 4   the asked-for accuracy was not reached
├── OutputError                  exit 1   the result could not be written
├── WorkerError                  exit 1   another worker of the run is missing
└── Interrupted                  exit 130 or 143, stopped by a signal
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

_MAX_LISTED = 20


class SvdcutError(Exception):
    """Base of every error that svdcut raises on purpose.

    Parameters
    ----------
    what : str
        What went wrong, where, and what was found and expected.
    hint : str, optional
        What the user can do about it.
    """

    exit_code: ClassVar[int] = 1
    keeps_work: ClassVar[bool] = True
    """True if another attempt can use the finished tensors."""

    def __init__(self, what: str, *, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return self.what if self.hint is None else f"{self.what}\n  {self.hint}"


class UsageError(SvdcutError):
    """The request cannot be meant: a wrong rule, pattern, option or path."""

    exit_code = 2


class OutputExistsError(UsageError):
    """The output, or an unfinished one, is there already."""


class NothingKeptError(UsageError):
    """No update is left that an adapter could hold."""

    keeps_work = False


class InputError(SvdcutError):
    """The inputs cannot be used, or do not match."""

    exit_code = 3


class CheckpointError(InputError):
    """A path is not a readable safetensors checkpoint."""


class HubError(InputError):
    """A checkpoint could not be had from the Hub or its local cache."""


class MismatchError(InputError):
    """The two checkpoints do not fit each other."""


class QuantizedError(InputError):
    """A checkpoint holds quantised weights, whose difference means nothing."""


class UnholdableError(InputError):
    """A tensor changed in a way that an adapter has no place for."""

    keeps_work = False


class DataError(InputError):
    """A file holds no labelled examples that a model could be evaluated on."""

    keeps_work = False


class EvaluationError(InputError):
    """A model cannot be evaluated, or not on this data."""


class NonFiniteError(InputError):
    """A tensor of an input or of the result, or what a model gives, holds NaN or infinity."""

    keeps_work = False


class InputChangedError(InputError):
    """A file of an input changed while it was read."""

    keeps_work = False


class QualityError(SvdcutError):
    """No route reached the asked-for accuracy."""

    exit_code = 4
    keeps_work = False


class OutputError(SvdcutError):
    """The result could not be written."""


class WorkerError(SvdcutError):
    """Another worker of the run is missing, or has ended."""


class Interrupted(SvdcutError):
    """A signal stopped the run at a tensor boundary.

    Parameters
    ----------
    signal_number : int
        The signal; the exit code is 128 plus it.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__("interrupted")
        self.signal_number = signal_number


def listed(lines: Iterable[str]) -> str:
    """Return lines as a message has them below its first; only the first of many."""
    shown = list(lines)
    if len(shown) > _MAX_LISTED:
        shown[_MAX_LISTED:] = [f"... and {len(shown) - _MAX_LISTED} more"]
    return "".join(f"\n    {line}" for line in shown)
