"""``svdcut truncate`` as a user meets it: streams, exit codes, messages, signals."""

from __future__ import annotations

import errno
import io
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from rich.console import Console
from rich.text import Text
from safetensors.torch import save_file
from typer.testing import CliRunner

import svdcut
from checkpoints import (
    Pair,
    file_bytes,
    finetune_tensor,
    read_folder,
    rewrite,
    toy,
    toy_tensors,
    write_folder,
)
from long import long_but
from svdcut.cli import guard, progress
from svdcut.cli.app import app
from svdcut.names import collapse_numbers
from svdcut.spectra.groups import SORT_KEYS

ENVIRONMENT = {"COLUMNS": "200", "TERM": "dumb", "HF_HUB_OFFLINE": "1"}
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def cli(monkeypatch):
    """Call ``svdcut truncate`` in this process."""

    def call(*arguments, **options):
        words = ["truncate", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", ["svdcut", *words])
        return CliRunner().invoke(app, words, env=ENVIRONMENT, **options)

    return call


@pytest.fixture
def pair(pairs):
    return pairs("toy")


@pytest.fixture
def copied(pair, tmp_path):
    """A pair to damage."""
    folder = tmp_path / "in"
    shutil.copytree(pair.base, folder / "base")
    shutil.copytree(pair.finetuned, folder / "ft")
    return Pair(folder / "base", folder / "ft")


def check_error(result, code, *words, lines=6):
    """Check that a call failed cleanly: a few lines on stderr, nothing on stdout."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    message = result.stderr
    assert message.startswith("svdcut: ")
    assert "Traceback" not in message
    assert "unexpected" not in message
    assert len(message.splitlines()) <= lines
    for word in words:
        assert word in message


def process(*arguments, **options):
    """Call ``svdcut`` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "svdcut", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        env=os.environ | ENVIRONMENT,
        **options,
    )


# Success


def test_done(cli, pair, tmp_path):
    out = tmp_path / "out"
    result = cli(pair.base, pair.finetuned, "-k", 8, "-o", out, "--dtype", "float32")
    assert (result.exit_code, result.stderr) == (0, "")
    manifest = json.loads((out / "svdcut.json").read_text())
    assert f"{manifest['totals']['truncated']} of {len(manifest['tensors'])}" in result.stdout
    assert "layers.*.up" in result.stdout
    assert str(out) in result.stdout
    words = ["svdcut", "truncate", str(pair.base), str(pair.finetuned), "-k", "8", "-o", str(out)]
    assert manifest["command"] == [*words, "--dtype", "float32"]
    assert list(tmp_path.iterdir()) == [out]


def test_every_option_reaches_the_result(cli, pair, tmp_path):
    base = {f"net.{n}": stored.value for n, stored in read_folder(pair.base).items()}
    renamed = write_folder(tmp_path / "renamed", base)
    out = tmp_path / "out"
    result = cli(
        *(renamed, pair.finetuned, "--rank", "energy=0.5", "--out", out, "--json"),
        *("--rank-for", "embed*=2", "--rank-for", "*.up.*=full"),
        *("--keep", "random", "--seed", 3, "--scale", 0.5, "--rest", "base"),
        *("--only", "embed*", "--only", "layers.*", "--skip", "*.down.*"),
        *("--map", "net.layers.=layers.", "--map", "net.=", "--dtype", "float16"),
        *("--max-shard-size", "10KB", "--device", "cpu", "--svd", "exact", "--tolerance", "1e-7"),
    )
    assert result.exit_code == 0, result.stderr
    manifest = json.loads(result.stdout)
    assert manifest["options"] == {
        "rank": "energy=0.5",
        "rank_for": ["embed*=2", "*.up.*=full"],
        "keep": "random",
        "seed": 3,
        "scale": 0.5,
        "rest": "base",
        "only": ["embed*", "layers.*"],
        "skip": ["*.down.*"],
        "drop": [],
        "experts": "fused",
        "map": {"net.layers.": "layers.", "net.": ""},
        "dtype": "float16",
        "max_shard_size": "10KB",
        "device": "cpu",
        "svd": "exact",
        "tolerance": 1e-7,
    }
    truncated = {n for n, fact in manifest["tensors"].items() if fact["action"] == "truncate"}
    assert truncated == {"embed.weight", "layers.0.up.weight", "layers.1.up.weight"}
    assert len(list(out.glob("*.safetensors"))) > 1


def test_json_is_one_document(cli, pair, tmp_path):
    result = cli(pair.base, pair.finetuned, "-k", 8, "-o", tmp_path / "out", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == json.loads((tmp_path / "out" / "svdcut.json").read_text())


def test_json_of_several_ranks_is_a_list(cli, pair, tmp_path):
    out = tmp_path / "out-{k}"
    rules = "4,energy=0.5,full"
    result = cli(pair.base, pair.finetuned, "-k", rules, "-o", out, "--json", "-q")
    assert result.exit_code == 0
    wanted = [
        json.loads((tmp_path / f"out-{rule}" / "svdcut.json").read_text())
        for rule in rules.split(",")
    ]
    assert json.loads(result.stdout) == wanted
    assert [manifest["options"]["rank"] for manifest in wanted] == rules.split(",")
    assert len(list(tmp_path.iterdir())) == 3


def test_share_with_many_digits(cli, pair, tmp_path):
    rules = "energy=0.9000001,energy=0.9000002,energy=0.99999999"
    result = cli(pair.base, pair.finetuned, "-k", rules, "-o", tmp_path / "{k}", "--json")
    manifests = json.loads(result.stdout)
    assert [manifest["options"]["rank"] for manifest in manifests] == rules.split(",")


def test_quiet(cli, pair, tmp_path):
    out = tmp_path / "out"
    result = cli(pair.base, pair.finetuned, "-k", 8, "-o", out, "-q", "--dtype", "float32")
    assert (result.exit_code, result.output) == (0, "")
    assert out.is_dir()


def test_quiet_leaves_warnings(cli, tmp_path):
    pair = toy(tmp_path, torch.bfloat16)
    arguments = ("-k", "full", "--scale", 0.5, "-o", tmp_path / "out", "-q")
    result = cli(pair.base, pair.finetuned, *arguments)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.startswith("svdcut: warning: ")
    assert "--dtype float32 avoids it, and so does an adapter" in result.stderr


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        ("top", "Certified within"),
        ("bottom", "What was cut, the leading triplets, is certified within"),
        ("random", "A random set is no best one"),
    ],
)
def test_what_is_certified_of_what_stays(cli, pair, tmp_path, keep, said):
    out = tmp_path / "out"
    result = cli(pair.base, pair.finetuned, "-k", 2, "--keep", keep, "-o", out)
    assert said in result.stdout
    assert ("Certified within" in result.stdout) is (keep == "top")


