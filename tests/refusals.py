"""A catalogue of bad input: a plain name, the exit code and a builder for each case.

`refuse` builds a case and runs it; the tests and scripts/refusals_table.py do.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import Tensor

import processes
from svdcut import truncate
from svdcut.errors import Interrupted
from svdcut.record.progress import Progress

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
CALL = ["truncate", "base", "ft", "-k", "8", "-o", "out"]


@dataclass(frozen=True)
class Case:
    """Something that is refused."""

    name: str
    exit_code: int
    make: Callable[[Path], list[str]]
    """Builds the input in a folder; returns the arguments of a call in that folder."""

    leaves: str | None = None
    """Folder that the call may leave behind, if work began before the refusal."""


@dataclass(frozen=True)
class Outcome:
    """Result of a call."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def message(self) -> str:
        """The error alone: without our name, or the frame that the parser of options draws."""
        framed = re.findall(r"^│ (.*?) *│$", self.stderr, re.MULTILINE)
        return "\n".join(framed) if framed else self.stderr.removeprefix("svdcut: ").rstrip("\n")


def refuse(case: Case, folder: Path) -> Outcome:
    """Build a case in an empty folder and run it there, without the Hub."""
    return call(case.make(folder), folder)


def call(words: list[str], folder: Path) -> Outcome:
    """Run a command line in a folder; that folder's name is left out of what it says."""
    with _offline(folder / "cache"):
        result = processes.call(*words, cwd=folder, columns=200)
    stderr = result.stderr.replace(f"{folder.resolve()}/", "").replace(str(folder.resolve()), ".")
    return Outcome(result.exit_code, result.stdout, stderr)


@contextmanager
def _offline(cache: Path) -> Iterator[None]:
    with (
        mock.patch.object(constants, "HF_HUB_OFFLINE", True),
        mock.patch.object(constants, "HF_HUB_CACHE", str(cache)),
    ):
        yield


# Checkpoints


def tensors() -> dict[str, Tensor]:
    """Return two small layers."""
    generator = torch.Generator().manual_seed(0)
    found = {"embed.weight": torch.randn(40, 24, generator=generator)}
    for layer in range(2):
        found[f"layers.{layer}.up.weight"] = torch.randn(32, 24, generator=generator)
        found[f"layers.{layer}.down.weight"] = torch.randn(24, 32, generator=generator)
        found[f"layers.{layer}.norm.weight"] = torch.ones(24)
    return found


