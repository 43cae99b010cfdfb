"""Score many interventions on the same prompts: the one door through which every sweep goes.

A grid is a list of cells and a cell is a list of hooks; the empty list is the unsteered model. This
module decides how a grid is computed. It does not know what a cell means.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.tokens import Tokens, last_logits
from refusal_dial.types import Hook

Scorer = Callable[[Tensor], Tensor]
"""Logits `batch d_vocab` at the last prompt token to one number a row, in float64."""


def score_grid(
    model: TransformerBridge,
    tokens: Tokens,
    grid: Sequence[Sequence[Hook]],
    scorer: Scorer,
) -> Float64[Tensor, "cell batch"]:
    """`score[c, b] = scorer(logits of prompt b at its last token under the hooks of cell c)`."""
    return torch.stack([scorer(last_logits(model, tokens, cell)).cpu() for cell in grid])
