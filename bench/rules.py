"""Time svdcut's rank rules on one pair, each beside its floors.

    python bench/rules.py PAIR [--rounds 3] [--rules 8 64 256 energy=0.9 noise bottom]

`bottom` keeps the last 64 triplets; a list as 4,16,64 makes several results in one run,
and its floor is that of one result.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import floors
from compare import Timing, run

RULES = ["8", "64", "256", "energy=0.9", "noise", "bottom"]


def meaning(rule: str) -> tuple[str, str]:
    """Return the rank and which triplets stay."""
    return ("64", "bottom") if rule == "bottom" else (rule, "top")


def truncate(pair: Path, rule: str, timing: Timing) -> float:
    folder = Path(tempfile.mkdtemp(dir=pair))
    rank, keep = meaning(rule)
    command = [sys.executable, "-m", "svdcut", "truncate", str(pair / "base"), str(pair / "ft")]
    command += ["-q", "-k", rank, "--keep", keep, "-o", str(folder / "out-{k}"), "--device", "cpu"]
    command += [word for pattern in floors.skipped(pair) for word in ("--skip", pattern)]
    seconds = run(command, timing)
    shutil.rmtree(folder)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pair", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rules", nargs="*", default=RULES)
    options = parser.parse_args()
    timings = {rule: Timing() for rule in options.rules}
    for _ in range(options.rounds):
        for rule, timing in timings.items():
            timing.seconds.append(truncate(options.pair, rule, timing))
    for rule, timing in timings.items():
        median = statistics.median(timing.seconds)
        line = f"{rule:16} {median:7.1f} s  {timing.peak_bytes / 1e6:6.0f} MB"
        if "," not in rule:
            rank, keep = meaning(rule)
            floor = floors.measure(options.pair, rank, keep=keep)
            line += f"  {median / floor.total:5.2f} x {floor}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