def test_verbose_has_a_line_for_each_tensor(cli, pair, tmp_path):
    arguments = ("-k", 8, "-o", tmp_path / "out", "-v", "--dtype", "float32")
    result = cli(pair.base, pair.finetuned, *arguments)
    names = {line.partition(":")[0] for line in result.stderr.splitlines()}
    assert names == read_folder(pair.finetuned).keys()


def test_prefix_and_tensors_only_in_base_are_reported(cli, pair, tmp_path):
    tensors = {f"bert.{n}": stored.value for n, stored in read_folder(pair.base).items()}
    base = write_folder(tmp_path / "base", tensors | {"pooler": torch.ones(2, 2)})
    for more in (("--dry-run",), ()):
        result = cli(base, pair.finetuned, "-k", 8, "-o", tmp_path / "out", *more)
        assert result.exit_code == 0
        assert "'bert.'" in result.stdout
        assert "pooler" in result.stdout


def test_force_and_restart(cli, pair, tmp_path):
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    call = (pair.base, pair.finetuned, "-k", 8, "-o", out, "-q", "--dtype", "float32")
    assert cli(*call).exit_code == 0
    before = file_bytes(out)
    check_error(cli(*call), 2, "out exists", "--force")
    assert cli(*call[:3], 4, *call[4:], "--force").exit_code == 0
    assert file_bytes(out) != before
    shutil.rmtree(out)
    partial.mkdir()
    (partial / "half").write_text("half")
    for more in ((), ("--force",), ("--restart",)):
        check_error(cli(*call, *more), 2, "out.partial exists", "move it away")
    assert (partial / "half").read_text() == "half"


# Dry run


def write_huge(folder, shape):
    """Write a checkpoint whose weights nobody could read: a sparse file of 64 GB."""
    count = shape[0] * shape[1] * 4
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, count]}
    header = json.dumps({"w": entry}).encode()
    folder.mkdir()
    with (folder / WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + count)
    return folder


@pytest.fixture
def huge(tmp_path):
    shape = [1 << 17, 1 << 17]
    folder = tmp_path / "huge"
    folder.mkdir()
    return Pair(write_huge(folder / "base", shape), write_huge(folder / "ft", shape))


def test_dry_run_reads_no_weights(cli, huge, tmp_path, monkeypatch):
    monkeypatch.setattr("svdcut.truncation.preflight.free_space", lambda path: (1, 10**15))
    out = tmp_path / "out"
    result = cli(huge.base, huge.finetuned, "-k", 8, "-o", out, "--dry-run")
    assert result.exit_code == 0
    assert result.stderr.startswith("svdcut: warning: the run may take ")
    assert "131072x131072" in result.stdout
    assert "Nothing was written" in result.stdout
    result = cli(huge.base, huge.finetuned, "-k", 8, "-o", out, "--dry-run", "--json")
    assert json.loads(result.stdout)["totals"]["size_bytes"] > 2**36
    assert list(tmp_path.iterdir()) == [huge.base.parent]


