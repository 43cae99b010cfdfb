"""How large an effect is, and the smallest one that a study of this size could have shown.

A null result says little where only a huge effect could have been seen. These are plain formulas
on arrays; whether an effect matters is not theirs to say.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special, stats

from refusal_dial.types import DialError

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


def smallest_detectable_rate(base: float, n: int, level: float = 0.05) -> float:
    """The smallest rise or fall of a rate that n prompts can show at `level` at all: so many
    prompts change, all the same way, that McNemar's exact test is under it, `2 (1/2)^k <= level`.

    A share of the prompts, NaN where so many cannot change. `base` is the unsteered rate.
    """
    if not 0 <= base <= 1:
        raise DialError(f"a rate is between 0 and 1, not {base}")
    needed = int(np.ceil(np.log2(2 / level) - 1e-9))
    room = max(round(base * n), n - round(base * n))
    return needed / n if n and needed <= room else float("nan")


def smallest_ranked(null: ArrayLike, level: float = 0.05) -> float:
    """The effect above which `rank_p` among these controls is at most `level`: the k-th largest
    |null|, `k = floor(level (n + 1))`. Infinite where there are too few controls for any effect to
    get there (n < 19 at 0.05)."""
    draws = np.sort(np.abs(np.asarray(null, dtype=float)))[::-1]
    k = int(np.floor(level * (len(draws) + 1) + 1e-9))
    return float(draws[k - 1]) if k >= 1 else float("inf")
