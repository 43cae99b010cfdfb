"""An unhooked model is the model: its head, its weights, and nothing left behind."""

from __future__ import annotations

import gc
import weakref
from functools import partial

import pytest
import torch
from architectures import CONFIGS, bridge, fresh, prompts
from grids import TOKENS, logprob, mixed_grid, plain
from transformer_lens.hook_points import HookPoint

from refusal_dial.common import hook_name
from refusal_dial.engine.score import score_grid
from refusal_dial.model.tokens import last_logits
from refusal_dial.model.unhooked import UnfitError, Unhooked, attend, unhooked

PROMPTS = prompts((7, 4, 6), seed=1)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_the_head_is_the_models_own(architecture: str) -> None:
    """Final norm, unembedding, biases and soft caps, on residual streams of any size."""
    model = bridge(architecture)
    unhooked, last = Unhooked(model), len(model.blocks) - 1
    residual = 5 * torch.randn(3, 32, generator=torch.Generator().manual_seed(0))

    def put(activation: torch.Tensor, hook: object) -> torch.Tensor:
        activation = activation.clone()
        activation[:, -1] = residual
        return activation

    with torch.no_grad():
        close(
            unhooked.logits(residual),
            last_logits(model, PROMPTS, [(hook_name("resid_post", last), put)]),
        )


def test_a_bare_model_shares_its_weights_and_leaves_the_bridge_alone() -> None:
    model, residual = fresh("Phi3"), torch.randn(3, 32)
    before = last_logits(model, PROMPTS)
    unhooked = Unhooked(model, [("z", 1)])
    mine = {id(p) for block in unhooked.blocks for p in block.parameters()}
    assert mine <= {id(p) for p in model.parameters()}
    logits = unhooked.logits(residual)
    unhooked.taps["z", 1].see = lambda z: z * 0
    assert torch.equal(last_logits(model, PROMPTS), before)
    with torch.no_grad():
        model.original_model.lm_head.original_component.weight.mul_(2.0)
    close(unhooked.logits(residual), 2 * logits)


def test_what_does_not_fit_is_named() -> None:
    model = fresh("Qwen2")
    with pytest.raises(UnfitError, match="its attention takes s_aux"):
        attend(torch.nn.Identity(), *torch.ones(3, 1, 1, 1, 4), None, s_aux=torch.ones(1))
    with pytest.raises(UnfitError, match="its attention takes dropout"):
        attend(torch.nn.Identity(), *torch.ones(3, 1, 1, 1, 4), None, dropout=0.1)
    with pytest.raises(UnfitError, match="its resid_mid is not the input or output of one of"):
        Unhooked(bridge("GPTNeoX"), [("resid_mid", 0)])
    model.blocks[0].original_component.forward = lambda *a, **k: None
    with pytest.raises(UnfitError, match="managed by another library"):
        Unhooked(model)


def test_the_model_is_left_as_it_was_and_can_be_freed() -> None:
    model = fresh("Gemma2")
    before = plain(model, TOKENS, [])
    implementation = model.original_model.config._attn_implementation
    score_grid(model, TOKENS, mixed_grid(), logprob)
    assert torch.equal(plain(model, TOKENS, []), before)
    assert model.original_model.config._attn_implementation == implementation
    assert not any(point.fwd_hooks for point in model.hook_dict.values())
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("architecture", CONFIGS)
def test_without_its_hook_points_a_model_is_the_same_model(architecture: str) -> None:
    model = bridge(architecture)
    alone = unhooked(model)
    assert not any(isinstance(part, HookPoint) for part in alone.modules())
    assert {id(p) for p in alone.parameters()} <= {id(p) for p in model.parameters()}
    where = (PROMPTS.mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = alone(PROMPTS.ids, attention_mask=PROMPTS.mask, position_ids=where).logits[:, -1]
    close(logits, last_logits(model, PROMPTS))


@pytest.mark.parametrize("architecture", CONFIGS)
def test_all_at_once_by_sdpa_it_is_the_same_model_at_every_site(architecture: str) -> None:
    model = bridge(architecture)
    last = len(model.blocks) - 1
    places = [(site, n) for site in ("resid_pre", "z", "mlp_out") for n in (0, last)]
    alone, mask = Unhooked(model, places), PROMPTS.mask.bool()
    seen: dict[tuple[str, int], torch.Tensor] = {}

    def sight(place: tuple[str, int], value: torch.Tensor) -> torch.Tensor:
        seen[place] = value.flatten(2)[mask]
        return value

    with torch.no_grad():
        _, cache = model.run_with_cache(PROMPTS.ids, attention_mask=PROMPTS.mask)
        with alone.seeing({place: partial(sight, place) for place in places}):
            if architecture == "Gemma2":
                with pytest.raises(UnfitError, match="soft cap"):
                    alone.last_logits(PROMPTS)
                return
            close(alone.last_logits(PROMPTS), last_logits(model, PROMPTS))
    for place in places:
        close(seen[place], cache[hook_name(*place)].flatten(2)[mask])
    assert all(tap.see is None for tap in alone.taps.values())
