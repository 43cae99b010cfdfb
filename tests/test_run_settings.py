"""Settings: an error shows the one that differs, and the place where two values part."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refusal_dial.run.folder import LONGEST_SETTING, content, first_difference, key_of

LEAF = st.none() | st.booleans() | st.integers() | st.text(max_size=200)
DATA = st.recursive(
    LEAF,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(one=DATA, other=DATA)
def test_what_differs_is_seen_to_differ(one, other):
    name, a, b = first_difference("x", one, other)
    assert name.startswith("x")
    assert max(len(a), len(b)) <= LONGEST_SETTING + 1
    if json.dumps(one) != json.dumps(other) and json.dumps(one, sort_keys=True) != json.dumps(
        other, sort_keys=True
    ):
        assert a != b


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (1, 2, ("x", "1", "2")),
        ({"a": {"b": 1}, "c": 0}, {"a": {"b": 2}, "c": 0}, ("x.a.b", "1", "2")),
        ({"a": 1}, {}, ("x.a", "1", "null")),
        ({"a": None}, {}, ("x", '{"a": null}', "{}")),
        ("y" * 70 + "1", "y" * 70 + "2", ("x", "…" + "y" * 20 + '1"', "…" + "y" * 20 + '2"')),
        ("y" * 70, "y" * 75, ("x", "…" + "y" * 20 + '"', "…" + "y" * 25 + '"')),
        ("1" + "y" * 70, "2", ("x", '"1' + "y" * 57 + "…", '"2"')),
    ],
)
def test_the_innermost_setting_and_the_place_are_shown(one, other, message):
    assert first_difference("x", one, other) == message


def test_where_a_hash_says_what_was_read_its_place_makes_no_other_run():
    here = {"data": {"source": "a", "hash": "1"}, "prompts": "a", "seed": 0}
    there = {"data": {"source": "b", "hash": "1"}, "prompts": "b", "seed": 0}
    other = {"data": {"source": "a", "hash": "2"}, "prompts": "a", "seed": 0}
    assert content(here) == content(there) == {"data": {"hash": "1"}, "seed": 0}
    assert key_of(here) == key_of(there) != key_of(other)
