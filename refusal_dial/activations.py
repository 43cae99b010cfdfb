"""Collect activations: one forward pass a batch, keeping only the rows that were asked for.

Knows how to read a site at a position. Does not know what the prompts mean or what will be done
with what it collects.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.tokens import Tokens, last_logits
from refusal_dial.types import DialError, check_pos, hook_name


def collect(
    model: TransformerBridge,
    tokens: Tokens,
    layers: Sequence[int],
    *,
    site: str = "resid_pre",
    pos: int = -1,
    batch_size: int = 64,
) -> tuple[Float[Tensor, "layer prompt width"], Float[Tensor, "prompt d_vocab"]]:
    """(activations at `site` of each layer at position `pos`, logits at the last position).

    Activations are float32 on the CPU; z comes with its heads side by side (width head·d_head).
    Both are read in the same pass, so a score and an activation of a prompt belong together.

    Raises `DialError` where an activation is not finite, naming layer and prompt.
    """
    check_pos(pos)
    kept: list[Tensor] = []
    logits: list[Tensor] = []
    for start in range(0, len(tokens), batch_size):
        rows = tokens.rows(start, start + batch_size)
        seen: dict[int, Tensor] = {}
        reading = [(hook_name(site, layer), partial(_keep, seen, layer, pos)) for layer in layers]
        logits.append(last_logits(model, rows, reading).float().cpu())
        batch = torch.stack([seen[layer] for layer in layers])
        bad = (~torch.isfinite(batch).all(-1)).nonzero()
        if len(bad):
            layer, row = int(bad[0, 0]), int(bad[0, 1])
            raise DialError(
                f"NaN or infinite activation at {site} of layer {layers[layer]}, prompt "
                f"{start + row + 1}: try --dtype float32"
            )
        kept.append(batch)
    return torch.cat(kept, 1), torch.cat(logits)


def _keep(seen: dict[int, Tensor], layer: int, pos: int, activation: Tensor, hook: object) -> None:
    if not -activation.shape[1] <= pos < activation.shape[1]:
        raise DialError(f"position {pos} is outside prompts of {activation.shape[1]} tokens")
    seen[layer] = activation[:, pos].flatten(1).float().cpu()
