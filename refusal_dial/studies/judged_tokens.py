"""Refusal tokens from what the model itself replies, and whether the score reads this model.

    p(v) = mean probability of first token v over prompts whose reply was judged a refusal
    q(v) = the same over prompts whose reply was judged an answer
    AUC  = P(score of a refused prompt > score of an answered one), ties counted half

Some models open refusals and answers with the same tokens ("I'm sorry ...", "I'm here to help"), so
that HARMFUL against BENIGN prompts tell no refusal token. Then the model is asked: it replies to
some prompts of every subset, greedily, and a judge reads the replies. Half of the prompts choose
the tokens: those that open a judged refusal and have p(v) >= LEAST and p(v) > q(v). The other half
give the AUC of the score on these tokens, so that a score that reads the model badly is known
before a long run. Not shown: that a reply which is steered is read as well as one that is not.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.common import DialError, log
from refusal_dial.data.prompts import Prompt, some_of_each
from refusal_dial.generate.decode import Decoding
from refusal_dial.generate.kept import unsteered_replies
from refusal_dial.model.tokens import Tokens
from refusal_dial.scoring.judges import BUILTIN, Judge, judge_all
from refusal_dial.scoring.logits import (
    Logits,
    NotCalibratedError,
    RefusalTokens,
    refusal_score,
    refusal_tokens,
)
from refusal_dial.stats.intervals import auc

ASKED = 64  # prompts of each subset that the model replies to, at most
REPLY_TOKENS = 32
REPLIES_A_BATCH = 64
LEAST = 0.02
FEWEST = 3  # judged refusals, and answers, in each half
READS_WELL = 0.7


@dataclass(frozen=True)
class JudgedTokens:
    """The tokens, and the AUC of their score on `refused` judged refusals and `answered` answers
    that had no part in the choice."""

    tokens: RefusalTokens
    auc: float
    refused: int
    answered: int

    @property
    def reads_well(self) -> bool:
        return self.auc >= READS_WELL

    @property
    def about(self) -> str:
        """The verdict on the score in one line."""
        verdict = "reads this model" if self.reads_well else "reads this model badly"
        found = (
            f"the score {verdict}: AUC {self.auc:.2f} of the score against judged replies, on "
            f"{self.refused} refusals and {self.answered} answers that chose no token"
        )
        if self.reads_well:
            return found
        return (
            f"{found}; trust studies whose replies are judged instead "
            "(experiments/eval_direction_on_xstest.py, compare_prompting_steering.py)"
        )


@dataclass(frozen=True, eq=False)
class JudgedReplies:
    """What the model replied to some prompts (`rows` of them all), unsteered: whether the judge
    calls it a refusal or an answer, and its first token, -1 for an empty reply."""

    judge: str
    rows: list[int]
    refused: NDArray[np.bool_]
    answered: NDArray[np.bool_]
    firsts: NDArray[np.int64]


def judged_replies(
    model: TransformerBridge, prompts: Sequence[Prompt], tokens: Tokens, judge: Judge = BUILTIN
) -> JudgedReplies:
    """Greedy replies to at most `ASKED` prompts of each subset, judged."""
    place = {prompt.id: row for row, prompt in enumerate(prompts)}
    rows = [place[prompt.id] for prompt in some_of_each(prompts, ASKED, seed=0)]
    labels, firsts = map(
        np.array, _judged(model, [prompts[row] for row in rows], tokens.chosen(rows), judge)
    )
    refused = np.isin(labels, ("full_refusal", "partial_refusal"))
    return JudgedReplies(judge.name, rows, refused, labels == "full_compliance", firsts)


def threshold_of(replies: JudgedReplies, scores: NDArray[np.float64]) -> float:
    """The score at which half of the judged replies refuse, by a logistic regression of refusal on
    the score of each prompt. Raises `DialError` where there are too few of either, or a higher
    score does not go with more refusals."""
    n_refused, n_answered = int(replies.refused.sum()), int(replies.answered.sum())
    if min(n_refused, n_answered) < FEWEST:
        raise DialError(
            f"--threshold auto: of {len(replies.rows)} replies the {replies.judge} judge calls "
            f"{n_refused} refusals and {n_answered} answers, and {FEWEST} of both are needed: give "
            "a number"
        )
    known = replies.refused | replies.answered
    mine = np.asarray(scores)[replies.rows][known]
    fit = LogisticRegression(C=1e4).fit(mine[:, None], replies.refused[known])
    slope, constant = float(fit.coef_[0, 0]), float(fit.intercept_[0])
    if not slope > 0:
        raise DialError(
            "--threshold auto: judged replies do not refuse more where the score is higher "
            f"(slope {slope:.2g}), so no score stands for half of them: give a number"
        )
    log.info("half of the judged replies refuse at a score of %.2f", -constant / slope)
    return -constant / slope


def tokens_for(
    wanted: str,
    model: TransformerBridge,
    prompts: Sequence[Prompt],
    tokens: Tokens,
    logits: Logits,
    replies: JudgedReplies | None = None,
) -> RefusalTokens:
    """The tokens that `--refusal-tokens` means for this model.

    `auto` asks the model for replies where no tokens can be calibrated from its logits; `replies`
    always does, unless there are some. Raises `DialError` where none are found.
    """
    if wanted != "replies":
        try:
            return refusal_tokens(wanted, model.tokenizer, prompts, logits)
        except NotCalibratedError:
            if wanted != "auto":
                raise
            log.info(
                "HARMFUL and BENIGN prompts tell no refusal token: the model is asked to reply"
            )
    judged = judged_tokens(model, prompts, tokens, logits, replies=replies)
    log.log(logging.INFO if judged.reads_well else logging.WARNING, "%s", judged.about)
    return judged.tokens


def judged_tokens(
    model: TransformerBridge,
    prompts: Sequence[Prompt],
    tokens: Tokens,
    logits: Logits,
    judge: Judge = BUILTIN,
    replies: JudgedReplies | None = None,
) -> JudgedTokens:
    """Tokens that open judged refusals more than answers, and how well their score reads the model.

    `logits` are those at the last token of each prompt. Raises `DialError` where a half of the
    prompts has under `FEWEST` refusals or answers, or no token opens refusals more than answers.
    """
    # 1. What the model replies to some prompts, every other one to choose with.
    replies = judged_replies(model, prompts, tokens, judge) if replies is None else replies
    rows, refused, answered = replies.rows, replies.refused, replies.answered
    choosing = np.arange(len(rows)) % 2 == 0
    for half in (choosing, ~choosing):
        if min((refused & half).sum(), (answered & half).sum()) < FEWEST:
            raise DialError(
                f"no refusal tokens could be chosen: of {len(rows)} replies of this model the "
                f"{replies.judge} judge calls {refused.sum()} refusals and {answered.sum()} "
                "answers, "
                f"and each half of the prompts takes {FEWEST} of both; give --refusal-tokens, or "
                "use a study whose replies are judged"
            )
    # 2. The tokens: those of the choosing half's refusals, and of its answers.
    at = logits[rows]
    p, q = (at[group & choosing].double().softmax(-1).mean(0) for group in (refused, answered))
    refusal = _openings(p, q, replies.firsts[refused & choosing])
    compliance = _openings(q, p, replies.firsts[answered & choosing])
    if not refusal:
        raise DialError(
            "no refusal tokens could be chosen: this model opens judged refusals and answers with "
            "the same tokens; give --refusal-tokens, or use a study whose replies are judged"
        )
    # 3. How well their score tells the other half's refusals from its answers.
    scores = refusal_score(at, refusal).numpy()
    value = auc(scores[refused & ~choosing], scores[answered & ~choosing])
    read = (tuple(str(model.tokenizer.decode([i])) for i in ids) for ids in (refusal, compliance))
    refusal_texts, compliance_texts = read
    source = f"judged replies, AUC {value:.2f}"
    return JudgedTokens(
        RefusalTokens(refusal, refusal_texts, source, compliance, compliance_texts),
        value,
        int((refused & ~choosing).sum()),
        int((answered & ~choosing).sum()),
    )


def _openings(
    mine: Float[Tensor, " d_vocab"],
    other: Float[Tensor, " d_vocab"],
    firsts: NDArray[np.int64],
) -> tuple[int, ...]:
    """First tokens of these replies that are likelier before them than before the others, the
    likeliest first."""
    ids = [int(i) for i in np.unique(firsts[firsts >= 0])]
    kept = [i for i in ids if mine[i] >= LEAST and mine[i] > other[i]]
    return tuple(sorted(kept, key=lambda i: -float(mine[i])))


def _judged(
    model: TransformerBridge, prompts: Sequence[Prompt], tokens: Tokens, judge: Judge
) -> tuple[list[str], list[int]]:
    """The label and the first token of a greedy reply to each prompt; -1 for an empty reply."""
    decoding = Decoding(max_new_tokens=REPLY_TOKENS)
    completions = unsteered_replies(model, tokens, decoding, REPLIES_A_BATCH)
    judged = judge_all(judge, [one.text for one in completions], [one.text for one in prompts])
    return [one.label for one in judged], [one.ids[0] if one.ids else -1 for one in completions]
