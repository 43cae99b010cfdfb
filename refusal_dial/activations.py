"""Collect activations: one forward pass a batch, keeping only the rows that were asked for.

Knows how to read a site at a position. Does not know what the prompts mean or what will be done
with what it collects.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
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
        batch = torch.stack([seen[layer] for layer in layers]) if layers else _nothing(rows)
        bad = (~torch.isfinite(batch).all(-1)).nonzero()
        if len(bad):
            layer, row = int(bad[0, 0]), int(bad[0, 1])
            raise DialError(
                f"NaN or infinite activation at {site} of layer {layers[layer]}, prompt "
                f"{start + row + 1}: try --dtype float32"
            )
        kept.append(batch)
    return torch.cat(kept, 1), torch.cat(logits)


def _nothing(rows: Tokens) -> Float[Tensor, "0 prompt 0"]:
    return torch.zeros(0, len(rows), 0)


def _keep(seen: dict[int, Tensor], layer: int, pos: int, activation: Tensor, hook: object) -> None:
    if not -activation.shape[1] <= pos < activation.shape[1]:
        raise DialError(f"position {pos} is outside prompts of {activation.shape[1]} tokens")
    seen[layer] = activation[:, pos].flatten(1).float().cpu()


def collect_rows(
    model: TransformerBridge,
    tokens: Tokens,
    places: Iterable[tuple[str, int]],
    where: Int[Tensor, "batch k"],
) -> dict[tuple[str, int], Float[Tensor, "batch k *width"]]:
    """Activations at each (site, layer), at k positions of each prompt that may differ by prompt.

    One forward pass; what it keeps stays on the model's device, in the model's own number format.
    z keeps its heads apart. Raises `DialError` where an activation is not finite.
    """
    seen: dict[tuple[str, int], Tensor] = {}
    reading = [(hook_name(*place), partial(_keep_rows, seen, place, where)) for place in places]
    last_logits(model, tokens, reading)
    for (site, layer), rows in seen.items():
        if not bool(torch.isfinite(rows).all()):
            raise DialError(
                f"NaN or infinite activation at {site} of layer {layer}: try --dtype float32"
            )
    return seen


def _keep_rows(
    seen: dict[tuple[str, int], Tensor],
    place: tuple[str, int],
    where: Tensor,
    activation: Tensor,
    hook: object,
) -> None:
    batch = torch.arange(len(activation), device=activation.device)[:, None]
    seen[place] = activation[batch, where.to(activation.device)].clone()
