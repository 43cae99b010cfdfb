"""Forward passes that remember: a prompt is read once, and then one new token a call, under hooks.

    (mask, cache, logits) = prefill(...);  logits = forward(..., new token, mask, cache)

Rows of a batch are prompts under cells. Where only the last prompt token is edited, what stands
before it is read once a prompt, for all its cells. This module does not choose tokens, and does not
know when a reply is over.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge
from transformers import DynamicCache

from refusal_dial.replay.bare import UnfitError, unhooked
from refusal_dial.row_hooks import at_the_last_token, leaves_the_rest_alone, row_hooks
from refusal_dial.tokens import Tokens
from refusal_dial.types import Hook


@dataclass(frozen=True, eq=False)
class Batch:
    """Some prompts under some cells; `prompts` are their numbers in the whole."""

    tokens: Tokens
    prompts: Int[Tensor, " prompt"]
    grid: Sequence[Sequence[Hook]]
    first: int = 0  # the number of the first cell


def prefill(
    model: TransformerBridge,
    runner: nn.Module,
    part: Batch,
    prompts: Int[Tensor, " row"],
    cells: Int[Tensor, " row"],
) -> tuple[Int[Tensor, "row pos"], DynamicCache, Float[Tensor, "row d_vocab"]]:
    """(mask, cache, logits at the last prompt token) of every row.

    Where only the last prompt token is edited, what stands before it is read once a prompt.
    """
    index = prompts.to(part.tokens.ids.device)
    ids, mask = part.tokens.ids, part.tokens.mask
    if len(index) > len(ids) and ids.shape[1] > 1 and leaves_the_rest_alone(part.grid):
        state = _cache(model)
        forward(runner, ids[:, :-1], mask[:, :-1], state)
        state.batch_select_indices(index)
        hooks = row_hooks(at_the_last_token(part.grid), cells, part.prompts[prompts])
        ids = ids[:, -1:]
    else:
        state, hooks = _cache(model), row_hooks(part.grid, cells, part.prompts[prompts])
    with model.hooks(fwd_hooks=hooks) if hooks else nullcontext():
        return mask[index], state, forward(runner, ids[index], mask[index], state)


def runner_of(model: TransformerBridge, grid: Sequence[Sequence[Hook]]) -> nn.Module:
    """What runs a batch: where no hook is to be seen, the model without its hook points."""
    attached = any(isinstance(part, HookPoint) and part.fwd_hooks for part in model.modules())
    if attached or any(grid):
        return model.original_model
    try:
        return unhooked(model)
    except UnfitError:
        return model.original_model


def _cache(model: TransformerBridge) -> DynamicCache:
    return DynamicCache(config=model.original_model.config)


def forward(
    runner: nn.Module,
    ids: Int[Tensor, "row new"],
    mask: Int[Tensor, "row pos"],
    cache: DynamicCache,
) -> Float[Tensor, "row d_vocab"]:
    """Logits at the last position; the cache grows by `ids`."""
    where = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    return runner(
        input_ids=ids,
        attention_mask=mask,
        position_ids=where,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
