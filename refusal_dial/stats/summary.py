"""Rows become a summary: every cell beside its controls, means, rates, intervals, the verdict.

    shift = mean over prompts of (score under the cell - score of the baseline)

`p_value`, `p_covariance` and `p_shuffled` are the rank of |shift| among those of the random,
covariance and shuffled directions of the same place and alpha. `p_corrected` and its like are
corrected for all layers, sites and alphas of a group of prompts by the largest effect of every draw
(`stats.max_t_p`), each among its own kind. Random directions are too weak a control: directions of
labels that mean nothing move a model further than nearly all of them (docs/validity.md).

Takes the tidy frame of a steering sweep, from memory or from scores.csv. It knows the columns of
the contract. It does not know models or files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from refusal_dial.common import DialError
from refusal_dial.stats.intervals import Floats, mean_interval, rate_interval
from refusal_dial.stats.p_values import (
    benjamini_hochberg,
    gap_share,
    holm,
    max_t_p,
    rank_p,
    smallest_detectable,
    smallest_ranked,
    standardised,
)

# --------------------------------------------------------------------------------------------------
# What could not be computed: a row with its reason and no number, left out and counted.
#
# A score is missing where logits were NaN or infinite, or a judge gave none. `mark_dropped` makes
# the row say so. What is left out of a mean is left out of its interval, and of both sides of a
# comparison. A control that is missing counts as no weaker than what it is compared with.


NO_NUMBER = "no finite score"

BROKEN = "NaN or infinite logits while it was generated"

Interval = Callable[..., Floats]


def mark_dropped(rows: pd.DataFrame) -> pd.DataFrame:
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


def dropped_reasons(rows: pd.DataFrame) -> dict[str, int]:
    """How many rows each reason left out. Runs of older versions have no reasons."""
    if "reason" not in rows:
        return {}
    reasons = rows.loc[rows["reason"].fillna("") != "", "reason"]
    return {str(reason): int(n) for reason, n in reasons.value_counts().items()}


def check_dropped_share(missing: Mapping[str, int], total: int, most: float) -> None:
    """Raises `DialError` where more than the share `most` of all rows has no score."""
    n = sum(missing.values())
    if n > most * total:
        why = ", ".join(f"{count} {reason}" for reason, count in missing.items())
        raise DialError(
            f"{n} of {total} rows have no score ({why}), more than the share {most:g} that "
            "--max-missing allows: try --dtype float32 or smaller alphas, or allow more"
        )


def finite_intervals(values: Floats, interval: Interval) -> Floats:
    """`interval` of each row of `values` over the columns that it has, `row prompt -> row 2`."""
    out = np.full((len(values), 2), np.nan)
    patterns, which = np.unique(np.isfinite(values), axis=0, return_inverse=True)
    for i, has in enumerate(patterns):
        if has.any():
            rows = np.flatnonzero(which.reshape(-1) == i)
            out[rows] = interval(values[rows][:, has])
    return out


def finite_means(values: Floats) -> Floats:
    """The mean of each row over the columns that it has; NaN where it has none."""
    held = np.isfinite(values)
    total, n = np.where(held, values, 0.0).sum(1), held.sum(1)
    means = np.divide(total, n, out=np.full(len(values), np.nan), where=n > 0)
    return np.where(held.all(1), values.mean(1), means)


def finite_rank_p(effect: Floats, null: Floats) -> float:
    """`stats.rank_p` of the mean of `effect` (a value a prompt) among those of the rows of `null`.

    Effect and control are compared on the prompts that both have. A control that shares none, or
    is missing altogether, counts as at least as far: what broke must not look weak.
    """
    if np.isfinite(effect).all() and np.isfinite(null).all():
        return rank_p(float(effect.mean()), null.mean(1)) if len(null) else float("nan")
    if not len(null) or not np.isfinite(effect).any():
        return float("nan")
    both = np.isfinite(effect) & np.isfinite(null)
    mine = finite_means(np.where(both, effect, np.nan))
    theirs = finite_means(np.where(both, null, np.nan))
    reached = ~both.any(1) | (np.abs(theirs) >= np.abs(mine))
    return float((1 + reached.sum()) / (1 + len(null)))


def prediction_quality(
    predicted: pd.Series[float], measured: pd.Series[float]
) -> dict[str, int | float]:
    """How well changes were predicted: `n` of them, their `correlation`, and `error`, the root mean
    square of predicted minus measured as a share of the measured changes' own (NaN where nothing
    changed)."""
    off = float(np.sqrt(((predicted - measured) ** 2).mean()))
    size = float(np.sqrt((measured**2).mean()))
    return {
        "n": len(measured),
        "correlation": float(predicted.corr(measured)),
        "error": off / size if size else float("nan"),
    }


def widened(bounds: Floats, shift: Floats) -> Floats:
    """Intervals of mean shifts of shares (a row a cell) as they are, but where every prompt changed
    alike: there is nothing to resample, and they reach as far to each side as Wilson's interval
    says that so few prompts leave open."""
    out = bounds.copy()
    for i in np.flatnonzero(bounds[:, 0] == bounds[:, 1]):
        n = int(np.isfinite(shift[i]).sum())
        room = 1 - rate_interval(np.ones((1, n)))[0, 0]
        out[i] = max(-1.0, bounds[i, 0] - room), min(1.0, bounds[i, 1] + room)
    return out


def with_dropped(
    found: Mapping[str, Any], missing: Mapping[str, int], total: int
) -> dict[str, Any]:
    """A run's verdict with what was left out, where anything was."""
    about = {"left_out": {"rows": sum(missing.values()), "of": total, "reasons": dict(missing)}}
    return {**found, **about} if missing else dict(found)