def test_dry_run_says_what_the_run_does(cli, pair, tmp_path):
    arguments = (pair.base, pair.finetuned, "-k", 8, "-o", tmp_path / "out", "--json")
    arguments += ("--rank-for", "*.up.*=energy=0.5", "--skip", "conv*", "--rest", "base")
    plan = json.loads(cli(*arguments, "--dry-run").stdout)
    assert list(tmp_path.iterdir()) == []
    manifest = json.loads(cli(*arguments).stdout)
    assert plan["schema"] == "svdcut/plan/2"
    assert plan["out"] == str(tmp_path / "out")
    assert plan["options"] == manifest["options"]
    assert plan["base_only"] == manifest["base_only"]
    assert list(plan["tensors"]) == list(manifest["tensors"])
    for name, planned in plan["tensors"].items():
        done = manifest["tensors"][name]
        cut = planned.pop("truncation")
        assert planned.items() <= done.items()
        assert (cut is None) is (done["truncation"] is None)
        assert cut is None or cut.items() <= done["truncation"].items()
    for side in ("base", "finetuned"):
        assert plan[side].items() <= manifest[side].items()
    for key in ("tensors", "truncated", "copied"):
        assert plan["totals"][key] == manifest["totals"][key]
    sizes = [path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")]
    assert plan["totals"]["size_bytes"] == sum(sizes)


def test_dry_run_of_several_ranks(cli, pair, tmp_path):
    arguments = (pair.base, pair.finetuned, "-k", "4,full", "-o", tmp_path / "{k}", "--dry-run")
    plans = json.loads(cli(*arguments, "--json").stdout)
    assert [plan["options"]["rank"] for plan in plans] == ["4", "full"]
    table = cli(*arguments).stdout
    assert "4, full" in table
    for name in read_folder(pair.finetuned):
        assert collapse_numbers(name) in table
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_many_kinds_is_cut_and_says_so(cli, tmp_path):
    letters = "abcdefgh"
    names = [f"{one}.{two}_proj.weight" for one in letters for two in letters]
    for side in ("base", "ft"):
        write_folder(tmp_path / side, {name: torch.randn(4, 3) for name in names})
    arguments = (tmp_path / "base", tmp_path / "ft", "-k", 1, "-o", tmp_path / "out")
    screen = cli(*arguments, "--dry-run").stdout
    assert sum("_proj" in line for line in screen.splitlines()) == 40
    assert "and 24 more rows: --json shows each tensor" in screen


def test_dry_run_groups_as_the_run_does(cli, pair, tmp_path):
    arguments = (pair.base, pair.finetuned, "-k", 4, "-o", tmp_path / "out", "--dry-run")
    screen = cli(*arguments).stdout
    assert "layers.*." in screen
    assert "layers.0." not in screen
    assert "The run finds the tensors that are equal on both sides" in " ".join(screen.split())


# Without torch

WITHOUT_TORCH = """
import json, sys
sys.modules["torch"] = sys.modules["transformers"] = None
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from typer.testing import CliRunner
import svdcut
import svdcut.truncation.preflight
svdcut.truncation.preflight.free_space = lambda path: (1, 10**15)  # whatever disk this is
from svdcut.cli.app import app
results = []
for words in json.loads(sys.argv[1]):
    result = CliRunner().invoke(app, words)
    results.append([result.exit_code, result.stdout, result.stderr])
pickles = [name for name in opened if name.endswith((".bin", ".pt", ".pkl"))]
print(json.dumps({"results": results, "pickles": pickles}))
"""


def test_help_plans_and_early_errors_need_no_torch(pair, huge, tmp_path):
    """All in one process, where an import of torch fails."""

    def call(base, tuned, *more, rank="8", out=tmp_path / "out"):
        return ["truncate", str(base), str(tuned), "-k", rank, "-o", str(out), *map(str, more)]

    def other(name, tensors, config=None):
        return write_folder(tmp_path / name, tensors, config)

    base, tuned = pair.base, pair.finetuned
    square = torch.ones(4, 4)
    shapes = other("shapes", {"embed.weight": torch.ones(40, 23), "scale": torch.ones(3)})
    alone = other("alone", {"wholly.different": square})
    config = {"quantization_config": {"quant_method": "gptq"}}
    quantized = other("quantized", toy_tensors(), config)
    packed = other("packed", {"x.qweight": square.int()})
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "pytorch_model.bin").write_bytes(b"not even a pickle")
    garbage = tmp_path / "garbage"
    garbage.mkdir()
    (garbage / WEIGHTS).write_bytes(b"garbage garbage garbage")
    (tmp_path / "there").mkdir()
    (tmp_path / "half.partial").mkdir()
    (tmp_path / "half.partial" / "photo.jpg").write_text("precious")
    cases = [
        (["--help"], 0),
        (["-h"], 0),
        (["--version"], 0),
        (["truncate", "--help"], 0),
        ([], 2),
        (["truncate"], 2),
        (["truncate", "--nonsense"], 2),
        (call(base, tuned, "--dry-run"), 0),
        (call(base, tuned, "--dry-run", "--json"), 0),
        (call(base, tuned, "--dry-run", "--max-shard-size", "10KB"), 0),
        (call(huge.base, huge.finetuned, "--dry-run"), 0),
        (call(base, tuned, rank="half"), 2),
        (call(base, tuned, rank="4,8"), 2),
        (call(base, tuned, "--only", "nothing*"), 2),
        (call(base, tuned, "--rank-for", "nothing*=4"), 2),
        (call(base, tuned, "--map", "nothing.=x."), 2),
        (call(base, tuned, "--map", "nothing"), 2),
        (call(base, tuned, "--scale", "inf"), 2),
        (call(base, tuned, out=tmp_path / "there"), 2),
        (call(base, tuned, out=tmp_path / "half"), 2),
        (call(base, tuned, out=tuned / "out"), 2),
        (call(shapes, tuned), 3),
        (call(base, shapes), 3),
        (call(alone, tuned), 3),
        (call(quantized, tuned), 3),
        (call(base, packed), 3),
        (call(pickled, tuned), 3),
        (call(base, pickled / "pytorch_model.bin"), 3),
        (call(garbage, tuned), 3),
        (call(tmp_path / "missing", tuned), 3),
    ]
    words = json.dumps([case for case, _ in cases])
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, words],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | ENVIRONMENT,
    )
    found = json.loads(done.stdout)
    for (case, code), (exit_code, stdout, stderr) in zip(cases, found["results"], strict=True):
        assert exit_code == code, (case, stdout, stderr)
        assert "torch halted" not in stderr
        if code == 3:
            assert stdout == ""
    assert found["pickles"] == []
    assert found["results"][2][1] == f"svdcut {svdcut.__version__}\n"


# Wrong usage


WRONG_USAGE = {
    "no rule": (["-k", "half"], "half"),
    "negative rank": (["-k", "-1"], "-1"),
    "share above one": (["-k", "energy=1.5"], "energy=1.5"),
    "share of nothing": (["-k", "ratio=0"], "ratio=0"),
    "rule twice": (["-k", "8,8"], "twice"),
    "several ranks, one name": (["-k", "4,8"], "{k}"),
    "rank-for without a rule": (["--rank-for", "embed*"], "GLOB=RULE"),
    "rank-for with a wrong rule": (["--rank-for", "embed*=x"], "'x'"),
    "rank-for that matches nothing": (["--rank-for", "nothing*=4"], "'nothing*'"),
    "only that matches nothing": (["--only", "nothing*"], "'nothing*'"),
    "one of two globs that matches nothing": (["--skip", "emb*", "--skip", "no*"], "'no*'"),
    "map without =": (["--map", "x"], "OLD=NEW"),
    "map that matches nothing": (["--map", "nothing.=x."], "nothing."),
    "map that makes two of one name": (["--map", "layers.0.=layers.1."], "layers.1."),
    "scale that is infinite": (["--scale", "inf"], "--scale"),
    "scale that is no number": (["--scale", "nan"], "--scale"),
    "tolerance of zero": (["--tolerance", "0"], "--tolerance"),
    "shard size without a unit": (["--max-shard-size", "5"], "--max-shard-size"),
    "negative shard size": (["--max-shard-size", "-5GB"], "--max-shard-size"),
    "infinite shard size": (["--max-shard-size", "infGB"], "--max-shard-size"),
    "unknown device": (["--device", "tpu"], "tpu"),
    "device that is not there": (["--device", "cuda:99"], "cuda:99"),
}


@pytest.mark.parametrize("case", WRONG_USAGE)
def test_wrong_usage(cli, pair, tmp_path, case):
    arguments, word = WRONG_USAGE[case]
    rank = [] if "-k" in arguments else ["-k", "8"]
    out = tmp_path / "out"
    result = cli(pair.base, pair.finetuned, "-o", out, *rank, *arguments)
    check_error(result, 2, word)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--seed", "x"], ["--scale", "x"], ["--nonsense"], []])
