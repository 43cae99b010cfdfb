"""Grids, prompts and a scorer that the tests of the engine and its parts share."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from architectures import prompts
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.common import Hook
from refusal_dial.hooks import ablate, clamp, patch, steer
from refusal_dial.model.tokens import Tokens


def logprob(logits: Tensor) -> Tensor:
    """The log probability of one token: it depends on every logit."""
    return logits.double().log_softmax(-1)[:, 7]


def plain(model: TransformerBridge, tokens: Tokens, cell: Sequence[Hook]) -> Tensor:
    """Last logits by TransformerLens itself."""
    with torch.no_grad():
        return model.run_with_hooks(
            tokens.ids, fwd_hooks=list(cell), attention_mask=tokens.mask, use_cache=False
        )[:, -1]


UNIT = torch.nn.functional.normalize(torch.arange(1.0, 33.0), dim=0)


TOKENS = prompts((6, 4, 6), seed=3)


def mixed_grid() -> list[list[Hook]]:
    return [
        [],
        *([steer(UNIT, float(a), layer=layer, pos=-1)] for a in range(1, 4) for layer in range(3)),
        *([patch(UNIT, layer=1, pos=p)] for p in (-1, -3, -6)),
        [ablate(UNIT, layer=layer) for layer in range(3)],
        [clamp(UNIT, 1.0, layer=1, site="attn_out"), steer(UNIT, 1.0, layer=1, site="mlp_out")],
    ]


def add_one(activation: Tensor, hook: object) -> Tensor:
    return activation + 1.0


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == "refusal_dial"]