# --------------------------------------------------------------------------------------------------
# Each steered cell set against its controls: p-values by kind, corrected, and the effect's size.
#
#     shift = mean over prompts of (score under the cell - score of the baseline)
#
# `p_value`, `p_covariance` and `p_shuffled` are the rank of |shift| among those of the random,
# covariance and shuffled directions of the same place and alpha. `p_corrected` and its like are
# corrected for all layers, sites and alphas of a group of prompts by the largest effect of every
# draw (`stats.max_t_p`), each among its own kind. `p_holm` and `p_bh` are Holm's and Benjamini and
# Hochberg's corrections among the fairest controls of the run: shuffled labels, else covariance,
# else random. Random ones are too easy to beat: directions of labels that mean nothing move a model
# further than nearly all of them (docs/validity.md).


NULLS = ("shuffled", "covariance", "random")  # the fairest first

COMPARED_KINDS = (*NULLS, "flipped", "length", "fold")

AT = ["layer", "site", "pos", "alpha"]

RANKED = {"random": "p_value", "covariance": "p_covariance", "shuffled": "p_shuffled"}

CORRECTED = {
    "random": "p_corrected",
    "covariance": "p_covariance_corrected",
    "shuffled": "p_shuffled_corrected",
}

ADDED = ["p_covariance", "p_shuffled", *CORRECTED.values(), "p_holm", "p_bh"]
ADDED += ["shift", "effect_size", "gap_share", "detectable"]

Null = dict[str, dict[int, int]]


def compared(table: pd.DataFrame, matrix: Floats) -> pd.DataFrame:
    """The table of one group of prompts, a row per cell, with `p_value` and the columns of `ADDED`
    but `gap_share`. `matrix` holds the scores, `cell prompt`.

    `effect_size` is the standardised paired difference. `detectable` is the mean shift that this
    many prompts would show and that would stand out at p <= 0.05 among the fairest controls: the
    larger of `stats.smallest_detectable` and `stats.smallest_ranked`. NaN without a baseline and,
    but for `shift`, for the controls themselves; p-values also where there is no such control.
    """
    blank = dict.fromkeys(["p_value", *ADDED], np.nan)
    table = table.reset_index(drop=True).assign(**blank)
    baseline = np.flatnonzero(table["direction"] == "baseline")
    if not len(baseline):
        return table
    shift = matrix - matrix[baseline[0]]
    table["shift"] = np.where(table["direction"] != "baseline", finite_means(shift), np.nan)
    known = np.flatnonzero(~table["direction"].isin(["baseline", *COMPARED_KINDS]))
    kept = [row[np.isfinite(row)] for row in shift[known]]
    table.loc[known, "effect_size"] = [standardised(row) for row in kept]
    table.loc[known, "detectable"] = [_detectable(row) for row in kept]
    keys = [repr(row) for row in table[AT].itertuples(index=False, name=None)]
    for kind in NULLS:
        null = _rows(table, keys, kind)
        tested = [int(i) for i in known if keys[i] in null]
        ranks = [finite_rank_p(shift[i], shift[list(null[keys[i]].values())]) for i in tested]
        table.loc[tested, RANKED[kind]] = ranks
        table = _corrected(table, keys, null, tested, CORRECTED[kind])
    fairest = next((kind for kind in NULLS if (table["direction"] == kind).any()), None)
    return table if fairest is None else _beside(table, keys, fairest, known)


