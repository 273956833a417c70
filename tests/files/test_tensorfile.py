"""The safetensors format, against the safetensors library and against hostile files."""

from __future__ import annotations

import json
import math
import struct
import threading
from hashlib import sha256

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize, safe_open

from svdcut.errors import CheckpointError
from svdcut.files.header import read_header
from svdcut.files.tensorfile import (
    Dtype,
    TensorEntry,
    hash_file,
    iterate_bytes,
    lay_out,
    read_bytes,
    size_bytes,
)

GOLDEN = (
    b"\xc8\x00\x00\x00\x00\x00\x00\x00"
    b'{"__metadata__":{"format":"pt"},'
    b'"bias":{"dtype":"I16","shape":[3],"data_offsets":[0,6]},'
    b'"a":{"dtype":"BOOL","shape":[],"data_offsets":[6,7]},'
    b'"":{"dtype":"F32","shape":[0,2],"data_offsets":[7,7]}}     '
    b"\x01\x00\x02\x00\x03\x00"
    b"\x01"
)


def write(path, header, data=b"", *, length=None):
    """Write a file whose header is an object, or bytes as they are."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(raw) if length is None else length
    path.write_bytes(struct.pack("<Q", length) + raw + data)
    return path


def entry(dtype="U8", shape=(4,), offsets=(0, 4), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.safetensors"


# Good files


def test_golden_bytes(path):
    shapes = {"bias": (Dtype.I16, (3,)), "a": (Dtype.BOOL, ()), "": (Dtype.F32, (0, 2))}
    layout = lay_out("x.safetensors", shapes, {"format": "pt"})
    data = b"\x01\x00\x02\x00\x03\x00\x01"
    assert layout.header + data == GOLDEN
    assert layout.size_bytes == len(GOLDEN)
    path.write_bytes(GOLDEN)
    file = read_header(path)
    assert (file.path, file.size_bytes, file.metadata) == (path, len(GOLDEN), {"format": "pt"})
    assert file.entries == (
        TensorEntry("bias", Dtype.I16, (3,), path, 208),
        TensorEntry("a", Dtype.BOOL, (), path, 214),
        TensorEntry("", Dtype.F32, (0, 2), path, 215),
    )
    assert [bytes(read_bytes(e)) for e in file.entries] == [data[:6], data[6:], b""]


def test_entries_come_in_the_order_of_their_bytes(path):
    header = {"a": entry(offsets=(4, 8)), "z": entry(offsets=(0, 4)), "m": entry(offsets=(8, 12))}
    write(path, header, b"zzzzaaaammmm")
    assert [e.name for e in read_header(path).entries] == ["z", "a", "m"]
    assert bytes(read_bytes(read_header(path).entries[1])) == b"aaaa"


def test_empty_tensors_may_lie_anywhere(path):
    header = {
        "start": entry(shape=(0,), offsets=(0, 0)),
        "a": entry(),
        "middle": entry(shape=(0, 3), offsets=(4, 4)),
        "b": entry(offsets=(4, 8)),
        "end": entry(shape=(7, 0), offsets=(8, 8)),
    }
    write(path, header, b"aaaabbbb")
    assert {e.name for e in read_header(path).entries} == header.keys()


@pytest.mark.parametrize("padding", [b"", b" ", b"   \n"])
def test_header_of_any_length_and_unaligned_data(path, padding):
    write(path, json.dumps({"a": entry("F32", (1,))}).encode() + padding, b"\0\0\x80?")
    assert read_bytes(read_header(path).entries[0]) == b"\0\0\x80?"
    with safe_open(path, "pt") as file:
        assert file.get_tensor("a").tolist() == [1.0]


def test_no_tensors_and_no_metadata(path):
    write(path, {})
    assert read_header(path).entries == ()
    assert lay_out("x", {}, {}).header == struct.pack("<Q", 8) + b"{}      "


def test_unknown_fields_are_ignored(path):
    write(path, {"a": entry(note="hello")}, b"aaaa")
    assert len(read_header(path).entries) == 1


@pytest.mark.parametrize("dtype", Dtype)
def test_every_dtype_is_read_back_by_the_library(path, dtype):
    shapes = [(8, 3), (24,), (2, 2, 6)]
    plan = {"é ☃ " + "x" * i: (dtype, shape) for i, shape in enumerate(shapes)}
    plan |= {"flag": (Dtype.U8, (3,)), "after": (dtype, (8,))}
    layout = lay_out("x.safetensors", plan, {"z": "1", "a": "é\n"})
    content = {e.name: bytes(i + 1 for i in range(e.size_bytes)) for e in layout.entries}
    raw = bytearray(layout.header.ljust(layout.size_bytes, b"\0"))
    for e in layout.entries:
        raw[e.offset : e.offset + e.size_bytes] = content[e.name]
    path.write_bytes(raw)
    assert len(layout.header) % 8 == 0
    found = dict(deserialize(bytes(raw)))
    assert found.keys() == plan.keys()
    for name, (stored, shape) in plan.items():
        assert (found[name]["dtype"], tuple(found[name]["shape"])) == (stored.value, shape)
        assert bytes(found[name]["data"]) == content[name]
        assert len(content[name]) == math.prod(shape) * stored.bits // 8
    file = read_header(path)
    assert file.metadata == {"a": "é\n", "z": "1"}
    assert [(e.name, e.dtype, e.shape, e.offset) for e in file.entries] == [
        (e.name, e.dtype, e.shape, e.offset) for e in layout.entries
    ]
    assert [bytes(read_bytes(e)) for e in file.entries] == list(content.values())


def test_equal_metadata_gives_equal_bytes():
    layouts = [lay_out("x", {}, dict(order)) for order in ([(1, 2), (3, 4)], [(3, 4), (1, 2)])]
    assert layouts[0] == layouts[1]


def test_kinds_of_dtypes():
    floats = {Dtype.F16, Dtype.BF16, Dtype.F32, Dtype.F64}
    assert {dtype for dtype in Dtype if dtype.is_plain_float} == floats
    quantized = {dtype.value for dtype in Dtype if dtype.is_quantized}
    assert quantized == {
        *("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0"),
        *("F6_E2M3", "F6_E3M2", "F4"),
    }
    assert size_bytes(Dtype.F32, ()) == 4
    assert size_bytes(Dtype.F4, (3, 8)) == 12


def test_parts_of_a_tensor(path):
    data = bytes(range(200))
    write(path, {"a": entry(shape=(200,), offsets=(0, 200))}, data)
    (a,) = read_header(path).entries
    assert bytes(read_bytes(a, 10, 20)) == data[10:20]
    assert bytes(read_bytes(a, 150)) == data[150:]
    assert bytes(read_bytes(a, 5, 5)) == b""
    assert read_bytes(a) is not read_bytes(a)


def test_a_long_tensor_in_pieces(path, monkeypatch):
    monkeypatch.setattr("svdcut.files.tensorfile._COPY_BYTES", 64)
    data = bytes(range(200))
    write(path, {"a": entry(shape=(200,), offsets=(0, 200))}, data)
    (a,) = read_header(path).entries
    pieces = list(iterate_bytes(a))
    assert [len(piece) for piece in pieces] == [64, 64, 64, 8]
    assert b"".join(pieces) == data


def test_hash_of_a_file(path, monkeypatch):
    monkeypatch.setattr("svdcut.files.tensorfile._HASH_BYTES", 100)
    path.write_bytes(bytes(range(256)) * 5)
    stop = threading.Event()
    assert hash_file(path, stop) == sha256(path.read_bytes()).hexdigest()
    stop.set()
    assert hash_file(path, stop) == ""
    with pytest.raises(CheckpointError, match=r"nothing\.safetensors: cannot be read"):
        hash_file(path.with_name("nothing.safetensors"), threading.Event())


# Bad files


BAD_HEADERS = {
    "not JSON": b"{",
    "nothing": b"",
    "a list": b"[]",
    "a number": b"1",
    "null": b"null",
    "not UTF-8": b'{"\xff":1}',
    "UTF-16": json.dumps({"a": entry()}).encode("utf-16-le"),
    "UTF-8 with a mark": b"\xef\xbb\xbf" + json.dumps({"a": entry()}).encode(),
    "deep": b'{"a":' * 100_000,
    "an enormous number": b'{"a":' + b"9" * 10_000 + b"}",
    "half a surrogate pair": b'{"\\ud800":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}',
    "half a pair in the metadata": json.dumps(
        {"__metadata__": {"a": "\udfff"}, "a": entry()}
    ).encode(),
    "metadata that is no map": {"__metadata__": [], "a": entry()},
    "metadata of numbers": {"__metadata__": {"a": 1}, "a": entry()},
    "metadata in metadata": {"__metadata__": {"a": {"b": "c"}}, "a": entry()},
    "an entry that is no object": {"a": 4},
    "an entry that is a list": {"a": [1]},
    "an empty entry": {"a": {}},
    "no dtype": {"a": {"shape": [4], "data_offsets": [0, 4]}},
    "an unknown dtype": {"a": entry("F128")},
    "a dtype in lower case": {"a": entry("u8")},
    "a dtype that is a list": {"a": entry([])},
    "a dtype that is an object": {"a": entry({})},
    "a dtype that is a number": {"a": entry(8)},
    "no shape": {"a": {"dtype": "U8", "data_offsets": [0, 4]}},
    "a shape that is a number": {"a": {"dtype": "U8", "shape": 4, "data_offsets": [0, 4]}},
    "a shape that is text": {"a": {"dtype": "U8", "shape": "4", "data_offsets": [0, 4]}},
    "a negative size": {"a": entry(shape=(-4,))},
    "two negative sizes": {"a": entry(shape=(-2, -2))},
    "a fractional size": {"a": entry(shape=(4.0,))},
    "a size that is true": {"a": entry(shape=(True, 4))},
    "a size that is NaN": {"a": entry(shape=(math.nan,))},
    "no offsets": {"a": {"dtype": "U8", "shape": [4]}},
    "one offset": {"a": entry(offsets=(4,))},
    "three offsets": {"a": entry(offsets=(0, 2, 4))},
    "offsets in the wrong order": {"a": entry(offsets=(4, 0))},
    "a negative offset": {"a": entry(offsets=(-4, 0))},
    "fractional offsets": {"a": entry(offsets=(0.0, 4.0))},
    "a shape larger than the offsets": {"a": entry(shape=(5,))},
    "a shape smaller than the offsets": {"a": entry(shape=(3,))},
    "an end that is too far alone": {"a": entry(offsets=(0, 5))},
    "an end that is too near alone": {"a": entry(offsets=(0, 3))},
    "a wider dtype than the offsets": {"a": entry("F32")},
    "offsets beyond the file": {"a": entry(shape=(8,), offsets=(0, 8))},
    "offsets far beyond the file": {"a": entry(shape=(2**62,), offsets=(0, 2**62))},
    "sizes that overflow": {"a": entry(shape=(2**40, 2**40), offsets=(0, 0))},
    "sizes too long to print": {"a": entry(shape=(10**4000, 10**4000), offsets=(0, 0))},
    "offsets too long to print": {"a": entry(offsets=(10**4200, 10**4200 + 4))},
    "data that no tensor covers": {"a": entry(shape=(3,), offsets=(0, 3))},
    "no tensors but data": {},
    "a hole before the first": {"a": entry(shape=(3,), offsets=(1, 4))},
    "a hole between": {"a": entry(shape=(1,), offsets=(0, 1)), "b": entry("U8", (2,), (2, 4))},
    "an overlap": {"a": entry(shape=(3,), offsets=(0, 3)), "b": entry("U8", (2,), (2, 4))},
    "a tensor in another": {"a": entry(), "b": entry("U8", (1,), (1, 2))},
    "the same bytes twice": {"a": entry(), "b": entry()},
}


@pytest.mark.parametrize("kind", BAD_HEADERS)
def test_bad_header(path, kind):
    write(path, BAD_HEADERS[kind], b"data")
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 600
    with pytest.raises(SafetensorError):
        deserialize(path.read_bytes())


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\0",
        b"\0" * 7,
        struct.pack("<Q", 2),
        struct.pack("<Q", 3) + b"{}",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2**64 - 1) + b"{}",
        b"PK\x03\x04" + b"\0" * 100,
        b"\x80\x04\x95" + b"a" * 100,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    ],
    ids=[
        *("empty", "one byte", "seven bytes", "no header", "short header", "huge", "all ones"),
        *("a zip file", "a pickle", "a pointer of git-lfs"),
    ],
)
def test_bad_file(path, raw):
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match="not a well-formed safetensors file"):
        read_header(path)


def test_header_too_long(path):
    """Refused by its length."""
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001) + b"{")
        file.truncate(8 + 100_000_001)
    with pytest.raises(CheckpointError, match="header too large"):
        read_header(path)


@pytest.mark.parametrize("cut", [1, 3, 4, 10, 60])
def test_cut_off(path, cut):
    write(path, {"a": entry()}, b"data")
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(CheckpointError, match="damaged or was cut off"):
        read_header(path)


def test_trailing_bytes(path):
    write(path, {"a": entry()}, b"data and more")
    with pytest.raises(CheckpointError, match="file not fully covered"):
        read_header(path)


def test_what_is_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "missing", tmp_path / "x" / "y"):
        with pytest.raises(CheckpointError, match="cannot be read"):
            read_header(path)


def test_file_that_shrinks_after_its_header_was_read(path):
    write(path, {"a": entry(shape=(100,), offsets=(0, 100))}, bytes(100))
    (a,) = read_header(path).entries
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match="ends within tensor 'a'"):
        read_bytes(a)
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_bytes(a)


# Random files


def read_whatever(path, raw):
    """Read a file that may hold anything; return what is in it if it is well-formed."""
    path.write_bytes(raw)
    try:
        file = read_header(path)
    except CheckpointError:
        return None
    assert sum(e.size_bytes for e in file.entries) <= len(raw)
    assert [len(read_bytes(e)) for e in file.entries] == [e.size_bytes for e in file.entries]
    plan = {e.name: (e.dtype, e.shape) for e in file.entries}
    assert len(plan) == len(file.entries)
    lay_out("y", plan, file.metadata)  # what can be read can be written
    return file


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=12,
)
small = st.integers(-1, 9)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([dtype.value for dtype in Dtype]) | json_values,
        "shape": st.lists(small, max_size=3) | json_values,
        "data_offsets": st.lists(small, min_size=2, max_size=2) | json_values,
    }
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch") / "x.safetensors"


@settings(max_examples=150, deadline=None)
@given(raw=st.binary(max_size=64))
@example(raw=GOLDEN)
def test_random_bytes(scratch, raw):
    read_whatever(scratch, raw)


@settings(max_examples=150, deadline=None)
@given(header=st.binary(max_size=64), data=st.binary(max_size=16))
def test_random_header(scratch, header, data):
    read_whatever(scratch, struct.pack("<Q", len(header)) + header + data)


@settings(max_examples=200, deadline=None)
@given(
    header=st.dictionaries(st.text(max_size=3) | st.just("__metadata__"), json_values | entries),
    data=st.binary(max_size=24),
)
def test_random_json(scratch, header, data):
    raw = json.dumps(header).encode()
    read_whatever(scratch, struct.pack("<Q", len(raw)) + raw + data)


@settings(max_examples=200, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, len(GOLDEN) - 1), st.integers(0, 255))))
def test_damaged_golden_file(scratch, changes):
    raw = bytearray(GOLDEN)
    for place, value in changes:
        raw[place] = value
    read_whatever(scratch, bytes(raw))


names = st.text(max_size=12).filter(lambda name: name != "__metadata__")
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
whole = st.sampled_from([dtype for dtype in Dtype if dtype.bits % 8 == 0])


@settings(max_examples=150, deadline=None)
@given(
    plan=st.dictionaries(names, st.tuples(whole, shapes), max_size=6),
    metadata=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    data=st.randoms(use_true_random=False),
)
def test_what_is_laid_out_is_read_back(scratch, plan, metadata, data):
    layout = lay_out("x", plan, metadata)
    body = data.randbytes(layout.size_bytes - len(layout.header))
    file = read_whatever(scratch, layout.header + body)
    assert file is not None
    assert file.metadata == metadata
    assert {e.name: (e.dtype, e.shape) for e in file.entries} == plan
    found = {name: bytes(fields["data"]) for name, fields in deserialize(layout.header + body)}
    assert {e.name: bytes(read_bytes(e)) for e in file.entries} == found
