"""Runs on an adapter that are killed, and inputs that change meanwhile."""

from __future__ import annotations

import random

import pytest
from kills import Course, comparable

import svdcut
import svdcut.truncation.run
from observers import Stop
from svdcut.errors import InputChangedError, Interrupted, OutputExistsError
from trained_adapters import edit_config


@pytest.mark.long
@pytest.mark.parametrize("name", ["lora", "experts"])
def test_killed_at_any_moment(trained, tmp_path, name):
    folders = trained(name)
    Course(folders.base, folders.adapter, tmp_path, random.Random(0)).repeat(3)


@pytest.mark.parametrize("rank", [2, "budget=0.5"])
def test_a_resumed_run_equals_an_undisturbed_one(adapted, tmp_path, rank):
    sides = adapted.base, adapted.adapter
    svdcut.truncate(*sides, tmp_path / "expected", rank=rank)
    for count in (1, 4, 9):
        out = tmp_path / f"out{count}"
        with pytest.raises(Interrupted):
            svdcut.truncate(*sides, out, rank=rank, observe=Stop(count))
        svdcut.truncate(*sides, out, rank=rank)
        assert comparable(out) == comparable(tmp_path / "expected")


def test_a_changed_config_is_another_run(adapted, tmp_path):
    with pytest.raises(Interrupted):
        svdcut.truncate(adapted.base, adapted.adapter, tmp_path / "out", rank=2, observe=Stop(5))
    edit_config(adapted.adapter, lora_alpha=7)
    with pytest.raises(OutputExistsError, match=r"adapter_config.json of the fine-tuned side"):
        svdcut.truncate(adapted.base, adapted.adapter, tmp_path / "out", rank=2)
    svdcut.truncate(adapted.base, adapted.adapter, tmp_path / "out", rank=2, restart=True)


def test_a_config_that_changes_during_the_run(adapted, tmp_path):
    first = iter([True])  # several threads observe

    def observe(progress):
        if next(first, False):
            edit_config(adapted.adapter, lora_alpha=7)

    with pytest.raises(InputChangedError, match=r"adapter_config.json changed while"):
        svdcut.truncate(adapted.base, adapted.adapter, tmp_path / "out", rank=2, observe=observe)
    assert not (tmp_path / "out").exists()
