"""Sizes grow with what they measure, and a budget divides the work."""

from __future__ import annotations

import pytest
import torch
from architectures import bridge
from grids import TOKENS, UNIT, logprob, mixed_grid

from refusal_dial.common import DialError
from refusal_dial.engine.recording import Sizes
from refusal_dial.engine.score import score_grid
from refusal_dial.hooks import patch


def test_sizes_grow_with_what_they_measure() -> None:
    sizes = Sizes.of(bridge("Qwen2"))
    assert sizes.trunk(20, 1) < sizes.trunk(20, 20) < sizes.trunk(40, 20)
    assert sizes.token(10) < sizes.token(1000)
    assert sizes.tokens(1, 10) == 1
    assert sizes.tokens(2**40, 10) >= 1024
    assert sizes.spare() > 0


def test_a_memory_budget_divides_plain_passes_too() -> None:
    model = bridge("Qwen2")
    per_row = torch.stack([UNIT, -UNIT, 2 * UNIT])
    grid = [[patch(per_row, layer=1, pos=torch.tensor([-1, -2, -3]))], *mixed_grid()]
    whole = score_grid(model, TOKENS, grid, logprob, engine="plain")
    tiny = score_grid(model, TOKENS, grid, logprob, engine="plain", memory_gb=1e-6)
    torch.testing.assert_close(tiny, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("memory", [0.0, -1.0, float("nan")])
def test_a_budget_is_positive(memory: float) -> None:
    with pytest.raises(DialError, match="memory must be a positive number"):
        score_grid(bridge("Qwen2"), TOKENS, [[]], logprob, memory_gb=memory)
