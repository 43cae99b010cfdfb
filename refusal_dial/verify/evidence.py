"""Rows to evidence of an effect: up, down, more than every control, and not that of prompt length.

    shift[b] = score of prompt b at alpha - unsteered          (and at -alpha)
    swing[b] = score at alpha - score at -alpha

The swing of a control changes its sign with the control's, and each control is as likely to be
drawn as its opposite, so the chance that one is at least as far *in the claimed way* is half of the
two-sided rank p. The direction has to be beyond every kind of control: p is the largest over the
kinds (an intersection-union test, which needs no correction among them).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refusal_dial import stats
from refusal_dial.verify.claims import Evidence
from refusal_dial.verify.table import Measured, one_sided

ALIKE = 0.8
"""A direction with a cosine from here up to that of prompt length is that one."""
SAID = {
    "random": "random directions",
    "covariance": "the other ways in which the activations differ",
    "shuffled": "what else shuffled labels teach",
}
MARGIN = 1.1
"""How many times the swing of prompt length a direction has to exceed."""


def ends(found: Measured) -> list[Evidence]:
    """The two ends: +alpha raises the score of EDGE, -alpha lowers it."""
    return [_end(found, 1), _end(found, -1)]


def _end(found: Measured, sign: int) -> Evidence:
    base, steered = found.base("EDGE"), found.values("learned", sign, "EDGE")
    shift = steered - base
    low, high = stats.mean_interval(shift, seed=found.seed)[0]
    mean, n = float(shift.mean()), len(shift)
    way, verb = ("+alpha", "raises") if sign > 0 else ("-alpha", "lowers")
    p = float(stats.sign_flip_p(shift, found.seed)[0])
    beside = ""
    if "random" in found.kinds:
        null = sign * (found.values("random", sign, "EDGE") - base).mean(1)
        null = np.where(np.isfinite(null), null, np.inf)
        rank = (1 + (null >= sign * mean).sum()) / (1 + len(null))
        p, beside = max(p, float(rank)), "random directions of the same length"
    rates = [float((values > found.threshold).mean()) for values in (base, steered)]
    moved = (
        f"{way} {verb} the score by {abs(mean):.2f} ({mean / found.gap:+.2f} of the gap between "
        f"HARMFUL and BENIGN), the refusal rate from {rates[0]:.2f} to {rates[1]:.2f}"
    )
    because = (
        f"{way} moves the score by {mean:+.2f}, no more than {beside or 'by chance'} (p = {p:.3g})"
    )
    if sign * mean < 0 and sign * (high if sign > 0 else low) < 0:
        because = f"it points the other way: {way} moves the score by {mean:+.2f}"
    smallest = stats.smallest_detectable(float(shift.std(ddof=1)), n, found.level)
    return Evidence(
        "turns it up" if sign > 0 else "turns it down",
        f"{way} {verb} the score of held-out EDGE prompts, more than random directions do",
        "log-odds",
        n,
        mean,
        (float(low), float(high)),
        p,
        bool(sign * (low if sign > 0 else high) > 0),
        moved,
        because,
        found.unable or _too_few(smallest, found, n),
        smallest,
    )


def beyond_controls(found: Measured) -> Evidence:
    """The swing from -alpha to +alpha beside that of every kind of control."""
    swing = found.swing("learned")
    mean, n = float(swing.mean()), len(swing)
    details: list[dict[str, Any]] = []
    for kind in found.kinds:
        null = found.swing(kind).mean(1)
        told = null[np.isfinite(null)]
        spread = np.quantile(np.abs(told), 0.95) if len(told) else float("nan")
        smallest = max(
            stats.smallest_ranked(np.where(np.isfinite(null), null, np.inf), 2 * found.level),
            stats.smallest_detectable(float(swing.std(ddof=1)), n, found.level),
        )
        details.append(
            {
                "kind": kind,
                "draws": len(null),
                "within": float(spread),
                "p": one_sided(mean, null),
                "smallest": float(smallest),
                "alike": float(np.median(np.abs(found.cosines[kind]))),
            }
        )
    worst = max(details, key=lambda row: row["p"])
    low, high = stats.mean_interval(swing, seed=found.seed)[0]
    beaten = [SAID[row["kind"]] for row in details if row["p"] > found.level]
    because = (
        f"a swing of {mean:+.2f} is no more than that of {' or '.join(beaten)} (p = "
        f"{worst['p']:.3g}; 95% of them are within ±{worst['within']:.2f})"
    )
    few = [row for row in details if 1 / (2 * (row["draws"] + 1)) > found.level]
    unable = found.unable
    if few:
        unable = unable or f"{few[0]['draws']} draws are too few for any effect: raise --n-random"
    return Evidence(
        "is more than its controls",
        "from -alpha to +alpha it moves EDGE further than every kind of control of its length",
        "log-odds",
        n,
        mean,
        (float(low), float(high)),
        worst["p"],
        mean > 0,
        f"a swing of {mean:.2f}, more than {' and '.join(SAID[kind] for kind in found.kinds)}",
        because,
        unable,
        max(row["smallest"] for row in details),
        tuple(details),
    )


def beyond_length(found: Measured) -> Evidence:
    """The swing beside that of the direction of prompt length, whichever way that one points."""
    swing, other = found.swing("learned"), found.swing("length")
    other = other * (np.sign(other.mean()) or 1.0)
    more = swing - MARGIN * other
    mean, n, cosine = float(more.mean()), len(more), float(found.cosines["length"][0])
    low, high = stats.mean_interval(more, seed=found.seed)[0]
    left = float(found.swing("left").mean() / swing.mean()) if swing.mean() else float("nan")
    said = (
        f"a swing of {swing.mean():+.2f} where the direction of prompt length has "
        f"{other.mean():.2f} (cosine {cosine:.2f}; without that component {left:.0%} of the effect "
        "is left)"
    )
    reason = "it does no more than the direction of prompt length does"
    if abs(cosine) >= ALIKE:
        reason = "its effect is explained by prompt length"
    nothing = "it does no more than random directions: there is no effect to explain"
    p = float(stats.sign_flip_p(more, found.seed)[0]) / 2
    return Evidence(
        "is not prompt length",
        f"its swing is more than {MARGIN:g} times that of the direction of prompt length",
        "log-odds",
        n,
        mean,
        (float(low), float(high)),
        p if mean > 0 else 1 - p,
        bool(low > 0),
        said,
        f"{reason}: {said}",
        found.unable or (nothing if found.like_nothing else ""),
        stats.smallest_detectable(float(more.std(ddof=1)), n, found.level),
        ({"kind": "length", "cosine": cosine, "left": left},),
    )


def _too_few(smallest: float, found: Measured, n: int) -> str:
    """Where even the whole gap between HARMFUL and BENIGN could not have been shown."""
    if np.isfinite(smallest) and smallest <= abs(found.gap):
        return ""
    return (
        f"{n} prompts are too few: the smallest shift that they could have shown is {smallest:.2f}"
    )


def rates(found: Measured) -> list[dict[str, Any]]:
    """Refusal rates of every subset, unsteered and at both ends, with their intervals."""
    table = []
    for subset in ("EDGE", "HARMFUL", "BENIGN"):
        row: dict[str, Any] = {"subset": subset, "n": len(found.base(subset))}
        ends = {"unsteered": found.base(subset)}
        ends |= {
            "up": found.values("learned", 1, subset),
            "down": found.values("learned", -1, subset),
        }
        for name, scores in ends.items():
            hits = (scores[np.isfinite(scores)] > found.threshold).astype(float)
            low, high = stats.rate_interval(hits)[0]
            row[name] = [float(hits.mean()), float(low), float(high)]
        table.append(row)
    return table
