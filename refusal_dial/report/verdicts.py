"""What a run came to, in sentences: the effect, its interval, its p-value, and its controls beside.

Reads a summary. It chooses what to say and computes nothing: every number stands in a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from refusal_dial.comparison import fairest_p
from refusal_dial.patching.summary import moved
from refusal_dial.report.reading import Reading
from refusal_dial.summary import GROUP
from refusal_dial.tables import SAID

P_COLUMNS = ("p_holm", "p_value", "p_paired")
FIRST = ("EDGE", "CHALLENGING", "HARMFUL")
UNSEEN = ("holdout", "report", "all")


@dataclass(frozen=True)
class Said:
    """A sentence about a group of prompts, and how it stands to its controls."""

    about: str
    effect: str
    controls: str


def verdict_of(reading: Reading) -> list[Said]:
    """What a run came to, the most telling first: prompts that were not learned from before others,
    EDGE before HARMFUL. At most six; the tables have the rest."""
    summary = reading.summary
    if reading.kind == "patching":
        return _patched(summary)
    if reading.kind == "other":
        return [Said(str(reading.config["experiment"]), "what it came to stands in the tables", "")]
    learned = summary[summary["direction"] == "learned"]
    if learned.empty:
        return [_unsteered(row, *_value(summary)) for _, row in summary.iterrows()][:6]
    keys = ["layer", *GROUP]
    groups = [(key, part) for key, part in learned.groupby(keys, sort=False)]
    groups.sort(key=lambda group: _rank(str(group[0][1]), str(group[0][2])))
    return [_steered(summary, key, part) for key, part in groups][:6]


def _rank(subset: str, split: str) -> tuple[int, int]:
    seen = UNSEEN.index(split) if split in UNSEEN else len(UNSEEN)
    return seen, FIRST.index(subset) if subset in FIRST else len(FIRST)


def _value(summary: pd.DataFrame) -> tuple[str, str, str]:
    """The column to report, the stem of its interval, and its name."""
    if "refusal_rate" in summary:
        return "refusal_rate", "rate", "share refused"
    return "score_mean", "score", "mean score"


def _with_interval(row: Any, value: str, stem: str) -> str:
    text = _number(row[value])
    low, high = row.get(f"{stem}_lo"), row.get(f"{stem}_hi")
    return text if pd.isna(low) else f"{text} [{_number(low)}, {_number(high)}]"


def _number(value: Any) -> str:
    return "unknown" if pd.isna(value) else f"{value:.2f}".replace("-", "−")


def _steered(summary: pd.DataFrame, key: tuple[Any, ...], part: pd.DataFrame) -> Said:
    layer, subset, split = key
    value, stem, name = _value(summary)
    unit = "strength" if "strength" in part else "alpha"
    part = part.sort_values(unit)
    here = summary[(summary[GROUP] == [subset, split]).all(axis=1)]
    base = here.loc[here["direction"] == "baseline", value]
    unsteered = f"{_number(base.iloc[0])} unsteered" if len(base) else "unsteered unknown"
    ends = [part.iloc[0], part.iloc[-1]] if len(part) > 1 else [part.iloc[0]]
    reached = " and ".join(_end(row, value, stem, unit) for row in ends)
    controls = here[here["layer"] == layer]
    controls = controls[~controls["direction"].isin(("learned", "baseline"))]
    return Said(
        f"{subset} {split}, layer {layer}, n = {part['n'].iloc[0]}",
        f"{name} {unsteered}, {reached}",
        _controls(controls, value, float(base.iloc[0]) if len(base) else None),
    )


def _end(row: Any, value: str, stem: str, unit: str) -> str:
    kind, p = fairest_p(row)
    among = f" among {SAID[kind]}" if kind else ""
    if not kind:
        p = next((row[name] for name in P_COLUMNS if name in row and not pd.isna(row[name])), p)
    said = "" if pd.isna(p) else f" (p = {p:.3g}{among})"
    at = f"{row[unit]:g}".replace("-", "−")
    return f"{_with_interval(row, value, stem)} at {unit} {at}{said}"


def _controls(controls: pd.DataFrame, value: str, base: float | None) -> str:
    """How far each kind of control went from unsteered, at most, on average over its directions."""
    if controls.empty or base is None:
        return "no control directions to compare with"
    said = []
    for kind, rows in controls.groupby("direction", sort=False):
        means = rows.groupby("alpha")[value].mean()
        count = max(1, rows["seed"].nunique())
        many = f"the mean of {count} {kind} directions" if count > 1 else f"{kind}"
        said.append(f"{many} stays within {_number((means - base).abs().max())} of unsteered")
    return "; ".join(said)


def _unsteered(row: pd.Series[Any], value: str, stem: str, name: str) -> Said:
    about = f"{row['subset']} {row['split']}, n = {row['n']}"
    return Said(about, f"{name} {_with_interval(row, value, stem)}, unsteered", "")


def _patched(summary: pd.DataFrame) -> list[Said]:
    """The strongest patch of every way and group of pairs, with the controls at the same place."""
    table, said = moved(summary), []
    place = ["layer", "site", "role", "head", "neuron"]
    patches = table[table["direction"] == "patch"]
    for (way, subset, split), part in patches.groupby(["way", *GROUP], sort=False):
        best = part.iloc[int(part["moved"].abs().argmax())]
        where = {name: best[name] for name in place if not pd.isna(best[name]) and best[name] != ""}
        same = table[(table["way"] == way) & (table[GROUP] == [subset, split]).all(axis=1)]
        for name, wanted in where.items():
            same = same[same[name] == wanted]
        controls = [
            f"{str(row['direction']).replace('_', ' ')} control {_number(row['moved'])}"
            for _, row in same[same["direction"].isin(("same_class", "random"))].iterrows()
        ]
        said.append(
            Said(
                f"{way}, {subset} pairs, n = {best['n']}",
                f"the strongest patch ({_place(where)}) moves "
                f"{_with_interval(best, 'moved', 'moved')} of the gap",
                "; ".join(controls) or "no controls at that place",
            )
        )
    return said[:6]


def _place(where: Mapping[str, Any]) -> str:
    return ", ".join(str(v) if k in ("site", "role") else f"{k} {v}" for k, v in where.items())
