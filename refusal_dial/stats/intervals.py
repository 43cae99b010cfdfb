"""Intervals over prompts, for means and rates, and the AUC.

An interval says how much a figure would move with other prompts of the same kind. Values of one
prompt under two cells are paired: their difference is taken first, prompt by prompt, and then its
interval. How often each kind covers the truth, and where it does not, is measured by
`experiments/calibrate.py --part intervals` (docs/validity.md). This module knows numbers only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

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
    rows = shares(hits)
    n = rows.shape[1]
    if n == 0:
        return np.full((len(rows), 2), np.nan)
    z2, share = stats.norm.ppf((1 + level) / 2) ** 2, rows.mean(1)
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    low = np.where(share == 0, 0.0, np.maximum(0.0, middle - half))
    high = np.where(share == 1, 1.0, np.minimum(1.0, middle + half))
    return np.stack([np.where(np.isnan(share), np.nan, low), high], 1)


def auc(positive: ArrayLike, negative: ArrayLike) -> float:
    """`P(positive > negative) + P(equal) / 2` over all pairs of one of each: how well a number
    separates two sets of prompts, 0.5 = not at all. NaN where a set is empty or holds NaN."""
    a, b = np.asarray(positive, dtype=float), np.asarray(negative, dtype=float)
    if not len(a) or not len(b) or np.isnan([*a, *b]).any():
        return float("nan")
    above = stats.rankdata([*a, *b])[: len(a)].sum() - len(a) * (len(a) + 1) / 2
    return float(above / (len(a) * len(b)))


def shares(hits: ArrayLike) -> Floats:
    """Hits as rows of numbers, `row prompt`. Raises `DialError` for values outside [0, 1]."""
    rows = np.atleast_2d(np.asarray(hits, dtype=float))
    if ((rows < 0) | (rows > 1)).any():
        raise DialError("a rate is taken of hits, which are 0 or 1, or a share of samples")
    return rows
