"""Time `svdcut spectrum` beside what one writes without it, in turns.

    python bench/spectra.py PAIR [--rounds 5] [--only full|top]

full: all singular values, against `torch.linalg.svdvals` of each update in float32.
top: the 64 leading ones, against `svdcut truncate -k 64`, which writes a checkpoint too.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import floors
from compare import Timing, run, svdcut


def straight(base: Path, finetuned: Path) -> int:
    """Do what a script does; returns how many values there are."""
    # Not above: the peak memory of a child begins with its parent's.
    import torch
    from straight import load

    ours, theirs, found = load(finetuned), load(base), []
    for name, weight in ours.items():
        if weight.dim() == 2 and "embed" not in name and "lm_head" not in name:
            found.append(torch.linalg.svdvals(weight.float() - theirs[name].float()))
    return sum(map(len, found))


def spectrum(pair: Path, timing: Timing, *words: str) -> float:
    command = [sys.executable, "-m", "svdcut", "spectrum", str(pair / "base"), str(pair / "ft")]
    command += ["-q", "--device", "cpu", *words]
    return run([*command, *(w for p in floors.skipped(pair) for w in ("--skip", p))], timing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pair", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["full", "top"])
    parser.add_argument("--as-script", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    pair = options.pair
    if options.as_script:
        print(straight(pair / "base", pair / "ft"))
        return
    itself = [sys.executable, __file__, str(pair), "--as-script"]
    parts = {
        "full": {
            "spectrum": lambda timing: spectrum(pair, timing),
            "svdvals": lambda timing: run(itself, timing),
        },
        "top": {
            "spectrum --top 64": lambda timing: spectrum(pair, timing, "--top", "64"),
            "truncate -k 64": lambda timing: truncate(pair, timing),
        },
    }
    for part, tools in parts.items():
        if options.only in (None, part):
            timings = {name: Timing() for name in tools}
            for _ in range(options.rounds):
                for name, tool in tools.items():
                    timings[name].seconds.append(tool(timings[name]))
            first, second = (statistics.median(timing.seconds) for timing in timings.values())
            for name, timing in timings.items():
                listed = " ".join(f"{seconds:.1f}" for seconds in timing.seconds)
                print(
                    f"{name:18} {statistics.median(timing.seconds):7.1f} s "
                    f"{timing.peak_bytes / 1e6:6.0f} MB  ({listed})"
                )
            print(f"{'ratio':18} {second / first:7.2f}", flush=True)


def truncate(pair: Path, timing: Timing) -> float:
    folder = Path(tempfile.mkdtemp(dir=pair))
    try:
        return svdcut(pair / "base", pair / "ft", folder, timing)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