def test_wrong_option(cli, pair, tmp_path, arguments):
    """Refused by the parser of arguments."""
    rank = ["-k", 8] if arguments else []
    result = cli(pair.base, pair.finetuned, "-o", tmp_path / "out", *rank, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Usage: " in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["base", "base/out", "ft", "ft/deep/out", "."])
@pytest.mark.parametrize("more", [[], ["--force"]])
def test_output_at_an_input(cli, copied, place, more):
    before = file_bytes(copied.base.parent)
    out = copied.base.parent / place
    check_error(cli(copied.base, copied.finetuned, "-k", 8, "-o", out, *more), 2, str(out))
    assert file_bytes(copied.base.parent) == before


def test_force_on_a_foreign_folder(cli, pair, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "photo.jpg").write_text("precious")
    result = cli(pair.base, pair.finetuned, "-k", 8, "-o", out, "--force")
    check_error(result, 2, "not written by svdcut")
    assert file_bytes(out) == {"photo.jpg": b"precious"}


# Inputs that do not match


def test_every_shape_mismatch_is_listed(cli, pair, tmp_path):
    shapes = {
        name: stored.value[..., 1:].contiguous() if stored.value.dim() > 1 else stored.value
        for name, stored in read_folder(pair.base).items()
        if stored.value.is_floating_point()
    }
    base = write_folder(tmp_path / "base", shapes)
    result = cli(base, pair.finetuned, "-k", 8, "-o", tmp_path / "out")
    wrong = [name for name, value in shapes.items() if value.dim() > 1]
    assert len(wrong) == 6
    kinds = {name.replace(".0.", ".*.").replace(".1.", ".*.") for name in wrong}
    assert len(kinds) == 4
    check_error(result, 3, str(base), str(pair.finetuned), *kinds, "[40, 23]", "[40, 24]", lines=7)
    assert result.stderr.count("(2 tensors)") == 2
    assert not (tmp_path / "out").exists()


def test_very_many_mismatches_do_not_fill_the_screen(cli, tmp_path):
    base = {f"layers.{i}.w": torch.ones(3, 3) for i in range(500)}
    tuned = {name: torch.ones(4, 4) for name in base}
    sides = [write_folder(tmp_path / n, t) for n, t in (("base", base), ("ft", tuned))]
    result = cli(*sides, "-k", 8, "-o", tmp_path / "out")
    line = "'layers.*.w' (500 tensors): base [3, 3], fine-tuned [4, 4]"
    check_error(result, 3, line, lines=3)


def test_mismatches_of_very_many_kinds_do_not_fill_the_screen(cli, tmp_path):
    base = {f"part{i}.w": torch.ones(3, 3) for i in range(500)}
    tuned = {name: torch.ones(4, 4) for name in base}
    sides = [write_folder(tmp_path / n, t) for n, t in (("base", base), ("ft", tuned))]
    result = cli(*sides, "-k", 8, "-o", tmp_path / "out")
    check_error(result, 3, "500 tensors", "part0.w", "and 480 more", lines=23)


def test_first_dimension_of_a_layer_is_no_vocabulary(cli, copied, tmp_path):
    def shorten(tensors):
        return tensors | {"layers.0.up.weight": tensors["layers.0.up.weight"][:-1].clone()}

    rewrite(copied.base / WEIGHTS, shorten)
    result = cli(copied.base, copied.finetuned, "-k", 8, "-o", tmp_path / "out")
    check_error(result, 3, "layers.0.up.weight", "[31, 24]", "[32, 24]")


def test_no_shared_names(cli, pair, tmp_path):
    base = write_folder(tmp_path / "base", {"wholly.different": torch.ones(3, 3)})
    result = cli(base, pair.finetuned, "-k", 8, "-o", tmp_path / "out")
    check_error(result, 3, "share no tensor", "'wholly.different'", "--map")


@pytest.mark.parametrize(
    ("names", "config", "word"),
    [
        ({}, {"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({}, {"quantization_config": {"load_in_4bit": True}}, "quantization_config"),
        ({}, {"text_config": {"quantization_config": {"quant_method": "awq"}}}, "awq"),
        ({"up.qweight": torch.int32}, {}, "GPTQ or AWQ"),
        ({"up.weight.absmax": torch.float32}, {}, "bitsandbytes 4-bit"),
        ({"up.weight.quant_state.bitsandbytes__nf4": torch.uint8}, {}, "bitsandbytes 4-bit"),
        ({"up.SCB": torch.float32}, {}, "bitsandbytes 8-bit"),
        ({"up.weight_scale_inv": torch.float32}, {}, "fp8"),
        ({"up.weight_scale": torch.bfloat16}, {}, "fp8"),
        ({"up.weight_packed": torch.int32}, {}, "compressed-tensors"),
        ({"up.weight": torch.float8_e4m3fn}, {}, "F8_E4M3"),
    ],
    ids=str,
)
@pytest.mark.parametrize("side", ["base", "ft"])
def test_quantised_weights(cli, pair, tmp_path, names, config, word, side):
    tensors = {name: stored.value for name, stored in read_folder(pair.base).items()}
    tensors |= {name: torch.ones(4, 4).to(dtype) for name, dtype in names.items()}
    folder = write_folder(tmp_path / "quantised", tensors, config)
    sides = (folder, pair.finetuned) if side == "base" else (pair.base, folder)
    result = cli(*sides, "-k", 8, "-o", tmp_path / "out")
    check_error(result, 3, str(folder), "quantised", word)


# Inputs that cannot be used


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
@pytest.mark.parametrize("as_file", [False, True])
def test_pickled_weights_are_never_opened(cli, pair, tmp_path, name, as_file):
    """Opening this one would wait for ever."""
    folder = tmp_path / "pickled"
    folder.mkdir()
    if as_file:
        (folder / name).write_bytes(b"")
    else:
        os.mkfifo(folder / name)
    source = folder / name if as_file else folder
    result = cli(source, pair.finetuned, "-k", 8, "-o", tmp_path / "out")
    check_error(result, 3, str(source), "python -c", "from_pretrained", "save_pretrained")


def test_nothing_to_read(cli, pair, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "named").mkdir()
    shutil.copy(pair.base / WEIGHTS, tmp_path / "named" / "other.safetensors")
    (tmp_path / "adapter").mkdir()
    shutil.copy(pair.base / WEIGHTS, tmp_path / "adapter" / "adapter_model.safetensors")
    for source, word in (
        ("empty", "no model.safetensors"),
        ("named", "other.safetensors"),
        ("adapter", "adapter"),
        ("missing", "no such file or directory"),
        ("missing/", "no such file or directory"),
        ("missing.safetensors", "no such file or directory"),
    ):
        result = cli(f"{tmp_path}/{source}", pair.finetuned, "-k", 8, "-o", tmp_path / "out")
        check_error(result, 3, f"{tmp_path}/{source}", word)


def header_of(path):
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def with_header(path, change):
    header, data = header_of(path)
    change(header)
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)


def overlap(header):
    entries = sorted(
        (fields for name, fields in header.items() if name != "__metadata__"),
        key=lambda fields: fields["data_offsets"],
    )
    size = entries[1]["data_offsets"][1] - entries[1]["data_offsets"][0]
    entries[1]["data_offsets"] = [0, size]


def too_long(path):
    with path.open("r+b") as file:
        file.write(struct.pack("<Q", 200_000_000))
        file.truncate(300_000_000)


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"\x8f" * 1000),
    "a pickle": lambda path: path.write_bytes(b"\x80\x04\x95" + bytes(range(97, 200))),
    "zeros": lambda path: path.write_bytes(bytes(1000)),
    "a pointer": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-10]),
    "cut in the header": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "trailing bytes": lambda path: path.write_bytes(path.read_bytes() + b"!"),
    "header too long": too_long,
    "overlap": lambda path: with_header(path, overlap),
    "unknown dtype": lambda path: with_header(path, lambda h: h["scale"].update(dtype="F5")),
    "negative shape": lambda path: with_header(path, lambda h: h["scale"].update(shape=[-1])),
    "nested shape": lambda path: with_header(path, lambda h: h["scale"].update(shape=[[1]])),
    "metadata of numbers": lambda path: with_header(
        path, lambda h: h.update(__metadata__={"a": 1})
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("side", ["base", "ft"])
def test_damaged_file(cli, copied, tmp_path, damage, side):
    path = copied.base.parent / side / WEIGHTS
    DAMAGES[damage](path)
    result = cli(copied.base, copied.finetuned, "-k", 8, "-o", tmp_path / "out")
    check_error(result, 3, str(path))
    assert sorted(tmp_path.iterdir()) == [tmp_path / "in"]


def shard(folder):
    """Split a toy checkpoint into two files with an index."""
    tensors = {name: stored.value for name, stored in read_folder(folder).items()}
    (folder / WEIGHTS).unlink()
    where = {}
    for number, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, folder / file)
        where |= dict.fromkeys(names, file)
    write_index(folder, where)
    return where


