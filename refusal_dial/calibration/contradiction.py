"""Do two runs of the same thing agree? Their intervals side by side, and alpha 0 beside baseline.

Made for a published case: two write-ups of one toxicity study, 50 + 50 openings, in which benign
completions score .006 and .816, neither with an interval, and alpha 0 differs from the baseline in
one of them (configs/phi4_mini_toxicity.yaml). Sampling anew moves a mean within its interval; two
intervals apart mean that the two runs did not measure the same thing. And adding 0 times a vector
changes nothing, so any difference of alpha 0 from the baseline is a fault of the run, however small
beside its interval. This module knows columns. It does not know which run is right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from refusal_dial.continuation.summary import per_prompt
from refusal_dial.stats import holm, mean_interval, rate_interval, sign_flip_p
from refusal_dial.types import DialError

CELL = ["subset", "direction", "strength"]


def beside(one: pd.DataFrame, other: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """A row per subset and cell: both means with their intervals over prompts, whether those
    `overlap`, and the paired difference of the runs with its interval and p-value, `p_holm`
    corrected over all rows.

    Raises `DialError` where the two do not have the same prompts under the same cells.
    """
    keys = [*CELL, "prompt_id"]
    means = [per_prompt(rows).set_index(keys)["score"] for rows in (one, other)]
    if not means[0].index.sort_values().equals(means[1].index.sort_values()):
        raise DialError("the two runs have other prompts or cells: there is nothing to compare")
    both = pd.DataFrame({"one": means[0], "other": means[1].reindex(means[0].index)}).reset_index()
    found = []
    for cell, part in both.groupby(CELL, sort=False):
        values = part[["one", "other"]].to_numpy(float).T
        intervals = mean_interval(np.vstack([values, values[1:] - values[:1]]), seed=seed)
        record = dict(zip(CELL, cell, strict=True)) | {"n": len(part)}
        for name, value, (low, high) in zip(("one", "other"), values, intervals, strict=False):
            record |= {name: value.mean(), f"{name}_lo": low, f"{name}_hi": high}
        record["overlap"] = bool(overlap(intervals[0], intervals[1]))
        record["difference"] = (values[1] - values[0]).mean()
        record |= {"diff_lo": intervals[2, 0], "diff_hi": intervals[2, 1]}
        record["p_paired"] = float(sign_flip_p(values[1] - values[0], seed)[0])
        found.append(record)
    table = pd.DataFrame(found)
    return table.assign(p_holm=holm(table["p_paired"]))


def overlap(one: Any, other: Any) -> bool:
    """Whether two intervals have a value in common."""
    return bool(max(one[0], other[0]) <= min(one[1], other[1]))


def off_baseline(rows: pd.DataFrame) -> dict[str, float]:
    """For each subset, the mean score at alpha 0 minus that of the baseline, where any prompt has
    another score under the two; so {} for a run that keeps them the same."""
    means = per_prompt(rows)
    found = {}
    for subset, part in means.groupby("subset", sort=False):
        base = part[part["direction"] == "baseline"].set_index("prompt_id")["score"]
        zero = part[(part["direction"] == "learned") & (part["strength"] == 0)]
        apart = zero.set_index("prompt_id")["score"] - base
        if (apart != 0).any():
            found[str(subset)] = float(apart.mean())
    return found


def published(figures: Sequence[Any], n: int) -> pd.DataFrame:
    """The figures that two write-ups both give, `run 1, WHAT` and `run 2, WHAT`, each with the
    interval of a mean of n values from 0 to 1, and whether the two overlap.

    Wilson's: no set of values from 0 to 1 with that mean varies more than hits do.
    """
    known = {figure.what: float(figure.value) for figure in figures}
    found = []
    for what, value in known.items():
        name = what.removeprefix("run 1, ")
        if name == what or f"run 2, {name}" not in known:
            continue
        pair = value, known[f"run 2, {name}"]
        intervals = [rate_interval(np.full(n, mean))[0] for mean in pair]
        record: dict[str, Any] = {"what": name, "one": pair[0], "other": pair[1]}
        for side, (low, high) in zip(("one", "other"), intervals, strict=True):
            record |= {f"{side}_lo": low, f"{side}_hi": high}
        found.append(record | {"overlap": overlap(*intervals)})
    return pd.DataFrame(found)


def runs_of(rows: pd.DataFrame) -> Mapping[str, pd.DataFrame]:
    """The rows of each run, and of one that was put together wrongly: the cells of the first and
    the baseline of the second, as where a baseline is sampled apart from alpha 0."""
    one, other = (part.drop(columns="run") for _, part in rows.groupby("run", sort=False))
    base = other[other["direction"] == "baseline"]
    mixed = pd.concat([base, one[one["direction"] != "baseline"]], ignore_index=True)
    return {"one": one, "other": other, "mixed": mixed}


def agreement(rows: pd.DataFrame, seed: int = 0) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The table of two runs beside one another, and which of them, and of one put together wrongly,
    have an alpha 0 that is not the baseline."""
    runs = runs_of(rows)
    table = beside(runs["one"], runs["other"], seed)
    off = {name: off_baseline(run) for name, run in runs.items()}
    return table, {"overlap": bool(table["overlap"].all()), "off_baseline": off}
