"""The slope of the dial at 0, for every direction at once, from one backward pass.

    s_i(alpha)         the score of prompt i when alpha v is added at (layer, site, pos)
    d s_i / d alpha    = g_i · v    at alpha = 0,    g_i = d s_i / d h_(layer, site, pos)

So the mean slope of *any* direction is `mean(g) · v`: no direction needs a forward pass of its own.
The slope is local. It is exact as alpha goes to 0 and blind to saturation: beside it belongs the
measured curve, and where that leaves the line. Gradients in half precision are coarse, so the
parameters of such a model are taken in float32 for the pass, and put back as they were.

Nanda 2023 (attribution patching) is the same tangent at a patched activation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.common import Hook, hook_name, progress
from refusal_dial.engine.score import Scorer
from refusal_dial.model.loading import check_layers, check_site
from refusal_dial.model.tokens import Tokens

Key = tuple[str, int]
"""A site and a layer."""

PROMPTS_A_PASS = 16
"""Prompts a backward pass: the graph of all of them is held at once."""


def gradients(
    model: TransformerBridge,
    tokens: Tokens,
    scorer: Scorer,
    keys: Sequence[Key],
    where: Int[Tensor, "prompt k"],
    batch_size: int = PROMPTS_A_PASS,
) -> dict[Key, Float[Tensor, "prompt k *width"]]:
    """`d score_i / d h_i` at these sites and layers, at positions `where` of each prompt (negative,
    from the end), in float32 on the CPU.

    The scorer reads each prompt by itself, so one backward pass of their sum serves a batch. What
    is differentiated is a vector of zeros that a hook adds there: the parameters need no gradient,
    and each activation may be on a device of its own.

    Raises `DialError` for a layer or site that the model has not.
    """
    check_layers(model, {layer for _, layer in keys})
    for site in dict.fromkeys(site for site, _ in keys):
        check_site(model, site)
    held: dict[Key, list[Tensor]] = {key: [] for key in keys}
    with _in_float32(model), torch.enable_grad():
        for start in range(0, len(where), batch_size):
            some = tokens.rows(start, start + batch_size)
            added: dict[Key, Tensor] = {}
            at = where[start : start + batch_size]
            hooks = [_zeros_added(key, at, added) for key in keys]
            with model.hooks(fwd_hooks=hooks):
                logits = model(
                    some.ids, attention_mask=some.mask, logits_to_keep=1, use_cache=False
                )
            score = scorer(logits[:, -1]).sum()
            found = torch.autograd.grad(score, [added[key] for key in keys], allow_unused=True)
            for key, one in zip(keys, found, strict=True):
                zeros = torch.zeros_like(added[key]) if one is None else one
                held[key].append(zeros.detach().float().cpu())
    return {key: torch.cat(parts) for key, parts in held.items()}


def _zeros_added(key: Key, where: Int[Tensor, "batch k"], added: dict[Key, Tensor]) -> Hook:
    """The hook that adds zeros at these positions, and keeps them to be differentiated."""
    site, layer = key

    def add(activation: Tensor, hook: Any) -> Tensor:
        at = where.to(activation.device)
        rows = torch.arange(len(at), device=activation.device)[:, None]
        zeros = torch.zeros_like(activation[rows, at]).requires_grad_(True)
        added[key] = zeros
        return activation.index_put((rows.expand_as(at), at), zeros, accumulate=True)

    return hook_name(site, layer), add


@contextmanager
def _in_float32(model: TransformerBridge) -> Iterator[None]:
    """Parameters in half precision as float32, for as long as this lasts; then the very same."""
    half = [
        one
        for one in model.original_model.parameters()
        if one.dtype in (torch.float16, torch.bfloat16)
    ]
    before = [one.data for one in half]
    try:
        for one in half:
            one.data = one.data.float()
        yield
    finally:
        for one, data in zip(half, before, strict=True):
            one.data = data


def mean_gradients(
    model: TransformerBridge,
    tokens: Tokens,
    scorer: Scorer,
    keys: Sequence[Key],
    pos: Sequence[int] = (-1,),
    batch_size: int = PROMPTS_A_PASS,
) -> dict[Key, Float64[Tensor, "pos d_model"]]:
    """`mean_i g_i` at each position: the slope of a direction v there is `mean(g) @ v`, in score
    units a residual-stream unit. Memory does not grow with the number of prompts."""
    total: dict[Key, Tensor] = {}
    n = len(tokens)
    for start in progress(range(0, n, batch_size), "gradients"):
        some = tokens.rows(start, start + batch_size)
        where = torch.tensor([list(pos)] * len(some))
        for key, found in gradients(model, some, scorer, keys, where, batch_size).items():
            part = found.double().sum(0) / n
            total[key] = total[key] + part if key in total else part
    return total


def slopes(
    gradient: Mapping[Key, Float64[Tensor, "pos d_model"]],
    vectors: Float[Tensor, "vector d_model"],
) -> dict[Key, Float64[Tensor, "pos vector"]]:
    """The slope of each of these vectors at each place: `mean(g) · v`, v with its own length."""
    return {key: mean @ vectors.double().cpu().T for key, mean in gradient.items()}
