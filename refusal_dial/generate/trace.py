"""What a direction reads at every token of a prompt and of the reply to it.

    trace[t] = h_t · r / norm

h_t is the activation at the direction's own layer and site, r its unit vector; `norm` is the mean
residual norm there, so that a step of alpha in that unit moves the trace by as much wherever it is
added. Hooks act first: what is read is what the rest of the layer reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.cells import Cell
from refusal_dial.common import DialError, Hook, hook_name
from refusal_dial.directions.learning import Direction
from refusal_dial.engine.score import check_grid
from refusal_dial.generate.decode import Decoding, follow, generate
from refusal_dial.generate.likelihood import at_once, continued
from refusal_dial.model.loading import check_layers, check_site
from refusal_dial.model.tokens import Tokens


@dataclass(frozen=True)
class TokenTrace:
    """The projection at every token, as text and number: first the `prompt` tokens of the prompt,
    then the reply's. A value is None where it is no number."""

    name: str
    prompt: int
    tokens: tuple[str, ...]
    values: tuple[float | None, ...]


@torch.no_grad()
def projection_trace(
    model: TransformerBridge,
    tokens: Tokens,
    completions: Sequence[Sequence[int]],
    direction: Direction,
    norm: float = 1.0,
    hooks: Sequence[Hook] = (),
) -> list[Float[Tensor, " token"]]:
    """`h_t · r / norm` at every token of each prompt and its reply, float32 on the CPU, padding
    left out: in mean residual norms where `norm` is that, else in residual-stream units.

    `pos` of a hook means what it means in decoding. A reply is read in one pass wherever its hooks
    say the same there as token by token. Raises `DialError` for replies that are not one a prompt,
    a norm that is not over 0, a direction of another width or place, and hooks that do not fit.
    """
    at = direction.provenance
    if len(completions) != len(tokens):
        raise DialError(
            f"expected a reply to each of {len(tokens)} prompts, not {len(completions)}"
        )
    if not norm > 0:
        raise DialError(f"norm must be a number over 0, not {norm:g}")
    check_layers(model, [at.layer])
    check_site(model, at.site)
    check_grid(model, tokens, [hooks])
    seen: list[Tensor] = []

    def read(activation: Tensor, hook: object = None) -> None:
        if activation.shape[-1] != len(direction.unit):
            raise DialError(
                f"the direction has width {len(direction.unit)}, and {at.site} of layer {at.layer} "
                f"{activation.shape[-1]}: read it in this model"
            )
        seen.append((activation.float() @ direction.unit.to(activation.device)).cpu())

    reading: Hook = (hook_name(at.site, at.layer), read)
    longest = max(map(len, completions), default=0)
    edits = at_once(hooks, longest)
    if edits is not None:
        whole = continued(tokens, completions, longest)
        with model.hooks(fwd_hooks=[*edits, reading]):
            model(whole.ids, attention_mask=whole.mask, logits_to_keep=1, use_cache=False)
    else:
        for _ in follow(model, tokens, [*hooks, reading], completions):
            pass
    values = torch.cat(seen, 1) / norm
    length = tokens.ids.shape[1]
    start = (length - tokens.mask.sum(1)).tolist()
    ends = [length + len(reply) for reply in completions]
    return [row[s:e] for row, s, e in zip(values, start, ends, strict=True)]


def token_traces(
    model: TransformerBridge,
    tokens: Tokens,
    completions: Sequence[Sequence[int]],
    direction: Direction,
    norm: float,
    hooks: Sequence[Hook],
    name: str,
) -> list[TokenTrace]:
    """`projection_trace` beside the text of every token, under this name."""
    found = []
    values = projection_trace(model, tokens, completions, direction, norm, hooks)
    for ids, mask, reply, trace in zip(tokens.ids, tokens.mask, completions, values, strict=True):
        prompt = ids[mask.bool()].tolist()
        texts = tuple(str(model.tokenizer.decode([one])) for one in (*prompt, *reply))
        numbers = tuple(float(v) if math.isfinite(v) else None for v in trace.tolist())
        found.append(TokenTrace(name, len(prompt), texts, numbers))
    return found


MOST_TRACED = 4
"""Layers of a run that are traced, at most."""


def dial_traces(
    model: TransformerBridge,
    tokens: Tokens,
    rows: pd.DataFrame,
    cells: Sequence[Cell],
    learned: Sequence[Direction],
    norm: Callable[[int], float],
    decoding: Decoding,
) -> list[dict[str, Any]]:
    """What learned directions read at each token of the first prompt of each subset and of its
    completion, unsteered and at both ends of the dial: a record each, of `panel` (prompt and layer)
    and the fields of `TokenTrace`, in the mean residual norms that `norm` gives of a layer.

    `rows` are the prompts' `prompt_id` and `subset`, one line each, as in `tokens`. The completions
    are the first samples that a run of these cells has."""
    first = sorted(rows.reset_index(drop=True).drop_duplicates("subset").index)
    ids, subsets = (list(rows[name].iloc[first]) for name in ("prompt_id", "subset"))
    some, found = tokens.chosen(first).on(model), []
    for direction in learned:
        layer = direction.provenance.layer
        steered = [cell for cell in cells if cell.hooks and cell.labels["direction"] == "learned"]
        mine = [cell for cell in steered if cell.labels["layer"] == layer]
        mine.sort(key=lambda cell: float(cell.labels["strength"]))
        ends = {f"alpha {one.labels['strength']:+g}": one.hooks for one in mine[:1] + mine[-1:]}
        ways: dict[str, Sequence[Hook]] = {"unsteered": (), **ends}
        replies = generate(model, some, list(ways.values()), decoding, keys=ids)
        for number, (name, hooks) in enumerate(ways.items()):
            own = [one.ids for one in replies if one.cell == number and one.sample == 0]
            traces = token_traces(model, some, own, direction, norm(layer), hooks, name)
            found += [
                {"panel": f"{subset} {who}, layer {layer}", **asdict(trace)}
                for subset, who, trace in zip(subsets, ids, traces, strict=True)
            ]
    return [{name: _listed(value) for name, value in one.items()} for one in found]


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
