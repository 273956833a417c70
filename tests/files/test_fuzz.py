"""Whatever files hold: they are read as the safetensors library reads them, or refused.

SVDCUT_FUZZ=N tries N times as many as the long run, of which the default run tries a fifth.
"""

from __future__ import annotations

import copy
import json
import os
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import deserialize
from safetensors.torch import save_file

import svdcut
from svdcut.choose.options import Options, StoredDtype
from svdcut.errors import CheckpointError, SvdcutError
from svdcut.files.checkpoint import open_checkpoint
from svdcut.files.header import read_header
from svdcut.pair.plan import make_plan
from svdcut.record.card import Loading, render_card
from svdcut.record.publication import with_dtype
from svdcut.shown import printable

TIMES = float(os.environ.get("SVDCUT_FUZZ", "0.2"))
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
HEADER = {
    "__metadata__": {"format": "pt"},
    "embed.weight": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]},
    "layers.0.up.weight": {"dtype": "BF16", "shape": [2, 4], "data_offsets": [48, 64]},
    "layers.0.experts.w": {"dtype": "F16", "shape": [2, 2, 2], "data_offsets": [64, 80]},
    "scale": {"dtype": "F64", "shape": [], "data_offsets": [80, 88]},
    "flags": {"dtype": "BOOL", "shape": [0], "data_offsets": [88, 88]},
}
BODY = bytes(88)
WHERE = {name: SHARDS[name == "scale"] for name in HEADER if name != "__metadata__"}
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "tie_word_embeddings": True,
    "dtype": "float32",
    "time_step_limit": [0.0, float("inf")],
    "text_config": {"dtype": "float32", "quantization_config": None},
    "quantization_config": {"quant_method": "gptq"},
}
CARD = {
    "license": "mit",
    "language": ["en", "no"],
    "tags": ["a"],
    "base_model": "org/base",
    "model-index": [{"results": []}],
}


def pack(header: bytes, body: bytes = BODY, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + body


VALID = pack(json.dumps(HEADER).encode())


def many(count):
    return settings(max_examples=round(count * TIMES), deadline=None)


# What may come


names = st.sampled_from([*HEADER, "dtype", "shape", "data_offsets", "weight_map", "metadata"])
texts = st.text(max_size=6) | st.sampled_from(
    ["", "\x1b[2J", "a\nb", "\u202e", "\ud800", "\x00", "..", "/etc/passwd", *SHARDS, WEIGHTS]
)
numbers = (
    st.integers(-2, 90)
    | st.floats()
    | st.sampled_from([2**31, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63)])
)
anything = st.recursive(
    st.none() | st.booleans() | numbers | texts | names,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names | texts, inner, max_size=4),
    max_leaves=10,
)
dtypes = st.sampled_from(["F32", "F4", "F6_E2M3", "F8_E8M0", "BF16", "U8", "C64", "f32"])
offsets = st.lists(st.integers(0, 90), min_size=2, max_size=2)
shapes = st.lists(st.integers(0, 9), max_size=4)


def places(document, path=()):
    """Yield the way to every value of a document."""
    yield path
    items = document.items() if isinstance(document, dict) else ()
    items = enumerate(document) if isinstance(document, list) else items
    for key, value in items:
        yield from places(value, (*path, key))


