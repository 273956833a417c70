"""Time svdcut beside its alternatives on one pair, in turns.

    python bench/pairs.py 7b-slice PAIR
    python bench/compare.py PAIR [--rounds 5] [--mergekit VENV/bin] [--only svdcut cp]

Prints the median of each tool's seconds, the ratio to svdcut's, its peak memory, and by
how much the error of one stored matrix is above that of the best one of its rank; then
the floors of this machine. Embeddings and heads are left alone by all of them. Tools
that take minutes can have fewer rounds: --slow-rounds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import floors

RANK = 64
SAMPLE = "layers.0.self_attn.q_proj.weight"
SLOW = ("straight", "mergekit")
HERE = Path(__file__).parent


@dataclass
class Timing:
    """What a tool took."""

    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    excess: float = float("nan")


def run(command: list[str], timing: Timing) -> float:
    """Run a command; return its seconds and keep its peak memory."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    began = time.monotonic()
    child = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert child.stderr is not None
    errors = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{command[0]} failed:\n{errors.decode()}")
    timing.peak_bytes = max(timing.peak_bytes, usage.ru_maxrss * 1024)
    return time.monotonic() - began


def excess_error(base: Path, finetuned: Path, result: Path) -> float:
    # In a process of its own: the peak memory of a child begins with its parent's.
    command = [sys.executable, str(HERE / "excess.py"), str(base), str(finetuned), str(result)]
    return float(subprocess.run([*command, str(RANK)], check=True, capture_output=True).stdout)


def svdcut(base: Path, finetuned: Path, out: Path, timing: Timing, *, device: str = "cpu") -> float:
    command = [sys.executable, "-m", "svdcut", "truncate", str(base), str(finetuned), "-q"]
    command += ["-k", str(RANK), "-o", str(out / "out"), "--device", device]
    skips = [word for pattern in floors.skipped(finetuned.parent) for word in ("--skip", pattern)]
    return run([*command, *skips], timing)


def straight(base: Path, finetuned: Path, out: Path, timing: Timing) -> float:
    command = [sys.executable, str(HERE / "straight.py"), str(base), str(finetuned)]
    return run([*command, str(out / "out"), str(RANK)], timing)


def copy(_base: Path, finetuned: Path, out: Path, timing: Timing) -> float:
    return run(["cp", "-r", str(finetuned), str(out / "out")], timing)


def mergekit(scripts: Path) -> Callable[[Path, Path, Path, Timing], float]:
    def extract(base: Path, finetuned: Path, out: Path, timing: Timing) -> float:
        command = [str(scripts / "mergekit-extract-lora"), "--model", str(finetuned)]
        command += ["--base-model", str(base), "--out-path", str(out / "lora")]
        seconds = run([*command, "--max-rank", str(RANK)], timing)
        recipe = out / "recipe.yml"
        recipe.write_text(
            "merge_method: passthrough\ndtype: bfloat16\n"
            f"models:\n  - model: {base}+{out / 'lora'}\n"
        )
        command = [str(scripts / "mergekit-yaml"), str(recipe), str(out / "out")]
        return seconds + run([*command, "--lora-merge-cache", str(out / "cache")], timing)

    return extract


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pair", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slow-rounds", type=int, default=5, help="of those that take minutes")
    parser.add_argument("--mergekit", type=Path, help="the bin of its virtual environment")
    parser.add_argument("--only", nargs="*")
    options = parser.parse_args()
    tools = {"svdcut": svdcut, "straight": straight, "cp": copy}
    if options.mergekit:
        tools["mergekit"] = mergekit(options.mergekit)
    timings = {name: Timing() for name in options.only or tools}
    base, finetuned = (options.pair.resolve() / side for side in ("base", "ft"))
    for number in range(options.rounds):
        for name, timing in timings.items():
            if name in SLOW and number >= options.slow_rounds:
                continue
            folder = Path(tempfile.mkdtemp(dir=options.pair)).resolve()
            timing.seconds.append(tools[name](base, finetuned, folder, timing))
            if number == 0 and name != "cp":
                timing.excess = excess_error(base, finetuned, folder / "out")
            shutil.rmtree(folder)
    ours = statistics.median(timings["svdcut"].seconds)
    for name, timing in timings.items():
        median = statistics.median(timing.seconds)
        print(
            f"{name:10} {median:8.1f} s  {median / ours:6.2f} x svdcut  "
            f"{timing.peak_bytes / 1e6:7.0f} MB  excess {timing.excess:8.1e}  "
            f"{[round(s, 1) for s in timing.seconds]}",
            flush=True,
        )
    floor = floors.measure(options.pair, str(RANK))
    print(f"{floor}; svdcut takes {ours / floor.total:.2f} times that")


if __name__ == "__main__":
    main()
