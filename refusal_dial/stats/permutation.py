"""An exact permutation test of the dial's slope: ten thousand controls from one gradient.

    v(w) = sum_i w_i a_i     w_i = 1/k for the top k prompts, -1/k for the bottom k, else 0
    slope(w) = v(w) · g      own length
    slope(w) / |v(w)|        unit length

a_i are the training activations, g the mean gradient on prompts that nothing was learned from. The
labels w are permuted; as the slope is linear in them, 10,000 permutations are a product of numbers
`a_i · g`, and `|v|` comes from the Gram matrix `a_i · a_j`. The test is exact where the training
labels are exchangeable, given the held-out prompts.

*Own length* tests the pipeline as people use it: a permuted draw is as long as what it found.
*Unit length* asks whether it is the way and not the length.

Over several places the same permutation is taken at every place, each statistic is divided by its
own null deviation, and the largest decides (max-T, Westfall and Young 1993): undivided, the places
with the largest gradients would own the maximum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from refusal_dial.common import DialError
from refusal_dial.stats.intervals import Floats

PERMUTATIONS = 10_000
CHUNK = 500  # permutations at once
NOTHING = 1e-9
"""A null deviation below this share of what is permuted is rounding: every draw is the same."""


def contrast_weights(n: int, top: Sequence[int], bottom: Sequence[int]) -> Floats:
    """`w`: 1/k for the top, -1/k for the bottom, 0 for the others of n."""
    weights = np.zeros(n)
    weights[list(top)] = 1 / len(top)
    weights[list(bottom)] = -1 / len(bottom)
    return weights


def count_permutations(weights: Floats, groups: Sequence[object] | None = None) -> int:
    """How many different assignments of these weights there are, within groups."""
    total = 1
    for members in _members(len(weights), groups):
        some, left = weights[members], len(members)
        for value in np.unique(some)[:-1]:
            k = int((some == value).sum())
            total *= comb(left, k)
            left -= k
    return total


def permuted_weights(
    weights: Floats,
    n: int = PERMUTATIONS,
    seed: int = 0,
    groups: Sequence[object] | None = None,
) -> tuple[Floats, bool]:
    """(assignments "permutation prompt", whether they are all there are).

    All of them, the given one first, where there are n or fewer; else n drawn at random. Weights
    move within their group.
    """
    values, codes, complete = _permuted_codes(weights, n, seed, groups)
    return values[codes], complete


def _permuted_codes(
    weights: Floats, n: int, seed: int, groups: Sequence[object] | None
) -> tuple[Floats, NDArray[np.integer[Any]], bool]:
    """`permuted_weights` as (values, which value each prompt has "permutation prompt", complete): a
    byte instead of eight, where there are few values."""
    values, own = np.unique(weights, return_inverse=True)
    own = own.astype(np.min_scalar_type(len(values)))
    if count_permutations(weights, groups) <= n:
        every = list(_every(own.astype(float), _members(len(own), groups)))
        found = np.array(every).astype(own.dtype)
        same = (found == own).all(1)
        return values, np.concatenate([found[same][:1], found[~same]]), True
    rng = np.random.default_rng(seed)
    found = np.tile(own, (n, 1))
    for members in _members(len(own), groups):
        found[:, members] = rng.permuted(found[:, members], axis=1)
    return values, found, False


def _members(n: int, groups: Sequence[object] | None) -> list[list[int]]:
    names = [None] * n if groups is None else list(groups)
    return [[i for i in range(n) if names[i] == name] for name in dict.fromkeys(names)]


def _every(weights: Floats, groups: list[list[int]]) -> Iterator[Floats]:
    """Every assignment of the weights within the groups."""
    if not groups:
        yield weights.copy()
        return
    first, *rest = groups
    for values in _arrangements(weights[first]):
        for other in _every(weights, rest):
            found = other.copy()
            found[first] = values
            yield found


def _arrangements(values: Floats) -> Iterator[Floats]:
    """Every different order of some values, of which many are equal."""
    kinds = np.unique(values)
    if len(kinds) < 2:
        yield values
        return
    chosen, n = kinds[0], len(values)
    k = int((values == chosen).sum())
    others = values[values != chosen]
    for places in combinations(range(n), k):
        left = np.setdiff1d(np.arange(n), places)
        for rest in _arrangements(others):
            found = np.full(n, chosen)
            found[left] = rest
            yield found


def slope_test(
    projections: Floats,
    grams: Floats,
    weights: Floats,
    n: int = PERMUTATIONS,
    seed: int = 0,
    groups: Sequence[object] | None = None,
) -> pd.DataFrame:
    """The test at every place. `projections` "place prompt" are `a_i · g`, `grams` "place prompt
    prompt" are `a_i · a_j`, `weights` the labels, which move within `groups`.

    A row per place: `slope`, `z` (in null deviations), `p` (one-sided, that the slope is over 0),
    `p_two_sided`, `p_corrected` (two-sided, for all places); the same with `_unit` for unit length;
    `n`, the permutations, and `reason`, why a place has none (every permuted direction is the same
    there: at layer 0 of the last position every prompt ends alike).

    Raises `DialError` where the shapes do not fit, or there are no labels of both kinds.
    """
    projections, grams = np.atleast_2d(projections).astype(float), np.asarray(grams, dtype=float)
    places, prompts = projections.shape
    if grams.shape != (places, prompts, prompts) or len(weights) != prompts:
        raise DialError(
            f"projections of {places} places and {prompts} prompts need Gram matrices "
            f"({places}, {prompts}, {prompts}) and {prompts} labels, not {grams.shape} and "
            f"{len(weights)}"
        )
    if not ((weights > 0).any() and (weights < 0).any()):
        raise DialError("labels of both kinds are needed: the top and the bottom")
    values, drawn, complete = _permuted_codes(np.asarray(weights, dtype=float), n, seed, groups)
    table = pd.DataFrame({"n": [len(drawn)] * places})
    observed = _statistics(projections, grams, np.asarray(weights, dtype=float)[None])
    null = [np.empty((len(drawn), places)) for _ in observed]
    for start in range(0, len(drawn), CHUNK):
        parts = _statistics(projections, grams, values[drawn[start : start + CHUNK]])
        for whole, part in zip(null, parts, strict=True):
            whole[start : start + CHUNK] = part
    size = np.abs(projections).max(1) * np.abs(weights).sum()
    # Where no label changes the slope, slope / length is rounding by rounding: no place for either.
    varies = null[0].std(0) > NOTHING * np.maximum(size, 1e-300)
    for name, own, others in zip(("", "_unit"), observed, null, strict=True):
        deviation = others.std(0)
        usable = varies & (deviation > NOTHING * np.abs(others).max(0))
        table[f"slope{name}"] = own[0]
        safe = np.where(usable, deviation, 1.0)
        z, far = own[0] / safe, others / safe
        table[f"z{name}"] = np.where(usable, z, np.nan)
        table[f"p{name}"] = _p(z, far, usable, complete)
        table[f"p_two_sided{name}"] = _p(np.abs(z), np.abs(far), usable, complete)
        largest = np.abs(far[:, usable]).max(1) if usable.any() else np.zeros(len(far))
        table[f"p_corrected{name}"] = _p(np.abs(z), largest[:, None], usable, complete)
    same = "every permuted direction has the same slope here"
    table["reason"] = np.where(table["p"].isna(), same, "")
    return table


def covariance_slopes(
    projections: Floats, gram: Floats, n: int = PERMUTATIONS, seed: int = 0
) -> Floats:
    """Slopes, at unit length, of n directions with the activations' covariance: `(v / |v|) · g`,
    `v = (A - mean)' w`, w ~ N(0, I), a weight a prompt.

    The null of a direction whose training labels are not at hand: fair for one learned from labels
    that mean nothing, as far as activations are near enough to Gaussian, and weaker than permuted
    labels. `projections` "prompt" are `a_i · g`, `gram` "prompt prompt" `a_i · a_j`.
    """
    centred = projections - projections.mean()
    gram = gram - gram.mean(0) - gram.mean(1)[:, None] + gram.mean()
    rng = np.random.default_rng(seed)
    parts = [
        _statistics(centred[None], gram[None], rng.normal(size=(min(CHUNK, n - start), len(gram))))
        for start in range(0, n, CHUNK)
    ]
    return np.concatenate([unit[:, 0] for _, unit in parts])


def _statistics(projections: Floats, grams: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """(slope at own length, at unit length), "permutation place"."""
    slope = weights @ projections.T
    squared = np.stack([((weights @ gram) * weights).sum(1) for gram in grams], axis=1)
    length = np.sqrt(np.maximum(squared, 0))
    unit = np.divide(slope, length, out=np.zeros_like(slope), where=length > 0)
    return slope, unit


def _p(own: Floats, null: Floats, usable: NDArray[np.bool_], complete: bool) -> Floats:
    """`(1 + #{null >= own}) / (1 + N)`; of all assignments, which hold the own one, their share."""
    hits = (null >= own - 1e-9 * np.abs(own)).sum(0)
    p = hits / len(null) if complete else (1 + hits) / (1 + len(null))
    return np.where(usable, p, np.nan)