def write_index(folder, where):
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))


BAD_MAPS = {
    "a missing file": {"scale": "model-00003-of-00002.safetensors"},
    "a file above": {"scale": "../ft/model.safetensors"},
    "an absolute file": {"scale": "/etc/passwd"},
    "a folder": {"scale": ".."},
    "an empty name": {"scale": ""},
    "a null byte": {"scale": "\0"},
    "a file of another kind": {"scale": "config.json"},
    "a number": {"scale": 3},
    "a list": {"scale": []},
    "nothing": {"scale": None},
    "a tensor that is in no file": {"another": "model-00001-of-00002.safetensors"},
    "the wrong file": {
        "conv.weight": "model-00002-of-00002.safetensors",
        "embed.weight": "model-00001-of-00002.safetensors",
    },
}


@pytest.mark.parametrize("case", BAD_MAPS)
def test_damaged_index(cli, copied, tmp_path, case):
    where = shard(copied.base)
    write_index(copied.base, where | BAD_MAPS[case])
    result = cli(copied.base, copied.finetuned, "-k", 8, "-o", tmp_path / "out")
    check_error(result, 3, str(copied.base / INDEX))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_index_that_is_none(cli, copied, tmp_path, text):
    (copied.base / INDEX).write_text(text)
    result = cli(copied.base, copied.finetuned, "-k", 8, "-o", tmp_path / "out")
    check_error(result, 3, str(copied.base / INDEX))


def test_shard_that_is_missing(cli, copied, tmp_path):
    shard(copied.finetuned)
    (copied.finetuned / "model-00002-of-00002.safetensors").unlink()
    result = cli(copied.base, copied.finetuned, "-k", 8, "-o", tmp_path / "out")
    check_error(result, 3, str(copied.finetuned / INDEX), "model-00002-of-00002.safetensors")


def test_tensor_in_two_files(cli, copied, tmp_path):
    shard(copied.finetuned)
    second = copied.finetuned / "model-00002-of-00002.safetensors"
    rewrite(second, lambda tensors: tensors | {"conv.weight": torch.ones(1)})
    result = cli(copied.base, copied.finetuned, "-k", 8, "-o", tmp_path / "out")
    check_error(result, 3, str(copied.finetuned), "in two files", second.name)


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_config_that_is_none(cli, copied, tmp_path, text):
    (copied.finetuned / "config.json").write_text(text, encoding="latin-1")
    result = cli(copied.base, copied.finetuned, "-k", 8, "-o", tmp_path / "out")
    check_error(result, 3, str(copied.finetuned / "config.json"))


