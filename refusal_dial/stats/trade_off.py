"""What steering buys where it is wanted, against what it costs where it is not.

    gain = mean over wanted prompts of (score under the cell - score of the baseline)
    cost = mean over the other prompts of (hit under the cell - hit of the baseline)

A hit is a score over the threshold. `kept` is a cell's gain as a share of always-on steering's at
the same place and alpha, `paid` its cost as a share of always-on's. The unit is the prompt: every
cell has the same ones, and intervals resample them together. Takes the tidy frame of a sweep; it
does not know which subsets are wanted, or what a score means.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from refusal_dial.common import DialError

TRADE_OFF_PLACE = ["layer", "site", "pos", "alpha"]

TRADE_OFF_CELL = ["direction", "seed"]

TRADE_OFF_LEVEL, TRADE_OFF_RESAMPLES = 0.95, 2000

Shifts = NDArray[np.float64]


def trade_off(
    scores: pd.DataFrame,
    *,
    wanted: str,
    others: str,
    always: str = "learned",
    threshold: float = 0.0,
    seed: int = 0,
) -> pd.DataFrame:
    """One row per cell but the baseline: `gain`, `cost`, `kept`, `paid`, each with `_lo`, `_hi`.

    `scores` holds held-out prompts only. A share of an effect that always-on steering does not have
    is NaN. Raises `DialError` if a subset or the baseline is missing, a cell was not tried on both
    subsets, or a prompt has two scores in a cell.
    """
    shifts = {
        "gain": _shifts(scores, wanted, None),
        "cost": _shifts(scores, others, threshold),
    }
    rows = []
    cells = scores[scores["direction"] != "baseline"][
        [*TRADE_OFF_CELL, *TRADE_OFF_PLACE]
    ].drop_duplicates()
    held = set(shifts["gain"].index) & set(shifts["cost"].index)
    if not {_key(cell) for cell in cells.itertuples(index=False)} <= held:
        raise DialError(f"the trade-off needs every cell on {wanted} and on {others} prompts")
    for cell in cells.itertuples(index=False):
        row = dict(zip(cells.columns, cell, strict=True))
        for name, share in (("gain", "kept"), ("cost", "paid")):
            own = shifts[name].loc[[_key(cell)]].to_numpy()[0]
            row |= _interval(name, own, np.ones_like(own), seed)
            base = (always, None, *cell[2:])
            whole = shifts[name]
            if _key(base) in whole.index:
                row |= _interval(share, own, whole.loc[[_key(base)]].to_numpy()[0], seed)
        rows.append(row)
    return pd.DataFrame(rows).astype({"seed": "Int64", "layer": "Int64", "pos": "Int64"})


def _key(cell: tuple[object, ...]) -> str:
    return repr(tuple(None if pd.isna(part) else part for part in cell))  # type: ignore[call-overload]


def _shifts(scores: pd.DataFrame, subset: str, threshold: float | None) -> pd.DataFrame:
    """Score (or hit) minus the baseline's: a row per cell, a column per prompt."""
    part = scores[scores["subset"] == subset]
    if part.empty:
        have = ", ".join(sorted(set(scores["subset"]))) or "none"
        raise DialError(f"the trade-off needs {subset} prompts that are held out; there are {have}")
    value = part["score"]
    if threshold is not None:
        value = (value > threshold).astype(float).mask(value.isna())
    key = [_key(cell) for cell in part[[*TRADE_OFF_CELL, *TRADE_OFF_PLACE]].itertuples(index=False)]
    rows = part.assign(value=value, key=key)
    if rows.duplicated(["key", "prompt_id"]).any():
        raise DialError("the trade-off needs one score a prompt and cell, and there are more")
    wide = rows.pivot(index="key", columns="prompt_id", values="value")
    unsteered = part["direction"] == "baseline"
    if not unsteered.any():
        raise DialError("the trade-off needs the baseline's scores, and there are none")
    base = part[unsteered].assign(value=value[unsteered])
    return wide - base.set_index("prompt_id")["value"]


def _interval(name: str, own: Shifts, whole: Shifts, seed: int) -> dict[str, float]:
    """`sum(own) / sum(whole)` with its percentile bootstrap interval over the prompts that have
    both. Where no prompt shifts there is nothing to resample: Wilson's interval says how rare a
    shift may still be."""
    held = np.isfinite(own) & np.isfinite(whole)
    own, whole = own[held], whole[held]
    if not len(own):
        return dict.fromkeys((name, f"{name}_lo", f"{name}_hi"), float("nan"))
    draws = np.random.default_rng(seed).integers(len(own), size=(TRADE_OFF_RESAMPLES, len(own)))

    def ratio(a: Shifts, b: Shifts) -> Shifts:
        total = b.sum(-1)
        out = np.full(np.shape(total), np.nan)
        return np.divide(a.sum(-1), total, out=out, where=np.abs(total) > 1e-12)

    if not own.any() and whole.sum() > 0:
        rare = stats.binomtest(0, len(own)).proportion_ci(TRADE_OFF_LEVEL, method="wilson").high
        return {name: 0.0, f"{name}_lo": 0.0, f"{name}_hi": float(rare / whole.mean())}
    drawn = ratio(own[draws], whole[draws])
    value = float(ratio(own, whole))
    finite = drawn[np.isfinite(drawn)]
    tails = [(1 - TRADE_OFF_LEVEL) / 2, (1 + TRADE_OFF_LEVEL) / 2]
    low, high = np.quantile(finite, tails) if len(finite) else (np.nan, np.nan)
    return {name: value, f"{name}_lo": float(low), f"{name}_hi": float(high)}
