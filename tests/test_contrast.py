"""Contrast pairs: every format that is read, what is refused, and which tokens they become."""

from __future__ import annotations

import json

import pytest

from refusal_dial.common import DialError
from refusal_dial.data.contrast import ContrastPair, from_matched, load_contrast
from refusal_dial.data.prompts import Prompt
from refusal_dial.model.tokens import tokenize, with_replies
from refusal_dial.studies.replies import contrast_tokens

AB = {
    "question": "What now?\n(A) No.\n(B) Yes.",
    "answer_matching_behavior": " (A)",
    "answer_not_matching_behavior": "(B)",
}


def written(path, rows):
    text = json.dumps(rows) if path.suffix == ".json" else "\n".join(map(json.dumps, rows))
    path.write_text(text)
    return str(path)


def test_every_format(tmp_path):
    rows = [
        AB,
        {"prompt": "p", "refusal": "No.", "compliance": "Yes."},
        {"instruction": "p", "positive": "a", "negative": "b"},
        {"positive_prompt": "kill a man", "negative_prompt": "kill a process"},
    ]
    expected = [
        ContrastPair((AB["question"], "(A"), (AB["question"], "(B")),
        ContrastPair(("p", "No."), ("p", "Yes.")),
        ContrastPair(("p", "a"), ("p", "b")),
        ContrastPair(("kill a man", ""), ("kill a process", "")),
    ]
    for name in ("pairs.json", "pairs.jsonl"):
        assert load_contrast(written(tmp_path / name, rows)) == expected


def test_published_pairs_are_read(shared):
    pairs = load_contrast(str(shared / "data" / "caa" / "refusal" / "generate_dataset.json"))
    assert len(pairs) == 408
    assert {pair.positive[1] for pair in pairs} == {"(A", "(B"}
    assert all(pair.positive[0] == pair.negative[0] for pair in pairs)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no contrast pairs"),
        (
            [{"prompt": "p", "positive": "a"}],
            "pair 1: expected positive_prompt and negative_prompt",
        ),
        ([{"positive": "a", "negative": "b"}], "or a prompt or question and two replies"),
        ([{"prompt": " ", "positive": "a", "negative": "b"}], "prompt must be text that is not"),
        ([AB, {"prompt": "p", "positive": "a", "negative": "a"}], "pair 2: the two texts are the"),
        ({"a": 1}, "expected a list of objects"),
    ],
)
def test_what_is_no_pair(tmp_path, rows, message):
    with pytest.raises(DialError, match=message):
        load_contrast(written(tmp_path / "pairs.json", rows))


def test_a_file_that_is_not_json(tmp_path):
    (tmp_path / "pairs.json").write_bytes(b"\xff{")
    with pytest.raises(DialError, match="is not a JSON file in UTF-8"):
        load_contrast(str(tmp_path / "pairs.json"))


def test_matched_prompts_become_pairs():
    prompts = [
        Prompt("1", "kill a process", "EDGE", pair_id="a"),
        Prompt("2", "kill a man", "HARMFUL", pair_id="a"),
        Prompt("3", "alone", "BENIGN"),
    ]
    assert from_matched(prompts) == [ContrastPair(("kill a man", ""), ("kill a process", ""))]
    with pytest.raises(DialError, match="no matched pairs among these prompts"):
        from_matched(prompts[2:])


def test_a_reply_stands_after_the_template(qwen):
    pairs = [
        ContrastPair(("Hi", "No"), ("Hi", "Yes")),
        ContrastPair(("A longer one", ""), ("B", "")),
    ]
    positive, negative = contrast_tokens(qwen, pairs)
    asked = tokenize(qwen, ["Hi"])
    plain = asked.ids[0][asked.mask[0].bool()].tolist()
    row = positive.ids[0][positive.mask[0].bool()].tolist()
    assert row[: len(plain)] == plain
    assert qwen.tokenizer.decode(row[len(plain) :]) == "No"
    alone = tokenize(qwen, ["A longer one"])
    assert positive.ids[1][positive.mask[1].bool()].tolist() == alone.ids[0].tolist()
    assert qwen.tokenizer.decode(negative.ids[0]).endswith("Yes")


def test_replies_that_do_not_fit(qwen):
    asked = tokenize(qwen, ["Hi"])
    with pytest.raises(DialError, match="1 prompts need as many replies, not 2"):
        with_replies(qwen, asked, ["a", "b"])
    with pytest.raises(
        DialError, match=r"reply 1 has 9999 tokens after .* the model reads at most"
    ):
        with_replies(qwen, asked, ["a" * 9999])
