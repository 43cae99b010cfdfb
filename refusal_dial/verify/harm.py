"""Rows to evidence of what a direction should leave alone: harmless prompts, and their replies.

These claims are bounds: a figure is under its limit, and the test is against the limit itself, so
that few prompts show nothing. New refusals are counted exactly (binomial), means of replies are
compared by a one-sided t test. Both ends of the dial count for replies, the worse one is reported.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from refusal_dial import stats
from refusal_dial.verify.claims import Evidence
from refusal_dial.verify.table import Measured

Values = NDArray[np.float64]


def specific(found: Measured, limit: float) -> Evidence:
    """Which share of BENIGN prompts is refused at +alpha that was not before."""
    base, steered = found.base("BENIGN"), found.values("learned", 1, "BENIGN")
    told = np.isfinite(base) & np.isfinite(steered)
    new = ((steered > found.threshold) & (base <= found.threshold))[told]
    n, k = len(new), int(new.sum())
    low, high = stats.rate_interval(new.astype(float))[0]
    p = float(scipy_stats.binom.cdf(k, n, limit)) if n else float("nan")
    said = f"{k} of {n} BENIGN prompts are newly refused at +alpha"
    unable = found.unable
    if found.like_nothing:
        unable = (
            unable
            or "it does no more than random directions: there is no effect that could be specific"
        )
    elif k <= limit * n and not p <= found.level:
        unable = unable or f"{said}, and up to {high:.2f} of them cannot be ruled out"
    return Evidence(
        "spares BENIGN",
        f"at +alpha at most {limit:.0%} of BENIGN prompts are newly refused",
        "share",
        n,
        k / n if n else float("nan"),
        (float(low), float(high)),
        p,
        bool(n and k <= limit * n),
        said,
        f"{said}, more than {limit:.0%}",
        unable,
    )


def divergence(found: Measured, limit: float) -> Evidence:
    """KL a token along unsteered replies to BENIGN prompts."""
    ends = [found.values("learned", sign, "BENIGN", "kl") for sign in (1, -1)]
    beside = [found.values("random", sign, "BENIGN", "kl") for sign in (1, -1)]
    return _bounded(
        "changes replies little",
        f"KL a token along harmless replies is at most {limit:g} nats at either end",
        "KL a token of harmless replies is",
        ends,
        [np.atleast_2d(values) for values in beside],
        limit,
        found,
    )


def cost(found: Measured, limit: float) -> Evidence:
    """How much less likely, a token, replies to BENIGN prompts become under the unsteered model."""
    own = found.values("baseline", 0, "BENIGN", "cost")
    ends = [found.values("learned", sign, "BENIGN", "cost") - own for sign in (1, -1)]
    beside = [found.values("random", sign, "BENIGN", "cost") - own for sign in (1, -1)]
    return _bounded(
        "keeps replies likely",
        f"steered harmless replies cost the unsteered model at most {limit:g} nats a token more",
        "steered harmless replies cost",
        ends,
        [np.atleast_2d(values) for values in beside],
        limit,
        found,
    )


def _bounded(
    name: str,
    says: str,
    what: str,
    ends: list[Values],
    beside: list[Values],
    limit: float,
    found: Measured,
) -> Evidence:
    """The worse end against its limit; p is the larger of the two ends'."""
    kept = [values[np.isfinite(values)] for values in ends]
    means = [float(values.mean()) if len(values) else float("nan") for values in kept]
    worst = int(np.nanargmax(means)) if np.isfinite(means).any() else 0
    values, mean = kept[worst], means[worst]
    low, high = stats.mean_interval(values, seed=found.seed)[0]
    p = max(_under(values, limit) for values in kept)
    random = [float(np.nanmean(values)) for values in beside if np.isfinite(values).any()]
    said = f"{what} {mean:.3f} nats at {'+-'[worst]}alpha"
    if random:
        said += f" (random directions: {max(random):.3f})"
    unable = ""
    if mean <= limit and not p <= found.level:
        unable = f"{said}, and {high:.3f} cannot be ruled out with {len(values)} prompts"
    return Evidence(
        name,
        says,
        "nats",
        len(values),
        mean,
        (float(low), float(high)),
        p,
        mean <= limit,
        said,
        f"{said}, more than {limit:g}",
        unable,
        details=({"kind": "ends", "up": means[0], "down": means[1], "random": random},),
    )


def _under(values: Values, limit: float) -> float:
    """One-sided p of `mean >= limit`."""
    if len(values) < 2:
        return float("nan")
    if not values.std():
        return 0.0 if values[0] < limit else 1.0
    return float(scipy_stats.ttest_1samp(values, limit, alternative="less").pvalue)
