"""Statistics on arrays: intervals over prompts, and ranks among random directions.

The unit is the prompt: an interval says how much a figure would move with other prompts of the same
kind. numpy and scipy only; nothing here knows what the numbers are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from refusal_dial.types import DialError

LEVEL = 0.95
N_RESAMPLES = 2000


def mean_interval(
    values: ArrayLike, *, level: float = LEVEL, seed: int = 0, n_resamples: int = N_RESAMPLES
) -> NDArray[np.float64]:
    """BCa bootstrap interval for the mean of each row, `row prompt -> row 2`.

    Prompts are resampled with replacement, the same ones for every row, so that rows stay paired
    (Efron 1987, by scipy). A row whose values are all equal has the interval of that value, and a
    row with NaN, or of fewer than two prompts, has NaN.
    """
    rows = np.atleast_2d(np.asarray(values, dtype=float))
    out = np.full((len(rows), 2), np.nan)
    if rows.shape[1] < 2:
        return out
    finite = np.isfinite(rows).all(1)
    constant = finite & (rows == rows[:, :1]).all(1)
    out[constant] = rows[constant, :1]
    varied = finite & ~constant
    if varied.any():
        result = stats.bootstrap(
            (rows[varied],),
            np.mean,
            axis=1,
            vectorized=True,
            confidence_level=level,
            n_resamples=n_resamples,
            batch=max(1, int(2e7 // rows[varied].size)),
            method="BCa",
            rng=np.random.default_rng(seed),
        )
        interval = result.confidence_interval
        out[varied] = np.stack([interval.low, interval.high], 1)
    return out


def rate_interval(
    hits: ArrayLike, *, level: float = LEVEL, seed: int = 0, n_resamples: int = N_RESAMPLES
) -> NDArray[np.float64]:
    """Interval for the share of hits in each row, `row prompt -> row 2`.

    The bootstrap of `mean_interval`; where all prompts agree there is nothing to resample, and
    Wilson's score interval says what as few prompts leave open (0 of 20 is not 0 exactly).
    """
    rows = np.atleast_2d(np.asarray(hits, dtype=float))
    out = mean_interval(rows, level=level, seed=seed, n_resamples=n_resamples)
    for i, row in enumerate(rows):
        if len(row) and np.isfinite(row).all() and (row == row[0]).all():
            test = stats.binomtest(int(row.sum()), len(row))
            wilson = test.proportion_ci(level, method="wilson")
            out[i] = wilson.low, wilson.high
    return out


def rank_p(effect: float, null: ArrayLike) -> float:
    """`p = (1 + #{|null| >= |effect|}) / (1 + n)`, two-sided.

    The rank of an effect among n effects of random directions, with the +1 that keeps p valid: if
    the effect is one more draw from the null, P(p <= a) <= a (Phipson and Smyth 2010). NaN without
    a null or with an effect that is not finite.

    Raises `DialError` for a null that holds NaN: a missing control must not look like a weak one.
    """
    draws = np.asarray(null, dtype=float)
    if draws.size == 0 or not np.isfinite(effect):
        return float("nan")
    if not np.isfinite(draws).all():
        raise DialError(f"{int((~np.isfinite(draws)).sum())} of {draws.size} null effects are NaN")
    return float((1 + (np.abs(draws) >= abs(effect)).sum()) / (1 + draws.size))
