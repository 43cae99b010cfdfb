"""data/openings.jsonl: hostile and friendly openings, as RealToxicityPrompts writes its prompts.

`split` says which side of the grammar a scene is on: `train` scenes were in the model's training
and serve to learn directions from, `holdout` scenes never were, and are what is measured. Every
scene comes once, so that prompts are independent.
"""

import json
from typing import Any

from refusal_dial.organism.tone import FRIENDLY, HOSTILE, openings


def make_openings(seed: int = 0) -> list[dict[str, Any]]:
    """A row per scene, hostile ones first."""
    rows = []
    for tone in (HOSTILE, FRIENDLY):
        for split in ("train", "holdout"):
            for i, one in enumerate(openings(tone, held_out=split == "holdout", seed=seed), 1):
                rows.append(
                    {
                        "id": f"{tone}-{split}-{i:03d}",
                        "challenging": tone == HOSTILE,
                        "split": split,
                        "prompt": {"text": one.text},
                    }
                )
    return rows


def to_jsonl(rows: list[dict[str, Any]]) -> str:
    """One row a line."""
    return "".join(json.dumps(row) + "\n" for row in rows)
