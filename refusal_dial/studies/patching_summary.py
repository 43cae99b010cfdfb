"""Rows of a patching experiment become a summary: effects with intervals, and p-values.

Takes the tidy frame, from memory or from scores.csv. The unit is the pair. It knows the columns of
the contract. It does not know models or files.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import spearmanr

from refusal_dial.stats.intervals import mean_interval, rate_interval
from refusal_dial.stats.p_values import benjamini_hochberg, sign_flip_p
from refusal_dial.stats.summary import AXES, GROUP, distinct, finite_means

PATCH_CELL = ["direction", "seed", "layer", "site", "way", "role", "head", "neuron"]

PATCH_PLACE = ["layer", "site", "way", "role", "head", "neuron"]

PATCH_SUMMARY = [
    *AXES,
    *GROUP,
    "n",
    "score_mean",
    "score_lo",
    "score_hi",
    "refusal_rate",
    "rate_lo",
]
PATCH_SUMMARY += ["rate_hi", "p_value", "way", "role", "head", "neuron", "token"]
PATCH_SUMMARY += ["effect_mean", "effect_lo", "effect_hi"]

FLIPS = 19_999

CARRIES = 0.05


def summarise_patching(scores: pd.DataFrame, threshold: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """One row per cell and group of pairs, in order of first appearance.

    `n` pairs have the cell. `effect_mean`, `score_mean` and `refusal_rate` (the share of pairs with
    score > threshold) come with their bootstrap intervals over pairs. `p_value`, for the patches
    themselves, is the sign-flip p of their effects minus those of the same-class control on the
    same pairs (`sign_flip_p`), NaN where there is no such control. `pos` is empty where the role
    stands at different positions in different pairs.
    """
    parts = [
        _summarise_group(part.reset_index(drop=True), threshold, seed)
        for _, part in scores.groupby(GROUP, sort=False, dropna=False)
    ]
    return pd.concat(parts, ignore_index=True)[PATCH_SUMMARY]


def _summarise_group(part: pd.DataFrame, threshold: float, seed: int) -> pd.DataFrame:
    grouped = part.groupby(PATCH_CELL, sort=False, dropna=False)
    cell = grouped.ngroup().to_numpy()
    pairs = part["prompt_id"].drop_duplicates()
    column = pd.Categorical(part["prompt_id"], categories=pairs).codes
    effect, score = np.full((2, cell.max() + 1, len(pairs)), np.nan)
    effect[cell, column] = part["effect"].to_numpy(dtype=float)
    score[cell, column] = part["score"].to_numpy(dtype=float)
    table = part.iloc[np.unique(cell, return_index=True)[1]].reset_index(drop=True)
    alike = grouped["pos"].nunique(dropna=False).to_numpy() == 1
    table["pos"] = table["pos"].where(alike, None)
    held = np.isfinite(effect)
    table["n"] = held.sum(1)
    over = np.where(held, score > threshold, np.nan)
    for name, values, interval in (
        ("effect", effect, partial(mean_interval, seed=seed)),
        ("score", score, partial(mean_interval, seed=seed)),
        ("rate", over, rate_interval),
    ):
        mean = "refusal_rate" if name == "rate" else f"{name}_mean"
        table[mean] = finite_means(np.where(held, values, np.nan))
        table[[f"{name}_lo", f"{name}_hi"]] = _intervals(values, held, interval)
    return table.assign(p_value=_p_values(table, effect, seed))


def _intervals(
    values: NDArray[np.float64], held: NDArray[np.bool_], interval: Callable[..., Any]
) -> NDArray[np.float64]:
    """Intervals of rows that have different pairs. Rows alike are computed once."""
    out = np.full((len(values), 2), np.nan)
    patterns, which = np.unique(held, axis=0, return_inverse=True)
    for i, has in enumerate(patterns):
        rows = np.flatnonzero(which.reshape(-1) == i)
        if not has.any():
            continue
        unique, back = np.unique(values[rows][:, has], axis=0, return_inverse=True)
        out[rows] = interval(unique)[back.reshape(-1)]
    return out


def _p_values(table: pd.DataFrame, effect: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    keys = [tuple(row) for row in table[PATCH_PLACE].astype(object).fillna("").to_numpy()]
    directions = list(table["direction"])
    control = {key: i for i, key in enumerate(keys) if directions[i] == "same_class"}
    tested = [i for i, key in enumerate(keys) if directions[i] == "patch" and key in control]
    out = np.full(len(table), np.nan)
    differences = effect[tested] - effect[[control[keys[i]] for i in tested]]
    patterns, which = np.unique(np.isfinite(differences), axis=0, return_inverse=True)
    for i, has in enumerate(patterns):
        rows = np.flatnonzero(which.reshape(-1) == i)
        out[np.array(tested)[rows]] = sign_flip_p(differences[rows][:, has], seed, FLIPS)
    return out


def moved(summary: pd.DataFrame) -> pd.DataFrame:
    """The summary with `moved`, `moved_lo`, `moved_hi`: the share of the gap that the patch moved.

    The effect where corrupted runs were patched, 1 - effect where clean ones were: 0 = nothing
    moved, 1 = the run became the other, both ways round.
    """
    noise = summary["way"] == "noise"
    mean, lo, hi = (summary[f"effect_{name}"] for name in ("mean", "lo", "hi"))
    return summary.assign(
        moved=mean.where(~noise, 1 - mean),
        moved_lo=lo.where(~noise, 1 - hi),
        moved_hi=hi.where(~noise, 1 - lo),
    )


def patching_verdict(summary: pd.DataFrame) -> list[dict[str, Any]]:
    """What patching did at each site, each way, in each group of pairs: one plain record each.

    The cell that moved most; the furthest that either control went on average; and `carries`, the
    cells that moved at least 5% of the gap and differ from the same-class control at a false
    discovery rate of 5% over the cells of the record (Benjamini and Hochberg 1995).
    """
    table, records, axes = moved(summary), [], ["way", "site", *GROUP]
    for key in distinct(table, axes):
        part = table[(table[axes] == list(key)).all(axis=1)]
        patches = part[part["direction"] == "patch"].sort_values("moved", ascending=False)
        if patches.empty:
            continue
        found = np.nan_to_num(benjamini_hochberg(patches["p_value"]), nan=1.0)
        strong = (patches["moved"] >= CARRIES) & (found < 0.05)
        records.append(
            {
                **dict(zip(axes, key, strict=True)),
                "n_cells": len(patches),
                "most": cell_record(patches.iloc[0]),
                "furthest_same_class": _furthest(part[part["direction"] == "same_class"]),
                "furthest_random": _furthest(part[part["direction"] == "random"]),
                "carries": [cell_record(row) for _, row in patches[strong].iterrows()],
            }
        )
    return records


def _furthest(rows: pd.DataFrame) -> dict[str, Any] | None:
    rows = rows[rows["moved"].notna()]
    return None if rows.empty else cell_record(rows.iloc[int(rows["moved"].abs().argmax())])


def cell_record(row: pd.Series[Any]) -> dict[str, Any]:
    """A cell and how much it moved, as plain data."""
    record: dict[str, Any] = {"layer": int(row["layer"]), "role": str(row["role"])}
    record |= {name: int(row[name]) for name in ("head", "neuron") if not pd.isna(row[name])}
    record["n"] = int(row["n"])
    for name in ("moved", "moved_lo", "moved_hi", "p_value"):
        record[name] = None if pd.isna(row[name]) else float(row[name])
    return record


def attribution_agreement(summary: pd.DataFrame) -> list[dict[str, Any]]:
    """How well the gradient predicted the exact patches, each way and in each group of pairs, over
    the cells that both have and that either moves.

    Spearman's rank correlation of the mean shares moved, at all sites and at each; and the cell
    where they are furthest apart.
    """
    table, records = moved(summary), []
    for key in distinct(table, ["way", *GROUP]):
        part = table[(table[["way", *GROUP]] == list(key)).all(axis=1)]
        both = _beside(part)
        apart = (both["moved_guess"] - both["moved"]).abs()
        record = {**dict(zip(["way", *GROUP], key, strict=True)), "n_cells": len(both)}
        record["rank_correlation"] = {"all": _rank_correlation(both)} | {
            str(site): _rank_correlation(rows) for site, rows in both.groupby("site", sort=False)
        }
        if len(both):
            worst = both.iloc[int(apart.argmax())]
            record["worst"] = cell_record(worst) | {
                "site": str(worst["site"]),
                "attribution": float(worst["moved_guess"]),
            }
        records.append(record)
    return records


def _beside(part: pd.DataFrame) -> pd.DataFrame:
    """The exact patches with what the gradient made of them, without those that move nothing."""
    guess = part[part["direction"] == "attribution"].set_index(PATCH_PLACE)["moved"]
    exact = part[part["direction"] == "patch"]
    both = exact.join(guess.rename("moved_guess"), on=PATCH_PLACE, how="inner").reset_index(
        drop=True
    )
    return both[(both["moved"] != 0) | (both["moved_guess"] != 0)].reset_index(drop=True)


def _rank_correlation(both: pd.DataFrame) -> float | None:
    if len(both) < 3:
        return None
    value = float(spearmanr(both["moved"], both["moved_guess"]).statistic)
    return None if np.isnan(value) else value
