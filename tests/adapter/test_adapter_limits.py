"""What an adapter's update takes of memory, and what is refused of its numbers."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import svdcut
from checkpoints import rewrite, write_folder
from svdcut.api.truncation import plan_truncation
from svdcut.cli.app import app
from svdcut.streaming.memory import memory_needs
from svdcut.truncation.options import TruncateOptions
from trained_adapters import CONFIG, WEIGHTS

NAME = "model.layers.0.mlp.up_proj.weight"
KEY = "base_model.model.model.layers.0.mlp.up_proj"
BIAS = "model.layers.0.mlp.up_proj.bias"
OTHER = "model.norm.weight"

RUN = """
import sys
from pathlib import Path
import torch, svdcut
import svdcut.truncation.run, svdcut.spectra.run
def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) >> 10
before = peak()
svdcut.truncate(*sys.argv[1:4], rank=4)
svdcut.spectrum(*sys.argv[1:3])
print(peak() - before)
"""


def plant(folder: Path, base: dict, factors: dict, **config: object) -> tuple[Path, Path]:
    """Write a base and an adapter of it."""
    write_folder(folder / "base", base, {"model_type": "llama"})
    adapter = folder / "adapter"
    adapter.mkdir()
    save_file({f"{KEY}.{key}": value for key, value in factors.items()}, adapter / WEIGHTS)
    fields = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["up_proj"]}
    (adapter / CONFIG).write_text(json.dumps(fields | config))
    return folder / "base", adapter


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture
def small(tmp_path):
    def make(*, dtype=torch.float32, size=1.0, dora=False, zero_row=False):
        base = {NAME: normal(24, 16, dtype=dtype), BIAS: normal(24), OTHER: normal(16)}
        b = normal(24, 4, seed=1) * size
        if zero_row:
            base[NAME][3] = 0
            b[3] = 0
        factors = {"lora_A.weight": normal(4, 16, seed=2), "lora_B.weight": b}
        factors["lora_B.bias"] = normal(24, seed=3)
        if dora:
            del factors["lora_B.bias"]
            factors["lora_magnitude_vector"] = torch.ones(24)
        return plant(tmp_path, base, factors, use_dora=dora, lora_bias=not dora)

    return make


# Memory


def test_the_update_of_a_large_matrix_is_not_formed(tmp_path):
    side, rank = 8192, 8
    base = {NAME: torch.zeros(side, side, dtype=torch.bfloat16), OTHER: normal(16)}
    base[NAME][::64] = normal(128, side, dtype=torch.bfloat16)
    factors = {
        "lora_A.weight": normal(rank, side, seed=1),
        "lora_B.weight": normal(side, rank, seed=2),
    }
    sides = plant(tmp_path, base, factors, r=rank)
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", RUN, *map(str, (*sides, out))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # In float32 it has 256 MB.
    assert int(done.stdout) < 128
    found = load_file(out / "model.safetensors")[NAME][:64].double()
    left, right = 8 / rank * factors["lora_B.weight"].double(), factors["lora_A.weight"].double()
    q, r = torch.linalg.qr(left)
    u, s, v = torch.linalg.svd(r @ right, full_matrices=False)
    kept = (q[:64] @ u[:, :4] * s[:4]) @ v[:4] + base[NAME][:64].double()
    assert float((found - kept).abs().max()) <= 2**-8 * float(kept.abs().max())


@pytest.mark.parametrize("skip", [[], ["*up_proj*"]], ids=["cut", "merged"])
@pytest.mark.parametrize("dora", [False, True])
def test_the_memory_that_is_planned(tmp_path, dora, skip):
    factors = {"lora_A.weight": normal(4, 3000), "lora_B.weight": normal(2000, 4)}
    if dora:
        factors["lora_magnitude_vector"] = torch.ones(2000)
    sides = plant(tmp_path, {NAME: torch.ones(2000, 3000)}, factors, use_dora=dora)
    options = TruncateOptions(*sides, tmp_path / "out", rank=2, skip=skip)
    request = plan_truncation(options)
    (needed,) = memory_needs(
        request.plan, [output.rule for output in request.outputs], request.options
    ).sizes
    assert (needed > 10 * 2000 * 3000) == dora


# Numbers


def check_refused(tmp_path, sides, *words, commands=("truncate", "extract", "spectrum")):
    for command in commands:
        out = tmp_path / "out"
        more = [] if command == "spectrum" else ["-k", "2", "-o", out]
        arguments = [command, *map(str, [*sides, *more])]
        result = CliRunner().invoke(app, arguments, env={"COLUMNS": "400", "TERM": "dumb"})
        assert result.exit_code == 3, (command, result.output)
        assert all(word in result.stderr for word in words), (command, result.stderr)
        assert "Traceback" not in result.stderr
        assert not out.exists()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("key", ["lora_A.weight", "lora_B.weight"])
def test_a_factor_that_is_no_number(small, tmp_path, key, bad):
    sides = small()
    tensors = load_file(sides[1] / WEIGHTS)
    tensors[f"{KEY}.{key}"][1, 1] = bad
    save_file(tensors, sides[1] / WEIGHTS)
    check_refused(tmp_path, sides, f"{KEY}.{key}", "holds NaN or infinity")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("name", [NAME, OTHER])
def test_base_holds_what_is_no_number(small, tmp_path, name, bad, dora):
    sides = small(dora=dora)

    def damage(tensors):
        tensors[name].view(-1)[7] = bad
        return tensors

    rewrite(sides[0] / "model.safetensors", damage)
    # Neither a spectrum nor an adapter takes anything from what the adapter leaves alone.
    commands = ("truncate", "spectrum") if name == NAME else ("truncate",)
    check_refused(tmp_path, sides, f"{name!r} of base", "NaN or infinity", commands=commands)


def test_base_holds_a_bias_that_is_no_number(small, tmp_path):
    sides = small()

    def damage(tensors):
        tensors[BIAS][7] = math.nan
        return tensors

    rewrite(sides[0] / "model.safetensors", damage)
    check_refused(tmp_path, sides, f"{BIAS!r} of base", commands=("truncate", "extract"))


def test_a_result_that_overflows(small, tmp_path):
    sides = small(dtype=torch.float16, size=1e5)
    check_refused(tmp_path, sides, f"{NAME!r}: the result overflows F16", commands=("truncate",))


def test_an_update_that_overflows(small, tmp_path):
    sides = small()
    stored = load_file(sides[1] / WEIGHTS)
    large = {name: 1e160 * v.double() for name, v in stored.items() if name.endswith("weight")}
    tensors = stored | large
    save_file(tensors, sides[1] / WEIGHTS)
    check_refused(tmp_path, sides, f"{NAME!r}: the update overflows")


def test_dora_of_a_row_that_is_zero(small, tmp_path):
    sides = small(dora=True, zero_row=True)
    check_refused(tmp_path, sides, NAME, "DoRA", "is one zero?")


def test_an_adapter_that_changes_nothing(small, tmp_path):
    sides = small(size=0.0)
    manifest = svdcut.truncate(*sides, tmp_path / "out", rank=2)
    assert manifest.tensors[NAME].action == "unchanged"
    (matrix,) = svdcut.spectrum(*sides).tensors[NAME].matrices
    assert list(matrix.singular_values) == [0.0] * 4
    assert svdcut.verify(tmp_path / "out", base=sides[0], finetuned=sides[1]).ok
