"""How likely a figure is by chance, corrected for how many were looked at, and effect sizes.

Ranks among controls, sign flips, and permuted labels: no test here assumes a distribution.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

from refusal_dial.common import DialError
from refusal_dial.stats.intervals import Floats

# --------------------------------------------------------------------------------------------------
# p-values that assume no distribution: ranks among controls, permutations, and their corrections.
#
# `rank_p` asks whether a direction does more than its controls do, and is what a claim about a
# direction needs. `sign_flip_p` asks whether prompts moved at all, which almost any direction makes
# them do. Many cells are looked at together, so one of them is small by chance:
# `max_t_p`, `holm` and `benjamini_hochberg` take that into account. None of this says how large an
# effect is.


N_PERMUTATIONS = 9_999

EXACT_UP_TO = 13  # differences whose 2^n signs are all tried


def rank_p(effect: float, null: ArrayLike) -> float:
    """`p = (1 + #{|null| >= |effect|}) / (1 + n)`, two-sided.

    The rank of an effect among n effects of control directions, with the +1 that keeps p valid: if
    the effect is one more draw from the null, P(p <= a) <= a (Phipson and Smyth 2010). NaN without
    a null or with an effect that is not finite.

    Raises `DialError` for a null that holds NaN: a missing control must not look like a weak one.
    """
    draws = np.asarray(null, dtype=float)
    if draws.size == 0 or not np.isfinite(effect):
        return float("nan")
    _check_null(draws)
    return float((1 + (np.abs(draws) >= abs(effect)).sum()) / (1 + draws.size))


def max_t_p(effects: ArrayLike, null: ArrayLike) -> Floats:
    """Each cell's p, corrected for all cells by the largest effect of every draw, `cell`,
    `draw cell` -> `cell` (Westfall and Young 1993, single step):

    `p[c] = (1 + #{draws i: max over cells of |t_i| >= |t[c]|}) / (1 + n)`

    t is the effect over the root mean square, per cell, of the n + 1 effects, so that a strong
    alpha does not drown the others. If the learned direction is one more draw, the chance that any
    p is at most a is at most a, whatever ties cells together. Twenty draws go as low as 1/21 for
    any number of cells, where Holm's correction of ranks could never pass 0.05. A cell in which
    nothing moves has p = 1, one whose effect is NaN has NaN.

    Raises `DialError` for a null that holds NaN or has other cells.
    """
    found, draws = np.asarray(effects, dtype=float), np.asarray(null, dtype=float)
    if draws.size == 0:
        return np.full(found.shape, np.nan)
    if draws.shape[1:] != found.shape:
        raise DialError(f"{found.size} effects and a null of {draws.shape[1:]} cells")
    _check_null(draws)
    known = np.isfinite(found)
    every = np.vstack([found[known], draws[:, known]])
    size = np.sqrt((every**2).mean(0))
    t = np.divide(np.abs(every), size, out=np.zeros_like(every), where=size > 0)
    out = np.full(found.shape, np.nan)
    if known.any():
        furthest = t[1:].max(1)
        reached = (furthest[:, None] >= t[0] * (1 - 1e-12)).sum(0)
        out[known] = (1 + reached) / (1 + len(draws))
    return out


def sign_flip_p(
    differences: ArrayLike, seed: int = 0, n_permutations: int = N_PERMUTATIONS
) -> Floats:
    """Two-sided p of `mean(differences) = 0` of each row, `row pair -> row`:

    `p = (1 + #{|mean of flipped| >= |mean|}) / (1 + n_permutations)`

    If a difference is as likely to be d as -d, flipping signs at random leaves its law as it is
    (Fisher's randomisation test for paired samples). Up to 13 differences all signs are tried, of
    which the observed ones are the 1. 1 where a row is all 0; NaN where it holds NaN or nothing.
    """
    rows = np.atleast_2d(np.asarray(differences, dtype=float))
    n = rows.shape[1]
    if n == 0:
        return np.full(len(rows), np.nan)
    signs, counted = _signs(n, seed, n_permutations)
    total = counted + len(signs)
    least = np.abs(rows.sum(1)) - 1e-12 * np.abs(rows).sum(1)
    reached = [
        (np.abs(signs @ row) >= low).sum() if np.isfinite(row).all() else np.nan
        for row, low in zip(rows, least, strict=True)
    ]
    return (counted + np.array(reached, dtype=float)) / total


def sign_flip_max_p(
    differences: ArrayLike, seed: int = 0, n_permutations: int = N_PERMUTATIONS
) -> Floats:
    """Each row's two-sided p that its mean is 0, corrected for all rows by the same flips of signs
    (max-T), `row pair -> row`:

    `p = (1 + #{flips: max over rows of |t| >= |t[row]|}) / (1 + n)`,  `t = sum(d) / |d|`

    |d| is the length of a row, which no flip changes. Labels permuted within pairs flip all rows of
    a pair together. 1 where a row is all 0. Up to 13 pairs all flips are tried, of which the
    observed ones are the 1. Raises `DialError` for NaN or no pairs.
    """
    rows = np.atleast_2d(np.asarray(differences, dtype=float))
    n = rows.shape[1]
    if n == 0 or not np.isfinite(rows).all():
        raise DialError(f"differences of {n} pairs, of which {(~np.isfinite(rows)).sum()} are NaN")
    signs, counted = _signs(n, seed, n_permutations)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)
    furthest = np.zeros(len(signs))
    for start in range(0, len(unit), FLIPPED_AT_ONCE):
        part = np.abs(signs @ unit[start : start + FLIPPED_AT_ONCE].T)
        furthest = np.maximum(furthest, part.max(1))
    least = np.abs(unit.sum(1)) - 1e-12
    reached = len(furthest) - np.searchsorted(np.sort(furthest), least, side="left")
    return np.asarray((counted + reached) / (counted + len(signs)))


FLIPPED_AT_ONCE = 1024  # rows


def _signs(n: int, seed: int, n_permutations: int) -> tuple[Floats, int]:
    """(signs "flip pair", 1 where the observed ones are not among them): all, or drawn."""
    if n <= EXACT_UP_TO:
        drawn = np.arange(2**n)[:, None] >> np.arange(n) & 1
    else:
        drawn = np.random.default_rng(seed).integers(0, 2, (n_permutations, n), dtype=np.int8)
    return drawn.astype(float) * 2 - 1, int(n > EXACT_UP_TO)


def holm(p_values: ArrayLike) -> Floats:
    """Holm's step-down adjustment: `p_(i) -> max over j <= i of min(1, (m - j + 1) p_(j))`, the
    p-values counted from the smallest (Holm 1979): the chance of any false positive. NaN stays NaN
    and is not counted."""
    p = np.asarray(p_values, dtype=float)
    out = np.full(p.shape, np.nan)
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    factors = len(order) - np.arange(len(order))
    out[order] = np.maximum.accumulate(np.minimum(1.0, factors * p[order]))
    return out


def benjamini_hochberg(p_values: ArrayLike) -> Floats:
    """`p_(i) -> min over j >= i of min(1, m p_(j) / j)`: what share of the findings at or below it
    is false (Benjamini and Hochberg 1995, by scipy). NaN stays NaN and is not counted."""
    p = np.asarray(p_values, dtype=float)
    out = np.full(p.shape, np.nan)
    known = np.isfinite(p)
    if known.any():
        out[known] = stats.false_discovery_control(p[known], method="bh")
    return out


def _check_null(draws: Floats) -> None:
    if not np.isfinite(draws).all():
        raise DialError(f"{int((~np.isfinite(draws)).sum())} of {draws.size} null effects are NaN")


# --------------------------------------------------------------------------------------------------
# How large an effect is, and the smallest one that a study of this size could have shown.
#
# A null result says little where only a huge effect could have been seen. These are plain formulas
# on arrays; whether an effect matters is not theirs to say.


POWER = 0.8


def standardised(differences: ArrayLike) -> float:
    """`d_z = J mean(d) / sd(d)` over prompts, `J = 1 - 3 / (4 (n - 1) - 1)`.

    The paired standardised difference with Hedges' correction for few prompts (Hedges 1981; Lakens
    2013). 0 where nothing moves; NaN for fewer than three prompts, or where all move by the same.
    """
    values = np.asarray(differences, dtype=float)
    if len(values) < 3 or not np.isfinite(values).all():
        return float("nan")
    if not values.any():
        return 0.0
    spread = values.std(ddof=1)
    if spread <= 1e-12 * abs(values.mean()):
        return float("nan")
    return float((1 - 3 / (4 * (len(values) - 1) - 1)) * values.mean() / spread)


def gap_share(shift: float, harmful: float, benign: float) -> float:
    """`shift / (harmful - benign)`: a mean shift as a share of the gap between the unsteered mean
    scores of HARMFUL and BENIGN prompts. 1 carries a BENIGN prompt as far as HARMFUL ones are. NaN
    where there is no gap."""
    gap = harmful - benign
    return float(shift / gap) if np.isfinite(gap) and abs(gap) > 1e-12 else float("nan")


def smallest_detectable(spread: float, n: int, level: float = 0.05, power: float = POWER) -> float:
    """The mean difference that n prompts would show: a two-sided paired t test at `level` finds it
    with probability `power` where differences have standard deviation `spread`.

    `spread / sqrt(n)` times the noncentrality at which `P(T > t) = power` (the other tail adds
    nothing to speak of), about `(1.96 + 0.84) spread / sqrt(n)` for many prompts. NaN for fewer
    than two.
    """
    if n < 2 or not np.isfinite(spread):
        return float("nan")
    critical = stats.t.isf(level / 2, n - 1)

    def short(delta: float) -> float:
        return float(special.nctdtr(n - 1, delta, critical) - (1 - power))

    guess = critical + stats.norm.ppf(power)
    return float(spread / np.sqrt(n) * optimize.brentq(short, 0.0, 2 * guess))


def smallest_ranked(null: ArrayLike, level: float = 0.05) -> float:
    """The effect above which `rank_p` among these controls is at most `level`: the k-th largest
    |null|, `k = floor(level (n + 1))`. Infinite where there are too few controls for any effect to
    get there (n < 19 at 0.05)."""
    draws = np.sort(np.abs(np.asarray(null, dtype=float)))[::-1]
    k = int(np.floor(level * (len(draws) + 1) + 1e-9))
    return float(draws[k - 1]) if k >= 1 else float("inf")


# --------------------------------------------------------------------------------------------------
# An exact permutation test of the dial's slope: ten thousand controls from one gradient.
#
#     v(w) = sum_i w_i a_i     w_i = 1/k for the top k prompts, -1/k for the bottom k, else 0
#     slope(w) = v(w) · g      own length
#     slope(w) / |v(w)|        unit length
#
# a_i are the training activations, g the mean gradient on prompts that nothing was learned from.
# The labels w are permuted; as the slope is linear in them, 10,000 permutations are a product of
# numbers `a_i · g`, and `|v|` comes from the Gram matrix `a_i · a_j`. The test is exact where the
# training labels are exchangeable, given the held-out prompts.
#
# *Own length* tests the pipeline as people use it: a permuted draw is as long as what it found.
# *Unit length* asks whether it is the way and not the length.
#
# Over several places the same permutation is taken at every place, each statistic is divided by its
# own null deviation, and the largest decides (max-T, Westfall and Young 1993): undivided, the
# places with the largest gradients would own the maximum.


PERMUTATIONS = 10_000
CHUNK = 500  # permutations at once
NO_SPREAD = 1e-9
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
    varies = null[0].std(0) > NO_SPREAD * np.maximum(size, 1e-300)
    for name, own, others in zip(("", "_unit"), observed, null, strict=True):
        deviation = others.std(0)
        usable = varies & (deviation > NO_SPREAD * np.abs(others).max(0))
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
