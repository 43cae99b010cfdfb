"""The slope of the dial at 0, for every direction at once, from one backward pass.

    s_i(alpha)         the score of prompt i when alpha v is added at (layer, site, pos)
    d s_i / d alpha    = g_i · v    at alpha = 0,    g_i = d s_i / d h_(layer, site, pos)

So the mean slope of *any* direction is `mean(g) · v`: no direction needs a forward pass of its own.
The slope is local. It is exact as alpha goes to 0 and blind to saturation: beside it belongs the
measured curve, and where that leaves the line. Gradients in half precision are coarse, so the
parameters of such a model are taken in float32 for the pass, and put back as they were.

The same tangent estimates any edit, a patch too (attribution patching, Nanda 2023):

    s_i(edit) ≈ s_i + (edit(h_i) - h_i) · g_i
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.common import DialError, Hook, hook_name, progress
from refusal_dial.engine.recording import SitePlace
from refusal_dial.engine.replay import restrict
from refusal_dial.engine.score import Scorer, check_grid
from refusal_dial.hooks import Edit
from refusal_dial.model.loading import check_layers, check_site
from refusal_dial.model.tokens import Tokens
from refusal_dial.model.unhooked import HALF

PROMPTS_A_PASS = 16
"""Prompts a backward pass: the graph of all of them is held at once."""


def gradients(
    model: TransformerBridge,
    tokens: Tokens,
    scorer: Scorer,
    keys: Sequence[SitePlace],
    where: Int[Tensor, "prompt k"],
    batch_size: int = PROMPTS_A_PASS,
) -> dict[SitePlace, Float[Tensor, "prompt k *width"]]:
    """`d score_i / d h_i` at these sites and layers, at positions `where` of each prompt (negative,
    from the end), in float32 on the CPU.

    The scorer reads each prompt by itself, so one backward pass of their sum serves a batch. What
    is differentiated is a vector of zeros that a hook adds there: the parameters need no gradient,
    and each activation may be on a device of its own.

    Raises `DialError` for a layer or site that the model has not.
    """
    _check_keys(model, keys)
    held: dict[SitePlace, list[Tensor]] = {key: [] for key in keys}
    for start in range(0, len(where), batch_size):
        some = tokens.rows(start, start + batch_size)
        _, found = _backward(model, some, scorer, keys, where[start : start + batch_size])
        for key, (_, gradient) in found.items():
            held[key].append(gradient.float().cpu())
    return {key: torch.cat(parts) for key, parts in held.items()}


def first_order(
    model: TransformerBridge,
    tokens: Tokens,
    grid: Sequence[Sequence[Hook]],
    scorer: Scorer,
    batch_size: int = PROMPTS_A_PASS,
) -> Float64[Tensor, "cell batch"]:
    """`s_i + sum over the cell's edits of (edit(h_i) - h_i) · g_i`: what `score_grid` would find
    for these cells if the score were linear, from one backward pass.

    Exact as edits become small, and blind to saturation and to what one edit does to another.
    Raises `DialError` as `score_grid` does, and for a hook that is no edit of this package.
    """
    check_grid(model, tokens, grid)
    for _, edit in (hook for cell in grid for hook in cell):
        if not isinstance(edit, Edit):
            raise DialError(f"first-order: expected steer, ablate, clamp or patch, not {edit}")
    edits = [[edit for _, edit in cell if isinstance(edit, Edit)] for cell in grid]
    keys = list(dict.fromkeys((edit.site, edit.layer) for cell in edits for edit in cell))
    parts: list[Tensor] = []
    with _in_float32(model):
        for start in progress(range(0, len(tokens), batch_size), "gradients"):
            rows = torch.arange(start, min(start + batch_size, len(tokens)))
            some = Tokens(tokens.ids[rows], tokens.mask[rows])
            every = torch.arange(-some.ids.shape[1], 0).expand(len(rows), -1)
            score, found = _backward(model, some, scorer, keys, every)
            estimates = score.double().cpu().repeat(len(grid), 1)
            for estimate, cell in zip(estimates, edits, strict=True):
                for edit in cell:
                    activation, gradient = found[edit.site, edit.layer]
                    step = restrict(edit, rows)(activation) - activation
                    estimate += (step.double() * gradient.double()).flatten(1).sum(1).cpu()
            parts.append(estimates)
    return torch.cat(parts, dim=1)


def _check_keys(model: TransformerBridge, keys: Sequence[SitePlace]) -> None:
    check_layers(model, {layer for _, layer in keys})
    for site in dict.fromkeys(site for site, _ in keys):
        check_site(model, site)


def _backward(
    model: TransformerBridge,
    tokens: Tokens,
    scorer: Scorer,
    keys: Sequence[SitePlace],
    where: Int[Tensor, "batch k"],
) -> tuple[Float64[Tensor, " batch"], dict[SitePlace, tuple[Tensor, Tensor]]]:
    """The scores, and at each key the activations at these positions and their gradients, of a
    model that is in float32 (`_in_float32`)."""
    added: dict[SitePlace, Tensor] = {}
    seen: dict[SitePlace, Tensor] = {}
    with torch.enable_grad():
        hooks = [_zeros_added(key, where, added, seen) for key in keys]
        with model.hooks(fwd_hooks=hooks):
            logits = model(
                tokens.ids, attention_mask=tokens.mask, logits_to_keep=1, use_cache=False
            )
        score = scorer(logits[:, -1])
        found: Sequence[Tensor | None] = ()
        if keys:
            found = torch.autograd.grad(score.sum(), [added[k] for k in keys], allow_unused=True)
    return score.detach(), {
        key: (seen[key], torch.zeros_like(added[key]) if one is None else one.detach())
        for key, one in zip(keys, found, strict=True)
    }


def _zeros_added(
    key: SitePlace,
    where: Int[Tensor, "batch k"],
    added: dict[SitePlace, Tensor],
    seen: dict[SitePlace, Tensor],
) -> Hook:
    """The hook that adds zeros at these positions, and keeps them to be differentiated, with the
    activations there."""
    site, layer = key

    def add(activation: Tensor, hook: Any) -> Tensor:
        at = where.to(activation.device)
        rows = torch.arange(len(at), device=activation.device)[:, None]
        seen[key] = activation[rows, at].detach()
        added[key] = zeros = torch.zeros_like(seen[key]).requires_grad_(True)
        return activation.index_put((rows.expand_as(at), at), zeros, accumulate=True)

    return hook_name(site, layer), add


@contextmanager
def _in_float32(model: TransformerBridge) -> Iterator[None]:
    """Parameters in half precision as float32, for as long as this lasts; then the very same. So
    are buffers: the bridge gives an unembedding without a bias one of zeros. Within another of its
    kind it changes nothing."""
    whole = model.original_model
    half = [one for one in (*whole.parameters(), *whole.buffers()) if one.dtype in HALF]
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
    keys: Sequence[SitePlace],
    pos: Sequence[int] = (-1,),
    batch_size: int = PROMPTS_A_PASS,
) -> dict[SitePlace, Float64[Tensor, "pos d_model"]]:
    """`mean_i g_i` at each position: the slope of a direction v there is `mean(g) @ v`, in score
    units a residual-stream unit. Memory does not grow with the number of prompts."""
    total: dict[SitePlace, Tensor] = {}
    n = len(tokens)
    with _in_float32(model):  # once for all batches
        for start in progress(range(0, n, batch_size), "gradients"):
            some = tokens.rows(start, start + batch_size)
            where = torch.tensor([list(pos)] * len(some))
            for key, found in gradients(model, some, scorer, keys, where, batch_size).items():
                part = found.double().sum(0) / n
                total[key] = total[key] + part if key in total else part
    return total


def slopes(
    gradient: Mapping[SitePlace, Float64[Tensor, "pos d_model"]],
    vectors: Float[Tensor, "vector d_model"],
) -> dict[SitePlace, Float64[Tensor, "pos vector"]]:
    """The slope of each of these vectors at each place: `mean(g) · v`, v with its own length."""
    return {key: mean @ vectors.double().cpu().T for key, mean in gradient.items()}