def test_file_that_may_not_be_read(cli, copied, tmp_path, monkeypatch):
    path, usual = copied.base / WEIGHTS, Path.open

    def refuse(self, *arguments, **options):
        if self == path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return usual(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    result = cli(copied.base, copied.finetuned, "-k", 8, "-o", tmp_path / "out")
    check_error(result, 3, str(path), "Permission denied")


def test_file_that_shrinks_during_the_run(cli, copied, tmp_path, monkeypatch):
    import svdcut.truncation.run

    work = svdcut.truncation.run.process_tensor

    def cut_first(*arguments):
        path = copied.base / WEIGHTS
        os.truncate(path, path.stat().st_size // 3)
        return work(*arguments)

    monkeypatch.setattr(svdcut.truncation.run, "process_tensor", cut_first)
    result = cli(copied.base, copied.finetuned, "-k", 8, "-o", tmp_path / "out")
    check_error(result, 3, str(copied.base / WEIGHTS), "changed while it was read")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "in"]


# NaN and infinity


def poison(value):
    def change(tensors, name):
        flat = tensors[name].flatten()
        flat[len(flat) // 2] = value
        return tensors | {name: flat.reshape(tensors[name].shape)}

    return change


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("side", "name", "more"),
    [
        ("base", "layers.1.up.weight", ()),
        ("ft", "layers.1.up.weight", ()),
        ("ft", "layers.0.norm.weight", ()),
        ("ft", "scale", ()),
        ("base", "layers.0.norm.weight", ("--rest", "base")),
        ("ft", "conv.weight", ("--skip", "conv*")),
        ("base", "conv.weight", ("--skip", "conv*", "--rest", "base")),
    ],
)
@pytest.mark.parametrize("rank", ["4", "full", "0", "budget=0.5"])
def test_not_a_number(cli, copied, tmp_path, value, side, name, more, rank):
    path = copied.base.parent / side / WEIGHTS
    rewrite(path, lambda tensors: poison(value)(tensors, name))
    out = tmp_path / "out"
    result = cli(copied.base, copied.finetuned, "-k", rank, "-o", out, *more)
    check_error(result, 3, f"'{name}'", str(path), "NaN or infinity")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "in"]


@pytest.mark.parametrize("rank", ["4", "full"])
def test_overflow_of_float16(cli, pair, tmp_path, rank):
    out = tmp_path / "out"
    more = ("--dtype", "float16", "--scale", "1e8")
    result = cli(pair.base, pair.finetuned, "-k", rank, "-o", out, *more)
    check_error(result, 3, "overflows F16", "--dtype", "--scale")
    assert list(tmp_path.iterdir()) == []
    assert cli(pair.base, pair.finetuned, "-k", rank, "-o", out, *more[2:]).exit_code == 0


def test_overflow_of_copied_rows(cli, tmp_path):
    base, tuned = torch.ones(4, 4), torch.full((6, 4), 2.0)
    tuned[5] = 1e9
    sides = [
        write_folder(tmp_path / "in" / name, {"embed": value})
        for name, value in (("base", base), ("ft", tuned))
    ]
    result = cli(*sides, "-k", 2, "-o", tmp_path / "out", "--dtype", "float16")
    check_error(result, 3, "'embed'", "F16")
    assert list(tmp_path.iterdir()) == [tmp_path / "in"]


# Quality, failures of the machine, failures of the program


def test_tolerance_that_cannot_be_met(cli, pair, tmp_path):
    result = cli(pair.base, pair.finetuned, "-k", 4, "-o", tmp_path / "out", "--tolerance", 1e-40)
    check_error(result, 4, "--tolerance")
    assert list(tmp_path.iterdir()) == []


def test_full_disk(cli, pair, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    result = cli(pair.base, pair.finetuned, "-k", 4, "-o", tmp_path / "out")
    check_error(result, 1, "No space left on device", "out.partial")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verbose", [False, True])
def test_unexpected_failure(cli, pair, tmp_path, monkeypatch, verbose):
    def fail(*arguments):
        raise RuntimeError("a bug")

    monkeypatch.setattr("svdcut.truncation.run.process_tensor", fail)
    more = ["-v"] if verbose else []
    result = cli(pair.base, pair.finetuned, "-k", 4, "-o", tmp_path / "out", *more)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "svdcut: unexpected failure: RuntimeError: a bug" in result.stderr
    assert ("Traceback" in result.stderr) is verbose
    assert list(tmp_path.iterdir()) == []


def test_traceback_of_a_known_error_on_demand(cli, pair, tmp_path):
    result = cli(tmp_path / "missing", pair.finetuned, "-k", 4, "-o", tmp_path / "out", "-v")
    assert result.exit_code == 3
    assert "Traceback" in result.stderr


# Names of a stranger

STRANGE = ["esc\x1b[31mape", "new\nline", "bell\x07", "c1\x9b31m", "[bold red]markup[/]", "ü☃"]


@pytest.fixture
def strange(tmp_path):
    base = {f"{name}.{i}": torch.randn(6, 6) for i, name in enumerate(STRANGE)}
    tuned = {name: finetune_tensor(name, value, 0) for name, value in base.items()}
    folder = tmp_path / "strange"
    return Pair(write_folder(folder / "base", base), write_folder(folder / "ft", tuned))


def check_harmless(text):
    assert not [c for c in text if not c.isprintable() and c != "\n"]


@pytest.mark.parametrize("more", [["--dry-run"], [], ["-v"]])
def test_control_characters_in_names_are_shown_escaped(cli, strange, tmp_path, more):
    arguments = ("-k", 2, "-o", tmp_path / "out", "--dtype", "float32", *more)
    result = cli(strange.base, strange.finetuned, *arguments)
    assert result.exit_code == 0
    check_harmless(result.output)
    for text in (r"esc\x1b[31mape", r"bell\x07", "[bold red]markup[/]", "ü☃", r"new\nline"):
        assert text in result.output


def test_control_characters_in_errors(cli, strange, tmp_path):
    for name in ("esc\x1b[31mape.0", "new\nline.1"):
        rewrite(
            strange.base / WEIGHTS,
            lambda tensors, name=name: tensors | {name: torch.full((6, 6), float("nan"))},
        )
        result = cli(strange.base, strange.finetuned, "-k", 2, "-o", tmp_path / "out")
        check_error(result, 3)
        check_harmless(result.stderr)
    rewrite(
        strange.base / WEIGHTS, lambda tensors: {n: v[:, 1:].clone() for n, v in tensors.items()}
    )
    result = cli(strange.base, strange.finetuned, "-k", 2, "-o", tmp_path / "out")
    check_error(result, 3, r"esc\x1b[31mape", lines=9)
    check_harmless(result.stderr)
    result = cli(strange.base, strange.finetuned, "-k", "\x1b[31m", "-o", tmp_path / "out")
    check_error(result, 2)
    check_harmless(result.stderr)


def test_json_holds_names_as_they_are(cli, strange, tmp_path):
    for more in (["--dry-run"], []):
        result = cli(
            *(strange.base, strange.finetuned, "-k", 2, "-o", tmp_path / "out", "--json", *more)
        )
        names = {f"{name}.{i}" for i, name in enumerate(STRANGE)}
        assert json.loads(result.stdout)["tensors"].keys() == names


# Processes: pipes, terminals, signals


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """More tensors than a pipe holds lines of."""
    folder = tmp_path_factory.mktemp("many")
    tensors = {f"layers.{i}.{'long' * 10}": torch.ones(2, 2) for i in range(2000)}
    return write_folder(folder / "side", tensors)


@pytest.mark.parametrize("more", ["", "--json"])
def test_closed_pipe_ends_quietly(many, tmp_path, more):
    command = f"{sys.executable} -m svdcut truncate {many} {many} -k 2 -o {tmp_path}/out "
    command += f"--dry-run {more} | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | ENVIRONMENT,
    )
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 2
    assert done.stdout.splitlines()[1] == "0"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("more", ["", "--json"])
