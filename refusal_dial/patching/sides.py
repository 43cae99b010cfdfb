"""One side of a batch of pairs: its run's tokens, where the roles stand in it, and what is there.

Activations are read by place, so that patching and its gradient approximation speak of the same
rows. This module does not patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.activations import collect_rows
from refusal_dial.patching.pairs import Pairs, positions_of, unpadded
from refusal_dial.patching.places import Place
from refusal_dial.patching.roles import common_prefix
from refusal_dial.tokens import Tokens


@dataclass(frozen=True, eq=False)
class Side:
    """One run of a batch of pairs: its tokens, and where each role stands in them."""

    roles: Sequence[str]
    tokens: Tokens
    where: Int[Tensor, "batch role"]  # 0 where a pair lacks the role

    @classmethod
    def of(cls, pairs: Pairs, roles: Sequence[str], side: int) -> Side:
        """The clean (0) or corrupted (1) runs of these pairs."""
        where = torch.stack([positions_of(pairs, role, side) for role in roles], 1)
        return cls(roles, (pairs.clean, pairs.corrupted)[side], where)

    def at(self, place: Place) -> list[int]:
        """The columns of the place's roles."""
        return [self.roles.index(role) for role in place.roles]

    def read(self, model: TransformerBridge, places: Sequence[Place]) -> Rows:
        """The activations of these places; of the last token where a pair lacks the role."""
        keys = dict.fromkeys((place.site, place.layer) for place in places)
        keys |= dict.fromkeys(("resid_pre", layer) for site, layer in keys if site == "resid_mid")
        last = torch.where(self.where < 0, self.where, -1)
        return Rows(self, collect_rows(model, self.tokens, keys, last))


@dataclass(frozen=True, eq=False)
class Rows:
    """Activations "batch role *width" of one side, by (site, layer)."""

    side: Side
    held: dict[tuple[str, int], Tensor]

    def of(self, place: Place) -> Float[Tensor, "batch k width"]:
        rows = self.held[place.site, place.layer][:, self.side.at(place)]
        if place.head is not None:
            return rows[:, :, place.head]
        return rows if place.neuron is None else rows[:, :, place.neuron : place.neuron + 1]


def alike(one: Side, other: Side) -> Bool[Tensor, "batch role"]:
    """Where two runs have read the same tokens, up to and including the role's.

    A causal model computes the same there in both, but for rounding.
    """
    texts = zip(unpadded(one.tokens), unpadded(other.tokens), strict=True)
    shared = torch.tensor([[common_prefix(a, b), len(a), len(b)] for a, b in texts])
    first, second = one.where + shared[:, 1:2], other.where + shared[:, 2:]
    present = (one.where < 0) & (other.where < 0)
    return present & (first == second) & (first < shared[:, :1])
