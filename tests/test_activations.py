"""What is collected is what TransformerLens caches, whatever the batch size and padding."""

from __future__ import annotations

import pytest
import tiny
import torch

from refusal_dial.activations import collect
from refusal_dial.tokens import last_logits, tokenize
from refusal_dial.types import DialError


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
