"""The Python API: keywords, their values, what errors say of them, and what results look like."""

from __future__ import annotations

import dataclasses
import inspect
import json

import pytest

import svdcut
from checkpoints import toy
from svdcut.choose.options import Options
from svdcut.choose.ranks import parse_rule

FUNCTIONS = (
    svdcut.truncate,
    svdcut.truncate_many,
    svdcut.extract,
    svdcut.spectrum,
    svdcut.compare_spectra,
    svdcut.evaluate,
    svdcut.sweep,
    svdcut.verify,
)


@pytest.fixture
def pair(tmp_path):
    return toy(tmp_path)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_a_misspelt_keyword_is_refused(function):
    """Before anything is looked at."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'devise'"):
        function("nowhere", "nowhere", "nowhere", devise="cpu")


def test_an_option_of_another_function_is_refused(pair, tmp_path):
    with pytest.raises(TypeError, match="unexpected keyword argument 'drop'"):
        svdcut.truncate(pair.base, pair.finetuned, tmp_path / "out", rank=2, drop=["*"])


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_a_signature_names_every_option(function):
    """It is what a notebook shows and completes."""
    parameters = inspect.signature(function).parameters
    assert {"device", "quiet", "observe"} <= parameters.keys()
    assert not any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name in parameters:
        assert f"\n{name} : " in function.__doc__


def test_one_pattern_is_a_list_of_one(pair):
    sides = (pair.base, pair.finetuned)
    one = svdcut.spectrum(*sides, skip="*embed*", only="*weight")
    several = svdcut.spectrum(*sides, skip=["*embed*"], only=["*weight"], observe=None)
    assert one.tensors.keys() == several.tensors.keys()
    assert not any("embed" in name for name in one.tensors)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"only": [1]}, r"--only \[1\]: expected a list of texts"),
        ({"only": {"*": 1}}, "expected a list of texts"),
        ({"map": "a=b"}, "--map 'a=b': expected a mapping"),
        ({"device": "tpu"}, "--device 'tpu': expected auto"),
        ({"only": "*nothing*"}, r"--only '\*nothing\*' matches no tensor"),
        ({"top": 0}, "--top 0: expected at least 1"),
        ({"top": 2.5}, "--top 2.5: expected a whole number"),
        ({"device": 0}, "--device 0: expected a text"),
        ({"intruders": "no"}, "--intruders 'no': expected True or False"),
    ],
)
def test_values_that_cannot_be_meant(pair, options, said):
    with pytest.raises(svdcut.UsageError, match=said):
        svdcut.spectrum(pair.base, pair.finetuned, **options)


def test_ranks_are_numbers_too(pair, tmp_path):
    outs = {2: tmp_path / "2", 3: tmp_path / "3"}
    manifests = svdcut.truncate_many(pair.base, pair.finetuned, outs)
    assert [manifest.options["rank"] for manifest in manifests] == ["2", "3"]


def test_several_ranks_of_one_output_are_refused(pair, tmp_path):
    for function in (svdcut.truncate, svdcut.extract):
        with pytest.raises(svdcut.UsageError, match="rank 2, 3: one output, several rules"):
            function(pair.base, pair.finetuned, tmp_path / "{k}", rank="2,3")


def test_errors_name_options_as_the_command_line_does(pair, tmp_path):
    out = tmp_path / "out"
    svdcut.truncate(pair.base, pair.finetuned, out, rank=2)
    with pytest.raises(svdcut.OutputExistsError) as caught:
        svdcut.truncate(pair.base, pair.finetuned, out, rank=2)
    assert str(caught.value).endswith("--force replaces it.")
    with pytest.raises(svdcut.UsageError, match="--base BASE --ft FT"):
        svdcut.verify(out, base=pair.base)


def test_options_are_frozen_and_survive_the_manifest():
    options = Options(
        rank_for=["*a*=4", "*b*=energy=0.5"], keep="random", seed=3, map={"a.": "b."}, dtype="bf16"
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.seed = 4
    document = json.loads(json.dumps(options.to_json(parse_rule("energy=0.9"))))
    assert document["rank"] == "energy=0.9"
    assert document["dtype"] == "bfloat16"
    assert Options.from_json(document) == options
    assert dataclasses.replace(options, seed=4).seed == 4
    with pytest.raises(svdcut.UsageError, match="--keep 'middle': expected one of top"):
        Options.from_json(document | {"keep": "middle"})


def test_results_are_short_in_a_notebook(real_pair, tmp_path):
    sides = (real_pair.base, real_pair.finetuned)
    manifest = svdcut.truncate(*sides, tmp_path / "out", rank=4)
    found = svdcut.spectrum(*sides, only="*layer.[01].*")
    shown = [manifest, manifest.totals, found, found.tensors, svdcut.verify(tmp_path / "out")]
    assert all(len(repr(result)) < 7000 for result in shown)
    assert len(repr(manifest)) < 2000
    assert "tensors=<201 items>" in repr(manifest)
    assert "singular_values=<256 items>" in repr(found.matrices[0])
