"""Every kind of checkpoint of the catalogue, and the table that is made from it."""

from __future__ import annotations

import math
import re
import sys

import pytest
import torch
from safetensors import deserialize
from typer.testing import CliRunner

import kinds_table
import svdcut
from architectures import kind_of
from checkpoints import read_folder
from kinds import CATALOGUE, CUT, KINDS, RANK, SAME
from svdcut.cli.app import app

REFUSED = [slug for slug, kind in KINDS.items() if kind.error]
CARRIED_OUT = [slug for slug, kind in KINDS.items() if not kind.error]


def raw(path):
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    tensors = [pair for file in files for pair in deserialize(file.read_bytes())]
    return {name: (t["dtype"], t["shape"], bytes(t["data"])) for name, t in tensors}


def arguments(kind, pair, out):
    words = ["truncate", str(pair.base), str(pair.finetuned), "-k", str(RANK), "-o", str(out)]
    for option, value in kind.options.items():
        if option == "map":
            words += [word for old, new in value.items() for word in ("--map", f"{old}={new}")]
        else:
            words += [
                w
                for v in ([value] if isinstance(value, str) else value)
                for w in (f"--{option}", v)
            ]
    return words


@pytest.mark.parametrize("slug", CARRIED_OUT)
def test_kind(slug, tmp_path):
    kind = KINDS[slug]
    pair = kind.build(tmp_path)
    out = tmp_path / "out"
    manifest = svdcut.truncate(pair.base, pair.finetuned, out, rank=RANK, **kind.options)
    wanted = {name: kind.actions.get(name) or kind.actions[kind_of(name)] for name in raw(out)}
    assert {name: fact.action for name, fact in manifest.tensors.items()} == wanted
    assert set(manifest.base_only) == set(kind.base_only)
    finetuned, base, result = raw(pair.finetuned), raw(pair.base), raw(out)
    assert result.keys() == finetuned.keys()
    for name, action in wanted.items():
        if action in ("copy_finetuned", SAME):
            assert result[name] == finetuned[name]
        elif action == "copy_base":
            assert result[name] == base[name]
        else:
            assert result[name][:2] == finetuned[name][:2]
            assert result[name][2] != finetuned[name][2]
            ranks = list(manifest.tensors[name].truncation.ranks)
            assert set(ranks) == {RANK}
            assert len(ranks) == (result[name][1][0] if "experts" in name else 1)


def test_values_of_a_kind_are_base_plus_the_leading_part(tmp_path):
    """What `test_truncate` checks of many, checked once more of each shape here."""
    for slug in ("convolutions", "expert-stack", "vocabulary-grew", "mixed-dtypes"):
        pair, out = KINDS[slug].build(tmp_path / slug), tmp_path / slug / "out"
        manifest = svdcut.truncate(pair.base, pair.finetuned, out, rank=RANK, dtype="float32")
        sides = [read_folder(folder) for folder in (pair.base, pair.finetuned, out)]
        for name, fact in manifest.tensors.items():
            if fact.action == CUT:
                base, ours, result = (side[name].value.double() for side in sides)
                rows = min(len(base), len(ours))
                stack = "experts" in name
                for theirs, tuned, got in zip(
                    *(t if stack else [t[:rows].flatten(1)] for t in (base, ours, result)),
                    strict=True,
                ):
                    u, s, vh = torch.linalg.svd(tuned - theirs, full_matrices=False)
                    best = theirs + (u[:, :RANK] * s[:RANK]) @ vh[:RANK]
                    assert float((got - best).abs().max()) < 1e-7
                assert torch.equal(result[rows:], ours[rows:])


@pytest.mark.parametrize("slug", REFUSED)
def test_refused_kind(slug, tmp_path):
    kind = KINDS[slug]
    pair = kind.build(tmp_path)
    with pytest.raises(svdcut.InputError, match=re.escape(kind.error)) as caught:
        svdcut.truncate(pair.base, pair.finetuned, tmp_path / "out", rank=RANK, **kind.options)
    assert caught.value.exit_code == 3
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("slug", CARRIED_OUT)
def test_warnings_of_kinds(slug, tmp_path, monkeypatch, dry_run):
    """What is copied whole for want of a counterpart is said, and nothing else is."""
    kind = KINDS[slug]
    words = arguments(kind, kind.build(tmp_path), tmp_path / "out")
    words += ["--dry-run"] * dry_run
    monkeypatch.setattr(sys, "argv", ["svdcut", *words])
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.stderr
    said = [part for part in result.stderr.split("svdcut: warning: ") if "rounding to" not in part]
    assert sum(bool(part) for part in said) == bool(kind.warning)
    assert (kind.warning or "") in result.stderr


def test_warning_hints_at_what_to_do(tmp_path, monkeypatch):
    words = arguments(KINDS["new-matrices"], KINDS["new-matrices"].build(tmp_path), tmp_path / "o")
    monkeypatch.setattr(sys, "argv", ["svdcut", *words])
    stderr = CliRunner().invoke(app, words).stderr
    assert "layers.1.up.weight" in stderr
    assert "--map OLD=NEW" in stderr


def test_no_warning_of_what_was_not_asked_for(tmp_path, monkeypatch):
    words = arguments(KINDS["new-matrices"], KINDS["new-matrices"].build(tmp_path), tmp_path / "o")
    for more in (["--only", "layers.0.*"], ["--skip", "layers.1.*"]):
        monkeypatch.setattr(sys, "argv", ["svdcut", *words, *more])
        result = CliRunner().invoke(app, [*words, *more, "--dry-run"])
        assert (result.exit_code, result.stderr) == (0, "")


@pytest.mark.parametrize("width", [70, 90])
def test_a_new_part_outside_of_the_layers_is_worth_a_warning_if_it_is_large(
    tmp_path, monkeypatch, width
):
    from kinds import LAYER, tuned, values, write

    base = {**LAYER, "embed.weight": values(2000, 8)}
    pair = write(tmp_path, base, {**tuned(base), "projector.weight": values(2, width)})
    words = arguments(KINDS["prefix"], pair, tmp_path / "out")
    monkeypatch.setattr(sys, "argv", ["svdcut", *words])
    stderr = CliRunner().invoke(app, words).stderr
    share = 2 * width / (2 * width + sum(math.prod(v.shape) for v in base.values()))
    assert (share > 0.01) is (width == 90)
    assert ("copied whole" in stderr) is (width == 90)


def test_renames_are_shown(tmp_path, monkeypatch):
    shown = []
    for slug in ("prefix", "wrapped", "moved-parts"):
        words = arguments(KINDS[slug], KINDS[slug].build(tmp_path / slug), tmp_path / slug / "out")
        monkeypatch.setattr(sys, "argv", ["svdcut", *words])
        shown.append(CliRunner().invoke(app, words).stdout)
    assert "Matched without the prefix 'bert.' of the fine-tuned side." in shown[0]
    assert "Matched without the prefix 'module.' of the fine-tuned side." in shown[1]
    assert "Matched without '_fsdp_wrapped_module' in names." in shown[1]
    assert "Matched 'language_model.model.' of base with 'model.language_model.'." in shown[2]
    assert "Matched without the prefix 'model.' of the fine-tuned side." in shown[2]


def test_slugs_are_unique():
    assert len(KINDS) == sum(map(len, CATALOGUE.values()))


def test_the_table_is_up_to_date():
    assert kinds_table.PATH.read_text(encoding="utf-8") == kinds_table.render()
