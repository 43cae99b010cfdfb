"""A plan says where each cell leaves each prompt."""

from __future__ import annotations

import torch
from architectures import bridge, prompts

from refusal_dial.engine.recording import record_run
from refusal_dial.engine.replay import NOTHING, changes, places_of, touches
from refusal_dial.hooks import patch, steer


def test_a_plan_says_where_each_cell_leaves_each_prompt() -> None:
    model, tokens = bridge("Qwen2"), prompts((6, 3))
    v = torch.nn.functional.normalize(torch.randn(32), dim=0)
    recorded = record_run(model, tokens).residual(1)
    hooks = [
        [steer(v, 1.0, layer=1, pos=-2)],
        [steer(v, 1.0, layer=2, site="resid_post")],  # only the last position reaches the logits
        [steer(v, 1.0, layer=2, site="attn_out", pos=-2)],  # attention is past: nothing reads it
        [steer(v, 1.0, layer=0, pos=-5)],  # padding in the short prompt
        [steer(v, 0.0, layer=0), steer(v, 1.0, layer=2, pos=-3)],
        [patch(torch.cat([recorded[:, :4], recorded[:, 4:] + 1], 1), layer=1)],
        [steer(v, torch.tensor([0.0, 1.0]), layer=1, pos=torch.tensor([-1, -3]))],
    ]
    cells = [touches([edit for _, edit in cell], 2, 6, 8) for cell in hooks]  # type: ignore[misc]
    recording = record_run(model, tokens, wanted=places_of(cells))
    start, first = changes(recording, cells, torch.arange(2), torch.tensor([0, 3]))
    expected = [
        ([1, 1], [4, 4]),
        ([3, 3], [5, 5]),
        ([NOTHING, NOTHING], [6, 6]),
        ([0, NOTHING], [1, 6]),
        ([2, 2], [3, 3]),
        ([1, 1], [4, 4]),
        ([NOTHING, 1], [6, 3]),
    ]
    assert [(a.tolist(), b.tolist()) for a, b in zip(start, first, strict=True)] == expected
