"""The rows of a verification as tables, and what reads them: scores, swings, the gap.

    swing[b] = score of prompt b at alpha - score at -alpha

It knows which rows a direction, a control and a subset have, and how far an effect stands out among
its controls. It does not know what would be evidence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from refusal_dial import stats

Values = NDArray[np.float64]
Key = tuple[str, str, str, float]
FURTHEST = float(np.finfo(float).max)


@dataclass(frozen=True, eq=False)
class Measured:
    """The rows of a verification (see `tabled`), and what reads them. `cosines` are those of each
    kind of control, and of prompt length, with the given direction."""

    table: Mapping[Key, Values]
    alpha: float
    threshold: float
    level: float
    seed: int
    exploratory: bool
    kinds: tuple[str, ...]
    cosines: Mapping[str, Values]

    def values(self, direction: str, sign: int, subset: str, measure: str = "score") -> Values:
        """A value a prompt, in the order of the prompts; of a control a row a draw."""
        found = self.table[direction, measure, subset, sign * self.alpha]
        return found if direction in self.kinds else found[0]

    def base(self, subset: str) -> Values:
        """Unsteered scores of a subset."""
        return self.values("baseline", 0, subset)

    def swing(self, direction: str) -> Values:
        """Of EDGE, a value a prompt; of a control a row a draw."""
        return self.values(direction, 1, "EDGE") - self.values(direction, -1, "EDGE")

    @property
    def gap(self) -> float:
        """Mean unsteered score of HARMFUL minus that of BENIGN."""
        return float(np.nanmean(self.base("HARMFUL")) - np.nanmean(self.base("BENIGN")))

    @property
    def unable(self) -> str:
        """Why nothing about an effect can be shown."""
        return (
            "exploratory: the direction was learned from these prompts" if self.exploratory else ""
        )

    @property
    def like_nothing(self) -> bool:
        """Whether the swing is no more than that of random directions, or the wrong way."""
        if "random" not in self.kinds:
            return bool(self.swing("learned").mean() <= 0)
        null = self.swing("random").mean(1)
        swing = self.swing("learned")
        p = one_sided(float(swing.mean()), null)
        return bool(swing.mean() <= 0 or not p <= self.level)


def tabled(rows: pd.DataFrame) -> dict[Key, Values]:
    """(direction, measure, subset, alpha) -> scores, `draw prompt`, prompts in their order."""
    found: dict[Key, Values] = {}
    keys = ["direction", "measure", "subset", "alpha"]
    for named, part in rows.groupby(keys, sort=False):
        direction, measure, subset, alpha = cast(Key, named)
        prompts = list(dict.fromkeys(part["prompt_id"]))
        table = part.assign(seed=part["seed"].fillna(-1)).pivot(
            index="seed", columns="prompt_id", values="score"
        )
        found[direction, measure, subset, alpha] = table[prompts].to_numpy(dtype=float)
    return found


def one_sided(effect: float, null: Values) -> float:
    """`k / (2 n + 2)`, k the place of the effect among itself, n draws and all their opposites,
    counted from the largest: for a null that is as likely to be x as -x. `rank_p / 2` for an effect
    over 0. A draw that is missing counts as at least as far."""
    if not len(null) or not np.isfinite(effect):
        return float("nan")
    p = stats.rank_p(effect, np.where(np.isfinite(null), null, FURTHEST))
    return p / 2 if effect > 0 else 1 - p / 2 + 1 / (2 * len(null) + 2)
