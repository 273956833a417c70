"""Fixtures that several test modules share."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import close_session
from hypothesis import settings

import checkpoints
from hub_server import HubServer
from processes import call

# Under nohup processes would be born deaf to it, those of the tests too.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Tests run beside each other, one process a core: threads would only wait for threads.
torch.set_num_threads(1)

# No deadline: how long a case takes says how busy the machine is.
settings.register_profile("svdcut", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("svdcut")


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
def trained(tmp_path_factory):
    """Train an adapter of one of `adapter_cases`, once."""
    from adapter_cases import CASES

    built = {}

    def get(name, dtype=torch.float32):
        if (name, dtype) not in built:
            built[name, dtype] = CASES[name].make(tmp_path_factory.mktemp("trained"), dtype)
        return built[name, dtype]

    return get


@pytest.fixture
def adapted(trained, tmp_path):
    """A base and an adapter of a test's own."""
    from trained_adapters import Folders

    made = trained("lora")
    copies = Folders(tmp_path / "base", tmp_path / "adapter", made.merged)
    shutil.copytree(made.base, copies.base)
    shutil.copytree(made.adapter, copies.adapter)
    return copies


@pytest.fixture
def elsewhere(monkeypatch):
    """Round as another processor would, each time another: nothing comes out to the byte."""
    from svdcut.svd.decomposition import Decomposition
    from svdcut.truncation import reconstruction

    generator = torch.Generator().manual_seed(0)
    factors, compose = Decomposition.factors, reconstruction.compose

    def flip(found, indices):
        left, right = factors(found, indices)
        signs = 1 - 2 * torch.randint(2, (len(right),), generator=generator)
        return left * signs, right * signs[:, None]

    def shake(*arguments, **options):
        _, (left, _), *_ = arguments
        for rows in compose(*arguments, **options):
            if not left.shape[1]:
                yield rows  # base, where nothing is computed
                continue
            unit = torch.finfo(rows.intended.dtype).eps / 2
            noise = torch.rand(rows.intended.shape, generator=generator, dtype=torch.float64)
            intended = rows.intended * (1 + unit * (2 * noise - 1)).to(rows.intended.dtype)
            yield reconstruction.Rows(intended.to(rows.stored.dtype), intended)

    monkeypatch.setattr(Decomposition, "factors", flip)
    monkeypatch.setattr(reconstruction, "compose", shake)


@pytest.fixture(scope="session")
def real_pair():
    """Return the real pair, fetched once for all processes that run tests."""
    from real_pair import make_real_pair

    return make_real_pair(Path(__file__).parent.parent / "demo")


@pytest.fixture(scope="session")
def client():
    """One HTTP client of huggingface_hub for all tests, that goes to 127.0.0.1 directly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        for name in ("DISABLE_XET", "DISABLE_TELEMETRY", "DISABLE_IMPLICIT_TOKEN"):
            patch.setattr(constants, f"HF_HUB_{name}", True)
        close_session()
        yield
        close_session()


@pytest.fixture
def hub(client, tmp_path, monkeypatch):
    """A stand-in that huggingface_hub is set to use, with an empty cache in tmp_path."""
    with HubServer() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield server


@pytest.fixture
def go_offline(tmp_path, monkeypatch):
    def go_offline(*, with_listing=True):
        """As HF_HUB_OFFLINE=1; no listing is what a cache filled file by file looks like."""
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        if not with_listing:
            shutil.rmtree(tmp_path / "cache" / "models--org--toy" / "trees")
            monkeypatch.setattr("huggingface_hub._tree_cache._IN_MEMORY_TREE_CACHE", {})

    return go_offline


@pytest.fixture
def call_cli():
    """Call ``svdcut`` in this process, as a shell would."""
    return call
