"""The comparison of conditions: the model as it is, under a system message, steered, or both.

A condition is a cell with a name a person would give it. Every figure stands beside its paired
difference from the model as it is, and what the differences do not show is said in words. Reads a
summary of replies; computes nothing anew.
"""

from __future__ import annotations

import pandas as pd

LEVEL = 0.05


def named(summary: pd.DataFrame) -> pd.DataFrame:
    """The rows of all cells but controls, with `condition`: `base`, `system message`,
    `steering 0.4`, `both 0.4`; where several layers were steered their number is in the name."""
    rows = summary[summary["direction"].isin(("baseline", "learned"))]
    rows = rows[(rows["direction"] == "baseline") | (rows["strength"] != 0)].copy()
    several = rows["layer"].nunique() > 1
    names = []
    for _, row in rows.iterrows():
        told = row["system"] != ""
        if row["direction"] == "baseline":
            names.append("system message" if told else "base")
        else:
            where = f", layer {row['layer']}" if several else ""
            names.append(f"{'both' if told else 'steering'} {row['strength']:g}{where}")
    rows["condition"] = names
    return rows.reset_index(drop=True)


def unshown(rows: pd.DataFrame) -> list[str]:
    """A sentence for every group of prompts: which conditions changed refusal by no more than
    chance may, after Holm's correction, with the interval of what these prompts leave open."""
    said = []
    for subset, part in rows[rows["condition"] != "base"].groupby("subset", sort=False):
        weak = part[~(part["p_holm"] < LEVEL)]
        told = [
            f"{row['condition']} {row['difference']:+.2f} [{row['diff_lo']:+.2f}, "
            f"{row['diff_hi']:+.2f}] p = {row['p_holm']:.3f}"
            for _, row in weak.iterrows()
        ]
        if told:
            n = part["n"].iloc[0]
            said.append(f"not significant, {subset} (n={n}, Holm's p): {'; '.join(told)}")
    return said


def control_range(summary: pd.DataFrame) -> pd.DataFrame:
    """By strength and subset, the range of the random directions' differences from base."""
    rows = summary[summary["direction"] == "random"]
    grouped = rows.groupby(["strength", "subset"], sort=False)["difference"]
    return grouped.agg(lo="min", hi="max", n="size").reset_index()