def fairest_p(row: Any) -> tuple[str, float]:
    """The kind of the fairest controls that a row of the summary (its columns by name) was ranked
    among, and its corrected p; ("", its uncorrected p-value) for a row of an older version."""
    for kind in NULLS:
        p = row.get(CORRECTED[kind])
        if p is not None and not pd.isna(p):
            return kind, float(p)
    p = row.get("p_value")
    return "", float("nan") if p is None else float(p)


def fair_ranks(table: pd.DataFrame, shift: Floats, keys: Sequence[str]) -> list[float]:
    """For each learned row of a table of cells, the rank p of its shift (a row a cell, a column a
    prompt) among those of the fairest controls that have the same `keys`; NaN for other rows."""
    place = table.groupby(list(keys), dropna=False).ngroup().to_numpy()
    kinds = table["direction"].to_numpy()
    values = []
    for where, kind, effect in zip(place, kinds, shift, strict=True):
        among = [(place == where) & (kinds == null) for null in NULLS]
        fairest = next((null for null in among if null.any()), among[-1])
        values.append(finite_rank_p(effect, shift[fairest]) if kind == "learned" else float("nan"))
    return values


def _detectable(differences: Floats) -> float:
    n = len(differences)
    return smallest_detectable(float(differences.std(ddof=1)), n) if n > 1 else float("nan")


def _rows(table: pd.DataFrame, keys: list[str], kind: str) -> Null:
    """Place and alpha -> seed -> row, of one kind of control."""
    found: Null = {}
    rows = np.flatnonzero(table["direction"] == kind)
    for i, seed in zip(rows.tolist(), table["seed"].iloc[rows].tolist(), strict=True):
        found.setdefault(keys[i], {})[int(seed)] = i
    return found


def _corrected(
    table: pd.DataFrame, keys: list[str], null: Null, tested: list[int], name: str
) -> pd.DataFrame:
    """For each direction, its cells together. A draw that lacks a cell counts as at least as far in
    all of them."""
    shift = table["shift"].to_numpy(dtype=float)
    known = np.array([i for i in tested if np.isfinite(shift[i])], dtype=int)
    for direction in table["direction"].iloc[known].unique():
        mine = known[(table["direction"].iloc[known] == direction).to_numpy()]
        seeds = sorted({seed for i in mine for seed in null[keys[i]]})
        places = [[null[keys[i]].get(seed) for i in mine] for seed in seeds]
        draws = np.array([[np.nan if r is None else shift[r] for r in row] for row in places])
        whole = np.isfinite(draws).all(1)
        reached = max_t_p(shift[mine], draws[whole]) * (1 + whole.sum()) if whole.any() else 1.0
        table.loc[mine, name] = (reached + (~whole).sum()) / (1 + len(seeds))
    return table


def _beside(
    table: pd.DataFrame, keys: list[str], kind: str, found: NDArray[np.intp]
) -> pd.DataFrame:
    """What depends on the fairest null. Alpha 0 does nothing: it is not tested, and has p = 1."""
    null, shift = _rows(table, keys, kind), table["shift"].to_numpy(dtype=float)
    for i in found:
        if keys[i] in null:
            draws = shift[list(null[keys[i]].values())]
            stands_out = smallest_ranked(np.where(np.isfinite(draws), draws, np.inf))
            table.loc[i, "detectable"] = max(float(table["detectable"].iloc[i]), stands_out)
    rank = table[RANKED[kind]]
    for direction in table["direction"].iloc[found].unique():
        mine = np.flatnonzero((table["direction"] == direction) & rank.notna())
        acting = table["alpha"].iloc[mine].to_numpy(dtype=float) != 0
        for name, correct in (("p_holm", holm), ("p_bh", benjamini_hochberg)):
            adjusted = correct(np.where(acting, rank.iloc[mine], np.nan))
            table.loc[mine, name] = np.where(acting, adjusted, 1.0)
    return table


