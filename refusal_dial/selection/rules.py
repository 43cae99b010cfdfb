"""Rules that choose one candidate direction from their measurements, and say why not the others.

A frame of candidates has a row each: `pos`, `layer`, and three measurements on validation prompts.

    ========= =============================== =======================================
    column    refusal and effect              cosmic
    ========= =============================== =======================================
    bypass    mean score on HARMFUL, ablated  cos(HARMFUL ablated, harmless as it is)
    induce    mean score on harmless, added   cos(harmless added, HARMFUL as it is)
    kl        mean KL(base || ablated), nats, at the last position on harmless prompts
    ========= =============================== =======================================

The rules are arithmetic on such frames: they do not know where the numbers came from, and choosing
by them is no evidence: the chosen candidate's own numbers are the best of many, so report it on
prompts that no candidate was measured on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from refusal_dial.selection.limits import RULES, Limits
from refusal_dial.types import DialError, one_of

MEASURES = ("bypass", "induce", "kl")
NAMES = {
    "position": "pos",
    "layer": "layer",
    "refusal_score": "bypass",
    "steering_score": "induce",
    "kl_div_score": "kl",
}
"""What the refusal_direction project calls these columns."""
NO_DIFFERENCE = "the groups do not differ here"


def rank(rule: str, candidates: pd.DataFrame, n_layers: int, limits: Limits) -> pd.DataFrame:
    """The candidates with `value` (the larger, the better) and `dropped` (why; empty for the kept),
    the kept ones first, the chosen one on top.

    `refusal` (Arditi et al. 2024): value = -bypass. `cosmic` (Siu et al. 2025): bypass + induce;
    candidates at position -1 are dropped where they come later than the median, over the other
    positions, of the best layer by either measure. `effect`: how much ablation and addition move
    the score together, `(base_harmful - bypass) + (induce - base_harmless)`, for any scorer, the
    bases being constants that no choice depends on.

    Raises `DialError` for an unknown rule.
    """
    if rule not in RULES:
        raise one_of(rule, RULES, "rule")
    value = {
        "refusal": -candidates["bypass"],
        "cosmic": candidates["bypass"] + candidates["induce"],
        "effect": candidates["induce"] - candidates["bypass"],
    }[rule]
    late = _late(candidates) if rule == "cosmic" else pd.Series(False, index=candidates.index)
    own = candidates["dropped"] if "dropped" in candidates else pd.Series("", candidates.index)
    reasons = [
        why or _reason(cast(Mapping[str, Any], row), n_layers, limits, is_late)
        for why, is_late, row in zip(own, late, candidates.to_dict("records"), strict=True)
    ]
    ranked = candidates.assign(value=value, dropped=reasons)
    ranked["kept"] = ranked["dropped"] == ""
    ranked = ranked.sort_values(["kept", "value"], ascending=False, kind="stable")
    return ranked.drop(columns="kept").reset_index(drop=True)


def needed_layers(rule: str, n_layers: int, limits: Limits) -> range:
    """The layers to measure: those that the rule discards need not be, except by `cosmic`, which
    looks for peaks among all of them."""
    return range(n_layers if rule == "cosmic" else limits.last_layer(n_layers))


def chosen(ranked: pd.DataFrame) -> tuple[int, int]:
    """(pos, layer) of the chosen candidate.

    Raises `DialError` where every candidate was dropped, saying for what.
    """
    if ranked.empty or ranked["dropped"].iloc[0]:
        why = ", ".join(f"{n} {reason}" for reason, n in dropped(ranked).items())
        raise DialError(
            f"all {len(ranked)} candidates were dropped ({why or 'there were none'}): the model "
            "may not refuse by one direction, or the limits are too strict for it"
        )
    return int(ranked["pos"].iloc[0]), int(ranked["layer"].iloc[0])


def dropped(ranked: pd.DataFrame) -> dict[str, int]:
    """How many candidates were dropped for each kind of reason, without its numbers."""
    gone = ranked.loc[ranked["dropped"] != "", "dropped"]
    kinds = gone.astype(str).str.split(":").str[0]
    return {str(kind): int(n) for kind, n in kinds.value_counts().items()}


def _reason(row: Mapping[str, Any], n_layers: int, limits: Limits, late: bool) -> str:
    """Why a candidate is dropped: the first reason that holds."""
    last = limits.last_layer(n_layers)
    if int(row["layer"]) >= last:
        return f"layer from {last} on"
    missing = [name for name in MEASURES if math.isnan(row[name])]
    if missing:
        return f"NaN in {' and '.join(missing)}"
    if limits.kl is not None and row["kl"] > limits.kl:
        return f"KL over {limits.kl:g}: {row['kl']:.3g}"
    if limits.induce is not None and row["induce"] < limits.induce:
        return f"induces under {limits.induce:g}: {row['induce']:.3g}"
    return "at -1 and past where other positions peak" if late else ""


def _late(candidates: pd.DataFrame) -> pd.Series[bool]:
    """Candidates at position -1 from a layer past both median peaks of the other positions."""
    others = candidates[candidates["pos"] != -1]
    last = candidates["pos"] == -1
    for name in ("bypass", "induce"):
        best = others.dropna(subset=[name]).sort_values(name, ascending=False, kind="stable")
        peaks = best.groupby("pos").head(1)["layer"].astype(float)
        if peaks.empty:
            return pd.Series(False, index=candidates.index)
        last &= candidates["layer"] > np.quantile(peaks, 0.5, method="lower")
    return last


def read_evaluations(path: str | Path) -> pd.DataFrame:
    """Candidates from the refusal_direction project's direction_evaluations.json.

    Raises `DialError` for a file that is not there or holds something else.
    """
    if not Path(path).is_file():
        raise DialError(f"no evaluations {str(path)!r}: expected a direction_evaluations.json")
    try:
        rows = json.loads(Path(path).read_text())
        frame = pd.DataFrame([{NAMES[k]: row[k] for k in NAMES} for row in rows])
        return frame.astype({"pos": int, "layer": int, **dict.fromkeys(MEASURES, float)})
    except (ValueError, KeyError, TypeError) as error:
        raise DialError(
            f"{path} holds no evaluations: expected a list of position, layer, refusal_score, "
            f"steering_score and kl_div_score ({' '.join(str(error).split())})"
        ) from error


def evaluations_json(candidates: pd.DataFrame) -> str:
    """The same the other way: what `read_evaluations` reads, in that project's own order."""
    columns = candidates[list(NAMES.values())].rename(columns={v: k for k, v in NAMES.items()})
    return json.dumps(columns.to_dict("records"), indent=4)
