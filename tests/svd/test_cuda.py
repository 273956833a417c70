"""The same promises on a CUDA device; skipped where there is none."""

import pytest
import torch

import svdcut
from checkpoints import read_folder, toy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("rule", ["4", "energy=0.9", "full", "noise", "budget=0.2"])
def test_ranks_and_norms_agree_with_the_cpu(tmp_path, rule):
    pair = toy(tmp_path / "pair")
    facts = [
        svdcut.truncate(
            pair.base, pair.finetuned, tmp_path / device, rank=rule, device=device, dtype="float32"
        )
        for device in ("cpu", "cuda")
    ]
    for name, here in facts[0].tensors.items():
        there = facts[1].tensors[name]
        if here.truncation is None:
            assert there.sha256 == here.sha256
            continue
        assert there.truncation.svd.certified
        assert there.truncation.ranks == here.truncation.ranks
        assert there.truncation.tail_norm == pytest.approx(here.truncation.tail_norm, rel=1e-5)
        assert [m.sigma_first for m in there.truncation.matrices] == pytest.approx(
            [m.sigma_first for m in here.truncation.matrices], rel=1e-5
        )


def test_the_same_bytes_twice(tmp_path):
    pair = toy(tmp_path / "pair")
    for out in ("one", "two"):
        svdcut.truncate(pair.base, pair.finetuned, tmp_path / out, rank=4, device="cuda")
    one, two = (read_folder(tmp_path / out) for out in ("one", "two"))
    assert {name: t.raw for name, t in one.items()} == {name: t.raw for name, t in two.items()}
