"""Candidates: one direction for every template position and layer, from harmful and harmless.

The template's tokens after the prompt are the same for every prompt, so that a difference there is
something the model has made of the prompt. In the first layers it has made nothing of it yet: there
the groups do not differ, and a candidate is no direction. This module finds the positions, splits
the prompts and extracts. It does not know what a candidate does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial import directions
from refusal_dial.activations import collect_positions
from refusal_dial.directions import Direction, Provenance
from refusal_dial.prompts import Prompt, holdout_split
from refusal_dial.tokens import Tokens, tokenize
from refusal_dial.types import DialError

LEAST = 1e-5
"""A difference smaller than this share of the activations' own norm is rounding, no direction."""
PROBES = ("Hello there", "7 plums?", "Write.")

Extract = Callable[[Tensor, Tensor, Provenance], Direction]


@dataclass(frozen=True)
class Split:
    """Prompts of one group: to learn from, to choose on, to report on."""

    train: tuple[Prompt, ...]
    val: tuple[Prompt, ...]
    test: tuple[Prompt, ...]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A direction, or None where the groups do not differ at its position and layer."""

    pos: int
    layer: int
    direction: Direction | None


def split(prompts: Sequence[Prompt], n_train: int, n_val: int, n_test: int, seed: int) -> Split:
    """A seeded split with every category's share in each part. Where the prompts are too few for
    all three, half are to learn from and a quarter each to choose and to report on.

    Raises `DialError` for fewer than eight prompts.
    """
    if len(prompts) < 8:
        raise DialError(f"{len(prompts)} prompts a group are too few to learn, choose and report")
    quarter = len(prompts) // 4
    n_val, n_test = (
        n if len(prompts) >= n_train + n_val + n_test else min(n, quarter) for n in (n_val, n_test)
    )
    rest, test = holdout_split(prompts, seed, n_test / len(prompts))
    rest, val = holdout_split(rest, seed, n_val / len(rest))
    if len(rest) > n_train:
        _, rest = holdout_split(rest, seed, n_train / len(rest))
    return Split(tuple(rest), tuple(val), tuple(test))


def template_positions(
    model: TransformerBridge, *, system: str | None = None, chat: bool = True
) -> tuple[int, ...]:
    """The positions of the tokens that the chat template puts after every prompt: -n, ..., -1.

    Plain text has none, and then it is the last position alone.
    """
    if not chat:
        return (-1,)
    rows = tokenize(model, PROBES, system=system)
    n = 0
    while n + 1 < int(rows.mask.sum(1).min()) and len(set(rows.ids[:, -n - 1].tolist())) == 1:
        n += 1
    return tuple(range(-max(1, n), 0))


def extract(
    model: TransformerBridge,
    harmful: Tokens,
    harmless: Tokens,
    positions: Sequence[int],
    layers: Sequence[int],
    about: Provenance,
    method: str = "mean_diff",
    batch_size: int = 64,
) -> list[Candidate]:
    """A candidate for each position and layer, positions outermost, read at `about.site`."""
    function: Extract = {"mean_diff": directions.mean_diff, "probe": directions.probe}[method]
    groups = [
        collect_positions(model, tokens, layers, positions, site=about.site, batch_size=batch_size)
        for tokens in (harmful, harmless)
    ]
    (positive, _), (negative, _) = groups
    found = []
    for i, pos in enumerate(positions):
        for j, layer in enumerate(layers):
            here = replace(about, pos=pos, layer=layer)
            one, other = positive[i, j], negative[i, j]
            gap = (one.mean(0) - other.mean(0)).norm()
            apart = bool(gap > LEAST * torch.cat([one, other]).norm(dim=-1).mean())
            found.append(Candidate(pos, layer, function(one, other, here) if apart else None))
    return found


def raw_vectors(
    candidates: Sequence[Candidate], d_model: int
) -> Float[Tensor, "pos layer d_model"]:
    """`norm * unit` of every candidate, zero where there is none, in double precision."""
    n_pos = len({one.pos for one in candidates})
    rows = [
        torch.zeros(d_model, dtype=torch.float64)
        if one.direction is None
        else one.direction.unit.double() * one.direction.norm
        for one in candidates
    ]
    return torch.stack(rows).reshape(n_pos, -1, d_model)
