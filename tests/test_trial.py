"""What the replay cannot do exactly runs plain, and the log says why."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from architectures import fresh
from grids import TOKENS, add_one, logprob, messages, mixed_grid, plain
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.common import hook_name
from refusal_dial.engine import score
from refusal_dial.engine.score import score_grid


def test_a_model_with_hooks_attached_runs_plain(caplog: pytest.LogCaptureFixture) -> None:
    model, grid = fresh("Qwen2"), mixed_grid()
    with (
        caplog.at_level(logging.INFO, "refusal_dial"),
        model.hooks(fwd_hooks=[(hook_name("resid_pre", 0), add_one)]),
    ):
        scores = score_grid(model, TOKENS, grid, logprob)
        expected = torch.stack([logprob(plain(model, TOKENS, cell)) for cell in grid])
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)
    assert "the model has hooks attached" in messages(caplog)[0]


def make_crooked(model: TransformerBridge, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block whose output depends on other positions by a way that is not attention."""
    kind = type(model.blocks[0].original_component)
    straight = kind.forward

    def crooked(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return straight(self, hidden_states + hidden_states.cumsum(1) / 9, *args, **kwargs)

    monkeypatch.setattr(kind, "forward", crooked)


def test_an_architecture_that_mixes_positions_runs_plain(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, grid = fresh("Qwen2"), mixed_grid()
    make_crooked(model, monkeypatch)
    with caplog.at_level(logging.INFO, "refusal_dial"):
        scores = score_grid(model, TOKENS, grid, logprob)
    expected = torch.stack([logprob(plain(model, TOKENS, cell)) for cell in grid])
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)
    assert "the replay differs from a forward pass by" in messages(caplog)[0]


@pytest.mark.parametrize("fault", [False, True])
def test_half_precision_is_allowed_what_one_rounding_of_the_input_does(
    fault: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deep model answers rounding by more than a fixed share (here: by more than none), and a
    replay of another model by far more than rounding."""
    model, grid = fresh("Qwen2"), mixed_grid()
    model.original_model.to(torch.bfloat16)
    monkeypatch.setattr(score, "HALF_TOLERANCE", 0.0)
    if fault:
        make_crooked(model, monkeypatch)
    with caplog.at_level(logging.INFO, "refusal_dial"):
        score_grid(model, TOKENS, grid, logprob)
    refused = [one for one in messages(caplog) if "the replay differs" in one]
    assert len(refused) == fault


def test_the_verdict_is_taken_anew_when_a_weight_changes() -> None:
    model, grid = fresh("Qwen2"), mixed_grid()
    before = score_grid(model, TOKENS, grid, logprob)
    with torch.no_grad():
        model.blocks[1].mlp.original_component.down_proj.original_component.weight.mul_(2.0)
    after = score_grid(model, TOKENS, grid, logprob)
    expected = torch.stack([logprob(plain(model, TOKENS, cell)) for cell in grid])
    torch.testing.assert_close(after, expected, atol=1e-4, rtol=0)
    assert (after - before).abs().max() > 1e-2
