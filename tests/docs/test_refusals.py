"""Every bad input of the catalogue is refused as docs/refusals.md says, and leaves no trace."""

from __future__ import annotations

import inspect
import re

import pytest
import transformers

import refusals_table
from refusals import CASES, ONE_IN_TWO, by_command, call, evaluating, options, refuse

ROWS = refusals_table.read_rows()


def state(folder, without=None):
    """Return what is in a folder: kinds, links, times, and the bytes of files."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if without is not None and path.is_relative_to(folder / without):
            continue
        about = path.lstat()
        content = path.read_bytes() if path.is_file() and about.st_size < 1_000_000 else None
        link = path.readlink() if path.is_symlink() else None
        found[path.relative_to(folder)] = (about.st_mode, about.st_mtime_ns, link, content)
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_refusal(case, tmp_path):
    words = case.make(tmp_path)
    before = state(tmp_path, case.leaves)
    outcome = call(words, tmp_path)
    assert (outcome.exit_code, outcome.stdout) == (case.exit_code, "")
    assert "Traceback" not in outcome.stderr
    assert "unexpected failure" not in outcome.stderr
    assert all(line.isprintable() for line in outcome.stderr.split("\n"))
    assert len(outcome.message.splitlines()) <= 9
    assert state(tmp_path, case.leaves) == before
    assert ROWS[case.name] == (refusals_table.shown(outcome.message), str(case.exit_code))


def test_the_table_has_no_other_rows():
    assert list(ROWS) == [case.name for case in refusals_table.in_order()]
    assert len({case.name for case in CASES}) == len(CASES) >= 45


def test_what_the_cases_damage_is_sound(tmp_path):
    """Without its damage, the pair of the catalogue is cut."""
    words = options()(tmp_path)
    outcome = call([*words, "-q"], tmp_path)
    assert (outcome.exit_code, outcome.stdout) == (0, "")
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_what_is_damaged_to_evaluate_is_sound(tmp_path):
    outcome = call([*evaluating()(tmp_path), "-q"], tmp_path)
    assert (outcome.exit_code, outcome.stdout, outcome.stderr) == (0, "", "")


def test_what_is_damaged_to_sweep_is_sound(tmp_path):
    words = by_command(ONE_IN_TWO, "--tolerance", "0.5")(tmp_path)
    outcome = call(words, tmp_path)
    assert (outcome.exit_code, outcome.stdout, outcome.stderr) == (0, "", "")
    assert (tmp_path / "out" / "sweep.json").is_file()


def test_the_table_is_up_to_date():
    assert refusals_table.TABLE.read_text(encoding="utf-8") == refusals_table.render()


def test_a_case_that_is_accepted_does_not_enter_the_table(monkeypatch):
    sound = refusals_table.Case("nothing wrong", 3, options("--dry-run"))
    monkeypatch.setattr(refusals_table, "CASES", (sound,))
    with pytest.raises(SystemExit, match="nothing wrong"):
        refusals_table.render()


def test_refuse_builds_and_runs(tmp_path):
    assert refuse(CASES[0], tmp_path).exit_code == CASES[0].exit_code


def test_hints_on_dequantising_name_what_transformers_has():
    table = refusals_table.TABLE.read_text(encoding="utf-8")
    classes = set(re.findall(r"quantization_config=(\w+)\(dequantize=True\)", table))
    assert classes == {"FineGrainedFP8Config", "Mxfp4Config", "CompressedTensorsConfig"}
    for name in classes:
        assert "dequantize" in inspect.signature(getattr(transformers, name)).parameters
    assert "save_pretrained('plain', save_original_format=False)" in table
    saving = inspect.signature(transformers.PreTrainedModel.save_pretrained).parameters
    assert "save_original_format" in saving
    assert callable(transformers.PreTrainedModel.dequantize)
