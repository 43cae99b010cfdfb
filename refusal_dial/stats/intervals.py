"""Intervals over prompts, for means, rates, differences, AUC and slopes.

An interval says how much a figure would move with other prompts of the same kind. Values of one
prompt under two cells are paired: their difference is taken first, prompt by prompt, and then its
interval. How often each kind covers the truth, and where it does not, is measured by
`experiments/calibrate.py --part intervals` (docs/validity.md). This module knows numbers only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

from refusal_dial.common import DialError

LEVEL = 0.95

N_RESAMPLES = 2000

ROWS = 4096  # resampled at once

Floats = NDArray[np.float64]


def mean_interval(
    values: ArrayLike, *, level: float = LEVEL, seed: int = 0, n_resamples: int = N_RESAMPLES
) -> Floats:
    """BCa bootstrap interval for the mean of each row, `row prompt -> row 2`.

    Prompts are resampled with replacement, the same ones for every row, so that rows stay paired
    (Efron 1987), at the level that makes up for few prompts (see `expanded`). For a paired
    difference give the differences. A row whose values are all equal has the interval of that
    value, and a row with NaN, or of fewer than two prompts, has NaN.
    """
    rows = np.atleast_2d(np.asarray(values, dtype=float))
    out = np.full((len(rows), 2), np.nan)
    n = rows.shape[1]
    if n < 2:
        return out
    finite = np.isfinite(rows).all(1)
    constant = finite & (rows == rows[:, :1]).all(1)
    out[constant] = rows[constant, :1]
    varied = np.flatnonzero(finite & ~constant)
    if len(varied):
        drawn = np.random.default_rng(seed).integers(0, n, (n_resamples, n))
        counts = np.zeros((n_resamples, n))
        np.add.at(counts, (np.arange(n_resamples)[:, None], drawn), 1.0)
        for start in range(0, len(varied), ROWS):
            some = varied[start : start + ROWS]
            out[some] = _bca_of_means(rows[some], counts, expanded(level, n))
    return out


def _bca_of_means(rows: Floats, counts: Floats, level: float) -> Floats:
    """The interval of each row's mean from how often every resample drew each prompt: one product
    of matrices for all resamples of all rows. The mean's jackknife acceleration is closed:
    `a = sum (x - m)^3 / (6 (sum (x - m)^2)^1.5)`."""
    n_drawn, means = len(counts), rows.mean(1, keepdims=True)
    drawn = np.sort(rows @ counts.T / rows.shape[1], axis=1)
    centred = rows - means
    size = np.abs(centred).max(1, keepdims=True)
    tie = 1e-12 * size  # resamples with the mean of the sample, whatever the rounding
    below = ((drawn < means - tie).mean(1) + (drawn <= means + tie).mean(1)) / 2
    z0 = stats.norm.ppf(np.clip(below, 0.5 / n_drawn, 1 - 0.5 / n_drawn))
    centred /= size
    a = (centred**3).sum(1) / (6 * (centred**2).sum(1) ** 1.5)
    z = z0[:, None] + stats.norm.ppf([(1 - level) / 2, (1 + level) / 2])
    place = stats.norm.cdf(z0[:, None] + z / (1 - a[:, None] * z)) * (n_drawn - 1)
    under = np.floor(place).astype(int)
    low, high = (
        np.take_along_axis(drawn, at, 1) for at in (under, np.minimum(under + 1, n_drawn - 1))
    )
    found = low + (place - under) * (high - low)
    return np.clip(found, rows.min(1, keepdims=True), rows.max(1, keepdims=True))


def expanded(level: float, n: int) -> float:
    """The level at which a percentile bootstrap of n values is as wide as a t interval:
    `z' = t_(n-1) sqrt(n / (n - 1))`.

    A bootstrap takes the sample for the population, whose spread it underrates by sqrt((n-1)/n),
    and normal quantiles for t's: at n = 20 nominal 95% would cover 93% (Hesterberg 2015). z' is at
    most 6, by which any resampling of two or three values has reached its ends.
    """
    t = stats.t.ppf((1 + level) / 2, n - 1) * np.sqrt(n / (n - 1))
    return float(1 - 2 * stats.norm.sf(min(t, 6.0)))


def rate_interval(hits: ArrayLike, *, level: float = LEVEL) -> Floats:
    """Wilson's score interval for the share of hits in each row, `row prompt -> row 2`.

    All `p` with `|share - p| <= z sqrt(p (1 - p) / n)` (Wilson 1927). Closed, so rows need no
    resampling, and open at the ends: 0 of 20 is not 0 exactly. A row with NaN has NaN. Where a hit
    is the share of a prompt's samples, it is wider than it need be, and never narrower.

    Raises `DialError` for values outside [0, 1].
    """
    rows = _shares(hits)
    n = rows.shape[1]
    if n == 0:
        return np.full((len(rows), 2), np.nan)
    z2, share = stats.norm.ppf((1 + level) / 2) ** 2, rows.mean(1)
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    low = np.where(share == 0, 0.0, np.maximum(0.0, middle - half))
    high = np.where(share == 1, 1.0, np.minimum(1.0, middle + half))
    return np.stack([np.where(np.isnan(share), np.nan, low), high], 1)


def rate_difference_interval(hits: ArrayLike, base: ArrayLike, *, level: float = LEVEL) -> Floats:
    """Interval for a paired difference of rates, `mean(hits - base)` of each row, `-> row 2`.

    With `b` prompts hit only under the cell and `c` only at base, `p = (b + 1) / (n + 2)` and
    `q = (c + 1) / (n + 2)`: `p - q ± z sqrt((p + q - (p - q)^2) / (n + 2))`, within [-1, 1] (Bonett
    and Price 2012). Where no prompt changes it still says how rare a change may be.
    """
    rows, other = _shares(hits), _shares(base)
    difference = rows - other
    n = difference.shape[1]
    if n == 0:
        return np.full((len(rows), 2), np.nan)
    bad = np.isnan(difference).any(1)
    p = ((difference > 0).sum(1) + 1) / (n + 2)
    q = ((difference < 0).sum(1) + 1) / (n + 2)
    half = stats.norm.ppf((1 + level) / 2) * np.sqrt((p + q - (p - q) ** 2) / (n + 2))
    interval = np.stack([np.maximum(-1, p - q - half), np.minimum(1, p - q + half)], 1)
    interval[bad] = np.nan
    return interval


def gap_interval(one: ArrayLike, other: ArrayLike, *, level: float = LEVEL) -> Floats:
    """Welch's interval, of 2, for `mean(one) - mean(other)` of two sets of different prompts.

    `d ± t_df sqrt(v1 + v2)`, `v = s^2 / n`, and
    `df = (v1 + v2)^2 / (v1^2 / (n1 - 1) + v2^2 / (n2 - 1))` (Welch 1947).

    It covers where a bootstrap of two small skewed sets does not; the misses then fall on one side.
    NaN where a set has fewer than two prompts or holds NaN; where no set varies, the interval of
    the difference.
    """
    a, b = np.asarray(one, dtype=float), np.asarray(other, dtype=float)
    if min(len(a), len(b)) < 2 or not np.isfinite([*a, *b]).all():
        return np.full(2, np.nan)
    if (a == a[0]).all() and (b == b[0]).all():
        return np.full(2, a[0] - b[0])
    v1, v2 = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    df = (v1 + v2) ** 2 / (v1**2 / (len(a) - 1) + v2**2 / (len(b) - 1))
    half = stats.t.ppf((1 + level) / 2, df) * np.sqrt(v1 + v2)
    return a.mean() - b.mean() + np.array([-half, half])


def auc(positive: ArrayLike, negative: ArrayLike) -> float:
    """`P(positive > negative) + P(equal) / 2` over all pairs of one of each: how well a number
    separates two sets of prompts, 0.5 = not at all. NaN where a set is empty or holds NaN."""
    a, b = np.asarray(positive, dtype=float), np.asarray(negative, dtype=float)
    if not len(a) or not len(b) or np.isnan([*a, *b]).any():
        return float("nan")
    above = stats.rankdata([*a, *b])[: len(a)].sum() - len(a) * (len(a) + 1) / 2
    return float(above / (len(a) * len(b)))


def auc_interval(positive: ArrayLike, negative: ArrayLike, *, level: float = LEVEL) -> Floats:
    """Interval, of 2, for an AUC, on the log-odds scale:

    `logit(auc) ± z sqrt(V) / (auc (1 - auc))`,
    `V = var(P(a > negative)) / n1 + var(P(positive > b)) / n2`

    (DeLong et al. 1988; Qin and Hotilovac 2008), each variance over the prompts of one set. Where
    the two sets do not overlap V is 0 and says nothing: then all `t` that Newcombe's score interval
    holds, so that perfect separation is not certainty (2006, method 5).
    """
    a, b = np.asarray(positive, dtype=float), np.asarray(negative, dtype=float)
    found, z = auc(a, b), float(stats.norm.ppf((1 + level) / 2))
    if np.isnan(found):
        return np.full(2, np.nan)
    if 0 < found < 1 and min(len(a), len(b)) > 1:
        spread = _placed(a, b).var(ddof=1) / len(a) + _placed(b, a).var(ddof=1) / len(b)
        if spread > 0:
            half = z * np.sqrt(spread) / (found * (1 - found))
            middle = special.logit(found)
            return special.expit(np.array([middle - half, middle + half]))
    return _newcombe(found, len(a), len(b), z)


def _placed(values: Floats, others: Floats) -> Floats:
    """Of each value the share of the others that it is above, ties by half."""
    ranked = np.sort(others)
    sides = [np.searchsorted(ranked, values, side) for side in ("left", "right")]
    return (sides[0] + sides[1]) / (2 * len(others))


def _newcombe(found: float, n1: int, n2: int, z: float) -> Floats:
    """All t with `|found - t| <= z sqrt(V(t))`, `m = (n1 + n2) / 2 - 1`,
    `V(t) = t (1 - t) (1 + m (1 - t) / (2 - t) + m t / (1 + t)) / (n1 n2)`."""
    m = (n1 + n2) / 2 - 1

    def over(t: float) -> float:
        spread = t * (1 - t) * (1 + m * (1 - t) / (2 - t) + m * t / (1 + t)) / (n1 * n2)
        return (found - t) ** 2 - z * z * spread

    low = 0.0 if found == 0 else optimize.brentq(over, 0, min(found, 1 - 1e-9))
    high = 1.0 if found == 1 else optimize.brentq(over, max(found, 1e-9), 1)
    return np.array([low, high])


def slopes(scores: ArrayLike, alphas: ArrayLike) -> Floats:
    """Each prompt's least-squares slope of score against alpha, `alpha prompt -> prompt`.

    Every prompt is scored at every alpha, so the slope of the mean is the mean of the slopes, and
    `mean_interval(slopes(...))` is its interval with the prompt as unit.
    Raises `DialError` for fewer than two different alphas.
    """
    x = np.asarray(alphas, dtype=float)
    centred = x - x.mean()
    if not centred.any():
        raise DialError(f"a slope takes at least two different alphas, not {x.tolist()}")
    return centred @ np.asarray(scores, dtype=float) / (centred @ centred)


def slope_interval(x: ArrayLike, y: ArrayLike, *, level: float = LEVEL) -> Floats:
    """Interval, of 2, for the least-squares slope b of y on x over prompts:

    `b ± t_(n-2) sqrt(sum (dx e / (1 - h))^2) / sum dx^2`, `h = 1/n + dx^2 / sum dx^2`

    with dx = x - mean(x) and residuals e: the HC3 error, which holds where the noise depends on x
    (MacKinnon and White 1985; Long and Ervin 2000). NaN for fewer than three prompts, values that
    are not finite, or a constant x.
    """
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(a) < 3 or not np.isfinite([*a, *b]).all() or (a == a[0]).all():
        return np.full(2, np.nan)
    dx, dy = a - a.mean(), b - b.mean()
    total = dx @ dx
    slope = dx @ dy / total
    rest = np.maximum(1 - 1 / len(a) - dx * dx / total, 1e-12)  # 0: a prompt that decides alone
    error = np.sqrt((((dy - slope * dx) * dx / rest) ** 2).sum()) / total
    half = stats.t.ppf((1 + level) / 2, len(a) - 2) * error
    return np.array([slope - half, slope + half])


def _shares(hits: ArrayLike) -> Floats:
    rows = np.atleast_2d(np.asarray(hits, dtype=float))
    if ((rows < 0) | (rows > 1)).any():
        raise DialError("a rate is taken of hits, which are 0 or 1, or a share of samples")
    return rows
