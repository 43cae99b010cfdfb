"""Controls: directions that should not work, to set beside one that does.

Every control has the unit length, norm, layer, site and position of the learned direction, so that
at the same alpha it is added at the same place and is as long. What each rules out:

- `random`: any push of that length. Activations are far from isotropic, so most random vectors
  point where the model hardly looks; to beat them is the least that can be asked.
- `covariance`: any push along the ways in which these activations differ. A mean difference of
  labels that mean nothing is, for many prompts, such a vector: the fair null in closed form.
- `shuffled`: the same way of learning, from labels that mean nothing. The exact null.
- `flipped`: the sign does not matter.
- an unrelated contrast: any difference that prompts have, such as their length, would do.
- folds: the direction depends on the prompts it happened to be learned from.

Direction i is drawn from a generator of its own: asking for more leaves the first ones as they
were, and draw i belongs together over layers. What any of them does is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from refusal_dial.common import DialError
from refusal_dial.directions.learning import Direction, from_vector

Learn = Callable[[Sequence[float]], Direction]
"""Labels or scores, one a prompt in a fixed order, to the direction learned from them."""


def norm_matched(direction: Direction, like: Direction, method: str, seed: int | None) -> Direction:
    """The unit vector of `direction` with the norm, layer, site and position of `like`."""
    about = replace(like.provenance, method=method, seed=seed, prompt_ids=(), data_hash="")
    return Direction(direction.unit, like.norm, about)


def random_directions(like: Direction, n: int, seed: int) -> list[Direction]:
    """n independent unit vectors, uniform on the sphere: `u = g / |g|, g ~ N(0, I)`."""
    drawn = []
    for i in range(n):
        vector = torch.randn(like.unit.shape[0], generator=_generator(seed, i))
        isotropic = Direction(vector / vector.norm(), like.norm, like.provenance)
        drawn.append(norm_matched(isotropic, like, "random", i))
    return drawn


def covariance_directions(
    like: Direction, activations: Float[Tensor, "prompt d_model"], n: int, seed: int
) -> list[Direction]:
    """n independent unit vectors with the covariance C of the activations: `u = g / |g|`,
    `g ~ N(0, C)`, drawn as `(A - mean)' w, w ~ N(0, I)`, a weight a prompt.

    The weights of draw i are the same at every layer. Raises `DialError` for fewer than two
    prompts, or activations that do not differ.
    """
    if len(activations) < 2:
        raise DialError(
            f"a covariance takes at least two prompts, and these are {len(activations)}"
        )
    centred = (activations - activations.mean(0)).double().cpu()
    drawn = []
    for i in range(n):
        weights = torch.randn(len(centred), generator=_generator(seed, i, 1), dtype=torch.float64)
        about = replace(like.provenance, method="covariance")
        drawn.append(norm_matched(from_vector(weights @ centred, about), like, "covariance", i))
    return drawn


def shuffled_directions(
    like: Direction,
    learn: Learn,
    labels: Sequence[float],
    n: int,
    seed: int,
    within: Sequence[str] | None = None,
) -> list[Direction]:
    """n directions learned in the same way from the same prompts with their labels permuted,
    within each group of `within` where that is given. The deal of draw i is the same at every
    layer."""
    names = [""] * len(labels) if within is None else list(within)
    groups = [[i for i, name in enumerate(names) if name == one] for one in dict.fromkeys(names)]
    drawn = []
    for i in range(n):
        generator = _generator(seed, i)
        permuted = [float(label) for label in labels]
        for members in groups:
            order = torch.randperm(len(members), generator=generator).tolist()
            for label, place in zip([labels[m] for m in members], order, strict=True):
                permuted[members[place]] = float(label)
        drawn.append(norm_matched(learn(permuted), like, "shuffled", i))
    return drawn


def flipped_direction(like: Direction) -> Direction:
    """`-u`: at alpha it does what the learned direction does at -alpha."""
    return norm_matched(replace(like, unit=-like.unit), like, "flipped", None)


def unrelated_direction(
    like: Direction, learn: Learn, values: Sequence[float], name: str
) -> Direction:
    """The direction learned in the same way from a contrast that should not matter, such as the
    length of the prompts. It is one direction, not a null: it has no p-value, and it may hold some
    of the behaviour, as far as the contrast does."""
    return norm_matched(learn([float(value) for value in values]), like, name, None)


def fold_numbers(groups: Sequence[str], k: int, seed: int) -> list[int]:
    """Which of k folds each prompt is in, the same share of every group in each.

    Groups are taken round in a seeded order, so that folds differ by at most one prompt.
    Raises `DialError` for fewer than two folds, or more than there are prompts.
    """
    if not 2 <= k <= len(groups):
        raise DialError(f"expected from 2 to {len(groups)} folds of {len(groups)} prompts, not {k}")
    order = torch.randperm(len(groups), generator=_generator(seed, 0)).tolist()
    permuted = sorted(order, key=lambda i: groups[i])  # stable: seeded within a group
    folds = [0] * len(groups)
    for number, i in enumerate(permuted):
        folds[i] = number % k
    return folds


def fold_directions(
    like: Direction, learn: Callable[[Sequence[int]], Direction], folds: Sequence[int]
) -> list[Direction]:
    """For each fold, the direction learned without its prompts: `learn` takes the indices of those
    that are left. Scored on its own fold alone each prompt has a direction that never saw it."""
    drawn = []
    for fold in range(max(folds) + 1):
        rest = [i for i, number in enumerate(folds) if number != fold]
        drawn.append(norm_matched(learn(rest), like, "fold", fold))
    return drawn


def _generator(seed: int, i: int, stream: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed((stream << 56) + seed * 1_000_003 + i)