def test_stdout_of_any_encoding(strange, tmp_path, encoding, more):
    names = {f"{name}.{i}" for i, name in enumerate(STRANGE)}
    words = ["truncate", strange.base, strange.finetuned, "-k", "2", "-o", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-m", "svdcut", *words, "--dry-run", *more.split()],
        capture_output=True,
        check=True,
        env=os.environ | ENVIRONMENT | {"PYTHONIOENCODING": encoding},
    )
    assert done.stderr == b""
    text = done.stdout.decode(encoding)
    if more:
        assert json.loads(text)["tensors"].keys() == names
    else:
        assert "markup" in text


def test_closed_stdout(many, tmp_path):
    command = f"{sys.executable} -m svdcut truncate {many} {many} -k 2 -o {tmp_path}/out --dry-run"
    for more in ("", "--json"):
        done = subprocess.run(
            ["bash", "-c", f"{command} {more} >&-"],
            capture_output=True,
            check=False,
            env=os.environ | ENVIRONMENT,
        )
        assert (done.returncode, done.stderr) == (0, b"")


def in_terminal(arguments, *, stdout=None, env=None):
    """Run svdcut with a terminal as stderr, and as stdout unless told otherwise."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "svdcut", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=theirs if stdout is None else stdout,
        stderr=theirs,
        env=os.environ | ENVIRONMENT | {"TERM": "xterm-256color"} | (env or {}),
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            data = os.read(ours, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not data:
            break
        shown += data
    os.close(ours)
    return child.wait(), shown.decode()


COLORS = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|9[0-7]|4[0-8])(?:;\d+)*m")


def test_colors():
    arguments = ["truncate", "--nonsense"]
    assert COLORS.search(in_terminal(arguments)[1])
    assert not COLORS.search(in_terminal(arguments, env={"NO_COLOR": "1"})[1])


def test_a_stage_that_many_workers_begin_has_one_bar(monkeypatch):
    begun = []

    class Slow(progress.Progress):
        def add_task(self, description, **options):
            time.sleep(0.05)
            begun.append(description)
            return super().add_task(description, **options)

    monkeypatch.setattr(progress, "Progress", Slow)
    with (
        progress.show_progress(quiet=True, verbose=False) as observe,
        ThreadPoolExecutor(4) as pool,
    ):
        list(pool.map(lambda i: observe(svdcut.Progress("truncate", str(i), 1, 4)), range(4)))
    assert begun == ["truncating"]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_progress_shows_the_end_of_a_name_and_the_bar_where_there_is_room(width):
    console = Console(width=width, file=io.StringIO(), force_terminal=True)
    bar = progress.progress_bar(console, quiet=False)
    name = "model.layers.12.self_attn.q_proj.weight"
    done = {"completed": 12_300_000, "total": 26_700_000}
    bar.add_task("truncating", name="decoder." * 20 + name, texts=False, **done)
    bar.add_task("evaluating", name="a/model", texts=True, completed=5, total=1000)
    console.print(bar.get_renderable())
    shown = Text.from_ansi(console.file.getvalue()).plain
    assert "12.3/26.7 MB" in shown
    assert "5/1000 texts" in shown
    assert "layers.12.self_attn.q_proj.weight" in shown
    assert "a/model" in shown
    assert ("━" in shown) == (width >= 80)
    assert max(map(len, shown.splitlines())) <= width


@pytest.mark.parametrize("name", ["bf16", "fp16", "fp32"])
def test_dtypes_have_short_names(cli, pair, tmp_path, name):
    long = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[name]
    result = cli(
        pair.base, pair.finetuned, "-k", 2, "-o", tmp_path / "a", "--dtype", name, "--json"
    )
    assert json.loads(result.stdout)["options"]["dtype"] == long
    manifest = svdcut.truncate(pair.base, pair.finetuned, tmp_path / "b", rank=2, dtype=name)
    assert manifest.options["dtype"] == long


def test_a_dtype_that_is_none(cli, pair, tmp_path):
    result = cli(pair.base, pair.finetuned, "-k", 2, "-o", tmp_path / "a", "--dtype", "int8")
    assert result.exit_code == 2
    assert "--dtype 'int8': expected one of auto, float32, bfloat16, float16" in result.stderr


@pytest.mark.parametrize(
    "command", ["truncate", "extract", "spectrum", "evaluate", "sweep", "verify"]
)
def test_help_shows_names_and_no_syntax(command):
    shown = (
        CliRunner().invoke(app, [command, "--help"], env={**ENVIRONMENT, "COLUMNS": "80"}).stdout
    )
    usage = shown[: shown.index("\n\n")] if "\n\n" in shown else shown
    assert "{" not in usage.partition("Usage:")[2].partition("\n")[0]
    assert "<bool>" not in shown


def test_help_of_the_root_shows_no_values_of_switches():
    shown = CliRunner().invoke(app, ["--help"], env={**ENVIRONMENT, "COLUMNS": "80"}).stdout
    assert "--install-completion" in shown
    assert "<bool>" not in shown


def test_no_word_of_the_help_is_broken():
    shown = CliRunner().invoke(app, ["spectrum", "-h"], env={**ENVIRONMENT, "COLUMNS": "80"}).stdout
    words = shown.replace(",", " ").split()
    assert set(SORT_KEYS) <= {word.removesuffix(".") for word in words}


def test_a_warning_wraps_between_words_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "30")
    text = "several words that do not fit into thirty columns.\n  And a hint."
    guard.warn(text)
    assert capsys.readouterr().err == f"svdcut: warning: {text}\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    guard.warn(text)
    lines = capsys.readouterr().err.splitlines()
    assert max(map(len, lines)) <= 30
    assert " ".join(" ".join(lines).split()) == " ".join(f"svdcut: warning: {text}".split())


@pytest.mark.parametrize(
    "words",
    ["svdcut truncate base/ ft/ -k ", "svdcut sweep base/ ft/ -k ", "svdcut truncate --device "],
)
def test_completion_offers_rules_and_devices(words):
    environment = os.environ | {"_SVDCUT_COMPLETE": "complete_bash", "COMP_WORDS": words}
    environment["COMP_CWORD"] = str(len(words.split(" ")) - 1)
    shell = [sys.executable, "-c", "from svdcut.cli.app import app; app(prog_name='svdcut')"]
    done = subprocess.run(shell, env=environment, capture_output=True, text=True, check=False)
    assert ("energy=0.9" if "-k" in words else "cuda") in done.stdout.split()


def test_a_table_of_many_kinds_is_cut_and_says_so(cli, tmp_path):
    names = [f"part{chr(97 + i // 26)}{chr(97 + i % 26)}.weight" for i in range(60)]
    base, finetuned = (
        write_folder(tmp_path / side, {name: torch.randn(4, 4) for name in names})
        for side in ("base", "ft")
    )
    result = cli(base, finetuned, "-k", 2, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert "and 20 more rows: see svdcut.json" in result.stdout
    assert sum(line.startswith("part") for line in result.stdout.splitlines()) == 40


def test_progress_on_a_terminal_alone(strange, tmp_path):
    """The bar goes to stderr while stdout takes the document; names are harmless there too."""
    arguments = ["truncate", strange.base, strange.finetuned, "-k", 2, "--json", "-o"]
    with (tmp_path / "stdout").open("w+") as stdout:
        code, shown = in_terminal([*arguments, tmp_path / "out"], stdout=stdout)
        stdout.seek(0)
        document = json.load(stdout)
    assert code == 0
    assert document["options"]["rank"] == "2"
    assert "truncating" in shown
    assert "\x1b[31mape" not in shown
    assert "\x07" not in shown
    done = process(*arguments, tmp_path / "piped")
    assert done.returncode == 0
    assert json.loads(done.stdout)["options"]["rank"] == "2"
    assert "truncating" not in done.stderr


SLOW = """
import sys, time
import svdcut.truncation.run
work = svdcut.truncation.run.process_tensor
def slow(*arguments):
    time.sleep(0.2)
    return work(*arguments)
