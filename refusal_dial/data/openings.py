"""Openings to be continued: challenging ones and benign ones, to learn from and to measure on.

Reads RealToxicityPrompts (by hub, or a jsonl of its format) and the embedded model's own openings,
which have the same format. CHALLENGING is what the data set marks so; BENIGN is the rest, without
what people rated 0.5 or more. A row may say on which side it belongs (`split`: train or holdout);
where rows do not, the sides are drawn by a seed. No opening is ever on both. This module knows no
model, and measures no toxicity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refusal_dial.common import DialError, format_value
from refusal_dial.data.prompts import Prompt, is_rating, one_line_each, read_rows

CHALLENGING, BENIGN = "CHALLENGING", "BENIGN"

OPENING_SUBSETS = (CHALLENGING, BENIGN)

RATED_TOXIC = 0.5

OPENING_HUB_NAMES = {"rtp": "allenai/real-toxicity-prompts"}

EMBEDDED_OPENINGS = (
    Path(__file__).parents[1] / "embedded" / "openings.jsonl",  # in an installed wheel
    Path(__file__).parents[2] / "data" / "openings.jsonl",  # in a checkout
)


@dataclass(frozen=True)
class Openings:
    """`learn`: where directions come from, as many of each subset. `measure`: what is reported."""

    learn: tuple[Prompt, ...]
    measure: tuple[Prompt, ...]


def load_openings(
    source: str = "embedded", n: int = 50, n_pairs: int = 20, seed: int = 0
) -> Openings:
    """At most `n` openings of each subset to measure on, and `n_pairs` of each to learn from.

    `source` is `"embedded"`, a .jsonl file or a folder of them, `"rtp"`, or a data set of the hub
    by owner/name. Where there are no `n`, all there are is taken. The same seed and sizes draw the
    same openings, whatever the machine.

    Raises `DialError` naming file and line for a row that cannot be used, and for a source with too
    few openings of a subset.
    """
    if source == "embedded":
        found = next((path for path in EMBEDDED_OPENINGS if path.is_file()), None)
        if found is None:
            raise DialError(
                "the embedded openings are missing: run python scripts/make_openings.py"
            )
        source = str(found)
    sides: dict[tuple[str, str], list[Prompt]] = {}
    seen: dict[str, str] = {}
    for number, (where, row) in enumerate(read_rows(source, "openings", OPENING_HUB_NAMES), 1):
        prompt, side = _opening(where, row, f"{number:06d}")
        if prompt is not None:
            if prompt.id in seen:
                raise DialError(f"{where}: id {prompt.id!r} was used before, at {seen[prompt.id]}")
            seen[prompt.id] = where
            sides.setdefault((prompt.subset, side), []).append(prompt)
    learn: list[Prompt] = []
    measure: list[Prompt] = []
    for subset in OPENING_SUBSETS:
        rng = np.random.default_rng([seed, OPENING_SUBSETS.index(subset)])
        free = _shuffled(sides.get((subset, ""), []), rng)
        held = [*_shuffled(sides.get((subset, "holdout"), []), rng), *free][:n]
        left = [prompt for prompt in free if prompt not in held]
        pairs = [*_shuffled(sides.get((subset, "train"), []), rng), *left][:n_pairs]
        if not held or len(pairs) < n_pairs:
            raise DialError(
                f"{source} has {len(held)} {subset} openings to measure on and {len(pairs)} more "
                f"to learn from, where {n} and {n_pairs} were asked for: lower --n or --n-pairs"
            )
        measure += held
        learn += pairs
    return Openings(tuple(learn), tuple(measure))


def _shuffled(prompts: Sequence[Prompt], rng: np.random.Generator) -> list[Prompt]:
    return [prompts[int(i)] for i in rng.permutation(len(prompts))]


def _opening(where: str, row: dict[str, Any], default_id: str) -> tuple[Prompt | None, str]:
    """The opening and its side; None for what is neither challenging nor benign."""
    prompt, side = row.get("prompt"), row.get("split") or ""
    text = prompt.get("text") if isinstance(prompt, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise DialError(f"{where}: expected prompt.text, as in RealToxicityPrompts")
    if not isinstance(row.get("challenging"), bool):
        raise DialError(
            f"{where}: challenging must be true or false, not "
            f"{format_value(row.get('challenging'))}"
        )
    if not isinstance(side, str) or side not in ("", "train", "holdout"):
        raise DialError(f"{where}: split must be train or holdout, not {format_value(side)}")
    rated = prompt.get("toxicity") if isinstance(prompt, dict) else None
    if rated is not None and not is_rating(rated):
        raise DialError(
            f"{where}: prompt.toxicity must be in [0, 1] or null, not {format_value(rated)}"
        )
    if not row["challenging"] and rated is not None and rated >= RATED_TOXIC:
        return None, ""
    subset = CHALLENGING if row["challenging"] else BENIGN
    return one_line_each(where, Prompt(str(row.get("id") or default_id), text, subset)), str(side)
