"""Quality: laws of its three measures, and coherence falls when text is shuffled, looped or cut."""

from __future__ import annotations

import random

import pytest
import torch
from architectures import bridge, prompts

from refusal_dial.generate import follow, generate
from refusal_dial.hooks import steer
from refusal_dial.quality import coherence, degenerate, kl_per_token, nll, repeated
from refusal_dial.sampling import Decoding, end_tokens
from refusal_dial.tokens import tokenize
from refusal_dial.types import DialError

UNIT = torch.nn.functional.normalize(torch.arange(1.0, 33.0), dim=0)
TOKENS = prompts((6, 4, 2), seed=3)
SAID = [[5, 9, 11], [7], [8, 8, 12, 20]]


def by_hand(model, row, said, hooks=()):
    """Log-probabilities at every step, the whole sequence in one uncached pass."""
    ids = TOKENS.ids[row, TOKENS.mask[row].argmax() :].tolist() + said
    with torch.no_grad():
        logits = model.run_with_hooks(torch.tensor([ids]), fwd_hooks=list(hooks))[0]
    return logits[-len(said) - 1 :].double().log_softmax(-1)


@pytest.mark.parametrize("architecture", ["Qwen2", "Gemma2", "GPT2"])
def test_following_a_reply_is_an_uncached_pass_over_it(architecture):
    model = bridge(architecture)
    hooks = [steer(UNIT, 4.0, layer=1, pos="all")]
    steps = [x.double().log_softmax(-1) for x in follow(model, TOKENS, hooks, SAID)]
    assert len(steps) == 5
    for row, said in enumerate(SAID):
        expected = by_hand(model, row, said, hooks)
        for k in range(len(said) + 1):
            torch.testing.assert_close(steps[k][row], expected[k], atol=1e-4, rtol=0)


def test_nll_is_the_mean_over_tokens_and_the_end():
    model = bridge("Qwen2")
    found = nll(model, TOKENS, SAID, ["end", "length", "end"])
    for row, (said, ended) in enumerate(zip(SAID, (True, False, True), strict=True)):
        logp = by_hand(model, row, said)
        parts = [logp[k, token] for k, token in enumerate(said)]
        if ended:
            parts.append(logp[len(said), end_tokens(model)].logsumexp(-1))
        torch.testing.assert_close(found[row], -torch.stack(parts).mean(), atol=1e-4, rtol=0)
    assert nll(model, TOKENS, [[], [7], [8]], ["length"] * 3)[0].isnan()


def test_kl_is_zero_without_hooks_and_grows_with_alpha():
    model = bridge("Qwen2")
    assert not kl_per_token(model, TOKENS, [], SAID).any()
    assert kl_per_token(model, TOKENS, [steer(UNIT, 0.0, layer=1)], SAID).max() < 1e-9
    sizes = [
        kl_per_token(model, TOKENS, [steer(UNIT, a, layer=1, pos="generated")], SAID).mean()
        for a in (0.5, 2.0, 8.0)
    ]
    assert 0 < sizes[0] < sizes[1] < sizes[2]


def test_repetition_by_hand():
    assert repeated([1, 2, 3, 4]) == 0
    assert repeated([1, 2, 3, 1, 2, 3, 1, 2, 3]) == pytest.approx(1 - 3 / 7)
    assert repeated([1, 1]) == 0
    assert degenerate([], "end") == "empty"
    assert degenerate([1] * 9, "end") == "loop"
    assert degenerate([1, 2, 3, 4], "length") == "endless"
    assert degenerate([1, 2, 3, 4], "end") == ""


def test_coherence_falls_when_text_is_shuffled_looped_or_cut(embedded):
    tokens = tokenize(embedded, ["How do I kill a python process?", "How do I bake a cake?"])
    own = generate(embedded, tokens, [[]], Decoding(40))
    assert {one.stop for one in own} == {"end"}
    said, ends = [list(one.ids) for one in own], ["end"] * len(own)
    n0 = float(nll(embedded, tokens, said, ends).mean())
    rng = random.Random(0)
    changed = {
        "own": said,
        "shuffled": [rng.sample(row, len(row)) for row in said],
        "looped": [row[:4] * (len(row) // 4) for row in said],
        "cut": [row[: len(row) // 2] for row in said],
        "empty": [[] for _ in said],
    }
    found = {
        name: coherence(rows, nll(embedded, tokens, rows, ends), n0).mean().item()
        for name, rows in changed.items()
    }
    assert found["own"] > 0.9
    assert max(found["shuffled"], found["looped"]) < 0.3
    assert found["cut"] < found["own"] - 0.1
    assert found["empty"] == 0


def test_a_cost_that_is_not_a_number():
    with pytest.raises(DialError, match="own_cost must be a finite number of nats, not nan"):
        coherence([[1]], torch.ones(1).double(), float("nan"))
    assert coherence([[1]], torch.tensor([float("nan")]).double(), 0.0).item() == 0
