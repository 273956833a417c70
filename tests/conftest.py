"""Fixtures that several test modules share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import checkpoints

# Tests run beside each other, one process a core: threads would only wait for threads.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """Build a pair of `checkpoints` by the name of its builder, once."""
    built = {}

    def get(kind, **options):
        key = (kind, *sorted(options.items()))
        if key not in built:
            folder = tmp_path_factory.mktemp(kind)
            built[key] = getattr(checkpoints, kind)(folder, **options)
        return built[key]

    return get


@pytest.fixture(scope="session")
def real_pair():
    """Return the real pair, fetched once for all processes that run tests."""
    from real_pair import make_real_pair

    return make_real_pair(Path(__file__).parent.parent / "demo")
