"""Positions aligned by role: hand cases, and what holds for any two rows of token ids."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refusal_dial.common import DialError
from refusal_dial.studies.pairs import align, role_order

ids = st.lists(st.integers(0, 3), max_size=8)


def named(clean: str, corrupted: str, opening: int = 0, closing: int = 0) -> dict[str, str]:
    """Every role with the letters it names in the two rows."""
    roles = align([ord(c) for c in clean], [ord(c) for c in corrupted], opening, closing)
    return {role: clean[at[0]] + corrupted[at[1]] for role, at in roles.items()}


@pytest.mark.parametrize(
    ("clean", "corrupted", "expected"),
    [
        ("abXcd", "abYcd", {"before-2": "aa", "before-1": "bb", "phrase-1": "XY", "after+1": "cc"}),
        ("aXYb", "aZb", {"before-1": "aa", "phrase-1": "YZ", "after+1": "bb"}),
        ("aZb", "aXYb", {"before-1": "aa", "phrase-1": "ZY", "after+1": "bb"}),
        ("Xab", "Yab", {"phrase-1": "XY", "after+1": "aa", "after+2": "bb"}),
        ("abX", "abY", {"before-2": "aa", "before-1": "bb", "phrase-1": "XY"}),
        ("XY", "ZW", {"phrase-2": "XZ", "phrase-1": "YW"}),
        ("aXb", "ab", {"before-1": "aa", "after+1": "bb"}),
        ("aaa", "aa", {"before-2": "aa", "before-1": "aa"}),
        ("ab", "ab", {"before-2": "aa", "before-1": "bb"}),
    ],
    ids=["middle", "longer", "shorter", "first", "last", "whole", "left out", "repeated", "same"],
)
def test_hand_cases(clean, corrupted, expected):
    found = named(clean, corrupted)
    assert expected.items() <= found.items()
    rest = {role for role in found if role not in expected}
    assert rest <= {"after+2"}  # "abXcd" has a d after the c
    assert list(found) == sorted(found, key=role_order)


def test_template_tokens_are_counted_from_the_ends_of_the_prompt():
    found = named("<u>abXc</u>!", "<u>abYYc</u>!", opening=3, closing=5)
    assert {role: found[role] for role in ("start+1", "start+2", "start+3")} == {
        "start+1": "<<",
        "start+2": "uu",
        "start+3": ">>",
    }
    assert found["before-2"] == "aa"
    assert found["after+1"] == "cc"
    assert found["end-1"] == "!!"
    assert found["end-5"] == "<<"
    assert "end-6" not in found
    assert "phrase-2" not in found


def test_identical_prompts_keep_their_template():
    found = named("<ab>", "<ab>", opening=1, closing=1)
    assert found == {"start+1": "<<", "before-2": "aa", "before-1": "bb", "end-1": ">>"}


@given(ids, ids, ids, ids, st.integers(0, 3), st.integers(0, 3))
def test_roles_of_any_two_rows(begin, first, second, end, opening, closing):
    a, b = [*begin, *first, *end], [*begin, *second, *end]
    roles = align(a, b, opening, closing)
    for side, row in enumerate((a, b)):
        at = [where[side] for where in roles.values()]
        assert len(set(at)) == len(at)
        assert at == sorted(at)
        assert all(-len(row) <= p < 0 for p in at)
        if len(a) == len(b):
            assert at == list(range(-len(row), 0))
    for role, (i, j) in roles.items():
        if not role.startswith("phrase"):
            assert a[i] == b[j]
    differ = {role for role, (i, j) in roles.items() if a[i] != b[j]}
    assert all(role.startswith("phrase") for role in differ)
    assert {r: (j, i) for r, (i, j) in roles.items()} == align(b, a, opening, closing)


@pytest.mark.parametrize("role", ["end1", "last-1", "", "phrase"])
def test_what_is_no_role(role):
    with pytest.raises(DialError, match="expected start\\+1, before-1, phrase-1"):
        role_order(role)
