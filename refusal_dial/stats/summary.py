"""Rows become a summary: means, rates, intervals, and p-values against random directions.

Takes the tidy frame of a steering sweep, from memory or from scores.csv, and returns the tables and
the verdict of a run. It knows the columns of the contract. It does not know models or files.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from refusal_dial.common import DialError
from refusal_dial.stats.comparison import (
    ADDED,
    compared,
    finite_intervals,
    finite_means,
    with_gap_share,
)
from refusal_dial.stats.intervals import mean_interval, rate_interval

AXES = ["direction", "seed", "layer", "site", "pos", "alpha"]

GROUP = ["subset", "split"]

PLACE = ["layer", "site", "pos"]

COLUMNS = [*AXES, *GROUP, "n", "score_mean", "score_lo", "score_hi"]
COLUMNS += ["refusal_rate", "rate_lo", "rate_hi", "p_value"]

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
    extra = [name for name in summary.columns if name not in (*COLUMNS, *ADDED, *SHIFT_INTERVAL)]
    return summary[[*COLUMNS, *extra, *ADDED, *SHIFT_INTERVAL]]


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
