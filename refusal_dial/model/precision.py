"""How far scores in half precision are from float32: the same prompts by float32 weights.

    off_i = score_i (half precision) - score_i (float32)        rms = sqrt(mean_i off_i^2)

over a few prompts. bfloat16 keeps 8 binary digits of every weight and activation, so a score moves;
how far depends on the model and on the score, and is measured here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.common import free_memory, log, one_line
from refusal_dial.model.loading import quantised_as
from refusal_dial.model.tokens import Tokens
from refusal_dial.model.unhooked import HALF

COMPARED = 8
"""Prompts that are read in both formats."""


@dataclass(frozen=True)
class Rounding:
    """How far `n` scores in `dtype` are from those in float32: root mean square, and the most."""

    dtype: str
    n: int
    rms: float
    largest: float

    @property
    def about(self) -> str:
        """In one line."""
        return (
            f"scores in {self.dtype} differ from float32 by {self.rms:.2g} (root mean square of "
            f"{self.n} prompts; at most {self.largest:.2g})"
        )


@torch.no_grad()
def rounding_of(
    model: TransformerBridge,
    tokens: Tokens,
    scorer: Callable[[Tensor], Tensor],
    scores: NDArray[np.float64],
) -> Rounding | None:
    """How far `scores`, those of all prompts by this model, are from float32 on `COMPARED` of them.

    None for a model in full precision, or with quantised weights. None with a line in the log where
    the float32 weights do not fit into the memory that is free, or cannot be loaded.
    """
    original = model.original_model
    weights = list(original.parameters())
    if weights[0].dtype not in HALF or quantised_as(model):
        return None
    needed = 4 * sum(p.numel() for p in weights)
    if needed > free_memory() / 2:
        log.info(
            "scores were not compared with float32: its weights take %.1f GB, and %.1f are free",
            needed / 1e9,
            free_memory() / 1e9,
        )
        return None
    rows = [int(i) for i in np.linspace(0, len(tokens) - 1, min(COMPARED, len(tokens)))]
    some = tokens.chosen(rows)
    ids, mask = some.ids.cpu(), some.mask.cpu()
    try:
        wide = type(original).from_pretrained(
            str(model.cfg.model_name),
            dtype=torch.float32,
            revision=getattr(original.config, "_commit_hash", None) or "main",
        )
        where = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = wide.eval()(ids, attention_mask=mask, position_ids=where, logits_to_keep=1).logits
    except Exception as error:  # whatever transformers raises for weights that are gone by now
        log.info("scores were not compared with float32: %s", one_line(error))
        return None
    off = scores[rows] - scorer(logits[:, -1]).numpy()
    dtype = str(weights[0].dtype).removeprefix("torch.")
    return Rounding(dtype, len(rows), float(np.sqrt((off**2).mean())), float(np.abs(off).max()))
