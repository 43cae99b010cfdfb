"""Likelihood: equal to uncached passes by hand; no distance without hooks, more with more."""

from __future__ import annotations

import pytest
import torch
from architectures import bridge, prompts

from refusal_dial.generate import likelihood
from refusal_dial.generate.decode import end_tokens, follow
from refusal_dial.generate.likelihood import kl_per_token, nll
from refusal_dial.hooks import steer

UNIT = torch.nn.functional.normalize(torch.arange(1.0, 33.0), dim=0)
TOKENS = prompts((6, 4, 2), seed=3)
COMPLETIONS = [[5, 9, 11], [7], [8, 8, 12, 20]]


def by_hand(model, row, completion, hooks=()):
    """Log-probabilities at every step, the whole sequence in one uncached pass."""
    ids = TOKENS.ids[row, TOKENS.mask[row].argmax() :].tolist() + completion
    with torch.no_grad():
        logits = model.run_with_hooks(torch.tensor([ids]), fwd_hooks=list(hooks))[0]
    return logits[-len(completion) - 1 :].double().log_softmax(-1)


@pytest.mark.parametrize("architecture", ["Qwen2", "Gemma2", "GPT2"])
def test_following_a_reply_is_an_uncached_pass_over_it(architecture):
    model = bridge(architecture)
    hooks = [steer(UNIT, 4.0, layer=1, pos="all")]
    steps = [x.double().log_softmax(-1) for x in follow(model, TOKENS, hooks, COMPLETIONS)]
    assert len(steps) == 5
    for row, completion in enumerate(COMPLETIONS):
        expected = by_hand(model, row, completion, hooks)
        for k in range(len(completion) + 1):
            torch.testing.assert_close(steps[k][row], expected[k], atol=1e-4, rtol=0)


def test_nll_is_the_mean_over_tokens_and_the_end():
    model = bridge("Qwen2")
    found = nll(model, TOKENS, COMPLETIONS, ["end", "length", "end"])
    for row, (completion, ended) in enumerate(zip(COMPLETIONS, (True, False, True), strict=True)):
        logp = by_hand(model, row, completion)
        parts = [logp[k, token] for k, token in enumerate(completion)]
        if ended:
            parts.append(logp[len(completion), end_tokens(model)].logsumexp(-1))
        torch.testing.assert_close(found[row], -torch.stack(parts).mean(), atol=1e-4, rtol=0)
    assert nll(model, TOKENS, [[], [7], [8]], ["length"] * 3)[0].isnan()


def test_kl_is_zero_without_hooks_and_grows_with_alpha():
    model = bridge("Qwen2")
    alphas = (0.0, 0.5, 2.0, 8.0)
    grid = [[], *([steer(UNIT, a, layer=1, pos="generated")] for a in alphas)]
    none, zero, *sizes = kl_per_token(model, TOKENS, grid, COMPLETIONS)
    assert not none.any()
    assert zero.max() < 1e-9
    assert 0 < sizes[0].mean() < sizes[1].mean() < sizes[2].mean()


@pytest.mark.parametrize("pos", [-1, -2, "all", "prompt", "last_prompt", "generated", (-1, -2)])
@pytest.mark.parametrize("logits", [likelihood.LOGITS, 1])
def test_kl_is_that_of_uncached_steps_wherever_a_hook_acts(pos, logits, monkeypatch):
    monkeypatch.setattr(likelihood, "LOGITS", logits)
    model = bridge("Qwen2")
    each = torch.stack([UNIT, -UNIT, UNIT.roll(1)])
    hooks = [steer(each, torch.tensor([4.0, 1.0, 2.0]), layer=1, pos=pos)]
    found = kl_per_token(model, TOKENS, [hooks, []], COMPLETIONS)
    steps = zip(
        follow(model, TOKENS, [], COMPLETIONS),
        follow(model, TOKENS, hooks, COMPLETIONS),
        strict=True,
    )
    kl = []
    for plain, steered in steps:
        p, q = (x.double().log_softmax(-1) for x in (plain, steered))
        kl.append((p.exp() * (p - q)).sum(-1))
    for row, completion in enumerate(COMPLETIONS):
        expected = torch.stack(kl)[: len(completion) + 1, row].mean()
        torch.testing.assert_close(found[0, row], expected, atol=1e-6, rtol=1e-4)
    assert found[0].min() > 0
    assert not found[1].any()


def test_batches_bounded_by_memory_give_the_same(monkeypatch):
    model, stops = bridge("Gemma2"), ["end", "length", "end"]
    whole = nll(model, TOKENS, COMPLETIONS, stops)
    monkeypatch.setattr(likelihood, "LOGITS", 1)
    torch.testing.assert_close(nll(model, TOKENS, COMPLETIONS, stops), whole, atol=1e-5, rtol=0)