@st.composite
def changed(draw, document):
    """Return a document with some values replaced, dropped or added."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(0, 3))):
        *way, last = draw(st.sampled_from([p for p in places(document) if p]))
        parent = document
        for key in way:
            parent = parent[key]
        what = draw(st.sampled_from(["replace", "number", "dtype", "drop", "add"]))
        if what == "drop" and len(parent) > 1:
            del parent[last]
        elif what == "add" and isinstance(parent, dict):
            parent[draw(names | texts)] = draw(anything)
        elif what == "number":
            parent[last] = draw(st.integers(0, 9) | offsets | shapes)
        elif what == "dtype":
            parent[last] = draw(dtypes)
        else:
            parent[last] = draw(anything)
    return document


TOKENS = [b"-0", b"1e1", b"4.0", b"NaN", b"Infinity", b'"\\ud800"', b"null", b"[" * 200]
TOKENS += [b'{"a":1,"a":2}', b"\xff", b"\xef\xbb\xbf", b" ", b"\x00", b"1" * 5000, b'"', b",", b"}"]


@st.composite
def damaged(draw, raw):
    """Return bytes with some of them flipped, cut out, doubled or replaced."""
    raw = bytearray(raw)
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(raw)))
        stop = min(start + draw(st.integers(0, 8)), len(raw))
        what = draw(st.sampled_from(["bytes", "token", "double", "cut"]))
        if what == "bytes":
            raw[start:stop] = draw(st.binary(max_size=8))
        elif what == "token":
            raw[start:stop] = draw(st.sampled_from(TOKENS))
        elif what == "double":
            raw[start:start] = raw[start:]
        else:
            del raw[stop if draw(st.booleans()) else start :]
    return bytes(raw)


@st.composite
def json_of(draw, document):
    """Return the text of a changed document, perhaps damaged."""
    value = draw(changed(document) | anything) if draw(st.booleans()) else document
    raw = json.dumps(value, ensure_ascii=draw(st.booleans()))
    return draw(damaged(raw.encode("utf-8", "surrogatepass")))


@st.composite
def files(draw):
    """Return the bytes of a weight file, sound or not."""
    header = draw(json_of(HEADER))
    length = draw(st.none() | st.integers(0, 2 * len(header)) | st.integers(0, 2**64 - 1))
    body = draw(st.just(BODY) | st.binary(max_size=100))
    return draw(damaged(pack(header, body, length if draw(st.booleans()) else None)))


# What must hold


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base, and a folder to fill."""
    path = tmp_path_factory.mktemp("fuzz")
    for side in ("base", "ft", "sharded"):
        (path / side).mkdir()
        (path / side / "config.json").write_text("{}")
    (path / "base" / WEIGHTS).write_bytes(VALID)
    (path / "ft" / WEIGHTS).write_bytes(VALID)
    (path / "sharded" / INDEX).write_text(json.dumps({"weight_map": WHERE}))
    first = {n: torch.zeros(2, 2) for n, file in WHERE.items() if file == SHARDS[0]}
    save_file(first, path / "sharded" / SHARDS[0])
    save_file({"scale": torch.zeros(())}, path / "sharded" / SHARDS[1])
    return path


def attempt(base: Path, finetuned: Path):
    """Plan as far as it goes; nothing but a refusal may come of it."""
    try:
        ours, theirs = open_checkpoint(base), open_checkpoint(finetuned)
        theirs.sidecars()
        plan = make_plan(ours, theirs, Options())
        json.dumps(plan.index, indent=2)
        json.dumps(with_dtype(theirs.config, StoredDtype.FLOAT32), indent=2)
    except SvdcutError as error:
        check_refusal(error)
        return None
    return plan


def check_refusal(error):
    assert error.exit_code in (2, 3)
    lines = str(error).split("\n")
    assert len(lines) <= 24
    assert all(len(line) < 2000 for line in lines)
    "\n".join(map(printable, lines)).encode()


