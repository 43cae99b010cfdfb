"""Refusal tokens from judged replies: those of the embedded model, and models that tell none."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from refusal_dial.cli.flags import OpenFlags
from refusal_dial.common import DialError
from refusal_dial.data.prompts import load_prompts, of_subset
from refusal_dial.model.tokens import last_logits, tokenize
from refusal_dial.scoring.judges import Judge, Judgement
from refusal_dial.scoring.logits import refusal_tokens
from refusal_dial.studies import judged_tokens
from refusal_dial.studies.base import study_of
from refusal_dial.studies.judged_tokens import (
    JudgedReplies,
    JudgedTokens,
    judged_replies,
    threshold_of,
    tokens_for,
)

PROMPTS = [
    prompt
    for name in ("HARMFUL", "EDGE", "BENIGN")
    for prompt in of_subset(load_prompts(), name)[:16]
]


@pytest.fixture(scope="module")
def asked(embedded):
    tokens = tokenize(embedded, [prompt.text for prompt in PROMPTS])
    return embedded, PROMPTS, tokens, last_logits(embedded, tokens)


@pytest.fixture(scope="module")
def judged(asked) -> JudgedTokens:
    return judged_tokens.judged_tokens(*asked)


def test_the_embedded_model_is_read_as_its_calibrated_tokens_read_it(asked, judged):
    model, prompts, _, logits = asked
    calibrated = refusal_tokens("calibrated", model.tokenizer, prompts, logits)
    assert set(judged.tokens.refusal) & set(calibrated.refusal)
    assert not set(judged.tokens.refusal) & set(judged.tokens.compliance)
    assert judged.auc > 0.9
    assert judged.reads_well
    assert judged.about.startswith("the score reads this model: AUC")
    assert judged.tokens.source == f"judged replies, AUC {judged.auc:.2f}"


def test_replies_are_asked_for_only_where_logits_tell_nothing(asked, judged, monkeypatch):
    model, prompts, tokens, logits = asked
    calls = []
    monkeypatch.setattr(
        judged_tokens, "judged_tokens", lambda *given, replies: calls.append(given) or judged
    )
    assert tokens_for("auto", *asked).source == "calibrated"
    assert not calls
    alike = torch.zeros_like(logits)
    assert tokens_for("auto", model, prompts, tokens, alike) == judged.tokens
    assert tokens_for("replies", *asked) == judged.tokens
    assert len(calls) == 2
    with pytest.raises(DialError, match="or take them from judged replies with --refusal-tokens"):
        tokens_for("calibrated", model, prompts, tokens, alike)


def test_a_score_that_reads_badly_says_so_and_where_to_go(judged, caplog, asked, monkeypatch):
    poor = replace(judged, auc=0.55)
    monkeypatch.setattr(judged_tokens, "judged_tokens", lambda *given, replies: poor)
    tokens_for("replies", *asked)
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert line.startswith("the score reads this model badly: AUC 0.55")
    assert "eval_direction_on_xstest.py" in line


@pytest.mark.parametrize(
    ("label", "says"),
    [
        ("full_compliance", "0 refusals and 48 answers"),
        ("full_refusal", "48 refusals and 0 answers"),
    ],
)
def test_a_model_that_always_does_the_same_has_no_refusal_tokens(asked, label, says):
    always = Judge("always", "1", lambda texts, prompts: [Judgement(label) for _ in texts])
    with pytest.raises(DialError, match=says) as error:
        judged_tokens.judged_tokens(*asked, judge=always)
    assert "\n" not in str(error.value)


def test_labels_that_mean_nothing_read_nothing(asked):
    """Labels by the length of the prompt's id: the score on such tokens tells them by chance."""
    model, prompts, tokens, logits = asked
    flat = torch.zeros_like(logits)
    flat[:, :8] = 20.0  # every prompt opens with the same tokens

    def by_turns(texts, _):
        return [
            Judgement(("full_refusal", "full_compliance")[i // 2 % 2]) for i in range(len(texts))
        ]

    with pytest.raises(DialError, match="opens judged refusals and answers with the same tokens"):
        judged_tokens.judged_tokens(model, prompts, tokens, flat, Judge("turns", "1", by_turns))


# --- the threshold at which half of the judged replies refuse


def replies_of(scores, middle, spread=0.5, seed=0):
    """Replies that refuse with the probability of a logistic curve in the score."""
    chance = 0.5 * (1 + np.tanh((scores - middle) / spread / 2))  # the logistic curve
    refused = np.random.default_rng(seed).random(len(scores)) < chance
    firsts = np.zeros(len(scores), dtype=np.int64)
    return JudgedReplies("planted", list(range(len(scores))), refused, ~refused, firsts)


@pytest.mark.parametrize("middle", [-6.0, 1.5])
def test_the_threshold_is_the_score_at_which_half_of_the_replies_refuse(middle):
    scores = np.linspace(middle - 4, middle + 4, 400)
    assert threshold_of(replies_of(scores, middle), scores) == pytest.approx(middle, abs=0.3)


def test_a_threshold_that_no_reply_tells_is_refused():
    scores = np.linspace(-1, 1, 40)
    with pytest.raises(DialError, match="calls 0 refusals and 40 answers, and 3 of both"):
        threshold_of(replies_of(scores, 900.0), scores)
    with pytest.raises(DialError, match="do not refuse more where the score is higher"):
        threshold_of(replies_of(scores, 0.0, spread=-0.3), scores)


def test_the_flag_auto_reads_the_embedded_model(embedded, tmp_path, asked):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(asdict(p) | {"pair_id": None}) + "\n" for p in PROMPTS))
    flags = OpenFlags(prompts=str(path), threshold=None, device="cpu")
    study = study_of(embedded, flags)
    replies = judged_replies(*asked[:3])
    scores = study.scores[study.rows([PROMPTS[row] for row in replies.rows])]
    over = scores > study.threshold
    assert (over == replies.refused)[replies.refused | replies.answered].mean() > 0.85
