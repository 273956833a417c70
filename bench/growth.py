"""Time and peak memory of ``svdcut truncate`` or ``spectrum`` as a checkpoint grows.

    python bench/growth.py [FOLDER] [--command truncate|spectrum|extract] [--layers 12 24 48]
                           [--device auto]

Makes pairs that differ in their number of layers alone, and prints for each the seconds,
the seconds of each layer beyond the first pair's, and the peak memory beside the promise:
700 MB plus eight times the largest tensor in float32. Exits 1 where that does not hold.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from compare import Timing, run
from pairs import SHAPES

HERE = Path(__file__).parent
SHAPE = "small"
PROCESS_BYTES = 700 << 20
COPIES = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument(
        "--command", choices=["truncate", "spectrum", "extract"], default="truncate"
    )
    parser.add_argument("--layers", type=int, nargs="*", default=[12, 24, 48])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        if not measure(Path(place), options):
            sys.exit(1)


def measure(place: Path, options: argparse.Namespace) -> bool:
    shapes = {layers: replace(SHAPES[SHAPE], layers=layers) for layers in options.layers}
    for layers in shapes:
        # In a process of its own: the peak memory of a child begins with its parent's.
        command = [sys.executable, str(HERE / "pairs.py"), SHAPE, str(place / str(layers))]
        subprocess.run([*command, "--layers", str(layers)], check=True)
    timings = {layers: Timing() for layers in shapes}
    for number in range(options.rounds):
        for layers, timing in timings.items():
            pair = place / str(layers)
            command = [sys.executable, "-m", "svdcut", options.command, str(pair / "base")]
            command += [str(pair / "ft"), "-q"]
            if options.command != "spectrum":
                command += ["-k", "64", "-o", str(pair / f"out{number}")]
            timing.seconds.append(run([*command, "--device", options.device], timing))
    first, before = options.layers[0], statistics.median(timings[options.layers[0]].seconds)
    kept = True
    for layers, timing in timings.items():
        shape = shapes[layers]
        largest = max(shape.vocabulary, shape.intermediate) * shape.hidden
        bound = PROCESS_BYTES + COPIES * 4 * largest
        kept = kept and timing.peak_bytes <= bound
        seconds = statistics.median(timing.seconds)
        each = f"{(seconds - before) / (layers - first):.3f} s a layer" if layers > first else ""
        print(
            f"{layers:4} layers  {seconds:6.1f} s  {each:16}  peak {timing.peak_bytes / 1e6:5.0f} "
            f"MB of {bound / 1e6:.0f} MB",
            flush=True,
        )
    return kept


if __name__ == "__main__":
    main()
