"""Cuts by rules that depend on the spectrum."""

import pytest
import torch

from matrices import merged
from svdcut.choose.cut import CutRequest, cut_matrix, is_certified
from svdcut.choose.keep import Keep
from svdcut.choose.ranks import parse_rules
from svdcut.svd.certificate import Method
from svdcut.svd.route import Route


@pytest.mark.parametrize("rule", ["ratio=0.1", "energy=0.999999", "energy=0.999999999"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merged_lora_update_needs_no_exact_route(rule, dtype):
    """Its Gram matrix shows the rank, but in float32 not the tail: that is computed after."""
    a = merged(400, 300, 8, dtype).float()
    requests = [CutRequest(parse_rules(rule)[0], Keep.TOP, 0)]
    found, cuts = cut_matrix(
        a.clone(), requests, storage=None, route=Route.AUTO, tolerance=1e-6, seed=0
    )
    s = torch.linalg.svdvals(a.double())
    assert cuts[0].rank == requests[0].rule.rank(s.tolist(), 300, edge=cuts[0].edge or 0.0)
    assert found.method is Method.GRAM
    assert is_certified(cuts[0].bounds, 1e-6)
    assert cuts[0].tail_norm == pytest.approx(float(s[cuts[0].rank :].norm()), rel=1e-5)
    if dtype is torch.float32:
        assert cuts[0].rank <= 8
        assert found.num_triplets < 20
