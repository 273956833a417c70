"""One of several processes that share a run."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from svdcut.errors import UsageError

_PART = re.compile(r"([0-9]{1,6})/([0-9]{1,6})")


@dataclass(frozen=True, slots=True)
class Worker:
    """The place of this process among those that share a run."""

    index: int = 0
    count: int = 1
    local_index: int = 0
    """Index among the workers of this machine."""

    local_count: int = 1
    is_launched: bool = False
    """Whether torchrun started it: all workers run at once, and end together."""

    attempt: int = 0
    """How often torchrun has started all workers again."""

    @property
    def is_alone(self) -> bool:
        """Whether nobody shares the run."""
        return self.count == 1

    @property
    def is_first(self) -> bool:
        """Whether it prepares the output: alone, or the first that torchrun started."""
        return self.is_alone or (self.is_launched and self.index == 0)

    @property
    def reports(self) -> bool:
        """Whether it prints what was done."""
        return self.index == 0 or not self.is_launched

    def __str__(self) -> str:
        return f"{'worker' if self.is_launched else 'part'} {self.index + 1} of {self.count}"


ALONE = Worker()


def launched_worker(environment: Mapping[str, str] = os.environ) -> Worker | None:
    """Return the worker that torchrun started this process as; None without torchrun."""
    if "TORCHELASTIC_RUN_ID" not in environment:
        return None
    return Worker(
        index=int(environment["RANK"]),
        count=int(environment["WORLD_SIZE"]),
        local_index=int(environment["LOCAL_RANK"]),
        local_count=int(environment["LOCAL_WORLD_SIZE"]),
        is_launched=True,
        attempt=int(environment.get("TORCHELASTIC_RESTART_COUNT", "0")),
    )


def parse_part(text: str) -> Worker:
    """Return the worker that ``I/N`` names, I from 1 to N.

    Raises
    ------
    UsageError
        If the text is no such part.
    """
    found = _PART.fullmatch(text.strip())
    index, count = map(int, found.groups()) if found else (0, 0)
    if not 1 <= index <= count:
        raise UsageError(f"--part {text}: expected I/N, a part from 1/N to N/N, as 2/8")
    return Worker(index - 1, count)