svdcut.truncation.run.process_tensor = slow
from svdcut.__main__ import main
main()
"""


@pytest.mark.parametrize(
    ("number", "code", "times"),
    long_but(
        [(signal.SIGINT, 130, 1), (signal.SIGTERM, 143, 5)],
        [
            (number, code, times)
            for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129))
            for times in (1, 5)
        ],
    ),
)
def test_signal_in_mid_run(cli, pair, tmp_path, number, code, times):
    out, other = tmp_path / "out", tmp_path / "other"
    arguments = [str(pair.base), str(pair.finetuned), "-k", "4", "-o", str(out), "--force"]
    assert cli(*arguments, "-q").exit_code == 0
    before = file_bytes(out)
    child = subprocess.Popen(
        [sys.executable, "-c", SLOW, "truncate", *arguments, "--keep", "bottom", "-v"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | ENVIRONMENT,
    )
    first = child.stderr.readline()  # a tensor is done, others are at work
    assert (tmp_path / "out.partial").is_dir()
    for _ in range(times):
        child.send_signal(number)
        time.sleep(0.07)
    stdout, stderr = child.communicate(timeout=60)
    assert file_bytes(out) == before
    assert "Traceback" not in stderr
    assert stdout == ""
    assert child.returncode == code, first + stderr
    if times == 1:
        *_, told, kept, command = stderr.splitlines()
        assert told == "svdcut: interrupted"
        assert re.fullmatch(r"  \d+ finished tensors are kept in .*out\.partial\.", kept)
        assert command.startswith("  To go on: svdcut truncate ")
        assert "--keep bottom" in command
    done = cli(*arguments, "--keep", "bottom")
    assert done.exit_code == 0
    assert times > 1 or "finished by an earlier run" in done.stderr
    assert cli(*arguments[:4], "-o", other, "--keep", "bottom", "-q").exit_code == 0
    assert file_bytes(out)[WEIGHTS] == file_bytes(other)[WEIGHTS] != before[WEIGHTS]
    assert sorted(tmp_path.iterdir()) == [other, out]


WITHIN = """
import os, signal, sys, time
import svdcut.cli.truncate as module
class Deaf:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)
def at_once():
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
def signalled(*arguments):
    at_once() if os.environ["HOW"] == "at once" else Deaf()
    time.sleep(30)
module.warn_of_plan = signalled
from svdcut.__main__ import main
main()
"""


@pytest.mark.parametrize(("how", "codes"), [("at once", (130, 143)), ("deaf", (143,))])
def test_signals_at_once_and_in_a_destructor(pair, tmp_path, how, codes):
    words = ["truncate", str(pair.base), str(pair.finetuned), "-k4", f"-o{tmp_path / 'out'}", "-q"]
    done = subprocess.run(
        [sys.executable, "-c", WITHIN, *words],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | ENVIRONMENT | {"HOW": how},
    )
    assert done.returncode in codes, done.stderr
    # The second signal may come before or after the first one's last words.
    said = done.stderr.replace("svdcut: stopping; one more signal ends it at once\n", "")
    assert said == "svdcut: interrupted\n"


def test_module_and_script_are_the_same():
    script = Path(sys.executable).with_name("svdcut")
    assert script.exists()
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == process("--version").stdout == f"svdcut {svdcut.__version__}\n"
