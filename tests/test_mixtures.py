"""Mixtures of experts: the block's output is one vector, and what holds of an MLP holds of it."""

from __future__ import annotations

import pytest
import torch
from architectures import MIXTURES, PLAIN_ONLY, bridge, fresh
from grids import TOKENS, UNIT, logprob, messages, mixed_grid, plain

from refusal_dial.common import DialError, hook_name
from refusal_dial.engine.score import score_grid
from refusal_dial.hooks import ablate, patch, steer
from refusal_dial.model.activations import collect
from refusal_dial.model.loading import check_site, mixture_layers, sites_in
from refusal_dial.model.tokens import last_logits


@pytest.mark.parametrize("architecture", [*MIXTURES, *PLAIN_ONLY])
def test_ablating_the_blocks_output_is_removing_it_from_every_expert(architecture: str) -> None:
    """`sum_e w_e (W_e - r r^T W_e) h = (1 - r r^T) sum_e w_e W_e h`, with the router as it was."""
    if architecture == "GraniteMoe":
        pytest.skip(
            "its block's output is scaled before TransformerLens shows it: see test_weights"
        )
    model = fresh(architecture)
    mixtures = mixture_layers(model)
    assert mixtures
    hooked = last_logits(model, TOKENS, [ablate(UNIT, layer=n, site="mlp_out") for n in mixtures])
    before = last_logits(model, TOKENS)
    changed = 0
    with torch.no_grad():
        for name, weight in model.original_model.named_parameters():
            layer = next((int(part) for part in name.split(".") if part.isdigit()), None)
            if layer not in mixtures or "down_proj" not in name:
                continue
            axis = -1 if architecture == "GptOss" or weight.ndim == 1 else -2
            along = weight.movedim(axis, -1)
            weight.copy_((along - (along @ UNIT)[..., None] * UNIT).movedim(-1, axis))
            changed += 1
    assert changed >= len(mixtures)
    torch.testing.assert_close(last_logits(model, TOKENS), hooked, atol=1e-4, rtol=0)
    assert (hooked - before).abs().max() > 0.05  # the direction mattered


@pytest.mark.parametrize("architecture", MIXTURES)
def test_what_is_collected_is_the_cache_and_patching_it_back_changes_nothing(
    architecture: str,
) -> None:
    model = bridge(architecture)
    _, cache = model.run_with_cache(TOKENS.ids, attention_mask=TOKENS.mask)
    for site in ("resid_pre", "mlp_out"):
        kept, _ = collect(model, TOKENS, (0, 1), site=site, pos=-1)
        for layer in (0, 1):
            assert torch.equal(kept[layer], cache[hook_name(site, layer)][:, -1])
        scores = score_grid(
            model, TOKENS, [[], [patch(kept[1], layer=1, site=site, pos=-1)]], logprob
        )
        assert torch.equal(scores[0], scores[1])
    steered = [steer(UNIT, 3.0, layer=1, site="mlp_out")]
    assert (plain(model, TOKENS, steered) - plain(model, TOKENS, [])).abs().max() > 0.1


@pytest.mark.parametrize("architecture", MIXTURES)
def test_its_neurons_are_no_site_and_the_message_names_those_that_are(architecture: str) -> None:
    model = bridge(architecture)
    assert mixture_layers(model) == tuple(range(int(architecture == "Qwen2Moe"), len(model.blocks)))
    assert "mlp_post" not in sites_in(model)
    with pytest.raises(DialError, match="has no site 'mlp_post': it has resid_pre, resid_mid, "):
        check_site(model, "mlp_post")
    assert "mlp_post" in sites_in(bridge("Qwen2"))
    assert mixture_layers(bridge("Qwen2")) == ()


@pytest.mark.parametrize(
    ("architecture", "why"),
    [
        ("GraniteMoe", "its attn_out is not the input or output of one of its modules"),
        ("GptOss", "its attention takes s_aux"),
    ],
)
def test_what_cannot_be_replayed_is_run_plainly_and_the_log_says_why(
    architecture: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, grid = bridge(architecture), mixed_grid()
    with caplog.at_level("INFO", "refusal_dial"):
        scores = score_grid(model, TOKENS, grid, logprob)
    assert torch.equal(scores, score_grid(model, TOKENS, grid, logprob, engine="plain"))
    assert messages(caplog) == [f"plain forward passes for {architecture}ForCausalLM: {why}"]


def test_in_half_precision_rounding_chooses_experts_so_it_is_run_plainly(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, grid = fresh("Mixtral").to(torch.bfloat16), mixed_grid()
    with caplog.at_level("INFO", "refusal_dial"):
        scores = score_grid(model, TOKENS, grid, logprob)
        collect(model, TOKENS, (1,), site="resid_pre", pos=-1)
    assert torch.equal(scores, score_grid(model, TOKENS, grid, logprob, engine="plain"))
    found = messages(caplog)
    assert len(found) == 2
    assert all("rounding chooses its experts in half precision" in line for line in found)
