"""Time svdcut beside its alternatives on pairs of checkpoints, in turns.

    python bench/pairs.py 7b-slice PAIR
    python bench/compare.py PAIR ... [--rounds 5] [--mergekit VENV/bin] [--only svdcut cp]

Prints, for each pair, the median of each tool's seconds, the ratio to svdcut's, its peak
memory, and by how much the error of one stored matrix is above that of the best one of its
rank; then the floors of this machine. At the end each alternative has its best and its worst
pair for svdcut. Embeddings and heads are left alone by all of them. Tools that take minutes
can have fewer rounds: --slow-rounds.
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
from argparse import Namespace
from collections.abc import Callable, Mapping
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

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


Tool = Callable[[Path, Path, Path, Timing], float]
"""Given base, fine-tuned, a folder and where to note its memory, returns seconds."""


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


def mergekit(scripts: Path) -> Tool:
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


def time_pair(pair: Path, tools: Mapping[str, Tool], options: Namespace) -> dict[str, Timing]:
    """Run all tools on a pair, in turns."""
    timings = {name: Timing() for name in tools}
    base, finetuned = (pair.resolve() / side for side in ("base", "ft"))
    for number in range(options.rounds):
        for name, timing in timings.items():
            if name in SLOW and number >= options.slow_rounds:
                continue
            folder = Path(tempfile.mkdtemp(dir=pair)).resolve()
            timing.seconds.append(tools[name](base, finetuned, folder, timing))
            if number == 0 and name != "cp":
                timing.excess = excess_error(base, finetuned, folder / "out")
            shutil.rmtree(folder)
    return timings


def print_pair(pair: Path, timings: Mapping[str, Timing]) -> dict[str, float]:
    """Print the timings of a pair; return the ratio of each tool to svdcut."""
    ours = timings["svdcut"].median
    print(pair)
    for name, timing in timings.items():
        print(
            f"{name:10} {timing.median:8.1f} s  {timing.median / ours:6.2f} x svdcut  "
            f"{timing.peak_bytes / 1e6:7.0f} MB  excess {timing.excess:8.1e}  "
            f"{[round(s, 1) for s in timing.seconds]}"
        )
    floor = floors.measure(pair, str(RANK))
    print(f"{floor}; svdcut takes {ours / floor.total:.2f} times that\n", flush=True)
    return {name: timing.median / ours for name, timing in timings.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slow-rounds", type=int, default=5, help="of those that take minutes")
    parser.add_argument("--mergekit", type=Path, help="the bin of its virtual environment")
    parser.add_argument("--only", nargs="*")
    options = parser.parse_args()
    tools: dict[str, Tool] = {"svdcut": svdcut, "straight": straight, "cp": copy}
    if options.mergekit:
        tools["mergekit"] = mergekit(options.mergekit)
    tools = {name: tools[name] for name in options.only or tools}
    ratios = {pair: print_pair(pair, time_pair(pair, tools, options)) for pair in options.pairs}
    for name in tools.keys() - {"svdcut", "cp"}:
        found = [(ratios[pair][name], pair) for pair in ratios]
        for word, (ratio, pair) in (("best", max(found)), ("worst", min(found))):
            print(f"{name}: {word} {ratio:.2f} x svdcut, {pair}")


if __name__ == "__main__":
    main()