def write(folder: Path, values: Mapping[str, Tensor], config: object = None) -> Path:
    """Write a checkpoint of one file."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(values), folder / WEIGHTS, metadata={"format": "pt"})
    config = {"model_type": "toy"} if config is None else config
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def pair(folder: Path) -> Path:
    """Write ``base`` and ``ft``."""
    base = tensors()
    generator = torch.Generator().manual_seed(1)
    tuned = {n: v + 0.1 * torch.randn(v.shape, generator=generator) for n, v in base.items()}
    write(folder / "base", base)
    write(folder / "ft", tuned)
    return folder


def bare(folder: Path, side: str = "ft") -> Path:
    """Write a pair, one side an empty folder; return that one."""
    pair(folder)
    for path in (folder / side).iterdir():
        path.unlink()
    return folder / side


def write_header(path: Path, header: object, num_bytes: int = 0, *, raw: bytes | None = None):
    """Write a safetensors file with any header."""
    text = json.dumps(header).encode() if raw is None else raw
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(num_bytes))


def entry(begin: int, end: int, *, dtype: str = "U8", shape: object = None) -> dict[str, object]:
    """Return the entry of one tensor of bytes."""
    shape = [end - begin] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def shard(folder: Path) -> dict[str, str]:
    """Split a checkpoint into two files with an index; return where each tensor is."""
    values = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    where = {}
    for file, names in zip(SHARDS, (sorted(values)[::2], sorted(values)[1::2]), strict=True):
        save_file({name: values[name] for name in names}, folder / file)
        where |= dict.fromkeys(names, file)
    write_index(folder, where)
    return where


def write_index(folder: Path, where: object) -> None:
    """Write an index."""
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))


# Builders of cases


def options(*words: str) -> Callable[[Path], list[str]]:
    """Return a builder of a sound pair and a call with these options."""

    def make(folder: Path) -> list[str]:
        pair(folder)
        rank = [] if "-k" in words else ["-k", "8"]
        out = [] if "-o" in words else ["-o", "out"]
        return ["truncate", "base", "ft", *rank, *out, *words]

    return make


def with_pair(change: Callable[[Path], object], *more: str) -> Callable[[Path], list[str]]:
    """Return a builder that writes a pair and damages it."""

    def make(folder: Path) -> list[str]:
        change(pair(folder))
        return [*CALL, *more]

    return make


def with_folder(change: Callable[[Path], object], side: str = "ft") -> Callable[[Path], list[str]]:
    """Return a builder that fills the folder of one side."""

    def make(folder: Path) -> list[str]:
        change(bare(folder, side))
        return CALL

    return make


def with_source(change: Callable[[Path], object], source: str) -> Callable[[Path], list[str]]:
    """Return a builder of a call whose fine-tuned side is `source`."""

    def make(folder: Path) -> list[str]:
        change(pair(folder))
        return ["truncate", "base", source, "-k", "8", "-o", "out"]

    return make


def weights(content: bytes | str) -> Callable[[Path], list[str]]:
    """Return a builder that puts something else in place of the weights."""
    raw = content if isinstance(content, bytes) else content.encode()
    return with_pair(lambda folder: (folder / "ft" / WEIGHTS).write_bytes(raw))


def header(content: object, num_bytes: int = 8, *, raw: bytes | None = None):
    """Return a builder of a file with this header."""
    return with_pair(
        lambda folder: write_header(folder / "ft" / WEIGHTS, content, num_bytes, raw=raw)
    )


def index(change: Mapping[str, object]) -> Callable[[Path], list[str]]:
    """Return a builder of a sharded side whose index says something else."""

    def damage(folder: Path) -> None:
        where = shard(folder / "ft")
        write_index(folder / "ft", where | change)

    return with_pair(damage)


def text(name: str, content: str) -> Callable[[Path], list[str]]:
    """Return a builder that writes a file beside the fine-tuned weights."""
    return with_pair(lambda folder: (folder / "ft" / name).write_text(content))


def quantised(
    values: Mapping[str, Tensor] | None = None, config: object = None
) -> Callable[[Path], list[str]]:
    """Return a builder of a quantised base."""

    def damage(folder: Path) -> None:
        write(folder / "base", tensors() | dict(values or {}), config)

    return with_pair(damage)


def method(name: str, **more: object) -> Callable[[Path], list[str]]:
    """Return a builder of a base whose config names its quantisation."""
    return quantised(config={"quantization_config": {"quant_method": name, **more}})


def poisoned(side: str, name: str, value: float) -> Callable[[Path], list[str]]:
    """Return a builder of a side with one such number."""

    def damage(folder: Path) -> None:
        values = load_file(folder / side / WEIGHTS)
        values[name].view(-1)[5] = value
        write(folder / side, values)

    return with_pair(damage)


def changed(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable:
    """Return a builder of a base of other tensors."""
    return with_pair(lambda folder: write(folder / "base", change(tensors())))


def _unfinished(folder: Path) -> None:
    def stop(progress: Progress) -> None:
        raise Interrupted(signal.SIGINT)

    with suppress(Interrupted):
        truncate(folder / "base", folder / "ft", folder / "out", rank=4, observe=stop, device="cpu")


def _existing(name: str, file: str | None = None) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        (folder / name).mkdir()
        if file is not None:
            (folder / name / file).write_text("precious")

    return make


def _files(**contents: str | bytes) -> Callable[[Path], object]:
    """Return a function that writes files; "__" in a name stands for ".", "_in_" for "/"."""

    def make(folder: Path) -> None:
        for key, content in contents.items():
            path = folder / key.replace("_in_", "/").replace("__", ".")
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


def _two_files(folder: Path) -> None:
    shard(folder / "ft")
    values = load_file(folder / "ft" / SHARDS[1])
    save_file(values | {"embed.weight": torch.ones(1)}, folder / "ft" / SHARDS[1])


def _dangling_shard(folder: Path) -> None:
    shard(folder / "ft")
    path = folder / "ft" / SHARDS[0]
    path.unlink()
    path.symlink_to("../../blobs/5d41402a")


def _link_to_secret(folder: Path) -> None:
    (folder / "secret").write_text("a token of yours")
    (folder / "ft" / "tokenizer.json").symlink_to("../secret")


def _module_elsewhere(folder: Path) -> None:
    (folder / "ft" / "modules.json").write_text('[{"path": "1_Pooling"}]')
    (folder / "ft" / "1_Pooling").symlink_to("../base")


def _missing_shard(folder: Path) -> None:
    shard(folder / "ft")
    path = folder / "ft" / SHARDS[1]
    path.rename(path.with_suffix(".safetensors.incomplete"))


def _adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({"a.lora_A.weight": torch.ones(2, 4)}, folder / "adapter_model.safetensors")


def _adapters_beneath(folder: Path) -> None:
    for name in ("chat", "code"):
        (folder / name).mkdir()
        _adapter(folder / name)


def _square_experts(folder: Path) -> list[str]:
    save_file({"experts.down_proj": torch.ones(2, 4, 4)}, bare(folder, "base") / WEIGHTS)
    config = {"peft_type": "LORA", "r": 1, "target_parameters": ["experts.down_proj"]}
    (folder / "ft" / "adapter_config.json").write_text(json.dumps(config))
    factors = {"experts.lora_A.weight": torch.ones(2, 4), "experts.lora_B.weight": torch.ones(4, 2)}
    (folder / "ft" / WEIGHTS).unlink()
    save_file(factors, folder / "ft" / "adapter_model.safetensors")
    return CALL


def _dense_experts(folder: Path) -> list[str]:
    pair(folder)
    return ["extract", "base", "ft", "-k", "8", "-o", "out", "--experts", "separate"]


def _diffusers(folder: Path) -> None:
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    (folder / "unet").mkdir()
    save_file({"a": torch.ones(2)}, folder / "unet" / "diffusion_pytorch_model.safetensors")


def _large_config(folder: Path) -> None:
    with (folder / "ft" / "config.json").open("wb") as file:
        file.truncate(20_000_000)


def _transposed(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: v.T.contiguous() if "layers" in n and v.dim() == 2 else v for n, v in values.items()}


# Models and data

DATA = """text,label,source,easy
the film was great,1,a,1
the film was bad,0,b,1
the story was great,1,b,0
"a story, and bad",0,a,0
"""


def model(folder: Path, *, head: str = "ForSequenceClassification", **config: object) -> Path:
    """Write a classifier of two classes with its tokenizer; its config may name another head."""
    import text_models  # which imports transformers: most cases need none

    text_models.bert(folder, **config)
    path = folder / "config.json"
    path.write_text(path.read_text().replace("ForSequenceClassification", head))
    return folder


def evaluating(*words: str, change: Callable[[Path], object] | None = None, data: str = "data.csv"):
    """Return a builder of a model and data, one damaged, and a call that evaluates."""

    def make(folder: Path) -> list[str]:
        model(folder / "ft")
        (folder / "data.csv").write_text(DATA)
        if change is not None:
            change(folder)
        return ["evaluate", "ft", data, *words]

    return make


def with_data(content: str | bytes, *words: str) -> Callable[[Path], list[str]]:
    """Return a builder of a sound model, and other data."""
    return evaluating(*words, change=_files(data__csv=content))


def with_model(**options: Any) -> Callable[[Path], list[str]]:
    """Return a builder of another model, and sound data."""
    return evaluating(change=lambda folder: model(folder / "ft", **options))


def sweeping(
    *words: str, change: Callable[[Path], object] | None = None, data: str | None = None
) -> Callable[[Path], list[str]]:
    """Return a builder of a pair and a call that sweeps; on data where there are any."""

    def make(folder: Path) -> list[str]:
        pair(folder)
        if data is not None:
            (folder / "data.csv").write_text(data)
        if change is not None:
            change(folder)
        rank = [] if "-k" in words else ["-k", "0,4,full"]
        out = [] if "-o" in words else ["-o", "out"]
        on = [] if data is None else ["data.csv"]
        return ["sweep", "base", "ft", *on, *rank, *out, "-q", *words]

    return make


def by_command(script: str, *words: str, change: Callable[[Path], object] | None = None):
    """Return a builder of a sweep that a script of the shell evaluates; $0 is the model."""
    command = shlex.join(["sh", "-c", script, "{model}"])
    return sweeping("--eval-command", command, *words, change=change)


ONE_IN_TWO = "case $0 in *ft) echo 0.9;; *) echo 0.5;; esac"
"""A script that finds nine in ten right for the fine-tuned side, and half for all others."""


GOOD_TWICE = "[ $(grep -c energy out/rows.jsonl) -lt 3 ] && echo 0.9"
"""A script that fails once there are two rows; the first line of the file has the script."""


def saving(name: str) -> Callable[[Path], list[str]]:
    """Return a builder of a pair and a call that saves its spectra."""

    def make(folder: Path) -> list[str]:
        pair(folder)
        return ["spectrum", "base", "ft", "--save", name]

    return make


def parquet(columns: Mapping[str, object], **options: Any) -> Callable[[Path], list[str]]:
    """Return a builder of a sound model and a table as Parquet."""

    def write_table(folder: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table(columns), folder / "data.parquet", **options)

    return evaluating(change=write_table, data="data.parquet")


def _swept_otherwise(folder: Path) -> None:
    words = by_command(ONE_IN_TWO, "-k", "full", "--scale", "0.5")(folder)
    call(words, folder)


def _swept_onto_a_bad_disk(folder: Path) -> None:
    call(by_command(ONE_IN_TWO)(folder), folder)
    last = max((folder / "out" / "decomposition").glob("*.safetensors"))
    data = bytearray(last.read_bytes())
    data[-1] ^= 1
    last.write_bytes(data)


def _without_tokenizer(folder: Path) -> None:
    for path in (folder / "ft").glob("tokenizer*"):
        path.unlink()


def _without_head(folder: Path) -> None:
    path = folder / "ft" / WEIGHTS
    values = load_file(path)
    kept = {name: value for name, value in values.items() if "classifier" not in name}
    save_file(kept, path, metadata={"format": "pt"})


def _pickled(folder: Path) -> None:
    (folder / "ft" / WEIGHTS).rename(folder / "ft" / "pytorch_model.bin")


def _adapter_alone(folder: Path) -> None:
    for path in (folder / "ft").iterdir():
        path.unlink()
    _adapter(folder / "ft")


def _cut(folder: Path) -> None:
    path = folder / "ft" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1000])


POINTER = (
    "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c\nsize 438007864\n"
)
PAGE = "<!DOCTYPE html>\n<html><title>Sign in</title></html>\n"
FP8 = torch.float8_e4m3fn

CASES = (
    # Wrong usage
    Case("no rule", 2, lambda folder: ["truncate", "base", "ft", "-o", "out"]),
    Case("an unknown rule", 2, options("-k", "half")),
    Case("a negative rank", 2, options("-k", "-1")),
    Case("a share above one", 2, options("-k", "energy=1.5")),
    Case("a share that is not a number", 2, options("-k", "ratio=few")),
    Case("the same rule twice", 2, options("-k", "8,8")),
    Case("several rules, but one output", 2, options("-k", "4,8")),
    Case("`--rank-for` without a rule", 2, options("--rank-for", "embed*")),
    Case("`--rank-for` that matches nothing", 2, options("--rank-for", "attn*=4")),
    Case("`--only` that matches nothing", 2, options("--only", "attn*")),
    Case("`--skip` that matches nothing", 2, options("--skip", "embed")),
    Case("`--map` without `=`", 2, options("--map", "model.")),
    Case("`--map` for a prefix that matches no name", 2, options("--map", "model.=")),
    Case("`--map` that gives two tensors one name", 2, options("--map", "layers.0.=layers.1.")),
    Case("an infinite scale", 2, options("--scale", "inf")),
    Case("a tolerance of zero", 2, options("--tolerance", "0")),
    Case("a shard size without a unit", 2, options("--max-shard-size", "5")),
    Case("an unknown device", 2, options("--device", "tpu")),
    Case("an output that exists", 2, with_pair(_existing("out"))),
    Case("unfinished work of another run", 2, with_pair(_unfinished)),
    Case(
        "another file where unfinished work goes",
        2,
        with_pair(_existing("out.partial", "a.jpg")),
    ),
    Case(
        "`--force` on a folder that svdcut did not write",
        2,
        with_pair(_existing("out", "a.jpg"), "--force"),
    ),
    Case("an output that is also an input", 2, options("-o", "ft")),
    Case("an output inside an input", 2, options("-o", "base/out")),
    Case("an output without a name", 2, options("-o", ".")),
    Case("an output whose name is too long", 2, options("-o", "o" * 250)),
    Case("an output file whose name is too long", 2, saving("p" * 300 + ".safetensors")),
    Case("an output in the home of an unknown user", 2, options("-o", "~nobody-of-that-name/out")),
    # Evaluating, sweeping
    Case("one column for two purposes", 2, evaluating("--text", "label")),
    Case("a `--prompt` without `{text}`", 2, evaluating("--prompt", "Is it good?")),
    Case("a `--prompt` for a classifier", 2, evaluating("--prompt", "{text} It was")),
    Case("`--labels` with names for only some", 2, evaluating("--labels", "0=bad,good")),
    Case("the same word for two labels", 2, evaluating("--labels", "bad,bad")),
    Case("an unknown device for evaluation", 2, evaluating("--device", "tpu")),
    Case("`--predictions` in an unknown format", 2, evaluating("--predictions", "rows.txt")),
    Case(
        "`--predictions` that would overwrite the data", 2, evaluating("--predictions", "data.csv")
    ),
    Case(
        "`--predictions` that would overwrite a file of the model",
        2,
        evaluating("--predictions", "ft/notes.csv", change=_files(ft_in_notes__csv="mine")),
    ),
    Case("a sweep without data or `--eval-command`", 2, sweeping()),
    Case(
        "a sweep with both data and `--eval-command`",
        2,
        sweeping("--eval-command", "./mine {model}", data=DATA),
    ),
    Case("an `--eval-command` without `{model}`", 2, sweeping("--eval-command", "./mine")),
    Case("a sweep tolerance above one", 2, by_command(ONE_IN_TWO, "--tolerance", "2")),
    Case("unknown `--controls`", 2, by_command(ONE_IN_TWO, "--controls", "top")),
    Case("a sweep folder inside an input", 2, by_command(ONE_IN_TWO, "-o", "ft/sweep")),
    Case("`--write` into a sweep's folder", 2, by_command(ONE_IN_TWO, "--write", "out/best")),
    Case("`--write` into an input", 2, by_command(ONE_IN_TWO, "--write", "base/best")),
    Case(
        "a file where the sweep folder goes",
        2,
        by_command(ONE_IN_TWO, change=_files(out="mine")),
    ),
    Case("rows of another sweep", 2, by_command(ONE_IN_TWO, change=_swept_otherwise)),
    Case(
        "another file where the sweep's rows go",
        2,
        by_command(ONE_IN_TWO, change=_files(out_in_rows__jsonl="mine")),
    ),
    # Paths
    Case("a path that does not exist", 3, with_source(lambda folder: None, "./finetuned")),
    Case("an empty folder", 3, with_folder(lambda folder: None)),
    Case(
        "a link that leads to itself",
        3,
        with_source(lambda folder: (folder / "link").symlink_to("link"), "link"),
    ),
    Case("a named pipe", 3, with_source(lambda folder: os.mkfifo(folder / "pipe"), "pipe")),
    Case(
        "an index file instead of its folder",
        3,
        with_source(lambda folder: shard(folder / "ft"), f"ft/{INDEX}"),
    ),
    Case(
        "the home of an unknown user",
        3,
        with_source(lambda folder: None, "~nobody-of-that-name/ft"),
    ),
    Case("a Hub id, offline", 3, with_source(lambda folder: None, "org/tuned@v2")),
    Case("a path that could be a Hub id", 3, with_source(_existing("runs"), "runs/tuned")),
    Case(
        "a missing path, too deep for a Hub id",
        3,
        with_source(lambda folder: None, "org/tuned/checkpoint-100"),
    ),
    # Other formats
    Case("a Git LFS pointer instead of weights", 3, weights(POINTER)),
    Case("a web page instead of weights", 3, weights(PAGE)),
    Case("an empty file", 3, weights("")),
    Case("a download that was cut off", 3, with_pair(_cut)),
    Case(
        "a download that did not finish",
        3,
        with_folder(_files(model__safetensors__incomplete="half")),
    ),
    Case(
        "the file of an unfinished download",
        3,
        with_source(_files(model__safetensors__incomplete="half"), "model.safetensors.incomplete"),
    ),
    Case("random bytes", 3, weights(b"\x8f\x1d\x00\xe2" * 100)),
    Case("a pickle, renamed", 3, weights(b"\x80\x04\x95\x10\x27\x00\x00\x00\x00\x00\x00}" * 9)),
    Case("a torch.save zip file, renamed", 3, weights(b"PK\x03\x04\x14\x00\x08\x08" * 9)),
    Case("a GGUF file, renamed", 3, weights(b"GGUF\x03\x00\x00\x00\x10\x27\x00\x00" * 9)),
    Case(
        "pickled weights",
        3,
        with_folder(
            _files(
                pytorch_model__bin="never opened",
                config__json='{"architectures": ["BertForMaskedLM"]}',
            )
        ),
    ),
    Case(
        "a file of pickled weights",
        3,
        with_source(_files(pytorch_model__bin="never opened"), "pytorch_model.bin"),
    ),
    Case("a GGUF file", 3, with_source(_files(tuned__gguf="GGUF"), "tuned.gguf")),
    Case("a folder of GGUF files", 3, with_folder(_files(tuned__gguf="GGUF"))),
    Case("weights of TensorFlow", 3, with_folder(_files(tf_model__h5="\x89HDF"))),
    Case("a file that is not a model", 3, with_source(_files(notes__txt="hello"), "notes.txt")),
    Case("an adapter as base", 3, with_folder(_adapter, "base")),
    Case(
        "an adapter with pickled weights",
        3,
        with_folder(_files(adapter_model__bin="never opened", adapter_config__json="{}")),
    ),
    Case("adapters in sub-folders", 3, with_folder(_adapters_beneath)),
    Case("`--experts separate` for a model without separately stored experts", 2, _dense_experts),
    Case("an adapter with square experts and no PEFT version", 3, _square_experts),
    Case("a diffusers pipeline", 3, with_folder(_diffusers)),
    Case(
        "weights under another file name",
        3,
        with_folder(
            lambda folder: save_file({"a": torch.ones(2)}, folder / "consolidated.safetensors")
        ),
    ),
    # Headers
    Case("a header longer than the file", 3, weights(struct.pack("<Q", 5000) + b"{}")),
    Case("a header that is not JSON", 3, header(None, raw=b'{"a": 1')),
    Case("a header that is a list", 3, header([])),
    Case("a header nested too deep", 3, header(None, raw=b'{"a":' + b"[" * 100_000)),
    Case("a tensor's name of 45,000 characters", 3, header({"emb" * 15_000: entry(0, 8)})),
    Case("a header with too many values", 3, header(None, raw=b'{"a":[' + b"[]," * 3_000_000)),
    Case("a header with a number of 10,000 digits", 3, header(None, raw=b'{"a":' + b"1" * 10_000)),
    Case("an entry without a shape", 3, header({"a": {"dtype": "U8"}})),
    Case("an unknown dtype", 3, header({"a": entry(0, 8, dtype="F128")})),
    Case("a shape with negative numbers", 3, header({"a": entry(0, 8, shape=[-8])})),
    Case("a size that does not match the shape", 3, header({"a": entry(0, 8, shape=[2, 3])})),
    Case("tensors that overlap", 3, header({"a": entry(0, 6), "b": entry(4, 8)})),
    Case("a gap between tensors", 3, header({"a": entry(0, 3), "b": entry(4, 8)})),
    Case("bytes after the last tensor", 3, header({"a": entry(0, 8)}, 12)),
    Case(
        "metadata with numbers instead of strings",
        3,
        header({"__metadata__": {"a": 1}, "a": entry(0, 8)}),
    ),
    Case("a file without tensors", 3, header({}, 0)),
    Case("a name with terminal escape codes", 3, header({"\x1b[2Jnew\n\u202eenil": entry(1, 8)})),
    # Indexes
    Case("an index that is not JSON", 3, text(INDEX, "{")),
    Case("an index without a weight map", 3, text(INDEX, "{}")),
    Case(
        "an index whose metadata is a list",
        3,
        text(INDEX, f'{{"metadata": [1], "weight_map": {{"a": "{WEIGHTS}"}}}}'),
    ),
    Case("an index that names an absolute path", 3, index({"embed.weight": "/etc/passwd"})),
    Case(
        "an index with a path out of its folder",
        3,
        index({"embed.weight": "../base/model.safetensors"}),
    ),
    Case("an index whose file name is not a string", 3, index({"embed.weight": 3})),
    Case("an index that names a missing tensor", 3, index({"head.weight": SHARDS[0]})),
    Case("an index that names the wrong file", 3, index({"embed.weight": SHARDS[1]})),
    Case("a tensor in two files", 3, with_pair(_two_files)),
    Case(
        "a missing file",
        3,
        with_pair(lambda folder: (shard(folder / "ft"), (folder / "ft" / SHARDS[1]).unlink())),
    ),
    Case("a file that was not fully downloaded", 3, with_pair(_missing_shard)),
    Case("a link to a file that is no longer in the cache", 3, with_pair(_dangling_shard)),
    # Beside the weights
    Case("a config that is not JSON", 3, text("config.json", '{"a" 1}')),
    Case("a config that is a list", 3, text("config.json", "[]")),
    Case("a config of 20 MB", 3, with_pair(_large_config)),
    Case("a config nested too deep", 3, text("config.json", '{"a":' * 999 + "1" + "}" * 999)),
    Case(
        "a named pipe instead of a tokenizer file",
        3,
        with_pair(lambda folder: os.mkfifo(folder / "ft" / "tokenizer.json")),
    ),
    Case(
        "a broken link instead of a tokenizer file",
        3,
        with_pair(
            lambda folder: (folder / "ft" / "tokenizer.json").symlink_to("../../blobs/5d41402a")
        ),
    ),
    Case("a link out of the folder instead of a tokenizer file", 3, with_pair(_link_to_secret)),
    Case("a link out of the folder instead of a module", 3, with_pair(_module_elsewhere)),
    Case(
        "a folder instead of a model card",
        3,
        with_pair(lambda folder: (folder / "ft" / "README.md").mkdir()),
    ),
    # Two sides
    Case("no name in common", 3, changed(lambda values: {"encoder.0.w": torch.ones(3, 3)})),
    Case(
        "matrices of another width",
        3,
        changed(lambda values: {n: v[..., :20].contiguous() for n, v in values.items()}),
    ),
    Case("matrices stored transposed", 3, changed(_transposed)),
    # Quantised
    Case("GPTQ", 3, method("gptq", bits=4)),
    Case("GPTQ or AWQ, by its tensors", 3, quantised({"up.qweight": torch.ones(2, 2).int()})),
    Case("AWQ", 3, method("awq", bits=4)),
    Case(
        "bitsandbytes, 4 bits",
        3,
        quantised({"up.weight.absmax": torch.ones(4), "up.weight.quant_map": torch.ones(16)}),
    ),
    Case("bitsandbytes, 8 bits", 3, quantised({"up.SCB": torch.ones(4)})),
    Case("bitsandbytes, by its config", 3, method("bitsandbytes", load_in_8bit=True)),
    Case("fp8 with scales for blocks", 3, method("fp8", weight_block_size=[128, 128])),
    Case(
        "fp8 with scales, by its tensors",
        3,
        quantised({"up.weight": torch.ones(2, 2).to(FP8), "up.weight_scale_inv": torch.ones(1, 1)}),
    ),
    Case("fp8 without scales", 3, quantised({"up.weight": torch.ones(2, 2).to(FP8)})),
    Case("compressed-tensors", 3, quantised({"up.weight_packed": torch.ones(2, 2).int()})),
    Case(
        "MXFP4",
        3,
        quantised(
            {
                "mlp.experts.down_proj_blocks": torch.ones(2, 2).to(torch.uint8),
                "mlp.experts.down_proj_scales": torch.ones(2, 1).to(torch.uint8),
            }
        ),
    ),
    Case("an unknown quantisation method", 3, quantised(config={"quantization_config": "int4"})),
    # Numbers
    Case("NaN in base", 3, poisoned("base", "layers.1.up.weight", float("nan"))),
    Case("NaN in the fine-tuned side", 3, poisoned("ft", "layers.1.up.weight", float("nan"))),
    Case(
        "infinity in a tensor that is copied",
        3,
        poisoned("ft", "layers.0.norm.weight", float("inf")),
    ),
    Case("a result too large for its dtype", 3, options("--dtype", "float16", "--scale", "1e8")),
    # Data
    Case("missing data", 3, evaluating(data="none.csv")),
    Case(
        "data in an unknown format", 3, evaluating(change=_files(data__xlsx="PK"), data="data.xlsx")
    ),
    Case("data without rows", 3, with_data("text,label\n")),
    Case("a missing column", 3, evaluating("--text", "Text")),
    Case("a row with an extra field", 3, with_data("text,label\nso, so,1\nbad,0\n")),
    Case("an unclosed quote", 3, with_data('text,label\n"great,1\nbad,0\n')),
    Case(
        "data in another encoding than UTF-8",
        3,
        with_data("text,label\ncafé,1\n".encode("latin-1")),
    ),
    Case("a Parquet column of lists", 3, parquet({"text": [["a"], ["b"]], "label": [0, 1]})),
    Case("a row without a label", 3, with_data("text,label\ngreat,1\nbad,\n")),
    Case(
        "a row without a group",
        3,
        with_data("text,label,source\ngreat,1,\nbad,0,b\n", "--group", "source"),
    ),
    Case(
        "one group for all rows",
        3,
        with_data("text,label,source\ngreat,1,a\nbad,0,a\n", "--group", "source"),
    ),
    Case("an `--aligned` column with words", 3, evaluating("--aligned", "source")),
    Case("a `--group-columns` column without numbers", 3, evaluating("--group-columns", "source")),
    Case("the same label in all rows", 3, with_data("text,label\ngreat,1\nbad,1\n")),
    Case("a label without a class in the head", 3, with_data(f"{DATA}well,2,a,0\n")),
    Case("`--labels` without classes in the head", 3, evaluating("--labels", "bad,good")),
    Case("`--labels` for only some labels", 3, evaluating("--labels", "0=LABEL_0")),
    Case("more `--labels` than labels", 3, evaluating("--labels", "bad,fair,good")),
    # Models to evaluate
    Case("a model without a tokenizer", 3, evaluating(change=_without_tokenizer)),
    Case("a model that is not a classifier", 3, with_model(head="ForMaskedLM")),
    Case("a classifier without a trained head", 3, evaluating(change=_without_head)),
    Case("a head with one class", 3, with_model(num_labels=1)),
    Case(
        "a multi-label head",
        3,
        with_model(problem_type="multi_label_classification"),
    ),
    Case("a model with pickled weights, to evaluate", 3, evaluating(change=_pickled)),
    Case("an adapter that names no base, to evaluate", 3, evaluating(change=_adapter_alone)),
    Case("a sweep on data with a model that is not a classifier", 3, sweeping(data=DATA), "out"),
    Case(
        "an `--eval-command` that cannot be run",
        3,
        sweeping("--eval-command", "./none {model}"),
        "out",
    ),
    Case("`--group` without DATA", 2, by_command("echo 0.9", "--group", "source")),
    Case("an `--eval-command` that fails", 3, by_command("exit 7"), "out"),
    Case("an `--eval-command` that fails later", 3, by_command(GOOD_TWICE, "-k", "1,2"), "out"),
    Case("an `--eval-command` that does not print JSON", 3, by_command("echo good"), "out"),
    Case("an `--eval-command` that does not print text", 3, by_command("printf '\\377'"), "out"),
    Case("an `--eval-command` that does not print an accuracy", 3, by_command("echo 90"), "out"),
    Case(
        "stored factors of a sweep that changed on disk",
        3,
        by_command(ONE_IN_TWO, "-k", "1", change=_swept_onto_a_bad_disk),
        "out",
    ),
    # Quality, output
    Case("a tolerance that no route can meet", 4, options("--tolerance", "1e-40")),
    Case("no rank within the tolerance", 4, by_command(ONE_IN_TWO), "out"),
    Case(
        "an output whose parent is a file",
        1,
        with_pair(_files(runs="a file"), "-o", "runs/out"),
    ),
    Case("`--predictions` in a missing folder", 1, evaluating("--predictions", "to/a.csv")),
)
