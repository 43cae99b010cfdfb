"""Experiments without an effect on a model: the steering pipeline, told scores that mean nothing.

Every prompt is given a random number in place of its score. From the EDGE prompts to learn from,
the direction is learned as ever, top of these numbers minus bottom; its controls are those of the
steering scripts; all are added while the model reads other EDGE prompts, whose true refusal score
is what moves. The p-values are those that a steering run reports. `SIZE` experiments share a split
of the prompts, so that their cells are replayed on one recording; each has its own numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.calibration.flags import CalibrationFlags
from refusal_dial.comparison import CORRECTED, NULLS, RANKED, compared
from refusal_dial.engine import score_grid
from refusal_dial.prompts import Prompt, of_subset
from refusal_dial.stats import rank_p
from refusal_dial.steering import learn, steering_cells
from refusal_dial.study import Study
from refusal_dial.sweep import Cell
from refusal_dial.types import DialError

SIZE = 10
SINGLE = ("flipped", "length")


def kinds(flags: CalibrationFlags) -> list[str]:
    """The tests of one experiment, in order: a row each."""
    found = [
        name
        for kind in NULLS
        if kind in flags.controls
        for name in (kind, f"{kind}, corrected", f"{kind}, smallest")
    ]
    return found + [kind for kind in SINGLE if kind in flags.controls]


def check_enough(study: Study, flags: CalibrationFlags) -> None:
    """Raises `DialError` where there are fewer EDGE prompts than the two parts take, or fewer in
    the first than `--k` takes of its two ends."""
    n = len(of_subset(study.prompts, "EDGE"))
    if n < flags.n_learn + flags.n_report:
        raise DialError(
            f"{flags.n_learn} prompts to learn from and {flags.n_report} to report on are more "
            f"than the {n} EDGE prompts"
        )
    if flags.k is not None and 2 * flags.k > flags.n_learn:
        raise DialError(
            f"--k {flags.k}: the top and the bottom of {flags.n_learn} prompts hold "
            f"{flags.n_learn // 2} each at most"
        )


def null_batches(
    model: TransformerBridge, *, study: Study, flags: CalibrationFlags, n: int, skip: int = 0
) -> Iterator[pd.DataFrame]:
    """Frames of `SIZE` of n experiments each, in order, without the first `skip`.

    Raises `DialError` where there are fewer EDGE prompts than the two parts take.
    """
    check_enough(study, flags)
    edge = of_subset(study.prompts, "EDGE")
    for start in range(skip * SIZE, n, SIZE):
        order = np.random.default_rng([flags.seed, start]).permutation(len(edge))
        train = [edge[i] for i in order[: flags.n_learn]]
        report = [edge[i] for i in order[flags.n_learn :][: flags.n_report]]
        numbers = range(start, min(start + SIZE, n))
        grids = [cells_of(study, flags, i, train) for i in numbers]
        tokens = study.tokens.chosen(study.rows(report)).on(model)
        hooks = [cell.hooks for cells in grids for cell in cells]
        scores = score_grid(
            model, tokens, hooks, study.scorer, engine=flags.engine, memory_gb=flags.memory_gb
        ).numpy()
        parts = np.split(scores, np.cumsum([len(cells) for cells in grids])[:-1])
        rows = [p_values(*one) for one in zip(numbers, grids, parts, strict=True)]
        yield pd.DataFrame([row for some in rows for row in some])


def cells_of(study: Study, flags: CalibrationFlags, i: int, train: Sequence[Prompt]) -> list[Cell]:
    """The cells of experiment i, with the direction of its own meaningless numbers."""
    told = np.random.default_rng([flags.seed, i, 1]).normal(size=len(study.prompts))
    blind, own = replace(study, scores=told), replace(flags, seed=flags.seed + i)
    return steering_cells(blind, own, learn(blind, own, train), train)


def p_values(i: int, cells: Sequence[Cell], scores: NDArray[np.float64]) -> list[dict[str, Any]]:
    """The rows of experiment i, by the columns of a steering run's summary.

    Of each kind of null the p at the first layer; `kind, corrected`: the smallest of all cells'
    corrected p-values; `kind, smallest`: the smallest of their p-values, which nothing corrects. Of
    a control that is one direction, the rank among one.
    """
    table = compared(pd.DataFrame([dict(cell.labels) for cell in cells]), scores)
    learned = table[table["direction"] == "learned"]
    effect, rows = float(learned["shift"].iloc[0]), []
    for kind in NULLS:
        draws = int(table.loc[table["direction"] == kind, "seed"].nunique())
        if draws:
            ranks = learned[RANKED[kind]]
            rows.append((kind, draws, ranks.iloc[0]))
            rows.append((f"{kind}, corrected", draws, learned[CORRECTED[kind]].min()))
            rows.append((f"{kind}, smallest", draws, ranks.min()))
    for kind in SINGLE:
        one = table.loc[table["direction"] == kind, "shift"]
        if len(one):
            rows.append((kind, 1, rank_p(effect, one.iloc[:1])))
    return [
        {"direction": kind, "seed": i, "score": effect, "draws": n, "p_value": float(p)}
        for kind, n, p in rows
    ]