def with_gap_share(summary: pd.DataFrame) -> pd.DataFrame:
    """`gap_share` = shift / (mean score of HARMFUL - that of BENIGN), both unsteered and over all
    splits; NaN where a run lacks one of them."""
    base = summary[summary["direction"] == "baseline"]
    ends = []
    for subset in ("HARMFUL", "BENIGN"):
        mine = base[(base["subset"] == subset) & base["score_mean"].notna()]
        n = mine["n"].sum()
        ends.append((mine["score_mean"] * mine["n"]).sum() / n if n else float("nan"))
    return summary.assign(gap_share=[gap_share(s, *ends) for s in summary["shift"].astype(float)])


# --------------------------------------------------------------------------------------------------
# A run's rows, group by group, and what its verdict says.


AXES = ["direction", "seed", "layer", "site", "pos", "alpha"]

GROUP = ["subset", "split"]

ROW_KEYS = [*AXES, "prompt_id", *GROUP]
"""What every row of a sweep begins with: its cell and its prompt."""

PLACE = ["layer", "site", "pos"]

SUMMARY_COLUMNS = [*AXES, *GROUP, "n", "score_mean", "score_lo", "score_hi"]
SUMMARY_COLUMNS += ["refusal_rate", "rate_lo", "rate_hi", "p_value"]

SHIFT_INTERVAL = ["shift_lo", "shift_hi"]

FLOOR, CEILING = 0.02, 0.98
"""Where all rates are below the one or above the other they say nothing: the mean score's shift is
displayed instead."""


