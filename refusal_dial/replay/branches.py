"""Attention of many branches on one trunk: exact, without copies of the trunk's keys and values.

Each prompt is a trunk, run once. A branch is what one intervention makes of the prompt's positions
p..T-1. Its queries see the trunk's keys before p and the branch's own keys from p on:

    softmax([q·K_trunk[:p], q·K_branch] * scaling + mask)  over  [V_trunk[:p], V_branch]

Branches of the same prompt do not see each other. With p = T-1 a branch is one extra token that
sees the trunk and itself. Each class here stands in the place of an attention mask (`bare.Mask`).
This module knows attention. It does not know layers, edits or models.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Queries = Float[Tensor, "batch head pos d_head"]
Keys = Float[Tensor, "batch kv_head pos d_head"]
Values = Float[Tensor, "batch kv_head pos d_value"]
Pair = tuple[Tensor, Tensor]


def causal_rows(
    mask: Tensor | None, prompts: Tensor, first: int, length: int, device: torch.device
) -> Tensor | None:
    """The mask's rows for queries `first`..`length`-1 of these prompts; None where all is seen."""
    if mask is None:
        if first == length - 1:
            return None
        seen = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        return seen[None, None, first:]
    return mask[:, :, first:] if mask.shape[0] == 1 else mask[prompts, :, first:]


def masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Scores under an additive or boolean (true = seen) mask."""
    if mask is None:
        return scores
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores + mask


def capped(scores: Tensor, softcap: float | None) -> Tensor:
    return scores if softcap is None else torch.tanh(scores / softcap) * softcap


class KeysTakenError(Exception):
    """Ends a block once its keys and values are known: nothing after them is wanted."""

    def __init__(self, kept: Pair) -> None:
        self.kept = kept


class KeysOnly:
    """Attention that never happens: the block is run for its keys and values."""

    def attend(
        self, query: Queries, key: Keys, value: Values, scaling: float, softcap: float | None
    ) -> Tensor:
        raise KeysTakenError((key, value))


@dataclass(frozen=True)
class Branches:
    """Attention of `n` branches a prompt, laid out one after another along the positions.

    `past` is the trunk's keys and values before the branches leave it. `before` holds keys and
    values of a branch's earlier positions where the block runs on its last position alone.
    """

    n: int
    past: Pair
    mask: Tensor | None  # "batch 1 query trunk+branch", additive or boolean
    before: Pair | None = None

    def attend(
        self, query: Queries, key: Keys, value: Values, scaling: float, softcap: float | None
    ) -> Float[Tensor, "batch pos head d_value"]:
        batch, heads, tokens, width = query.shape
        kv, n, t = key.shape[1], self.n, query.shape[2] // self.n
        groups = heads // kv
        k, v = (x.reshape(batch, kv, n, t, x.shape[-1]) for x in (key, value))
        if self.before is not None:
            k, v = (
                torch.cat([x.reshape(batch, kv, n, -1, x.shape[-1]), y], 3)
                for x, y in zip(self.before, (k, v), strict=True)
            )
        q = query.reshape(batch, kv, groups, n, t, width).transpose(2, 3)
        q = q.reshape(batch, kv, n, groups * t, width)
        past_k, past_v = self.past
        p = past_k.shape[2]
        rows = n * groups * t
        trunk = q.reshape(batch, kv, rows, width) @ past_k.mT
        own = (q * k).sum(-1, keepdim=True) if k.shape[3] == 1 else q @ k.mT
        scores = torch.cat([trunk.view(*q.shape[:4], p), own], -1) * scaling
        scores = scores.view(batch, kv, n, groups, t, -1)
        mask = None if self.mask is None else self.mask[:, :, None, None]
        weights = masked(capped(scores, softcap), mask).softmax(-1, dtype=torch.float32)
        weights = weights.to(v.dtype).view(*q.shape[:4], -1)
        out = (weights[..., :p].reshape(batch, kv, rows, p) @ past_v).view(*q.shape[:4], -1)
        own_weights = weights[..., p:]
        out = out + (own_weights * v if v.shape[3] == 1 else own_weights @ v)
        out = out.view(batch, kv, n, groups, t, -1).permute(0, 2, 4, 1, 3, 5)
        return out.reshape(batch, tokens, heads, -1)
