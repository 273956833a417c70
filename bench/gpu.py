"""What a GPU is to show: as fast as a copy, in little of its memory, with the CPU's numbers.

    python bench/gpu.py FOLDER [--shape 7b] [--layers N] [--rounds 3] [--device cuda]

In turns, ``svdcut truncate -k 64`` of a pair of that shape and ``cp`` of its fine-tuned side,
both from a warm page cache: the ratio of medians is to be 1.3 at most. Then, of one more run,
the GPU's memory, 4 GB at most, and a profile that says where its time goes. The first thing
is whether both devices decompose a small pair alike, to 1e-5. Exits 1 where one of the three
does not hold. Pairs are made in FOLDER, where there are none.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import compare
import torch
from compare import RANK, Timing
from floors import skipped
from torch.profiler import ProfilerActivity, profile

import svdcut
from svdcut.record.manifest import Manifest

HERE = Path(__file__).parent
RULES = (str(RANK), "energy=0.9", "noise")
ALIKE, COPIES, GPU_BYTES = 1e-5, 1.3, 4e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", default="7b")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    small = make_pair(options.folder / "small", "small", 2)
    pair = make_pair(options.folder / options.shape, options.shape, options.layers)
    on_gpu = options.device.startswith("cuda")
    name = torch.cuda.get_device_name(options.device) if on_gpu else options.device
    print(f"{name}, torch {torch.__version__}", flush=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        checks = [
            agree(small, Path(place), options.device),
            keeps_up(pair, Path(place), options),
            fits(pair, Path(place), options.device),
        ]
    sys.exit(not all(checks))


def make_pair(folder: Path, shape: str, layers: int | None) -> Path:
    if not folder.exists():
        command = [sys.executable, str(HERE / "pairs.py"), shape, str(folder)]
        subprocess.run(command + (["--layers", str(layers)] if layers else []), check=True)
    return folder


def agree(pair: Path, place: Path, device: str) -> bool:
    """Print the largest relative difference of what both devices found in one pair."""
    worst, ranks = 0.0, True
    for rule in RULES:
        here, there = (
            svdcut.truncate(
                pair / "base",
                pair / "ft",
                place / f"{rule}-{number}",
                rank=rule,
                device=where,
                skip=skipped(pair),
            )
            for number, where in enumerate(("cpu", device))
        )
        for ours, theirs in numbers(here, there):
            ranks = ranks and ours[0] == theirs[0]
            pairs = zip(ours[1:], theirs[1:], strict=True)
            worst = max(worst, *(abs(a - b) / max(abs(a), 1e-30) for a, b in pairs))
    print(f"agreement with the CPU: {worst:.1e} at most, ranks {'equal' if ranks else 'DIFFER'}")
    return ranks and worst <= ALIKE


def numbers(here: Manifest, there: Manifest) -> Iterator[tuple[tuple[float, ...], ...]]:
    """Yield rank, first value, norm and norm of the tail of each tensor, from both."""
    for name, fact in here.tensors.items():
        if fact.truncation is not None:
            cuts = (fact.truncation, there.tensors[name].truncation)
            yield tuple(
                (*cut.ranks, cut.matrices[0].sigma_first, cut.update_norm, cut.tail_norm)
                for cut in cuts
                if cut is not None
            )


def keeps_up(pair: Path, place: Path, options: argparse.Namespace) -> bool:
    """Print the seconds of svdcut and of a plain copy, in turns."""
    sides = pair / "base", pair / "ft"
    ours, theirs = Timing(), Timing()
    for file in (file for side in sides for file in side.iterdir()):
        subprocess.run(["cp", str(file), "/dev/null"], check=True)  # warms the page cache
    for _ in range(options.rounds):
        for timing, tool in (
            (theirs, compare.copy),
            (ours, partial(compare.svdcut, device=options.device)),
        ):
            out = Path(tempfile.mkdtemp(dir=place))
            timing.seconds.append(tool(*sides, out, timing))
            shutil.rmtree(out)
    ratio = statistics.median(ours.seconds) / statistics.median(theirs.seconds)
    print(
        f"svdcut {[round(s, 1) for s in ours.seconds]} s, "
        f"cp {[round(s, 1) for s in theirs.seconds]} s: {ratio:.2f} times a copy",
        flush=True,
    )
    return ratio <= COPIES


def fits(pair: Path, place: Path, device: str) -> bool:
    """Print what a run took of the GPU's memory, and where its time went."""
    activities = [ProfilerActivity.CPU]
    if device.startswith("cuda"):
        activities.append(ProfilerActivity.CUDA)
        torch.cuda.reset_peak_memory_stats(device)
    everywhere = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)  # noqa: SLF001
    with profile(activities=activities, experimental_config=everywhere) as found:
        manifest = svdcut.truncate(
            pair / "base",
            pair / "ft",
            place / "cut",
            rank=RANK,
            device=device,
            skip=skipped(pair),
        )
    peak = torch.cuda.max_memory_reserved(device) if device.startswith("cuda") else 0
    print(f"{peak / 1e9:.2f} GB of the GPU; {json.dumps(manifest.to_json()['totals'])}")
    for column in ("self_cpu_time_total", "self_device_time_total")[: len(activities)]:
        print(found.key_averages().table(sort_by=column, row_limit=20, max_name_column_width=50))
    return peak <= GPU_BYTES


if __name__ == "__main__":
    main()
