"""Controls: directions that should not work, to set beside one that does.

Each control yields directions of the same kind as the learned one, so that they run through the
same sweep. This module draws them; it does not know what effect any of them has.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from refusal_dial.directions import Direction


def random_directions(like: Direction, n: int, seed: int) -> list[Direction]:
    """n independent unit vectors, uniform on the sphere: `u = g / |g|, g ~ N(0, I)`.

    Layer, site, position and norm are those of `like`, so at the same alpha the addition is as long
    as the learned one. Direction i is drawn from its own generator, seeded by (seed, i): asking for
    more directions later leaves the first ones as they were.
    """
    drawn = []
    for i in range(n):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + i)
        vector = torch.randn(like.unit.shape[0], generator=generator)
        about = replace(like.provenance, method="random", seed=i, prompt_ids=(), data_hash="")
        drawn.append(Direction(vector / vector.norm(), like.norm, about))
    return drawn
