"""The outcome of a verification: which claims are false. It imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

from svdcut.files.filenames import CARD_NAME
from svdcut.shown import brief

Contradiction = tuple[str, object, object]
"""A claim, what was found, and what the manifest says."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One claim that does not hold."""

    __repr__ = brief

    claim: str
    """Name of the claim: see docs/verify.md."""

    found: object
    """The value found, or the one that follows; None for nothing."""

    expected: object
    """The value in the manifest; None for nothing."""

    tensor: str | None = None
    file: str | None = None
    """The tensor or the file that it is about; one of the two is None."""

    @property
    def is_note(self) -> bool:
        """True for an edited card, which makes nothing false."""
        return self.file == CARD_NAME and self.claim in ("size", "sha256")

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object; every number in it is finite."""
        place = {"file": self.file} if self.tensor is None else {"tensor": self.tensor}
        return {
            **place,
            "claim": self.claim,
            "found": _finite(self.found),
            "expected": _finite(self.expected),
        }


@dataclass(frozen=True, slots=True)
class Checked:
    """Counts of the things that were checked."""

    files: int = 0
    """Files of the result, with the manifest."""

    tensors: int = 0
    """Tensors of the result; each was hashed."""

    input_files: int = 0
    """Weight files of the two sides, hashed; 0 without inputs."""

    truncated: int = 0
    """Tensors that the manifest calls truncated."""

    recomputed: int = 0
    """How many of these were computed again."""


@dataclass(frozen=True, slots=True)
class Verification:
    """The outcome."""

    __repr__ = brief

    ok: bool
    """True where no claim failed."""

    checked: Checked
    failures: tuple[Failure, ...]
    notes: tuple[Failure, ...] = ()
    """Differences that people may make: an edited card."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            "ok": self.ok,
            "checked": asdict(self.checked),
            "failures": [failure.to_json() for failure in self.failures],
            "notes": [note.to_json() for note in self.notes],
        }


def differences(
    found: object, said: object, *exact: str, **allowed: float
) -> Iterator[Contradiction]:
    """Yield the fields of two facts that differ by more than their tolerance.

    Parameters
    ----------
    found, said : object
        Dataclasses of one type: what was found, and what is claimed.
    exact : str
        Fields that must be equal.
    allowed : float
        Tolerances of further fields, by name; a number that is missing agrees with None alone.
    """
    for claim in (*exact, *allowed):
        ours, theirs = getattr(found, claim), getattr(said, claim)
        if ours is None or theirs is None or claim in exact:
            agree = ours == theirs
        else:
            agree = abs(ours - theirs) <= allowed[claim]
        if not agree:
            yield claim, ours, theirs


def conclude(checked: Checked, found: Sequence[Failure]) -> Verification:
    """Return the outcome that some failures and notes make."""
    failures = tuple(failure for failure in found if not failure.is_note)
    notes = tuple(note for note in found if note.is_note)
    return Verification(not failures, checked, failures, notes)


def _finite(value: object) -> object:
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
