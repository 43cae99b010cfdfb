"""The slope of any direction from one backward pass: equal to what the engine and autograd find."""

from __future__ import annotations

import pytest
import tiny
import torch

from refusal_dial.common import DialError
from refusal_dial.engine import score_grid
from refusal_dial.engine.slopes import gradients, mean_gradients, slopes
from refusal_dial.hooks import steer
from refusal_dial.model.loading import load_model
from refusal_dial.model.tokens import tokenize

SITES = ("resid_pre", "resid_post", "attn_out", "mlp_out")


def scorer(logits):
    return logits.double()[:, 40] - logits.double()[:, 50]


def unit(width, seed=0):
    vector = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    return vector / vector.norm()


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("pos", [-1, -2])
def test_a_slope_is_the_finite_difference_of_the_engine(qwen, site, pos):
    tokens, step = tokenize(qwen, tiny.sentences(5)), 1e-2
    found = mean_gradients(qwen, tokens, scorer, [(site, 1)], (pos,))
    for seed in range(3):
        direction = unit(int(qwen.cfg.d_model), seed)
        cells = [[steer(direction, alpha, layer=1, site=site, pos=pos)] for alpha in (step, -step)]
        up, down = score_grid(qwen, tokens, cells, scorer)
        measured = float((up - down).mean()) / (2 * step)
        ours = float(slopes(found, direction[None])[site, 1][0, 0])
        assert ours == pytest.approx(measured, abs=2e-3, rel=2e-2)


def test_a_slope_is_that_of_autograd_through_a_plain_hook(qwen):
    tokens = tokenize(qwen, tiny.sentences(4))
    direction, alpha = unit(int(qwen.cfg.d_model)), torch.zeros(4, requires_grad=True)

    def by_hand(activation, hook):
        moved = activation.clone()
        moved[:, -1] = activation[:, -1] + alpha[:, None] * direction
        return moved

    with torch.enable_grad():
        with qwen.hooks(fwd_hooks=[("blocks.2.hook_resid_pre", by_hand)]):
            logits = qwen(tokens.ids, attention_mask=tokens.mask, use_cache=False)
        scorer(logits[:, -1]).sum().backward()
    where = torch.full((4, 1), -1)
    found = gradients(qwen, tokens, scorer, [("resid_pre", 2)], where)["resid_pre", 2]
    torch.testing.assert_close(found[:, 0] @ direction, alpha.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["Phi3", "GPTNeoX", "Gemma2", "Llama"])
def test_other_architectures_have_their_slopes(architecture):
    model = tiny.bridge(architecture)
    model.requires_grad_(False).eval()
    model.tokenizer.padding_side = "left"
    tokens, step = tokenize(model, tiny.sentences(3)), 1e-2
    direction = unit(int(model.cfg.d_model))
    found = mean_gradients(model, tokens, scorer, [("resid_pre", 1)])
    up, down = score_grid(
        model, tokens, [[steer(direction, a, layer=1, pos=-1)] for a in (step, -step)], scorer
    )
    measured = float((up - down).mean()) / (2 * step)
    ours = float(slopes(found, direction[None])["resid_pre", 1][0, 0])
    assert ours == pytest.approx(measured, abs=2e-3, rel=2e-2)


def test_batches_and_places_change_nothing(qwen):
    tokens = tokenize(qwen, tiny.sentences(5))
    keys = [(site, layer) for site in SITES for layer in (0, 2)]
    whole = mean_gradients(qwen, tokens, scorer, keys, (-1, -2), batch_size=8)
    for key in keys:
        alone = mean_gradients(qwen, tokens, scorer, [key], (-1, -2), batch_size=2)[key]
        torch.testing.assert_close(alone, whole[key], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["Phi3", "GPTNeoX", "Gemma2", "Llama"])
def test_half_precision_is_differentiated_in_float32_and_left_as_it_was(architecture):
    exact, half = tiny.bridge(architecture), tiny.bridge(architecture)
    for model in (exact, half):
        model.requires_grad_(False).eval()
        model.tokenizer.padding_side = "left"
        model.original_model.to(torch.bfloat16)
    exact.original_model.float()  # the rounded weights, computed in float32
    before = [one.clone() for one in half.original_model.parameters()]
    tokens = tokenize(half, tiny.sentences(3))
    ours = mean_gradients(half, tokens, scorer, [("resid_pre", 1)])["resid_pre", 1]
    wanted = mean_gradients(exact, tokens, scorer, [("resid_pre", 1)])["resid_pre", 1]
    torch.testing.assert_close(ours, wanted, atol=1e-6, rtol=1e-5)
    for one, was in zip(half.original_model.parameters(), before, strict=True):
        assert one.dtype == torch.bfloat16
        assert torch.equal(one, was)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_split_over_cpu_and_disk_has_the_same_slopes(qwen_folder, dtype):
    inside = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb"), "cpu")
    inside |= {"lm_head": "cpu", "model.layers.0": "cpu"}
    outside = {"model.layers.1": "disk", "model.layers.2": "disk"}
    split = load_model(str(qwen_folder), dtype=dtype, device_map=inside | outside)
    whole = load_model(str(qwen_folder), device="cpu", dtype=dtype)
    tokens, keys = tokenize(whole, tiny.sentences(4)), [("resid_pre", 1), ("mlp_out", 2)]
    ours, wanted = (mean_gradients(one, tokens, scorer, keys, (-1, -2)) for one in (split, whole))
    for key in keys:
        assert wanted[key].norm() > 1e-3
        torch.testing.assert_close(ours[key], wanted[key], atol=1e-6, rtol=1e-5)


def test_a_layer_that_is_not_there_is_named(qwen):
    with pytest.raises(DialError, match="layer 99"):
        mean_gradients(qwen, tokenize(qwen, ["a"]), scorer, [("resid_pre", 99)])
