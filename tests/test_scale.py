"""Rescaling the residual stream changes its length and no logit."""

import pytest
import tiny
import torch
from embedded_model.training import RESIDUAL_SCALE, rescale
from transformers import Qwen2Config, Qwen2ForCausalLM


def test_rescaling_changes_no_logit_and_survives_saving(tmp_path):
    torch.manual_seed(0)
    config = Qwen2Config(**tiny.SMALL, tie_word_embeddings=True)
    model = Qwen2ForCausalLM(config).eval()
    tokens = torch.randint(3, 500, (4, 12))
    with torch.no_grad():
        before = model.model(tokens, output_hidden_states=True)
        logits = model(tokens).logits
        rescale(model).save_pretrained(tmp_path)
        again = Qwen2ForCausalLM.from_pretrained(tmp_path).eval()
        after = again.model(tokens, output_hidden_states=True)
        torch.testing.assert_close(again(tokens).logits, logits, atol=1e-5, rtol=1e-5)
    for old, new in zip(before.hidden_states[:-1], after.hidden_states[:-1], strict=True):
        torch.testing.assert_close(new, old * RESIDUAL_SCALE, atol=1e-7, rtol=1e-4)
    assert again.config.rms_norm_eps == pytest.approx(config.rms_norm_eps, rel=1e-6)


def test_the_scale_is_a_power_of_two_so_that_rounding_is_untouched():
    weights = torch.randn(1000)
    scaled = (weights * RESIDUAL_SCALE).half().float() / RESIDUAL_SCALE
    large = weights.abs() > 0.01
    assert torch.equal(scaled[large], weights.half().float()[large])
