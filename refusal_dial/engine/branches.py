"""Attention of many branches on one trunk, without copies of the trunk.

Each prompt is a trunk, run once; a branch is what one intervention makes of its last positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

# --------------------------------------------------------------------------------------------------
# Attention of many branches on one trunk: exact, without copies of the trunk's keys and values.
#
# Each prompt is a trunk, run once. A branch is what one intervention makes of the prompt's
# positions p..T-1. Its queries see the trunk's keys before p and the branch's own keys from p on.
# Over each of the two attention is worked out by itself, with the logarithm of its denominator:
#
#     out(K, V) = softmax(q·K * scaling + mask) V         total(K) = logsumexp(q·K * scaling + mask)
#
# and over both it is `(1 - s) out(trunk) + s out(own)`, s = sigmoid(total(own) - total(trunk)).
#
# Branches of the same prompt do not see each other. With p = T-1 a branch is one extra token that
# sees the trunk and itself. Each class here stands in the place of an attention mask (`Mask`).


Queries = Float[Tensor, "batch head pos d_head"]

Keys = Float[Tensor, "batch kv_head pos d_head"]

BranchValues = Float[Tensor, "batch kv_head pos d_value"]

KeyValue = tuple[Tensor, Tensor]


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

    def __init__(self, kept: KeyValue) -> None:
        self.kept = kept


class KeysOnly:
    """Attention that never happens: the block is run for its keys and values."""

    def attend(
        self, query: Queries, key: Keys, value: BranchValues, scaling: float, softcap: float | None
    ) -> Tensor:
        raise KeysTakenError((key, value))


@dataclass(frozen=True)
class Branches:
    """Attention of `n` branches a prompt, laid out one after another along the positions.

    `past` is the trunk's keys and values before the branches leave it. `before` holds keys and
    values of a branch's earlier positions where the block runs on its last position alone.
    """

    n: int
    past: KeyValue
    mask: Tensor | None  # "batch 1 query trunk+branch", additive or boolean
    before: KeyValue | None = None

    def attend(
        self, query: Queries, key: Keys, value: BranchValues, scaling: float, softcap: float | None
    ) -> Float[Tensor, "batch pos head d_value"]:
        batch, n, groups = len(query), self.n, query.shape[1] // key.shape[1]
        mask = None if self.mask is None else self.mask.expand(batch, n, -1, -1)
        # 1. every branch by itself: its own keys, those of its earlier positions before them
        k, v = (apart(x, n, groups) for x in (key, value))
        if self.before is not None:
            before = (apart(x, n, groups) for x in self.before)
            k, v = (torch.cat(pair, 2) for pair in zip(before, (k, v), strict=True))
        p = self.past[0].shape[2]
        seen = None if mask is None else mask[..., p:].flatten(0, 1)[:, None]
        own = attended(apart(query, n), k, v, seen, scaling, softcap)
        parts = (x.view(batch, n, *x.shape[1:]) for x in own)
        out, own_total = (x.transpose(1, 2).flatten(2, 3) for x in parts)
        # 2. all branches at once: the trunk's keys, which are there once a prompt
        if p:
            past_k, past_v = (x.repeat_interleave(groups, 1) for x in self.past)
            seen = None if mask is None else mask[..., :p].flatten(1, 2)[:, None]
            trunk, total = attended(query, past_k, past_v, seen, scaling, softcap)
            # 3. a softmax over both is their average by the share of each
            share = (own_total - total).sigmoid()[..., None]
            out = torch.lerp(trunk, out, share.to(out.dtype))
        return out.transpose(1, 2)


def apart(
    value: Float[Tensor, "batch head branch_pos width"], n: int, times: int = 1
) -> Float[Tensor, "batch_branch head_times pos width"]:
    """Each of the `n` branches as a batch row of its own, every head so many times."""
    batch, heads, tokens, width = value.shape
    rows = value.view(batch, heads, n, tokens // n, width).transpose(1, 2).flatten(0, 1)
    return rows if times == 1 else rows.repeat_interleave(times, 1)


def attended(
    query: Float[Tensor, "batch head pos d_head"],
    key: Float[Tensor, "batch head seen d_head"],
    value: Float[Tensor, "batch head seen d_value"],
    mask: Tensor | None,
    scaling: float,
    softcap: float | None,
) -> tuple[Float[Tensor, "batch head pos d_value"], Float[Tensor, "batch head pos"]]:
    """(attention, log of the softmax's denominator) over these keys, as many heads as queries.

    On a CPU by the kernel behind `scaled_dot_product_attention`, which keeps no matrix of scores;
    elsewhere, or under a soft cap, by two products.
    """
    if key.shape[2] == 1:  # the softmax of one number is 1
        scores = capped((query * key).sum(-1, keepdim=True) * scaling, softcap)
        return value.expand(*query.shape[:3], -1), masked(scores, mask)[..., 0].float()
    if query.is_cpu and softcap is None and query.shape[-1] == value.shape[-1]:
        if mask is not None and mask.dtype == torch.bool:
            hidden = torch.finfo(query.dtype).min
            mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, hidden)
        out, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, attn_mask=mask, scale=scaling
        )
        return out, total
    scores = masked(capped(query @ key.mT * scaling, softcap), mask).float()
    total = scores.logsumexp(-1)
    return (scores - total[..., None]).exp().to(value.dtype) @ value, total
