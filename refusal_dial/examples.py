"""The per-example dump: every prompt with its text and its score at every alpha.

Takes the rows of a run and the prompts they are of, and returns text. It writes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

import pandas as pd

from refusal_dial.prompts import Prompt


def examples(scores: pd.DataFrame, prompts: Sequence[Prompt]) -> str:
    """JSON lines, one a prompt: its fields, `split`, `baseline`, and for each layer `scores`, a
    list of `[alpha, score]` under the learned direction. Scores are exact, not rounded, and null
    where there is none."""
    lines = []
    grouped = dict(list(scores.groupby("prompt_id", sort=False)))
    for prompt in prompts:
        rows = grouped[prompt.id]
        learned = rows[rows["direction"] == "learned"]
        line = {
            **asdict(prompt),
            "split": rows["split"].iloc[0],
            "baseline": _number(rows.loc[rows["direction"] == "baseline", "score"].iloc[0]),
            "scores": {
                str(layer): [
                    [float(a), _number(s)]
                    for a, s in zip(part["alpha"], part["score"], strict=True)
                ]
                for layer, part in learned.groupby("layer", sort=False)
            },
        }
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    return "".join(lines)


def _number(score: float) -> float | None:
    return None if pd.isna(score) else float(score)
