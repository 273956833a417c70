"""What runs on a GPU, on a stand-in for one: to the end, with nothing left on the other side.

The numbers of a real one are looked at in `test_cuda.py`.
"""

from __future__ import annotations

import sys
from dataclasses import asdict

import pytest
import torch

import stand_in_gpu
import svdcut
from checkpoints import write_folder
from matrices import head_over_flat_tail, merged, noise, with_spectrum
from stand_in_gpu import DeviceTensor, calls
from svdcut.record.manifest import Manifest
from svdcut.svd import dense, krylov
from svdcut.svd.certificate import Method
from svdcut.svd.engine import decompose
from svdcut.svd.route import Route
from svdcut.svd.values import singular_values

CUTS = [
    *({"rank": rule} for rule in ("0", "4", "energy=0.9", "noise", "budget=0.2", "full")),
    {"rank": "4", "keep": "bottom"},
    {"rank": "4", "keep": "random", "scale": 0.5},
    {"rank": "4", "svd": "exact", "dtype": "float32"},
    {"rank": "4", "svd": "krylov", "rest": "base"},
]


@pytest.fixture
def gpu(monkeypatch):
    with stand_in_gpu.stand_in_gpu(monkeypatch):
        yield


def leading_of_all(product, count):
    values, vectors = torch.linalg.eigh(product)
    return values[-count:].flip(0), vectors[:, -count:].flip(1)


@pytest.fixture
def both(tmp_path, monkeypatch):
    """Do something on each device, and return what it made."""
    # A CPU computes the leading eigenvectors alone: they differ from the others in a last bit.
    monkeypatch.setattr(dense, "leading_eigenpairs", leading_of_all)
    monkeypatch.setattr(krylov, "_GPU_WIDTH", krylov._WIDTH)

    def do(work):
        here = work("cpu", tmp_path / "cpu")
        with stand_in_gpu.stand_in_gpu(monkeypatch):
            there = work("cuda", tmp_path / "cuda")
            assert sum(calls.values())
        return here, there

    return do


def said(manifest: Manifest) -> dict[str, object]:
    """Return what is said of the tensors."""
    return {name: asdict(fact) for name, fact in manifest.tensors.items()}


@pytest.mark.parametrize("options", CUTS, ids=str)
@pytest.mark.parametrize("kind", ["toy", "mixed", "mixtral"])
def test_truncate(pairs, both, kind, options):
    pair = pairs(kind)
    here, there = both(
        lambda device, out: svdcut.truncate(
            pair.base, pair.finetuned, out, device=device, **options
        )
    )
    assert there.device == stand_in_gpu.NAME
    assert said(there) == said(here)


@pytest.mark.parametrize("rank", ["4", "noise"])
def test_extract(pairs, both, rank):
    pair = pairs("single")
    here, there = both(
        lambda device, out: svdcut.extract(pair.base, pair.finetuned, out, rank=rank, device=device)
    )
    assert said(there) == said(here)


@pytest.mark.parametrize("case", ["lora", "dora", "embeddings", "experts"])
def test_adapters(trained, both, case):
    folders = trained(case)
    here, there = both(
        lambda device, out: svdcut.truncate(
            folders.base, folders.adapter, out, rank="2", device=device
        )
    )
    assert said(there) == said(here)


@pytest.mark.parametrize("options", [{}, {"top": 3}, {"intruders": True}], ids=str)
def test_spectrum(pairs, both, options):
    pair = pairs("toy")
    here, there = both(
        lambda device, _: svdcut.spectrum(pair.finetuned, pair.base, device=device, **options)
    )
    assert there.tensors == here.tensors


def test_comparison(pairs, both):
    pair = pairs("toy")
    here, there = both(
        lambda device, _: svdcut.compare_spectra(
            pair.finetuned, pair.finetuned, pair.base, device=device
        )
    )
    assert there.overlaps == here.overlaps


@pytest.mark.parametrize("make", [svdcut.truncate, svdcut.extract])
def test_verify(pairs, monkeypatch, tmp_path, make):
    """Either device verifies what the other one made."""
    pair = pairs("single")
    sides = {"base": pair.base, "finetuned": pair.finetuned}
    with stand_in_gpu.stand_in_gpu(monkeypatch):
        for made, verified in (("cpu", "cuda"), ("cuda", "cpu")):
            make(**sides, out=tmp_path / made, rank="4", device=made)
            assert svdcut.verify(tmp_path / made, **sides, device=verified).failures == ()


def test_sweep(pairs, both):
    pair = pairs("toy")
    here, there = both(
        lambda device, out: svdcut.sweep(
            pair.base,
            pair.finetuned,
            None,
            out,
            ranks="2,energy=0.8",
            device=device,
            eval_command="sh -c 'echo 0.5' {model}",
        )
    )
    assert there.rows == here.rows


@pytest.mark.parametrize("route", list(Route))
def test_routes(gpu, route):
    on_host = with_spectrum(500, 400, head_over_flat_tail(400))
    found = decompose(on_host.clone().to("cuda"), top=8, route=route, accept=lambda _: True)
    s = torch.linalg.svdvals(on_host.double())[:8]
    squares = found.triplets.squares[:8].cpu() * found.scale**2
    assert isinstance(found.triplets.right, DeviceTensor)
    assert torch.allclose(squares.sqrt(), s, rtol=1e-5)


def test_calls(gpu, monkeypatch):
    """Each call costs a GPU more than its work: an expert takes a fifth of 771, as it once did."""

    def count(m, n, top):
        a = noise(m, n).to("cuda")
        calls.clear()
        assert decompose(a, top=top, accept=lambda _: True).rejected == ()
        return sum(calls.values()) - calls["waits"]

    assert count(1024, 768, 64) <= 771 / 5
    wide = count(1300, 1200, 16)
    monkeypatch.setattr(krylov, "_GPU_WIDTH", krylov._WIDTH)
    assert wide < 0.8 * count(1300, 1200, 16)


def test_deflation(gpu):
    found = decompose(
        merged(1300, 1200, 8, torch.bfloat16).float().to("cuda"), top=30, accept=lambda _: True
    )
    assert found.method is Method.KRYLOV
    assert found.triplets.right.dtype == torch.float64


def test_values(gpu):
    on_host = merged(500, 400, 8, torch.float32)
    found = singular_values(on_host.float().to("cuda"))
    expected = torch.linalg.svdvals(on_host.float().double())
    assert torch.allclose(
        torch.tensor(found.singular_values).double(), expected, rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("rank", ["8", "noise"])
def test_a_matrix_of_some_megabytes_is_taken_as_a_whole(gpu, tmp_path, monkeypatch, rank):
    """A GPU takes as long to be told of a block as to work on it."""
    base = 0.02 * noise(4000, 400, seed=1)
    update = with_spectrum(4000, 400, head_over_flat_tail(400))
    for name, weight in (("base", base), ("ft", base + update)):
        write_folder(tmp_path / name, {"a.weight": weight.bfloat16()})
    counts = []
    for out in ("by blocks", "as a whole"):
        if out == "as a whole":
            for module in [m for n, m in sys.modules.items() if n.startswith("svdcut.")]:
                if hasattr(module, "row_blocks"):
                    monkeypatch.setattr(
                        module, "row_blocks", lambda shape, *_, **__: [(0, shape[0])]
                    )
        calls.clear()
        svdcut.truncate(
            tmp_path / "base", tmp_path / "ft", tmp_path / out, rank=rank, device="cuda"
        )
        counts.append(calls.copy())
    assert counts[0] == counts[1]
    assert counts[0]["waits"] < 150


def one_block(shape, device, **sizes):
    return [(0, shape[0])]
