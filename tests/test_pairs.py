"""Matched pairs: found, aligned whatever stands between them, and left out where too close."""

from __future__ import annotations

import numpy as np
import pairs_case
import pytest
import tiny

from refusal_dial.common import DialError
from refusal_dial.model.tokens import tokenize
from refusal_dial.studies.pairs import (
    common_prefix,
    far_apart,
    match,
    template_lengths,
    token_labels,
    unpadded,
)


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
