"""Are p-values of experiments without an effect uniform, as they must be?

    P(p <= a) = floor(a (draws + 1)) / (draws + 1)

for a rank among `draws` exchangeable controls. Such a p has few values, so before the
Kolmogorov-Smirnov test each is spread over its own step, `p - V / (draws + 1)`, V uniform on
[0, 1): if ranks are fair that is uniform exactly. Knows a frame of p-values, not where they come
from.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from refusal_dial.stats import rate_interval

LEVEL = 0.05
LEAST_KS = 0.01
MOST_UNDER = 0.065
FIGURES = ["n", "expected", "under", "under_lo", "under_hi", "ks", "ks_p", "uniform"]


def spread(p_values: ArrayLike, draws: ArrayLike, seed: int = 0) -> NDArray[np.float64]:
    """Each rank p-value at a random place within its own step."""
    p, n = np.asarray(p_values, dtype=float), np.asarray(draws, dtype=float)
    return p - np.random.default_rng(seed).random(p.shape) / (n + 1)


def uniformity(rows: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """A row per kind of `direction`, from `p_value` and `draws` of every experiment.

    `expected` and `under`: the share of p <= 0.05 that a fair null has, and that these have with
    Wilson's interval; `ks` and `ks_p`: the largest distance from the uniform distribution, and how
    likely one as large is by chance; `uniform`: ks_p > 0.01 and under <= 0.065.
    """
    found = []
    for kind, part in rows.groupby("direction", sort=False):
        p, draws = part["p_value"].to_numpy(float), part["draws"].to_numpy(float)
        hits = p <= LEVEL + 1e-12
        low, high = rate_interval(hits)[0]
        test = stats.kstest(spread(p, draws, seed), "uniform")
        expected = float((np.floor(LEVEL * (draws + 1) + 1e-9) / (draws + 1)).mean())
        fair = test.pvalue > LEAST_KS and hits.mean() <= MOST_UNDER
        figures = (len(p), expected, hits.mean(), low, high, test.statistic, test.pvalue, fair)
        found.append({"direction": kind, **dict(zip(FIGURES, figures, strict=True))})
    return pd.DataFrame(found)