@many(400)
@given(raw=files())
@example(raw=VALID)
@example(raw=pack(b'{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}}', b"x"))
@example(raw=pack(b'{"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}', b""))
@example(raw=pack(b' {"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"))
@example(raw=pack(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"b":NaN}}', b"x"))
@example(raw=pack(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"b":[[]]}}', b"x"))
@example(raw=pack(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"b":1e999}}', b"x"))
@example(
    raw=pack(b'{"a":{"dtype":"U8","shape":[' + b"1," * 99 + b'1],"data_offsets":[0,1]}}', b"x")
)
@example(raw=pack(b'{"dtype":"U8","shape":[1],"data_offsets":[0,1]}', b"x"))
@example(raw=pack(b'{"__metadata__":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"))
def test_what_is_accepted_the_library_accepts_and_reads_alike(folder, raw):
    path = folder / "x.safetensors"
    path.write_bytes(raw)
    try:
        file = read_header(path)
    except CheckpointError as error:
        check_refusal(error)
        return
    found = {e.name: (e.dtype.value, list(e.shape), e.size_bytes) for e in file.entries}
    theirs = {n: (f["dtype"], f["shape"], len(f["data"])) for n, f in deserialize(raw)}
    assert found == theirs


@many(200)
@given(raw=files(), side=st.sampled_from(["base", "ft"]))
def test_weights(folder, raw, side):
    path = folder / "x.safetensors"
    path.write_bytes(raw)
    sides = {"base": folder / "base", "ft": folder / "ft", side: path}
    attempt(sides["base"], sides["ft"])


@many(300)
@given(raw=json_of({"metadata": {"total_size": 88, "a": {}}, "weight_map": WHERE}))
@example(raw=b'{"metadata": [1], "weight_map": {}}')
@example(raw=b'{"metadata": ' + b'{"a":' * 500 + b"1" + b"}" * 500 + b', "weight_map": {}}')
def test_index(folder, raw):
    (folder / "sharded" / INDEX).write_bytes(raw)
    attempt(folder / "sharded", folder / "sharded")


def test_sound_files_make_a_plan(folder):
    """What is damaged above is not refused before the damage."""
    (folder / "sharded" / INDEX).write_text(json.dumps({"weight_map": WHERE}))
    for name in ("config.json", "tokenizer.json"):
        (folder / "ft" / name).write_text("{}")
    for side in ("ft", "sharded"):
        assert attempt(folder / side, folder / side) is not None


@many(300)
@given(raw=json_of(CONFIG))
@example(raw=json.dumps(CONFIG | {"text_config": [], "quantization_config": 4}).encode())
@example(raw=b'{"a":' * 1200 + b"1" + b"}" * 1200)
def test_config(folder, raw):
    (folder / "ft" / "config.json").write_bytes(raw)
    attempt(folder / "base", folder / "ft")


@many(100)
@given(
    raw=json_of({"peft_type": "LORA", "r": 8}) | st.binary(max_size=50),
    name=st.sampled_from(["adapter_config.json", "tokenizer.json", "generation_config.json"]),
)
def test_what_is_only_copied(folder, raw, name):
    (folder / "ft" / "config.json").write_text("{}")
    path = folder / "ft" / name
    path.write_bytes(raw)
    try:
        assert attempt(folder / "base", folder / "ft") is not None
    finally:
        path.unlink()


@pytest.fixture(scope="module")
def manifest(folder):
    """Of a cut that was made."""
    values = {"layers.0.w": torch.eye(3)}
    for side, scale in (("a", 1), ("b", 2)):
        save_file({n: scale * v for n, v in values.items()}, folder / f"{side}.safetensors")
    return svdcut.truncate(folder / "a.safetensors", folder / "b.safetensors", folder / "o", rank=1)


YAML = [
    b"&a ",
    b"*a",
    b"<<: *a\n",
    b"!!python/object:os.system x",
    b"\t",
    b"- ",
    b": ",
    b"? ",
    b"|\n",
]
YAML += [
    b"---\n",
    b"...\n",
    b"0x" + b"f" * 5000,
    b"2001-99-99",
    b"1:60:60",
    b'"\\ud800"',
    b"{",
    b"=",
]


@st.composite
def cards(draw):
    """Return a model card, sound or not."""
    front = draw(json_of(CARD))
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(front)))
        front = front[:start] + draw(st.sampled_from(YAML)) + front[start:]
    return b"---\n" + front + draw(st.sampled_from([b"\n---\n", b"", b"\r\n---", b"---"])) + b"text"


BOMB = b"a: &a [x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (c, c, b", ".join([b"*%c" % (c - 1)] * 9)) for c in range(98, 110)
)
MERGES = b"a: &a {x: 1}\n" + b"".join(
    b"%c: &%c {<<: [%s]}\n" % (c, c, b", ".join([b"*%c" % (c - 1)] * 9)) for c in range(98, 110)
)


@many(200)
@given(raw=cards() | st.binary(max_size=60))
@example(raw=b"---\n" + BOMB + b"tags: *l\n---\n")
@example(raw=b"---\n" + MERGES + b"---\n")
@example(raw=b'---\nlicense: "\\uD800"\ntags: ["\\uD800", 1, {}]\nlanguage: {a: b}\n---\n')
@example(raw=b"---\nbase_model: 3\nlicense: [[[mit]]]\ntags: 1\n---\n")
@example(raw=b"---\ntags: " + b"[" * 3000 + b"\n---\n")
def test_card(folder, manifest, raw):
    (folder / "base" / "README.md").write_bytes(raw)
    text = open_checkpoint(folder / "base").card()
    made = render_card(manifest, text, text, Loading({}))
    assert len(made.encode()) < 20_000
