"""Recording: what one forward pass leaves behind is what TransformerLens would have shown."""

from __future__ import annotations

import pytest
import torch
from architectures import CONFIGS, bridge, prompts

from refusal_dial.common import hook_name
from refusal_dial.engine.recording import record_run
from refusal_dial.model.tokens import last_logits

TOKENS = prompts((7, 4, 6), seed=1)


SITES = ("z", "attn_out", "resid_mid", "mlp_post", "mlp_out")


@pytest.mark.parametrize("architecture", CONFIGS)
def test_residuals_rows_and_logits_are_those_of_the_bridge_bit_for_bit(architecture: str) -> None:
    model = bridge(architecture)
    layers = range(len(model.blocks))
    here = [site for site in SITES if hook_name(site, 0) in model.hook_dict]
    wanted = {(site, layer): [3, 6] for site in here for layer in layers}
    recording = record_run(model, TOKENS, first=2, wanted=wanted)
    with torch.no_grad():
        logits, cache = model.run_with_cache(TOKENS.ids, attention_mask=TOKENS.mask)
    for layer in layers:
        assert torch.equal(recording.residual(layer), cache[hook_name("resid_pre", layer)][:, 2:])
        for site in here:
            rows, positions = recording.rows[site, layer]
            assert positions == [3, 6]
            assert torch.equal(rows, cache[hook_name(site, layer)].flatten(2)[:, [3, 6]])
    left = cache[hook_name("resid_post", layers[-1])]
    assert torch.equal(recording.residual(len(layers)), left[:, -1:])
    close(recording.logits, logits[:, -1])
    assert torch.equal(recording.logits, last_logits(model, TOKENS))


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


@pytest.mark.parametrize("architecture", ["Mistral", "Gemma2", "Gemma3"])
def test_keys_and_values_are_not_cropped_to_a_sliding_window(architecture: str) -> None:
    model = bridge(architecture)
    assert model.original_model.config.sliding_window < TOKENS.ids.shape[1] - 1
    recording = record_run(model, TOKENS)
    everyone = torch.arange(len(TOKENS))
    for layer in range(len(model.blocks)):
        for kept in recording.past(layer, everyone, TOKENS.ids.shape[1] - 1):
            assert kept.shape == (3, 2, TOKENS.ids.shape[1] - 1, 8)
