"""The Python API: keywords, their values, what errors call them, and what results look like."""

from __future__ import annotations

import inspect

import pytest

import svdcut
from checkpoints import toy
from svdcut.api.keywords import in_python

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
    """Before anything is looked at, with the nearest one that there is."""
    with pytest.raises(TypeError, match=r"'devise'; did you mean 'device'\?"):
        function("nowhere", "nowhere", "nowhere", devise="cpu")


def test_an_option_of_another_function_is_refused(pair, tmp_path):
    with pytest.raises(TypeError, match=r"truncate\(\) got an unexpected keyword argument 'drop'"):
        svdcut.truncate(pair.base, pair.finetuned, tmp_path / "out", rank=2, drop=["*"])


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_a_signature_names_every_option(function):
    """It is what a notebook shows and completes."""
    parameters = inspect.signature(function).parameters
    assert {"device", "quiet", "observe"} <= parameters.keys()
    assert not any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def test_one_pattern_is_a_list_of_one(pair):
    sides = (pair.base, pair.finetuned)
    one = svdcut.spectrum(*sides, skip="*embed*", only="*weight")
    several = svdcut.spectrum(*sides, skip=["*embed*"], only=["*weight"])
    assert one.tensors.keys() == several.tensors.keys()
    assert not any("embed" in name for name in one.tensors)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"only": [1]}, r"only \[1\]: expected a list of texts"),
        ({"only": {"*": 1}}, "expected a list of texts"),
        ({"map": "a=b"}, "map='a=b': expected a mapping"),
        ({"device": "tpu"}, "device='tpu': expected auto"),
        ({"only": "*nothing*"}, r"only='\*nothing\*' matches no tensor"),
        ({"top": 0}, "top=0: expected at least 1"),
    ],
)
def test_values_that_cannot_be_meant(pair, options, said):
    with pytest.raises(svdcut.UsageError, match=said):
        svdcut.spectrum(pair.base, pair.finetuned, **options)


def test_ranks_are_numbers_too(pair, tmp_path):
    outs = {2: tmp_path / "2", 3: tmp_path / "3"}
    manifests = svdcut.truncate_many(pair.base, pair.finetuned, outs)
    assert [manifest.options["rank"] for manifest in manifests] == ["2", "3"]


def test_errors_speak_python(pair, tmp_path):
    out = tmp_path / "out"
    svdcut.truncate(pair.base, pair.finetuned, out, rank=2)
    with pytest.raises(svdcut.OutputExistsError) as caught:
        svdcut.truncate(pair.base, pair.finetuned, out, rank=2)
    assert str(caught.value).endswith("force=True replaces it.")
    with pytest.raises(svdcut.UsageError, match="base=BASE finetuned=FT"):
        svdcut.verify(out, base=pair.base)


@pytest.mark.parametrize(
    ("command_line", "python"),
    [
        ("name it: --map OLD=NEW renames base's.", "name it: map={'OLD': 'NEW'} renames base's."),
        ("compute elsewhere: --device cpu.", "compute elsewhere: device='cpu'."),
        ("Repeat this with --restart.", "Repeat this with restart=True."),
        ("not tried: --controls bottom.", "not tried: controls='bottom'."),
        ("--max-shard-size '5': expected a size", "max_shard_size='5': expected a size"),
        ("Take smaller ones: --batch-size 8", "Take smaller ones: batch_size=8"),
        ("Leave out --group and its kin", "Leave out group and its kin"),
        ("As --labels 0=negative,1=positive.", "As labels 0=negative,1=positive."),
        ("with --output_path {out}, --revision x", "with --output_path {out}, --revision x"),
    ],
)
def test_options_in_python(command_line, python):
    assert in_python(command_line) == python


def test_results_are_short_in_a_notebook(real_pair, tmp_path):
    sides = (real_pair.base, real_pair.finetuned)
    manifest = svdcut.truncate(*sides, tmp_path / "out", rank=4)
    found = svdcut.spectrum(*sides, only="*layer.[01].*")
    shown = [manifest, manifest.totals, found, found.tensors, svdcut.verify(tmp_path / "out")]
    assert all(len(repr(result)) < 7000 for result in shown)
    assert len(repr(manifest)) < 2000
    assert "tensors=<201 items>" in repr(manifest)
    assert "singular_values=<256 items>" in repr(found.matrices[0])
