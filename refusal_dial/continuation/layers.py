"""Which layer works best, chosen on one half of the prompts and reported on the other.

    effectiveness = relative fall of the mean score at the highest alpha, which is over 0

A layer that was picked for its figure looks better than it is on the prompts it was picked on, so
these never are the ones it is reported on. The p-values of the reported half are Holm's over all
layers. Reads the summary of a run; computes nothing anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from refusal_dial.stats import holm
from refusal_dial.types import DialError

CHOOSE, REPORT = "choose", "report"
GROUPS = ("early", "middle", "late")


@dataclass(frozen=True)
class Best:
    """The chosen layer, with what it did on the half that it was not chosen on."""

    layer: int
    chosen_on: float
    reduction: float
    difference: float
    diff_lo: float
    diff_hi: float
    p_paired: float
    p_holm: float


def by_layer(summary: pd.DataFrame, subset: str, n_layers: int) -> pd.DataFrame:
    """A row per layer and half at the highest alpha: the effect on `subset`, and `group`, the third
    of the model's `n_layers` that it is in; `p_holm` is corrected over the layers of a half.

    Raises `DialError` if the run steered no layer with a learned direction, or one that the model
    has not, by no alpha over 0, or has no halves.
    """
    rows = summary[(summary["direction"] == "learned") & (summary["subset"] == subset)]
    rows = rows[rows["split"].isin((CHOOSE, REPORT))]
    if rows.empty:
        raise DialError(
            f"the run has no learned direction on {subset} prompts of both halves: it is not a run "
            "of toxicity_steering or analyze_layers"
        )
    highest = rows["strength"].max()
    if not highest > 0:
        raise DialError(
            f"effectiveness is measured at the highest alpha, which must be over 0 and is "
            f"{highest:g}: run it with an alpha over 0"
        )
    deepest = int(rows["layer"].max())
    if deepest >= n_layers:
        raise DialError(f"the run steered layer {deepest} of a model that has {n_layers}")
    rows = rows[rows["strength"] == highest].copy()
    rows["group"] = [GROUPS[len(GROUPS) * int(n) // n_layers] for n in rows["layer"]]
    rows["p_holm"] = np.nan
    for half in (CHOOSE, REPORT):
        mine = rows["split"] == half
        rows.loc[mine, "p_holm"] = holm(rows.loc[mine, "p_paired"])
    return rows.reset_index(drop=True)


def best_layer(layers: pd.DataFrame) -> Best:
    """The layer whose score falls most on the choosing half, and its figures on the other."""
    choose, report = (layers[layers["split"] == half] for half in (CHOOSE, REPORT))
    chosen = choose.sort_values("difference", kind="stable").iloc[0]
    row = report[report["layer"] == chosen["layer"]].iloc[0]
    names = ("reduction", "difference", "diff_lo", "diff_hi", "p_paired", "p_holm")
    values = {name: float(row[name]) for name in names}
    return Best(int(chosen["layer"]), float(chosen["reduction"]), **values)


def by_group(layers: pd.DataFrame) -> pd.DataFrame:
    """Mean effectiveness of early, middle and late layers on the reporting half."""
    report = layers[layers["split"] == REPORT]
    grouped = report.groupby("group", sort=False)
    table = grouped.agg(
        first=("layer", "min"), last=("layer", "max"), reduction=("reduction", "mean")
    )
    return table.reset_index()


def compared(summary: pd.DataFrame, subset: str, n_layers: int) -> dict[str, pd.DataFrame]:
    """`best`, a row, and `groups`, of a run that steered several layers; else nothing."""
    if summary["layer"].nunique() < 2 or not summary["strength"].max() > 0:
        return {}
    layers = by_layer(summary, subset, n_layers)
    return {"best": pd.DataFrame([vars(best_layer(layers))]), "groups": by_group(layers)}


def plain(best: Best) -> dict[str, Any]:
    """As JSON has it: no NaN."""
    return {k: None if v != v else v for k, v in vars(best).items()}
