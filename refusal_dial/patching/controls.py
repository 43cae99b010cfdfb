"""Controls for patching: what to write instead of the other prompt's activation.

Another prompt of the same class as the run that is patched, or a random vector as far from the
run's own activation as the patched one is. This module draws them. It does not know what effect any
of them has.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from refusal_dial.patching.pairs import Pairs
from refusal_dial.patching.places import Place


def donors(pairs: Pairs, roles: Sequence[str], side: int, seed: int) -> NDArray[np.int64]:
    """For each pair another one, whose prompt of this side has the same subset and all the roles.

    Each class is put in a seeded order, and the next pair in it that has the roles gives to the one
    before: every prompt gives once, so a class has the same mean before and after. -1 where a pair
    lacks a role or is the only one of its class to have them all.
    """
    classes: dict[str, list[int]] = defaultdict(list)
    for i in np.random.default_rng(seed).permutation(len(pairs)):
        pair = pairs.items[i]
        if all(pair.where(role) is not None for role in roles):
            classes[(pair.clean, pair.corrupted)[side].subset].append(int(i))
    found = np.full(len(pairs), -1)
    for members in classes.values():
        if len(members) > 1:
            found[members] = np.roll(members, -1)
    return found


def unit_noise(place: Place, n: int, width: int, seed: int) -> Float[Tensor, "n k width"]:
    """n x k independent unit vectors, uniform on the sphere (on ±1 for a single neuron).

    Drawn from a generator of the place's own: the same whatever else is patched, in any batches.
    """
    key = f"{seed}/{place.layer}/{place.site}/{place.role}/{place.head}/{place.neuron}"
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    drawn = torch.randn(n, len(place.roles), width, generator=generator)
    return drawn / drawn.norm(dim=-1, keepdim=True)


def as_far(
    own: Float[Tensor, "batch k width"],
    value: Float[Tensor, "batch k width"],
    unit: Float[Tensor, "batch k width"],
) -> Float[Tensor, "batch k width"]:
    """`own + |value - own| u`: what is written lies as far from the run's own activation as the
    value does, in a random direction. Equal to `own` where the value is."""
    distance = (value.float() - own.float()).norm(dim=-1, keepdim=True)
    return (own.float() + distance * unit.to(own.device)).to(own.dtype)
