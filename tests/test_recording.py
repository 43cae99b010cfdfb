"""Recording: what one forward pass leaves behind is what TransformerLens would have shown."""

from __future__ import annotations

import pytest
import torch
from architectures import CONFIGS, bridge, fresh, prompts

from refusal_dial.replay.bare import Bare, UnfitError, attend
from refusal_dial.replay.recording import record
from refusal_dial.tokens import last_logits
from refusal_dial.types import hook_name

TOKENS = prompts((7, 4, 6), seed=1)
SITES = ("z", "attn_out", "resid_mid", "mlp_post", "mlp_out")


@pytest.mark.parametrize("architecture", CONFIGS)
def test_residuals_rows_and_logits_are_those_of_the_bridge_bit_for_bit(architecture: str) -> None:
    model = bridge(architecture)
    layers = range(len(model.blocks))
    here = [site for site in SITES if hook_name(site, 0) in model.hook_dict]
    wanted = {(site, layer): [3, 6] for site in here for layer in layers}
    recording = record(model, TOKENS, first=2, wanted=wanted)
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
    recording = record(model, TOKENS)
    everyone = torch.arange(len(TOKENS))
    for layer in range(len(model.blocks)):
        for kept in recording.past(layer, everyone, TOKENS.ids.shape[1] - 1):
            assert kept.shape == (3, 2, TOKENS.ids.shape[1] - 1, 8)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_the_head_is_the_models_own(architecture: str) -> None:
    """Final norm, unembedding, biases and soft caps, on residual streams of any size."""
    model = bridge(architecture)
    bare, last = Bare(model), len(model.blocks) - 1
    residual = 5 * torch.randn(3, 32, generator=torch.Generator().manual_seed(0))

    def put(activation: torch.Tensor, hook: object) -> torch.Tensor:
        activation = activation.clone()
        activation[:, -1] = residual
        return activation

    with torch.no_grad():
        close(
            bare.logits(residual),
            last_logits(model, TOKENS, [(hook_name("resid_post", last), put)]),
        )


def test_a_bare_model_shares_its_weights_and_leaves_the_bridge_alone() -> None:
    model, residual = fresh("Phi3"), torch.randn(3, 32)
    before = last_logits(model, TOKENS)
    bare = Bare(model, [("z", 1)])
    mine = {id(p) for block in bare.blocks for p in block.parameters()}
    assert mine <= {id(p) for p in model.parameters()}
    logits = bare.logits(residual)
    bare.taps["z", 1].see = lambda z: z * 0
    assert torch.equal(last_logits(model, TOKENS), before)
    with torch.no_grad():
        model.original_model.lm_head.original_component.weight.mul_(2.0)
    close(bare.logits(residual), 2 * logits)


def test_what_does_not_fit_is_named() -> None:
    model = fresh("Qwen2")
    with pytest.raises(UnfitError, match="its attention takes s_aux"):
        attend(torch.nn.Identity(), *torch.ones(3, 1, 1, 1, 4), None, s_aux=torch.ones(1))
    with pytest.raises(UnfitError, match="its attention takes dropout"):
        attend(torch.nn.Identity(), *torch.ones(3, 1, 1, 1, 4), None, dropout=0.1)
    with pytest.raises(UnfitError, match="its resid_mid is not the input or output of one of"):
        Bare(bridge("GPTNeoX"), [("resid_mid", 0)])
    model.blocks[0].original_component.forward = lambda *a, **k: None
    with pytest.raises(UnfitError, match="managed by another library"):
        Bare(model)
