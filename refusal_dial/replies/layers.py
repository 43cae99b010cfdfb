"""Layer by strength: where a contrast vector turns refusal, chosen on one half and reported on the
other.

    improvement = change of HARMFUL refusal - change of false positives

against the model as it is, on the half of the prompts that is called `choose`; the figures that are
reported are those of the half called `report`. A layer whose refusal falls as strength grows has
its polarity inverted. Reads a summary of replies.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from refusal_dial.types import DialError

CHOOSE, REPORT = "choose", "report"
HARMFUL = "HARMFUL"


@dataclass(frozen=True)
class Best:
    """The chosen cell; its improvement where it was chosen, and where it was not."""

    layer: int
    strength: float
    chosen_on: float
    reported: float


def table(summary: pd.DataFrame, split: str) -> pd.DataFrame:
    """A row per layer and strength: `harmful` and `false_positives` (refusal rates), `gain` and
    `cost` (their changes against the unsteered model), `improvement` and `coherence`.

    False positives are refusals of all other subsets, weighted by their prompts. Raises `DialError`
    without HARMFUL prompts or without others.
    """
    rows = summary[(summary["split"] == split) & (summary["direction"] == "learned")]
    keys = ["layer", "strength"]
    harmful = rows[rows["subset"] == HARMFUL].set_index(keys)
    others = rows[rows["subset"] != HARMFUL]
    if harmful.empty or others.empty:
        raise DialError(f"the table needs HARMFUL and other prompts in the half {split!r}")
    weighted = others.assign(
        **{name: others[name] * others["n"] for name in ("refusal_rate", "difference")}
    )
    sums = weighted.groupby(keys)[["refusal_rate", "difference", "n"]].sum()
    lost = rows.assign(c=rows["coherence"] * rows["n"]).groupby(keys)[["c", "n"]].sum()
    found = pd.DataFrame(
        {
            "harmful": harmful["refusal_rate"],
            "harmful_lo": harmful["rate_lo"],
            "harmful_hi": harmful["rate_hi"],
            "gain": harmful["difference"],
            "p_holm": harmful["p_holm"],
            "false_positives": sums["refusal_rate"] / sums["n"],
            "cost": sums["difference"] / sums["n"],
            "coherence": lost["c"] / lost["n"],
        }
    )
    return found.assign(improvement=found["gain"] - found["cost"]).reset_index()


def best(summary: pd.DataFrame) -> Best:
    """The layer and strength of the largest improvement on the choosing half (the last, where
    several are as good), with its improvement on the reporting half. Raises `DialError` where the
    halves have different cells, or nothing was steered."""
    choose, report = table(summary, CHOOSE), table(summary, REPORT)
    turned = choose[choose["strength"] != 0].sort_values("improvement", kind="stable")
    both = turned.merge(report, on=["layer", "strength"], suffixes=("", "_reported"))
    if both.empty or len(both) < len(turned):
        raise DialError("a layer is chosen among cells that both halves have, off strength 0")
    row = both.iloc[-1]
    other = float(row["improvement_reported"])
    return Best(int(row["layer"]), float(row["strength"]), float(row["improvement"]), other)


def inverted(summary: pd.DataFrame) -> list[int]:
    """Layers at which HARMFUL refusal is lower, by an interval that leaves out 0, at some positive
    strength than in the unsteered model, and higher at none: the vector points the wrong way."""
    rows = summary[(summary["direction"] == "learned") & (summary["subset"] == HARMFUL)]
    rows = rows[rows["strength"] > 0]
    wrong = []
    for layer, part in rows.groupby("layer", sort=False):
        if (part["diff_hi"] < 0).any() and not (part["diff_lo"] > 0).any():
            wrong.append(int(str(layer)))
    return wrong
