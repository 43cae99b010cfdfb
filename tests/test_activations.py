"""What is collected is what TransformerLens caches, whatever the batch size and padding."""

from __future__ import annotations

import pytest
import tiny
import torch
from architectures import bridge, fresh, prompts

from refusal_dial.common import DialError
from refusal_dial.hooks import ablate
from refusal_dial.model.activations import (
    LastLogits,
    collect,
    collect_pooled,
    collect_positions,
    fast_reader,
    nothing,
)
from refusal_dial.model.tokens import last_logits, tokenize

NOTHING = ("blocks.0.hook_resid_pre", lambda activation, hook: None)


@pytest.mark.parametrize("site", ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"])
def test_collect_equals_the_cache_of_each_prompt_alone(qwen, site):
    prompts = tiny.sentences(5)
    got, logits = collect(qwen, tokenize(qwen, prompts), [0, 2], site=site, pos=-2, batch_size=2)
    assert got.shape == (2, 5, 32)
    for i, prompt in enumerate(prompts):
        tokens = tokenize(qwen, [prompt])
        with torch.no_grad():
            _, cache = qwen.run_with_cache(tokens.ids)
        for j, layer in enumerate((0, 2)):
            want = cache[f"blocks.{layer}.hook_{site}"][0, -2]
            torch.testing.assert_close(got[j, i], want, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(logits[i], last_logits(qwen, tokens)[0], atol=1e-4, rtol=1e-4)


def test_heads_stand_side_by_side(qwen):
    got, _ = collect(qwen, tokenize(qwen, ["Hi"]), [1], site="z")
    assert got.shape == (1, 1, 32)


def test_activations_that_are_not_finite_name_layer_and_prompt(qwen):
    tokens = tokenize(qwen, tiny.sentences(3))

    def poison(activation, hook):
        out = activation.clone()
        out[1, -1] = float("nan")
        return out

    with (
        qwen.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", poison)]),
        pytest.raises(DialError, match="at resid_pre of layer 2, prompt 2: try --dtype float32"),
    ):
        collect(qwen, tokens, [0, 2])


def test_a_position_before_the_prompt(qwen):
    with pytest.raises(DialError, match="position -99 is outside prompts of"):
        collect(qwen, tokenize(qwen, ["Hi"]), [0], pos=-99)


def test_several_positions_are_each_position_by_itself(qwen):
    tokens = tokenize(qwen, tiny.sentences(5))
    got, logits = collect_positions(qwen, tokens, [0, 2], (-3, -1), site="attn_out", batch_size=2)
    assert got.shape == (2, 2, 5, 32)
    for i, pos in enumerate((-3, -1)):
        one, same = collect(qwen, tokens, [0, 2], site="attn_out", pos=pos, batch_size=2)
        torch.testing.assert_close(got[i], one, atol=0, rtol=0)
        torch.testing.assert_close(logits, same, atol=0, rtol=0)


def test_of_the_logits_stays_what_is_read_of_them(qwen):
    """A scorer batch by batch gives the scores of all logits; nothing is nothing."""
    tokens, seen = tokenize(qwen, tiny.sentences(5)), []

    def scorer(logits):
        seen.append(len(logits))
        return logits.double().logsumexp(-1)

    kept, logits = collect(qwen, tokens, [1], batch_size=2)
    same, scores = collect(qwen, tokens, [1], batch_size=2, read=scorer)
    assert seen == [2, 2, 1]
    assert torch.equal(same, kept)
    torch.testing.assert_close(scores, logits.double().logsumexp(-1), atol=1e-9, rtol=0)
    assert collect_positions(qwen, tokens, [1], (-1,), read=nothing)[1].shape == (5, 0)
    torch.testing.assert_close(LastLogits(qwen, tokens)[[3, 1]], logits[[3, 1]])


def test_what_is_read_under_hooks_is_read_after_them(qwen):
    tokens, unit = tokenize(qwen, tiny.sentences(3)), torch.eye(32)[4]
    hooks = [ablate(unit, layer=1)]
    got, _ = collect_positions(qwen, tokens, [0, 1, 2], (-1,), hooks=hooks)
    assert got[0, 1, :, 4].abs().max() == 0
    assert got[0, 2, :, 4].abs().min() > 0
    plain, _ = collect_positions(qwen, tokens, [0, 1, 2], (-1,))
    torch.testing.assert_close(got[0, 0], plain[0, 0], atol=0, rtol=0)


def test_pooling_one_token_is_the_last_position(qwen):
    tokens = tokenize(qwen, tiny.sentences(4))
    for site in ("resid_post", "z"):
        one = collect_pooled(qwen, tokens, [1], 1, site=site)
        torch.testing.assert_close(one, collect(qwen, tokens, [1], site=site)[0])
    three = collect_positions(qwen, tokens, [1], (-3, -2, -1))[0].mean(0)
    torch.testing.assert_close(collect_pooled(qwen, tokens, [1], 3), three)
    with pytest.raises(DialError, match="at least the last token, not the last 0"):
        collect_pooled(qwen, tokens, [1], 0)


@pytest.mark.parametrize("site", ["resid_pre", "z", "mlp_out"])
def test_in_half_precision_sdpa_reads_what_the_bridge_reads(site):
    """Another kernel, and as near to float32 as the bridge is."""
    wide, model, layers = bridge("Llama"), fresh("Llama").to(torch.bfloat16), [0, 3]
    tokens = prompts((7, 4, 6, 7), seed=1)
    assert fast_reader(model, tokens, site, layers) is not None
    ours = collect(model, tokens, layers, site=site)
    exact = collect(wide, tokens, layers, site=site)
    theirs = collect_positions(model, tokens, layers, (-1,), site=site, hooks=[NOTHING])
    theirs = theirs[0][0], theirs[1]
    for one, other, truth in zip(ours, theirs, exact, strict=True):
        assert not torch.equal(one, other)
        assert (one - truth).norm() < 1.3 * (other - truth).norm()
        assert (other - truth).norm() < 0.1 * truth.norm()


def test_the_bridge_reads_where_sdpa_does_not_fit(caplog):
    """A soft cap; hooks that are attached; full precision, where it is as fast."""
    tokens, model = prompts((7, 4), seed=1), fresh("Llama").to(torch.bfloat16)
    with caplog.at_level("INFO", "refusal_dial"):
        assert fast_reader(fresh("Gemma2").to(torch.bfloat16), tokens, "resid_pre", [0]) is None
    assert "bridge's own forward pass: its attention has a soft cap" in caplog.text
    with model.hooks(fwd_hooks=[NOTHING]):
        assert fast_reader(model, tokens, "resid_pre", [0]) is None
    assert fast_reader(bridge("Llama"), tokens, "resid_pre", [0]) is None
