"""Fixtures that several test modules share."""

from __future__ import annotations

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
