"""Sweeps without pictures, for speed."""

import pytest

import svdcut.pictures


@pytest.fixture
def drawn():
    """Have pictures drawn."""


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """Draw no picture, which takes half of the time of a small sweep, unless a test asks for it."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(svdcut.pictures, "can_draw", lambda: False)