def summarise(scores: pd.DataFrame, threshold: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """One row per cell and group of prompts, in order of first appearance.

    `score_mean` with its bootstrap interval over prompts; `refusal_rate`, the share of prompts with
    score > threshold, with its interval; `p_value` and what else `comparison` says of a cell beside
    its controls. A row without a score is left out of all of these, and of `n` (see `missing`).

    Raises `DialError` if a cell lacks prompts that another cell of its group has.
    """
    parts = [
        _summarise_group(part, threshold, seed)
        for _, part in scores.groupby(GROUP, sort=False, dropna=False)
    ]
    summary = with_gap_share(pd.concat(parts, ignore_index=True))
    extra = [
        name for name in summary.columns if name not in (*SUMMARY_COLUMNS, *ADDED, *SHIFT_INTERVAL)
    ]
    return summary[[*SUMMARY_COLUMNS, *extra, *ADDED, *SHIFT_INTERVAL]]


def _summarise_group(part: pd.DataFrame, threshold: float, seed: int) -> pd.DataFrame:
    cell = part.groupby(AXES, sort=False, dropna=False).ngroup().to_numpy()
    prompts = part["prompt_id"].drop_duplicates()
    column = pd.Categorical(part["prompt_id"], categories=prompts).codes
    matrix = np.full((cell.max() + 1, len(prompts)), np.nan)
    if len(part) != matrix.size or len(set(zip(cell, column, strict=True))) != matrix.size:
        raise DialError(
            f"{part['subset'].iloc[0]}: {len(part)} rows for {len(matrix)} cells of "
            f"{len(prompts)} prompts; every cell needs every prompt once"
        )
    matrix[cell, column] = part["score"].to_numpy(dtype=float)
    hits = np.where(np.isnan(matrix), np.nan, matrix > threshold)
    table = part.iloc[np.unique(cell, return_index=True)[1]].drop(columns=["prompt_id", "score"])
    score = finite_intervals(matrix, partial(mean_interval, seed=seed))
    rate = finite_intervals(hits, rate_interval)
    table = table.assign(
        n=np.isfinite(matrix).sum(1),
        score_mean=finite_means(matrix),
        score_lo=score[:, 0],
        score_hi=score[:, 1],
        refusal_rate=finite_means(hits),
        rate_lo=rate[:, 0],
        rate_hi=rate[:, 1],
    )
    table = compared(table, matrix).assign(**dict.fromkeys(SHIFT_INTERVAL, np.nan))
    baseline = np.flatnonzero(table["direction"] == "baseline")
    if len(baseline):
        moved = matrix - matrix[baseline[0]]
        table[SHIFT_INTERVAL] = finite_intervals(moved, partial(mean_interval, seed=seed))
        table.loc[baseline, SHIFT_INTERVAL] = np.nan
    return table


def at_limit(rows: pd.DataFrame) -> bool:
    """Whether the refusal rates of these rows of a summary are all at the floor or all at the
    ceiling, so that the shift of the mean score is displayed. Runs of older versions have no
    interval of it, and their rates are displayed."""
    rates = rows["refusal_rate"].dropna()
    known = set(SHIFT_INTERVAL) <= set(rows) and len(rates) > 0
    return bool(known and ((rates < FLOOR).all() or (rates > CEILING).all()))


def distinct(frame: pd.DataFrame, columns: list[str]) -> list[tuple[Any, ...]]:
    """The different values of `columns`, in order of first appearance."""
    return [tuple(row) for row in frame[columns].drop_duplicates().itertuples(index=False)]


def prompt_groups(frame: pd.DataFrame) -> list[tuple[Any, ...]]:
    """The (subset, split) groups of a frame, EDGE first: it is where the dial has room to turn."""
    return sorted(distinct(frame, GROUP), key=lambda group: group[0] != "EDGE")


def random_band(
    summary: pd.DataFrame, value: str = "refusal_rate", kind: str = "random"
) -> pd.DataFrame:
    """Mean, 2.5th and 97.5th percentile of `value` over random seeds, a row per place, alpha and
    group; of another `kind` of control, over its own. Empty where the run has none."""
    random = summary[summary["direction"] == kind]
    grouped = random.groupby([*PLACE, "alpha", *GROUP], sort=False)[value]
    return grouped.agg(
        mean="mean",
        lo=lambda v: v.quantile(0.025),
        hi=lambda v: v.quantile(0.975),
        n_seeds="size",
    ).reset_index()


def verdict(summary: pd.DataFrame, direction: str = "learned") -> list[dict[str, Any]]:
    """What a direction did to each group of prompts at each layer: one plain record each.

    Rates at the lowest and highest alpha with their intervals, beside the baseline; the p-values
    there; the largest fall of the rate from one alpha to the next higher one, and whether the two
    intervals leave room for none; the largest distance of the random band's mean from the baseline.
    """
    records = []
    band = random_band(summary)
    for key, part in summary[summary["direction"] == direction].groupby(
        [*PLACE, *GROUP], sort=False
    ):
        part = part.sort_values("alpha")
        same = (band[[*PLACE, *GROUP]] == list(key)).all(axis=1)
        group = (summary[GROUP] == list(key)[-len(GROUP) :]).all(axis=1)
        base = summary[group & (summary["direction"] == "baseline")]["refusal_rate"].iloc[0]
        rows = part[part["refusal_rate"].notna()]
        falls = rows["refusal_rate"].to_numpy()[:-1] - rows["refusal_rate"].to_numpy()[1:]
        overlap = rows["rate_lo"].to_numpy()[:-1] <= rows["rate_hi"].to_numpy()[1:]
        low, high = part.iloc[0], part.iloc[-1]
        far = (band[same]["mean"] - base).abs().max() if same.any() else None
        records.append(
            {
                **dict(zip([*PLACE, *GROUP], map(_plain, key), strict=True)),
                "n": int(low["n"]),
                "baseline_rate": _real(base),
                "lowest": _end(low),
                "highest": _end(high),
                "largest_fall": _real(falls.max(initial=0.0)),
                "monotone_within_interval": bool(overlap.all()),
                "random_mean_off_baseline": None if far is None else _real(far),
            }
        )
    return records


def _end(row: pd.Series[Any]) -> dict[str, float | None]:
    names = ["alpha", "refusal_rate", "rate_lo", "rate_hi", "p_value", *ADDED]
    return {name: _real(row[name]) if name in row else None for name in names}


def _real(value: Any) -> float | None:
    """A plain number; None for NaN and infinity, which JSON does not have."""
    return float(value) if np.isfinite(value) else None


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
