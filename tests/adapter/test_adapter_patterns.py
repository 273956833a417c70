"""Expressions of rank_pattern and alpha_pattern, as Python's `re` has them, in linear time."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from svdcut.adapter.peft_config import Pattern

ANCHORS = st.sampled_from(["^", "$"])
ATOMS = st.sampled_from(
    ["a", "b", ".", r"\.", "[ab]", "[^a]", r"\d", "1", "(a|b)", "(?:ab|b)", "(|a)"]
)
QUANTIFIERS = st.sampled_from(
    ["", "", "", "*", "+", "?", "*?", "{2}", "{1,2}", "{0,1}", "{2,}", "{0}", "{0,}"]
)
EXPRESSIONS = st.recursive(
    st.lists(ANCHORS | st.tuples(ATOMS, QUANTIFIERS).map("".join), max_size=3).map("".join),
    lambda inner: (
        st.tuples(inner, QUANTIFIERS, inner).map(lambda t: f"({t[0]}){t[1]}{t[2]}")
        | st.tuples(inner, inner).map("|".join)
    ),
    max_leaves=4,
)


@given(EXPRESSIONS, st.text("ab1.", max_size=8))
@example(r".*\.gate_up_proj", "model.layers.0.mlp.experts.gate_up_proj")
@example("^model.decoder.layers.0.encoder_attn.k_proj", "xmodel.decoder")
@example(r"layers\.(1?[0-9])\..*q_proj", "model.layers.11.self_attn.q_proj")
def test_it_matches_as_re_does(text, name):
    """As peft.utils.other.get_pattern_key has it."""
    expected = re.match(rf"(.*\.)?({text})$", name) is not None
    assert Pattern(text).matches(name) == expected


@pytest.mark.parametrize("text", ["(((a*)*)*)*b", "(a|aa)+b", "(.*)*(.*)*(.*)*x", ".*.*.*.*.*x"])
def test_it_does_not_hang(text):
    start = time.perf_counter()
    assert not Pattern(text).matches("a" * 2000)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    "text",
    [
        *(r"(a)\1", "(?=a)b", "(?<!a)b", "a++", "(a", "[a", "*", "a{2,1}", r"a\Z", "(?i)a"),
        *("a{5000}", "((a{100}){100}){100}", "(" * 2000 + ")" * 2000, "a{,2}", "[[]"),
    ],
)
def test_what_is_not_known_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        Pattern(text)


@given(st.text(r"ab.\*+?()[]{}|^$-,0", max_size=12))
def test_any_text_is_an_expression_or_refused(text):
    try:
        pattern = Pattern(text)
    except ValueError:
        return
    expected = re.match(rf"(.*\.)?({text})$", "ab.a0") is not None
    assert pattern.matches("ab.a0") == expected
