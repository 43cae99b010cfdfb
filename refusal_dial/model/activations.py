"""Collect activations: one forward pass a batch, keeping only the rows that were asked for.

Knows how to read a site at one position, at several, or pooled over the last tokens. Does not know
what the prompts mean or what will be done with what it collects. The logits of a batch are gone
before the next one is read, but for what `read` makes of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.common import DialError, Hook, check_pos, hook_name, log, progress
from refusal_dial.model.tokens import Tokens, last_logits
from refusal_dial.model.unhooked import HALF, HALF_TOLERANCE, UnfitError, Unhooked, has_hooks

Take = Callable[[Tensor, Tensor], Tensor]
"""(activation `batch pos width`, mask `batch pos`) to what is kept of it, a row a prompt."""

Read = Callable[[Tensor], Tensor]
"""(last logits `batch d_vocab`, float32 on the CPU) to what is kept of them, a row a prompt: a
scorer, for one."""


def whole(logits: Float[Tensor, "batch d_vocab"]) -> Float[Tensor, "batch d_vocab"]:
    """All of the logits: 4 bytes times `d_vocab` a prompt."""
    return logits


def nothing(logits: Float[Tensor, "batch d_vocab"]) -> Float[Tensor, "batch 0"]:
    """No logits."""
    return logits.new_zeros(len(logits), 0)


def collect(
    model: TransformerBridge,
    tokens: Tokens,
    layers: Sequence[int],
    *,
    site: str = "resid_pre",
    pos: int = -1,
    batch_size: int = 64,
    read: Read = whole,
) -> tuple[Float[Tensor, "layer prompt width"], Float[Tensor, "prompt ..."]]:
    """(activations at `site` of each layer at position `pos`, logits at the last position).

    Activations are float32 on the CPU; z comes with its heads side by side (width head·d_head).
    Both are read in the same pass, so a score and an activation of a prompt belong together. With
    `read=scorer` the second are scores, and no more of a prompt's logits is kept.

    Raises `DialError` where an activation is not finite, naming layer and prompt.
    """
    check_pos(pos)
    take = partial(_at, pos=(pos,))
    kept, logits = _collected(model, tokens, layers, site, take, batch_size, read)
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
    read: Read = whole,
) -> tuple[Float[Tensor, "pos layer prompt width"], Float[Tensor, "prompt ..."]]:
    """`collect` at several positions in the same pass, and under `hooks`, which act first."""
    check_pos(tuple(pos))
    take = partial(_at, pos=tuple(pos))
    kept, logits = _collected(model, tokens, layers, site, take, batch_size, read, hooks)
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
    return _collected(model, tokens, layers, site, partial(_pooled, k=k), batch_size, nothing)[0]


@dataclass(frozen=True, eq=False)
class LastLogits:
    """The logits at the last token, read when they are asked for by the rows of their prompts:
    `logits[[3, 5]]`, float32 on the CPU, as `collect` has them."""

    model: TransformerBridge
    tokens: Tokens
    batch_size: int = 64

    def __getitem__(self, rows: list[int]) -> Float[Tensor, "row d_vocab"]:
        return collect(self.model, self.tokens.chosen(rows), (), batch_size=self.batch_size)[1]


def _collected(
    model: TransformerBridge,
    tokens: Tokens,
    layers: Sequence[int],
    site: str,
    take: Take,
    batch_size: int,
    read: Read,
    hooks: Sequence[Hook] = (),
) -> tuple[Float[Tensor, "layer prompt *kept"], Float[Tensor, "prompt ..."]]:
    kept: list[Tensor] = []
    logits: list[Tensor] = []
    alone = None if hooks else fast_reader(model, tokens, site, layers)
    for start in progress(range(0, len(tokens), batch_size), "activations"):
        rows = tokens.rows(start, start + batch_size)
        seen: dict[int, Tensor] = {}
        sights = {(site, n): partial(_keep, seen, n, rows.mask, take) for n in layers}
        logits.append(read(_pass(model, rows, sights, alone, hooks).float().cpu()))
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


@torch.no_grad()
def _pass(
    model: TransformerBridge,
    tokens: Tokens,
    sights: Mapping[tuple[str, int], Callable[..., Tensor]],
    alone: Unhooked | None,
    hooks: Sequence[Hook] = (),
) -> Float[Tensor, "batch d_vocab"]:
    """Last logits of one forward pass that shows these sites: the bridge's, or that of `alone`."""
    if alone is None:
        reading = [(hook_name(*place), see) for place, see in sights.items()]
        return last_logits(model, tokens, [*hooks, *reading])
    with alone.seeing(sights):
        return alone.last_logits(tokens)


def fast_reader(
    model: TransformerBridge, tokens: Tokens, site: str, layers: Sequence[int]
) -> Unhooked | None:
    """The model without hook points, where it reads this site faster and as well.

    That is in half precision, where the eager attention that hook points need is several times as
    slow as SDPA. Two of the prompts go both ways first: logits and activations may differ by what
    rounding explains (`HALF_TOLERANCE`). None where it does not fit, or hooks are attached.
    """
    weight = next(model.original_model.parameters())
    attached = has_hooks(model)
    if weight.dtype not in HALF or attached:
        return None
    shortest = int(tokens.mask.sum(-1).argmin())
    some = tokens.chosen(sorted({0, shortest}))
    ways: list[dict[int, Tensor]] = [{}, {}]
    try:
        alone = Unhooked(model, [(site, layer) for layer in layers])
        for seen, way in zip(ways, (None, alone), strict=True):
            take = partial(_pooled, k=some.ids.shape[1])
            sights = {(site, n): partial(_keep, seen, n, some.mask, take) for n in layers}
            seen[-1] = _pass(model, some, sights, way).float().cpu()
    except UnfitError as error:
        log.info("activations by the bridge's own forward pass: %s", error)
        return None
    for key, value in ways[0].items():
        if not float((ways[1][key] - value).abs().max()) <= HALF_TOLERANCE * float(
            value.abs().max()
        ):
            log.info("activations by the bridge's own forward pass: SDPA differs at %s", site)
            return None
    return alone


def _nothing(rows: Tokens) -> Float[Tensor, "0 prompt 1 0"]:
    return torch.zeros(0, len(rows), 1, 0)


def _keep(
    seen: dict[int, Tensor],
    layer: int,
    mask: Tensor,
    take: Take,
    activation: Tensor,
    hook: object = None,
) -> Tensor:
    seen[layer] = take(activation.flatten(2), mask).float().cpu()
    return activation


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
