"""Pairs aligned by role: hand cases, and what holds for any two rows of token ids."""

from __future__ import annotations

import numpy as np
import pairs_case
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from refusal_dial.patching.pairs import far_apart, match, template_lengths, token_labels, unpadded
from refusal_dial.patching.roles import align, common_prefix, role_order
from refusal_dial.tokens import tokenize
from refusal_dial.types import DialError

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


def test_a_chat_template_is_found_at_both_ends(qwen):
    text = qwen.tokenizer
    opening, closing = template_lengths(qwen)
    row = unpadded(tokenize(qwen, ["hello"]))[0]
    assert text.decode(row[:opening]) == "<|im_start|>user\n"
    assert text.decode(row[-closing:]) == "<|im_end|>\n<|im_start|>assistant\n"
    longer = template_lengths(qwen, "Be kind.")
    assert longer[0] > opening
    assert longer[1] == closing
    assert template_lengths(qwen, chat=False) == (0, 0)


def test_pairs_are_matched_whatever_stands_between_them(qwen):
    some = pairs_case.prompts()
    shuffled = [some[i] for i in np.random.default_rng(0).permutation(len(some))]
    tokens = tokenize(qwen, [prompt.text for prompt in shuffled])
    found = {pair.id: pair for pair in match(qwen, shuffled, tokens).items}
    for pair in pairs_case.pairs(qwen).items:
        assert found[pair.id].roles == pair.roles
        assert found[pair.id].clean.subset == "HARMFUL"


def test_rows_follow_their_pairs(qwen):
    pairs = pairs_case.pairs(qwen)
    some = pairs.chosen([4, 1])
    assert [pair.id for pair in some.items] == ["pair4", "pair1"]
    for pair, clean, corrupted in zip(
        some.items, unpadded(some.clean), unpadded(some.corrupted), strict=True
    ):
        assert qwen.tokenizer.decode(clean).count(pair.clean.text) == 1
        assert qwen.tokenizer.decode(corrupted).count(pair.corrupted.text) == 1
        assert pair.lengths == (len(clean), len(corrupted))
        assert common_prefix(clean, corrupted) >= 3


def test_end_roles_count_on_beyond_the_template(qwen):
    pair = pairs_case.pairs(qwen).items[1]
    closing = template_lengths(qwen)[1]
    assert f"end-{closing + 1}" not in pair.roles
    assert pair.where(f"end-{closing + 1}") == (-closing - 1, -closing - 1)
    assert pair.where("phrase-99") is None
    assert pair.where(f"end-{min(pair.lengths) + 1}") is None


def test_tokens_that_all_pairs_share_label_their_role(qwen):
    pairs = pairs_case.pairs(qwen)
    labels = token_labels(pairs, [*pairs.roles(), "end-99"], qwen.tokenizer)
    assert labels["end-1"] == "\\n"
    assert labels["start+1"] == "<|im_start|>"
    assert labels["before-1"] == " "
    assert labels["phrase-1"] == ""
    assert labels["end-99"] == ""
    assert all("\n" not in label for label in labels.values())


def test_prompts_without_pairs(qwen):
    texts = tiny.sentences(2)
    loose = [pairs_case.Prompt(str(i), text, "EDGE") for i, text in enumerate(texts)]
    with pytest.raises(DialError, match="no matched pairs, and patching needs them"):
        match(qwen, loose, tokenize(qwen, texts))


def test_pairs_too_close_tell_nothing():
    clean, corrupted = [5.0, 1.0, -3.0, 2.0], [1.0, 0.8, 1.0, 2.0]
    assert far_apart(clean, corrupted, 1.0) == [0, 2]
    assert far_apart(clean, corrupted, 0) == [0, 1, 2]  # equal scores are never far apart
    assert far_apart(clean, corrupted, 4) == [0, 2]
    drawn = far_apart(clean, corrupted, 0, n=2, seed=3)
    assert drawn == sorted(drawn)
    assert drawn == far_apart(clean, corrupted, 0, n=2, seed=3)
    assert far_apart(clean, corrupted, 0, n=9) == [0, 1, 2]
    with pytest.raises(DialError, match=r"none of 4 pairs .* 4.5 or more .* difference is 4\)"):
        far_apart(clean, corrupted, 4.5)
