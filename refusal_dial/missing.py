"""What could not be computed: a row with its reason and no number, left out and counted.

A score is missing where logits were NaN or infinite, or where a judge gave none. `marked` makes the
row say so. What is left out of a mean is left out of its interval, and of both sides of a
comparison. A control that is missing counts as no weaker than what it is compared with. This module
knows rows and arrays. It does not know why a model overflows, nor does it compute anything again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from refusal_dial.stats import rank_p
from refusal_dial.types import DialError

NO_NUMBER = "no finite score"
BROKEN = "NaN or infinite logits while it was said"
Values = NDArray[np.float64]
Interval = Callable[..., Values]


def marked(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with `reason` as their last column: empty where there is a score, else why there is
    none. `score` is then NaN, and `effect` too where there is one.

    A row may bring its own reason; `stop` = `nan` is one.
    """
    score = rows["score"].astype(float)
    reason = pd.Series("", index=rows.index)
    reason[~np.isfinite(score)] = NO_NUMBER
    if "stop" in rows:
        reason[rows["stop"] == "nan"] = BROKEN
    if "reason" in rows:
        own = rows["reason"].fillna("").astype(str)
        reason = reason.where(own == "", own)
    gone = reason != ""
    rows = rows.drop(columns="reason", errors="ignore").assign(score=score.mask(gone))
    if "effect" in rows:
        rows = rows.assign(effect=rows["effect"].mask(gone))
    return rows.assign(reason=reason)


def left_out(rows: pd.DataFrame) -> dict[str, int]:
    """How many rows each reason left out. Runs of older versions have no reasons."""
    if "reason" not in rows:
        return {}
    reasons = rows.loc[rows["reason"].fillna("") != "", "reason"]
    return {str(reason): int(n) for reason, n in reasons.value_counts().items()}


def check_share(missing: Mapping[str, int], total: int, most: float) -> None:
    """Raises `DialError` where more than the share `most` of all rows has no score."""
    n = sum(missing.values())
    if n > most * total:
        why = ", ".join(f"{count} {reason}" for reason, count in missing.items())
        raise DialError(
            f"{n} of {total} rows have no score ({why}), more than the share {most:g} that "
            "--max-missing allows: try --dtype float32 or smaller alphas, or allow more"
        )


def held_intervals(values: Values, interval: Interval) -> Values:
    """`interval` of each row of `values` over the columns that it has, `row prompt -> row 2`."""
    out = np.full((len(values), 2), np.nan)
    patterns, which = np.unique(np.isfinite(values), axis=0, return_inverse=True)
    for i, has in enumerate(patterns):
        if has.any():
            rows = np.flatnonzero(which.reshape(-1) == i)
            out[rows] = interval(values[rows][:, has])
    return out


def held_means(values: Values) -> Values:
    """The mean of each row over the columns that it has; NaN where it has none."""
    held = np.isfinite(values)
    total, n = np.where(held, values, 0.0).sum(1), held.sum(1)
    means = np.divide(total, n, out=np.full(len(values), np.nan), where=n > 0)
    return np.where(held.all(1), values.mean(1), means)


def held_rank_p(effect: Values, null: Values) -> float:
    """`stats.rank_p` of the mean of `effect` (a value a prompt) among those of the rows of `null`.

    Effect and control are compared on the prompts that both have. A control that shares none, or
    is missing altogether, counts as at least as far: what broke must not look weak.
    """
    if np.isfinite(effect).all() and np.isfinite(null).all():
        return rank_p(float(effect.mean()), null.mean(1)) if len(null) else float("nan")
    if not len(null) or not np.isfinite(effect).any():
        return float("nan")
    both = np.isfinite(effect) & np.isfinite(null)
    mine = held_means(np.where(both, effect, np.nan))
    theirs = held_means(np.where(both, null, np.nan))
    reached = ~both.any(1) | (np.abs(theirs) >= np.abs(mine))
    return float((1 + reached.sum()) / (1 + len(null)))


def counted(found: Mapping[str, Any], missing: Mapping[str, int], total: int) -> dict[str, Any]:
    """A run's verdict with what was left out, where anything was."""
    about = {"left_out": {"rows": sum(missing.values()), "of": total, "reasons": dict(missing)}}
    return {**found, **about} if missing else dict(found)
