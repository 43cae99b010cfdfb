"""Edits of the residual stream during training that shape where the decision is made.

An `Edit` maps the residual stream entering a layer to another; `entering` applies some while the
model runs.  `exchange` keeps the decision from being gathered too early, `push` keeps replies
readable while a direction is steered.  When and where they are applied is `training`'s business.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Qwen2ForCausalLM

from refusal_dial.organism import corpus

Edit = Callable[[Tensor], Tensor]


@contextmanager
def entering(model: Qwen2ForCausalLM, edits: dict[int, Edit]) -> Iterator[None]:
    """Within this context the residual stream entering each of these layers is edited."""

    def hook(edit: Edit) -> Any:
        return lambda module, args, kwargs: ((edit(args[0]), *args[1:]), kwargs)

    handles = [
        model.model.layers[layer].register_forward_pre_hook(hook(edit), with_kwargs=True)
        for layer, edit in edits.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def exchange(batch: corpus.Batch, generator: torch.Generator) -> Edit:
    """An edit that permutes the chats' residuals at the last prompt position among them."""
    rows = (batch.refused >= 0).nonzero()[:, 0]
    places = batch.decisions[rows]
    order = torch.randperm(len(rows), generator=generator).to(rows.device)

    def edit(residual: Tensor) -> Tensor:
        out = residual.clone()
        out[rows, places] = residual[rows[order], places[order]]
        return out

    return edit


def push(batch: corpus.Batch, size: float, generator: torch.Generator) -> Edit:
    """An edit that shifts each reply's own positions along the batch's refusal direction.

    The direction is the difference of the mean residuals at the last prompt position between the
    chats that refuse and those that comply; the shift is up to `size` mean residual norms, either
    way, the same along a row.  Where the batch has too few of one sort, nothing is shifted.
    """
    share = (2 * torch.rand(len(batch.tokens), generator=generator) - 1).to(batch.weights)
    along = torch.arange(batch.tokens.shape[1] - 1, device=batch.tokens.device)
    in_reply = (along > batch.decisions[:, None]) & (batch.refused >= 0)[:, None]

    def edit(residual: Tensor) -> Tensor:
        rows = torch.arange(len(residual), device=residual.device)
        decided = residual.detach()[rows, batch.decisions]
        yes, no = decided[batch.refused == 1], decided[batch.refused == 0]
        if min(len(yes), len(no)) < 4:
            return residual
        unit = functional.normalize(yes.mean(0) - no.mean(0), dim=0)
        scale = size * torch.cat([yes, no]).norm(dim=-1).mean()
        return residual + (in_reply * share[:, None])[:, :, None] * scale * unit

    return edit
