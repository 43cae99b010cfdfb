"""A run's summary as a table that the page can sort and filter.

A mean and its interval become one cell, `[value, low, high]`; what is the same in every row goes
into the caption. Plain data comes out.
"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from refusal_dial.report.reading import Reading

STEMS = {
    "score_mean": "score",
    "refusal_rate": "rate",
    "difference": "diff",
    "effect_mean": "effect",
    "coherence": "coherence",
    "logit_rate": "logit",
}
NAMES = {
    "score_mean": "mean score",
    "refusal_rate": "share refused",
    "effect_mean": "effect",
    "logit_rate": "share by logit",
    "p_value": "p",
}
WHERE = ("layer", "site", "pos", "samples", "system", "way")
CHOSEN = 12
"""Columns of text with at most so many values get a menu of their own."""


def summary_table(reading: Reading) -> dict[str, Any]:
    """`{caption, columns: [{name, kind}], rows}`; kind is text, number or interval."""
    frame = reading.summary
    spans = {
        name: stem
        for name, stem in STEMS.items()
        if {name, f"{stem}_lo", f"{stem}_hi"} <= set(frame)
    }
    ends = {f"{stem}_{end}" for stem in spans.values() for end in ("lo", "hi")}
    same = [c for c in frame if c in WHERE and frame.loc[frame[c] != "", c].nunique() == 1]
    about = [f"{c} {frame.loc[frame[c] != '', c].dropna().iloc[0]}" for c in same]
    columns, cells = [], []
    for name in frame.columns:
        if name in ends or name in same or _empty(frame[name]):
            continue
        values = frame[name]
        if name in spans:
            low, high = (frame[f"{spans[name]}_{end}"] for end in ("lo", "hi"))
            kind = "interval"
            cells.append([list(map(_cell, row)) for row in zip(values, low, high, strict=True)])
        else:
            kind = "number" if pd.api.types.is_numeric_dtype(values) else "text"
            cells.append([_cell(value) for value in values])
        menu = kind == "text" or name in ("layer", "seed", "alpha", "strength")
        columns.append(
            {
                "name": NAMES.get(name, name.replace("_", " ")),
                "kind": kind,
                "menu": bool(menu and values.nunique() <= CHOSEN),
            }
        )
    rows = [list(row) for row in zip(*cells, strict=True)]
    caption = f"{reading.name}: {', '.join(about)}" if about else reading.name
    return {"caption": caption, "columns": columns, "rows": rows}


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if pd.isna(value) or (isinstance(value, float) and not math.isfinite(value)):
        return None
    value = value.item() if hasattr(value, "item") else value
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _empty(values: pd.Series[Any]) -> bool:
    return bool((values.isna() | (values.astype(str) == "")).all())
