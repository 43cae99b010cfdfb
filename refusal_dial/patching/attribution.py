"""Attribution patching: what every patch would do, all at once, from one gradient.

    score ≈ score of the run + (value - own) · d score / d own

The tangent to activation patching at the run's own activation (Nanda 2023): exact where the score
is linear in the activation or the difference is small, and blind to saturation elsewhere, which is
why `patching` checks it. Gradients are read by TransformerLens's `cache_activation_and_gradient`;
its `attribution_patch` scores heads and MLP outputs of pairs of equal length, one pair at a time,
and agrees with this there.

This module knows gradients. It does not run a patch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis.attribution_patching import cache_activation_and_gradient

from refusal_dial.engine import Scorer, score_grid
from refusal_dial.patching.exact import WAYS, Patching, from_run
from refusal_dial.patching.places import Place
from refusal_dial.patching.rows import labelled, tidy
from refusal_dial.patching.sides import Rows, Side
from refusal_dial.tokens import Tokens
from refusal_dial.types import hook_name

FIRST = "hook_embed"  # without it the backward pass may end above the heads, whose hooks are views
PROMPTS = 16
"""Prompts a backward pass: it holds every site at every position."""


def attribution_batches(
    model: TransformerBridge, patching: Patching, scorer: Scorer
) -> Iterator[pd.DataFrame]:
    """The rows of `patching.patch_batches` as the gradient has them, with direction `attribution`
    and without controls. The scorer reads each prompt by itself."""
    for rows in patching.batches():
        frames = [_one_way(model, patching, rows, scorer, way) for way in patching.ways]
        yield labelled(pd.concat(frames, ignore_index=True), patching.pairs, model.tokenizer)


def _one_way(
    model: TransformerBridge, patching: Patching, rows: range, scorer: Scorer, way: str
) -> pd.DataFrame:
    (run, source), places = WAYS[way], patching.places
    batch, budget = patching.pairs.chosen(rows), patching.budget
    score = partial(score_grid, model, engine=budget.engine, memory_gb=budget.memory_gb)
    roles = list(dict.fromkeys(role for place in places for role in place.roles))
    here, there = Side.of(batch, roles, run), Side.of(batch, roles, source)
    own, slope = here.read(model, places), gradients(model, here, places, scorer)
    value_at = from_run(model, places, here, there)
    base, other = (score(side.tokens, [()], scorer)[0] for side in (here, there))
    names, estimates = [], []
    for place in places:
        before = own.of(place)
        value, present = value_at(place, before)
        step = (value.double() - before.double()) * slope.of(place).double()
        estimates.append(base + step.sum((1, 2)).cpu())
        names.append((place, "attribution", present.numpy()))
    ends = (other, base) if way == "denoise" else (base, other)
    clean, corrupted = (end.numpy() for end in ends)
    table = torch.stack(estimates).numpy()
    return tidy(batch, roles, here.where, way, names, table, clean, corrupted, patching.seed)


def gradients(
    model: TransformerBridge, side: Side, places: Sequence[Place], scorer: Scorer
) -> Rows:
    """d score / d activation at every place, prompt by prompt.

    The stream between attention and MLP has the gradient of what attention adds to it (see
    `patching` on hook_resid_mid).
    """
    keys = list(dict.fromkeys((place.site, place.layer) for place in places))
    names = {
        key: hook_name("attn_out" if key[0] == "resid_mid" else key[0], key[1]) for key in keys
    }
    held: dict[tuple[str, int], list[Tensor]] = {key: [] for key in keys}
    where = torch.where(side.where < 0, side.where, -1)
    for start in range(0, len(where), PROMPTS):
        part = slice(start, start + PROMPTS)
        tokens = Tokens(side.tokens.ids[part], side.tokens.mask[part])
        with _tracked(model):
            cache = cache_activation_and_gradient(
                _Masked(model, tokens.mask),
                tokens.ids,
                lambda logits: scorer(logits[:, -1]).sum(),
                names_filter=[FIRST, *set(names.values())],
            )
        at = where[part].to(tokens.ids.device)
        batch = torch.arange(len(at), device=at.device)[:, None]
        for key, rows in held.items():
            rows.append(cast(Tensor, cache.gradients[names[key]])[batch, at])
    return Rows(side, {key: torch.cat(rows) for key, rows in held.items()})


class _Masked:
    """What TransformerLens's function asks of a model, with the mask of padded prompts."""

    def __init__(self, model: TransformerBridge, mask: Tensor) -> None:
        self.model, self.mask = model, mask

    def __call__(self, ids: Tensor) -> Tensor:
        return self.model(ids, attention_mask=self.mask, logits_to_keep=1, use_cache=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


@contextmanager
def _tracked(model: TransformerBridge) -> Iterator[None]:
    """Gradients on, from the embeddings up: a loaded model's parameters are frozen."""
    weights = list(model.original_model.get_input_embeddings().parameters())
    before = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for weight, was in zip(weights, before, strict=True):
            weight.requires_grad_(was)


def strongest(guesses: pd.DataFrame, places: Sequence[Place], n: int) -> list[Place]:
    """The n places whose patches are estimated to move most of the gap, on average over pairs and
    ways, in either direction; in the order of `places`."""
    denoise = guesses["way"] == "denoise"
    share = guesses["effect"].where(denoise, 1 - guesses["effect"])
    keys = [guesses[name].fillna(-1) for name in ("layer", "site", "role", "head", "neuron")]
    sizes = share.groupby(keys).mean().abs().to_dict()
    strength = [sizes.get(_key(place), 0.0) for place in places]
    chosen = np.argsort(strength, kind="stable")[::-1][:n]
    return [places[i] for i in sorted(chosen)]


def _key(place: Place) -> tuple[int, str, str, int, int]:
    head, neuron = (-1 if i is None else i for i in (place.head, place.neuron))
    return place.layer, place.site, place.role, head, neuron
