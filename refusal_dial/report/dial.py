"""A run's rows as the page's dial reads them: a series per direction, a list per alpha.

    {prompts, base: [side], series: [side with kind, seed, layer, at, alphas], words, labels}

A side holds `scores[alpha][prompt]` and, where there are completions, `completions[alpha][prompt]`,
a list of `[word, score, label]` per sample; words are numbered once. Numbers keep six digits, which
is less than scores.csv has. Plain data comes out. Nothing here is HTML.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from refusal_dial.report.reading import RunReading

DIAL_PLACE = ["direction", "seed", "layer", "site", "pos", "system"]

DIAL_STEPS = ("strength", "alpha_relative", "alpha")

DIAL_UNITS = {
    "strength": "strength (the run's own unit)",
    "alpha_relative": "alpha (mean residual norms)",
    "alpha": "alpha (residual-stream units)",
}

MOST_DIAL_SCORES = 150_000
"""Scores in a page, at most: about 0.7 MB of it, packed. Controls beyond that are left
out, and the page says so."""


def dials(readings: Sequence[RunReading]) -> dict[str, Any]:
    """The dials of all runs, on one scale: `unit` is the first column that all of them have."""
    steered = [one for one in readings if one.kind not in ("patching", "kinds", "other")]
    unit = _unit([one.scores for one in steered])
    return {
        "unit": unit,
        "unit_name": DIAL_UNITS[unit],
        "runs": [_dial(one, unit) for one in steered],
    }


def _unit(frames: Sequence[pd.DataFrame]) -> str:
    """Strength where the runs have one, else mean residual norms, which make layers and models
    comparable; the residual stream's own units where a run does not know the norms."""
    steered = [frame[frame["layer"].notna()] for frame in frames]
    for unit in ("strength", "alpha_relative"):
        if frames and all(_told(frame, unit) for frame in steered):
            return unit
    return "alpha"


def _told(frame: pd.DataFrame, name: str) -> bool:
    return name in frame and bool(frame[name].notna().all())


def _dial(reading: RunReading, unit: str) -> dict[str, Any]:
    rows = reading.scores.reset_index(drop=True)
    if "system" not in rows:
        rows = rows.assign(system="")
    rows = rows.assign(system=rows["system"].fillna("").astype(str))
    words, labels = _Numbered(), _Numbered()
    ids = list(dict.fromkeys(rows["prompt_id"]))
    column = {one: i for i, one in enumerate(ids)}
    rows = rows.assign(column=rows["prompt_id"].map(column))
    base: list[dict[str, Any]] = []
    series: list[dict[str, Any]] = []
    left_out = 0
    for key, part in rows.groupby(DIAL_PLACE, sort=False, dropna=False):
        named = dict(zip(DIAL_PLACE, map(_plain, key), strict=True))
        if named["direction"] == "baseline":
            base.append({"system": named["system"], **_side(part, len(ids), words, labels)})
        elif named["direction"] != "learned" and (1 + len(series)) * len(part) > MOST_DIAL_SCORES:
            left_out += 1
        else:
            kind = named.pop("direction")
            series.append({"kind": kind, **named, **_steps(part, unit, len(ids), words, labels)})
    threshold = reading.settings.get("threshold")
    return {
        "name": reading.name,
        "model": str(reading.settings["model"]["name"]),
        "experiment": str(reading.config["experiment"]),
        "kind": reading.kind,
        "threshold": 0.5 if threshold is None else float(threshold),
        "threshold_chosen": threshold is None,
        "prompts": _prompts(reading, rows, ids),
        "why_no_texts": reading.texts.why_not,
        "base": base,
        "series": series,
        "left_out": left_out,
        "words": words.values,
        "labels": labels.values,
    }


def _prompts(reading: RunReading, rows: pd.DataFrame, ids: Sequence[str]) -> list[dict[str, Any]]:
    """A record per prompt; `text` is None where it is not known."""
    about = rows.drop_duplicates("prompt_id").set_index("prompt_id")
    records = []
    for one in ids:
        prompt, row = reading.texts.by_id.get(one), about.loc[one]
        category = prompt.category if prompt else str(row.get("category", "") or "")
        records.append(
            {
                "id": one,
                "subset": str(row["subset"]),
                "split": str(row["split"]),
                "category": category,
                "text": prompt.text if prompt else None,
            }
        )
    return records


def _steps(
    part: pd.DataFrame, unit: str, n: int, words: _Numbered, labels: _Numbered
) -> dict[str, Any]:
    at = part.groupby(unit, sort=True)
    sides = [_side(one, n, words, labels) for _, one in at]
    found: dict[str, Any] = {
        "at": [round(float(one[unit].iloc[0]), 4) for _, one in at],
        "alphas": [float(one["alpha"].iloc[0]) for _, one in at],
        "scores": [side["scores"] for side in sides],
    }
    return found | (
        {"completions": [side["completions"] for side in sides]}
        if "completions" in sides[0]
        else {}
    )


def _side(part: pd.DataFrame, n: int, words: _Numbered, labels: _Numbered) -> dict[str, Any]:
    """The mean score of every prompt's samples, None where it has none, and the completions."""
    means = part.groupby("column")["score"].mean()
    scores: list[float | None] = [None] * n
    for i, value in means.items():
        scores[int(i)] = _short(value)  # type: ignore[call-overload]
    if "completion" not in part:
        return {"scores": scores}
    found: list[list[Any]] = [[] for _ in range(n)]
    rows = part["label"] if "label" in part else pd.Series("", index=part.index)
    for i, text, score, label in zip(
        part["column"], part["completion"], part["score"], rows, strict=True
    ):
        found[i].append([words(_text(text)), _short(score), labels(str(label))])
    return {"scores": scores, "completions": found}


def _text(completion: Any) -> str:
    """A completion is stored as a JSON string, so that a row is a line."""
    try:
        text = json.loads(completion)
    except (TypeError, ValueError):
        return str(completion)
    return text if isinstance(text, str) else str(completion)


def _short(value: Any) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    if pd.isna(value):
        return None
    return value.item() if hasattr(value, "item") else value


class _Numbered:
    """Texts by number, each kept once: most completions recur at many alphas."""

    def __init__(self) -> None:
        self.values: list[str] = []
        self._known: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        if text not in self._known:
            self._known[text] = len(self.values)
            self.values.append(text)
        return self._known[text]
