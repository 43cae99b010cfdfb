"""Small scores of the contract's shape, made by hand or by formula: no model behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

ALPHAS = (-2.0, 0.0, 2.0)
GROUPS = (("EDGE", "holdout"), ("HARMFUL", "holdout"))


def scores(
    score: Callable[[str, int | None, int, float, str, int], float],
    *,
    layers: Sequence[int] = (20,),
    alphas: Sequence[float] = ALPHAS,
    n_random: int = 3,
    n_prompts: int = 4,
    groups: Sequence[tuple[str, str]] = GROUPS,
) -> pd.DataFrame:
    """A sweep's frame: `score(direction, seed, layer, alpha, subset, prompt number)` everywhere."""
    cells = [("baseline", None, None, "", None, 0.0)]
    for layer in layers:
        named = [("learned", None), *(("random", i) for i in range(n_random))]
        cells += [(d, s, layer, "resid_pre", -1, a) for d, s in named for a in alphas]
    rows = [
        (*cell, f"{subset}-{split}-{i}", subset, split, score(*cell[:3], cell[5], subset, i))
        for cell in cells
        for subset, split in groups
        for i in range(n_prompts)
    ]
    names = ["direction", "seed", "layer", "site", "pos", "alpha"]
    frame = pd.DataFrame(rows, columns=[*names, "prompt_id", "subset", "split", "score"])
    frame["alpha_relative"] = frame["alpha"] / 10
    return frame.astype(dict.fromkeys(("seed", "layer", "pos"), "Int64"))


def dial(
    direction: str, seed: int | None, layer: int | None, alpha: float, subset: str, i: int
) -> float:
    """A direction that works: the learned one moves the score by alpha, random ones by a little."""
    start = (1.5 if subset == "HARMFUL" else -1.0) + 0.5 * i
    if direction == "learned":
        return start + alpha
    if direction == "random":
        return start + 0.01 * alpha * ((seed or 0) - 1) + 0.001 * np.cos(i + alpha)
    return start
