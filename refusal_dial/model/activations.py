"""Collect activations: one forward pass a batch, keeping only the rows that were asked for.

Knows how to read a site at one position, at several, or pooled over the last tokens. Does not know
what the prompts mean or what will be done with what it collects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.common import DialError, Hook, check_pos, hook_name, progress
from refusal_dial.model.tokens import Tokens, last_logits

Take = Callable[[Tensor, Tensor], Tensor]
"""(activation `batch pos width`, mask `batch pos`) to what is kept of it, a row a prompt."""


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
    take = partial(_at, pos=(pos,))
    kept, logits = _collected(model, tokens, layers, site, take, batch_size)
    return kept[:, :, 0], logits


def collect_positions(
    model: TransformerBridge,
    tokens: Tokens,
    layers: Sequence[int],
    pos: Sequence[int],
    *,
    site: str = "resid_pre",
    batch_size: int = 64,
    hooks: Sequence[Hook] = (),
) -> tuple[Float[Tensor, "pos layer prompt width"], Float[Tensor, "prompt d_vocab"]]:
    """`collect` at several positions in the same pass, and under `hooks`, which act first."""
    check_pos(tuple(pos))
    take = partial(_at, pos=tuple(pos))
    kept, logits = _collected(model, tokens, layers, site, take, batch_size, hooks)
    return kept.permute(2, 0, 1, 3), logits


def collect_pooled(
    model: TransformerBridge,
    tokens: Tokens,
    layers: Sequence[int],
    k: int,
    *,
    site: str = "resid_pre",
    batch_size: int = 64,
) -> Float[Tensor, "layer prompt width"]:
    """`mean over the last min(k, length) tokens` of the activation at each layer, float32 on the
    CPU. Padding is not a token. Raises `DialError` as `collect` does, and for k under 1."""
    if k < 1:
        raise DialError(f"pooling takes at least the last token, not the last {k}")
    return _collected(model, tokens, layers, site, partial(_pooled, k=k), batch_size)[0]


def _collected(
    model: TransformerBridge,
    tokens: Tokens,
    layers: Sequence[int],
    site: str,
    take: Take,
    batch_size: int,
    hooks: Sequence[Hook] = (),
) -> tuple[Float[Tensor, "layer prompt *kept"], Float[Tensor, "prompt d_vocab"]]:
    kept: list[Tensor] = []
    logits: list[Tensor] = []
    for start in progress(range(0, len(tokens), batch_size), "activations"):
        rows = tokens.rows(start, start + batch_size)
        seen: dict[int, Tensor] = {}
        reading = [(hook_name(site, n), partial(_keep, seen, n, rows.mask, take)) for n in layers]
        logits.append(last_logits(model, rows, [*hooks, *reading]).float().cpu())
        batch = torch.stack([seen[layer] for layer in layers]) if layers else _nothing(rows)
        bad = (~torch.isfinite(batch)).flatten(2).any(-1).nonzero()
        if len(bad):
            layer, row = int(bad[0, 0]), int(bad[0, 1])
            raise DialError(
                f"NaN or infinite activation at {site} of layer {layers[layer]}, prompt "
                f"{start + row + 1}: try --dtype float32"
            )
        kept.append(batch)
    return torch.cat(kept, 1), torch.cat(logits)


def _nothing(rows: Tokens) -> Float[Tensor, "0 prompt 1 0"]:
    return torch.zeros(0, len(rows), 1, 0)


def _keep(
    seen: dict[int, Tensor],
    layer: int,
    mask: Tensor,
    take: Take,
    activation: Tensor,
    hook: object,
) -> None:
    seen[layer] = take(activation.flatten(2), mask).float().cpu()


def _at(activation: Tensor, mask: Tensor, pos: tuple[int, ...]) -> Tensor:
    length = activation.shape[1]
    outside = [p for p in pos if not -length <= p < length]
    if outside:
        raise DialError(f"position {outside[0]} is outside prompts of {length} tokens")
    return activation[:, list(pos)]


def _pooled(activation: Tensor, mask: Tensor, k: int) -> Tensor:
    weight = mask[:, -k:, None].float()
    return (activation[:, -k:].float() * weight).sum(1) / weight.sum(1)


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
