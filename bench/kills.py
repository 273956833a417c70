"""Kill runs at random moments and resume them: the result must be what one run makes.

With --workers N the runs are shared by 1 to N processes, of which any one is killed.

python bench/kills.py BASE FT [--kills 200] [--seed 0] [--workers 4]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RUN = """
import sys
import svdcut.truncation.run  # all that is slow to import, so that kills fall into the work
from svdcut.__main__ import main
print("ready", flush=True)
main()
"""

_SECONDS_AT_WORK = 1.5
"""In which workers on the real pair are killed, from when the first has made its files."""


@dataclass
class Course:
    """Runs on one pair that are killed and resumed."""

    base: Path
    finetuned: Path
    folder: Path
    chance: random.Random
    command: str = "truncate"
    workers: int = 1
    """The most processes that share a run."""

    resumed: int = 0
    """Runs that found finished tensors."""

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @contextmanager
    def running(self, out: Path) -> Iterator[subprocess.Popen[str]]:
        """Start a run, and give it when its work begins."""
        arguments = [self.command, self.base, self.finetuned, "-k", "8", "-q", "-o", out]
        if self.workers > 1:
            arguments += ["--workers", self.chance.randint(1, self.workers)]
        with subprocess.Popen(
            [sys.executable, "-c", RUN, *map(str, arguments)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as child:
            assert child.stdout is not None
            child.stdout.readline()
            yield child

    def finish(self, out: Path) -> float:
        """Let a run end, and return the seconds of its work."""
        with self.running(out) as child:
            began = time.monotonic()
            _, message = child.communicate()
        check(child.returncode == 0, message)
        return time.monotonic() - began

    def kill(self, longest: float) -> None:
        """Kill a run at a random moment, unless it ends before."""
        with self.running(self.out) as child:
            if self.workers > 1:  # most of the time is that of their start
                work = self.folder / "out.partial" / "checkpoint"
                while child.poll() is None and not work.exists():
                    time.sleep(0.01)
                longest = min(longest, _SECONDS_AT_WORK)
            time.sleep(self.chance.uniform(0, longest))
            processes = [child.pid, *children(child.pid)]
            end(self.chance.choice(processes))
            child.wait()
            for process in processes[1:]:  # they outlive who started them
                end(process)
                while Path(f"/proc/{process}").exists():
                    time.sleep(0.01)

    def repeat(self, rounds: int) -> None:
        """Kill and resume as often as wanted; some runs are killed twice or more."""
        inputs = [read_files(side) for side in (self.base, self.finetuned)]
        duration = self.finish(self.folder / "expected")
        expected = comparable(self.folder / "expected")
        done = 0
        while done < rounds:
            self.kill(duration)
            done += 1
            self.resumed += (self.folder / "out.partial" / "checkpoint").exists()
            if self.out.exists() or self.chance.random() < 0.7:
                if not self.out.exists():
                    self.finish(self.out)
                check(comparable(self.out) == expected, "the results differ")
                shutil.rmtree(self.out)
        check(inputs == [read_files(side) for side in (self.base, self.finetuned)], "inputs")


def children(process: int) -> list[int]:
    """Return the processes that one has started."""
    with suppress(FileNotFoundError):
        text = Path(f"/proc/{process}/task/{process}/children").read_text()
        return [int(word) for word in text.split()]
    return []


def end(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def check(fact: bool, message: str) -> None:
    if not fact:
        raise AssertionError(message)


def read_files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def comparable(folder: Path) -> dict[str, Any]:
    """Return the files of a result, without what differs from run to run."""
    files = read_files(folder)
    manifest = json.loads(files.pop("svdcut.json"))
    for key in ("created", "digest", "command"):
        del manifest[key]
    del manifest["totals"]["seconds"]
    return files | {"svdcut.json": manifest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("finetuned", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        chance = random.Random(options.seed)
        course = Course(
            options.base, options.finetuned, Path(folder), chance, workers=options.workers
        )
        course.repeat(options.kills)
    print(
        f"{options.kills} kills, {course.resumed} of them of runs that left work: "
        "every result equals an undisturbed one."
    )


if __name__ == "__main__":
    main()
