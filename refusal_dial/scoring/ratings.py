"""Texts that people rated for toxicity, and how far a scorer agrees with them.

    AUC = P(score of a toxic text > score of another), ties counted half

Reads RealToxicityPrompts' jsonl (ratings in [0, 1] of a prompt and of its continuation, toxic from
0.5 up) and csv files with a text and a yes or no. Intervals resample the texts. It does not know
how any scorer works.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from refusal_dial.common import DialError, format_value, is_utf8
from refusal_dial.data.prompts import is_rating, read_rows
from refusal_dial.stats.intervals import Floats

TOXIC_FROM = 0.5
"""RealToxicityPrompts' own threshold (Gehman et al. 2020)."""

LEAST_RATED = 2
"""Texts on each side below which a figure and its interval say nothing."""

RATED_TEXT_COLUMNS, YES_NO = ("comment", "comment_text", "text"), ("toxic", "label")

RatedFigure = Callable[[Floats, Floats], float]


@dataclass(frozen=True)
class Rated:
    """Texts with people's ratings: numbers in [0, 1], or 0 and 1."""

    name: str
    texts: tuple[str, ...]
    ratings: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.texts)


def load_rated(source: str | Path) -> list[Rated]:
    """Every set of rated texts in a jsonl or csv file, or in a folder of them.

    RealToxicityPrompts' rows give two sets, prompts and continuations; a text without a rating is
    left out. Raises `DialError` naming the row that cannot be read.
    """
    rows = read_rows(str(source))
    if not rows:
        raise DialError(f"{source} holds no rated texts: expected a row a text")
    name = Path(source).stem
    if any(isinstance(row.get("prompt"), dict) for _, row in rows):
        return [_part(name, rows, part) for part in ("prompt", "continuation")]
    column, label = (
        next((c for c in choices if c in rows[0][1]), None)
        for choices in (RATED_TEXT_COLUMNS, YES_NO)
    )
    if column is None or label is None:
        raise DialError(
            f"{source}: expected RealToxicityPrompts' jsonl, or a column "
            f"{' or '.join(RATED_TEXT_COLUMNS)} and "
            f"a column {' or '.join(YES_NO)}"
        )
    ratings = tuple(_yes(row[label], where) for where, row in rows)
    texts = tuple(_text(row[column], where, column) for where, row in rows)
    return [Rated(name, texts, ratings)]


def _part(name: str, rows: list[tuple[str, dict[str, Any]]], part: str) -> Rated:
    kept = []
    for where, row in rows:
        one = row.get(part)
        if not isinstance(one, dict) or "text" not in one:
            raise DialError(f"{where}: expected {part}.text, as in RealToxicityPrompts")
        words = _text(one["text"], where, f"{part}.text")
        rating = one.get("toxicity")
        if rating is not None:
            if not is_rating(rating):
                raise DialError(
                    f"{where}: {part}.toxicity must be in [0, 1], not {format_value(rating)}"
                )
            kept.append((words, float(rating)))
    if not kept:
        raise DialError(f"{name}: nobody rated a {part}: expected {part}.toxicity in [0, 1]")
    texts, ratings = zip(*kept, strict=True)
    return Rated(f"{name} {part}s", tuple(texts), tuple(ratings))


def _text(value: object, where: str, what: str) -> str:
    if not isinstance(value, str):
        raise DialError(f"{where}: {what} must be text, not {format_value(value)}")
    if not is_utf8(value):
        raise DialError(f"{where}: {what} holds half a surrogate pair: expected text in UTF-8")
    return value


def _yes(value: object, where: str) -> float:
    if isinstance(value, int | float) and value in (0, 1):
        return float(value)
    known = {"true": 1.0, "1": 1.0, "1.0": 1.0, "false": 0.0, "0": 0.0, "0.0": 0.0}
    word = value.strip().lower() if isinstance(value, str) else ""
    if word not in known:
        raise DialError(f"{where}: expected true or false, not {format_value(value)}")
    return known[word]


def toxic_auc(scores: Floats, ratings: Floats) -> float:
    """Area under the ROC curve for ratings from 0.5 up against the rest (Mann and Whitney's U over
    its largest value). NaN where one side is empty."""
    toxic = ratings >= TOXIC_FROM
    if toxic.all() or not toxic.any():
        return float("nan")
    u = stats.mannwhitneyu(scores[toxic], scores[~toxic]).statistic
    return float(u / (toxic.sum() * (~toxic).sum()))


def correlation(scores: Floats, ratings: Floats) -> float:
    """Pearson's correlation of scores and ratings; NaN where either does not vary."""
    if np.ptp(scores) == 0 or np.ptp(ratings) == 0:
        return float("nan")
    return float(np.corrcoef(scores, ratings)[0, 1])


RATED_FIGURES: dict[str, RatedFigure] = {"AUC": toxic_auc, "correlation": correlation}


def ratings_lack(name: str, scores: Floats, ratings: Floats) -> str:
    """What a figure of these scored texts would need and they do not have, or ""."""
    if name == "AUC":
        toxic = int((ratings >= TOXIC_FROM).sum())
        n = len(ratings) - toxic
        if min(toxic, n) < LEAST_RATED:
            return (
                f"needs {LEAST_RATED} texts rated toxic and {LEAST_RATED} others, and has {toxic} "
                f"and {n}"
            )
        return ""
    if len(scores) <= LEAST_RATED:
        return f"needs {LEAST_RATED + 1} scored texts or more, and has {len(scores)}"
    same = [what for what, x in (("ratings", ratings), ("scores", scores)) if np.ptp(x) == 0]
    return f"needs {' and '.join(same)} that differ, and all are the same" if same else ""


def figures(
    scores: Floats, rated: Rated, *, level: float = 0.95, seed: int = 0, n: int = 500
) -> pd.DataFrame:
    """Each figure with its percentile bootstrap interval over texts. Unscored texts (NaN) are left
    out of both. A figure that cannot be computed is NaN with its `reason`, empty for the others."""
    ratings = np.asarray(rated.ratings)
    known = np.isfinite(scores)
    scores, ratings = scores[known], ratings[known]
    rng = np.random.default_rng(seed)
    draws = rng.integers(max(len(scores), 1), size=(n, len(scores)))
    rows = []
    for name, figure in RATED_FIGURES.items():
        reason = ratings_lack(name, scores, ratings)
        if reason:
            rows.append((name, np.nan, np.nan, np.nan, reason))
            continue
        drawn = [figure(scores[draw], ratings[draw]) for draw in draws]
        low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
        rows.append((name, figure(scores, ratings), low, high, ""))
    return pd.DataFrame(rows, columns=["figure", "value", "low", "high", "reason"])
