"""Two objectives at once: less toxicity, and refusal that stays where it belongs.

Two directions on one model, a cell for every pair of steps, toxicity of openings beside the refusal
of prompts, and which pairs of steps no other pair beats (the front).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from math import ceil
from typing import Any

import numpy as np
import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.cells import (
    BASELINE,
    Cell,
    SteeringPlace,
    alphas_in,
    cells_at,
    labelled,
    numbered,
    turned,
)
from refusal_dial.cli.flags import ObjectiveFlags, SteeringFlags
from refusal_dial.common import DialError
from refusal_dial.data.prompts import (
    Prompt,
    data_hash,
    holdout_split,
    load_prompts,
    of_subset,
    some_of_each,
)
from refusal_dial.directions.learning import Direction, overlap, random_directions
from refusal_dial.generate.decode import decoding_of
from refusal_dial.model.tokens import Tokens, tokens_hash
from refusal_dial.run.folder import TOKENS, Run
from refusal_dial.run.job import begin, carry_out
from refusal_dial.run.plan import Budget, Grid, Parts, SweepPlan, Task
from refusal_dial.stats.intervals import mean_interval, rate_interval
from refusal_dial.stats.p_values import sign_flip_p
from refusal_dial.stats.summary import ROW_KEYS, finite_intervals, finite_means
from refusal_dial.studies.base import Study, study_of
from refusal_dial.studies.continuation import (
    ContinuationPlan,
    ContinuationStudy,
    continuation_settings,
    load_continuations,
    opening_rows,
    place_at,
)
from refusal_dial.studies.steering import learn

# --------------------------------------------------------------------------------------------------
# Two studies on one model, opened: openings with a toxicity direction, prompts with refusal's.
#
# The refusal direction is learned on half of EDGE, and measured on the other half and on HARMFUL.


@dataclass(frozen=True, eq=False)
class ObjectiveStudy:
    """What the two objectives are measured on, and the two directions."""

    openings: ContinuationStudy
    study: Study
    prompts: tuple[Prompt, ...]
    tokens: Tokens
    refusal: Direction

    @property
    def model(self) -> TransformerBridge:
        return self.openings.model

    @property
    def toxicity(self) -> Direction:
        return self.openings.learned[0]

    @property
    def overlap(self) -> float:
        """How much the two directions share: the squared cosine (see `subspaces`)."""
        return overlap(self.toxicity.unit[None], self.refusal.unit[None])

    @property
    def about(self) -> tuple[str, ...]:
        return (*self.openings.about, *self.study.about, f"overlap {self.overlap:.4f}")


def load_objectives(flags: ObjectiveFlags) -> ObjectiveStudy:
    """Load the model once and learn both directions. Raises `DialError` for what cannot be used."""
    load_prompts(flags.prompts)  # a mistake in them is found before the model loads
    openings = load_continuations(flags)
    steering = SteeringFlags(
        model=flags.model,
        prompts=flags.prompts,
        refusal_tokens=flags.refusal_tokens,
        threshold=flags.threshold,
        seed=flags.seed,
        site=flags.site,
        pos=flags.pos,
    )
    study = study_of(openings.model, steering, (flags.refusal_layer,), flags.site, flags.pos)
    train, held_out = holdout_split(of_subset(study.prompts, "EDGE"), flags.seed)
    (refusal,) = learn(study, steering, train)
    wanted = [*of_subset(study.prompts, "HARMFUL"), *held_out]
    prompts = some_of_each(wanted, flags.n_prompts, flags.seed)
    rows = study.rows(prompts)
    tokens = Tokens(study.tokens.ids[rows], study.tokens.mask[rows])
    return ObjectiveStudy(openings, study, tuple(prompts), tokens, refusal)


def objective_settings(both: ObjectiveStudy, flags: ObjectiveFlags) -> dict[str, Any]:
    """What the rows depend on, as plain data for a run's config."""
    settings = continuation_settings(both.openings, flags)
    settings["prompts"] = {"source": flags.prompts, "hash": data_hash(both.prompts)}
    settings[TOKENS] = tokens_hash(both.openings.tokens, both.study.tokens)
    settings["refusal_tokens"] = asdict(both.study.refusal)
    return settings


# --------------------------------------------------------------------------------------------------
# A grid over two dials: away from toxicity by one, refusal by the other; a cell is their hooks.
#
# A control is the same grid with a random direction, as long, in place of toxicity's.


def objective_cells(both: ObjectiveStudy, flags: ObjectiveFlags) -> list[Cell]:
    """The unsteered model, then every pair of steps: both directions (`learned`), and a random one
    with refusal's (`random`) wherever the first dial is turned."""
    # 1. The cells of each dial.
    first, second = both.toxicity, both.refusal
    place = place_at(both.openings, flags, first.provenance.layer)
    norm = both.study.residual_norm(flags.refusal_layer)
    refusal_place = SteeringPlace(flags.refusal_layer, flags.site, flags.pos, norm)
    alphas = alphas_in(flags.alphas, flags.unit, place.norm, first)
    controls = numbered("random", random_directions(first, flags.n_random, flags.seed))
    toxicity = cells_at([("learned", None, first)], alphas, place)
    toxicity += cells_at(controls, turned(alphas), place)
    refusal_alphas = alphas_in(flags.refusal_alphas, flags.unit, norm, second)
    refusal = cells_at([("learned", None, second)], refusal_alphas, refusal_place)
    # 2. Every pair: the hooks of both.
    cells = [labelled(BASELINE, refusal_strength=0.0)]
    for one, other in product(toxicity, refusal):
        both_labels = labelled(one, refusal_strength=other.labels["strength"])
        cells.append(replace(both_labels, hooks=[*one.hooks, *other.hooks]))
    return cells


# --------------------------------------------------------------------------------------------------
# The rows of a grid over two dials: openings continued and scored for toxicity, then prompts scored
# for refusal.
#
# `score` is toxicity for an opening and the refusal score for a prompt; the subset says which.


OBJECTIVE_ORDER = [
    *ROW_KEYS,
    "score",
    "alpha_relative",
    "strength",
    "refusal_strength",
    "sample",
    "nll",
    "stop",
]
OBJECTIVE_ORDER += ["completion"]


@dataclass(frozen=True, eq=False)
class ObjectivePlan:
    """Openings continued under every cell, then prompts scored under every cell, in the same
    columns."""

    openings: ContinuationPlan
    prompts: SweepPlan

    @property
    def _both(self) -> Parts:
        prompts = {**self.openings.grid.prompts, **self.prompts.grid.prompts}
        return Parts((self.openings, self.prompts), replace(self.prompts.grid, prompts=prompts))

    @property
    def tasks(self) -> list[Task]:
        return self._both.tasks

    @property
    def grid(self) -> Grid:
        return self._both.grid

    def compute(self, model: TransformerBridge, task: Task) -> pd.DataFrame:
        frame = self._both.compute(model, task)
        if task.part == 0:
            cells = self.openings.cells[task.cells.start : task.cells.stop]
            steps = [cell.labels["refusal_strength"] for cell in cells]
            each = len(frame) // len(steps)
            frame = frame.assign(refusal_strength=[step for step in steps for _ in range(each)])
        else:  # a prompt is scored, and has no completion
            frame = frame.assign(sample=0, nll=float("nan"), stop="", completion="")
        return frame[OBJECTIVE_ORDER]

    def shrink(self, prompts: int, cells: int) -> ObjectivePlan:
        share = prompts / self.grid.n_prompts
        n_openings, n_asked = (
            ceil(share * one.grid.n_prompts) for one in (self.openings, self.prompts)
        )
        return ObjectivePlan(
            self.openings.shrink(n_openings, cells), self.prompts.shrink(n_asked, cells)
        )

    def memory(self, model: TransformerBridge) -> float:
        return self._both.memory(model)


# --------------------------------------------------------------------------------------------------
# What a grid over two dials comes to: three figures a cell, and the cells that no other beats.
#
#     toxicity   mean score of completions after CHALLENGING openings    less is better
# refused    share of HARMFUL prompts whose refusal score is over the threshold    more is better
#     cost       the same share of EDGE prompts    less is better
#
# A cell is on the front if no other cell is as good in all three and better in one. Differences
# from the unsteered model are paired by prompt.


OBJECTIVE_CELL = ["direction", "seed", "strength", "refusal_strength"]

OBJECTIVES = {"toxicity": "CHALLENGING", "benign": "BENIGN", "refused": "HARMFUL", "cost": "EDGE"}

OBJECTIVE_RATES = ("refused", "cost")

WANTED = {"toxicity": -1, "refused": 1, "cost": -1}
"""Which way is better."""


def summarise_objectives(rows: pd.DataFrame, threshold: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """One row per cell: each figure with its interval and its paired difference from the unsteered
    model (`_lo`, `_hi`, `_difference`, `_p`), and `front`, which is about learned directions alone.

    Raises `DialError` if a subset or the unsteered model is missing.
    """
    rows = rows.assign(cell=rows.groupby(OBJECTIVE_CELL, sort=False, dropna=False).ngroup())
    table = rows[~rows["cell"].duplicated()][OBJECTIVE_CELL].reset_index(drop=True)
    base = np.flatnonzero(table["direction"] == "baseline")
    if not len(base):
        raise DialError("the unsteered model is missing from this run")
    for name, subset in OBJECTIVES.items():
        part = rows[rows["subset"] == subset]
        if part.empty:
            raise DialError(f"this run has no {subset} prompts, and the figure {name} is of them")
        if name in OBJECTIVE_RATES:
            over = (part["score"] > threshold).astype(float).mask(part["score"].isna())
            part = part.assign(score=over)
        values = part.groupby(["cell", "prompt_id"])["score"].mean().unstack().to_numpy()
        shift = values - values[base[0]]
        interval = rate_interval if name in OBJECTIVE_RATES else partial(mean_interval, seed=seed)
        bounds = finite_intervals(values, interval)
        table[name] = finite_means(values)
        table[f"{name}_lo"], table[f"{name}_hi"] = bounds[:, 0], bounds[:, 1]
        table[f"{name}_difference"] = finite_means(shift)
        table[f"{name}_p"] = [sign_flip_p(row[np.isfinite(row)], seed)[0] for row in shift]
        table[f"{name}_n"] = np.isfinite(values).sum(1)
    learned = (table["direction"] != "random").to_numpy()
    table["front"] = False
    table.loc[learned, "front"] = front(table[learned])
    return table


def front(table: pd.DataFrame) -> list[bool]:
    """For each row, is no other as good in every figure of `WANTED` and better in one?"""
    signed = np.stack([sign * table[name].to_numpy() for name, sign in WANTED.items()], 1)
    return [not any((o >= one).all() and (o > one).any() for o in signed) for one in signed]


# --------------------------------------------------------------------------------------------------
# A job on two objectives: both studies in, a run folder out.


def conduct_objectives(experiment: str, flags: ObjectiveFlags) -> tuple[Run, pd.DataFrame]:
    """Every cell of the grid on openings and on prompts into a run folder; run and summary.

    An interrupted run is resumed, a finished one named by `--out` is read. summary.json holds the
    overlap of the two directions.
    """
    both = load_objectives(flags)
    learned = {"direction_toxicity": both.toxicity, "direction_refusal": both.refusal}
    cells = objective_cells(both, flags)
    openings = opening_rows(both.openings, flags.seed)
    prompts = pd.DataFrame(
        {
            "prompt_id": [p.id for p in both.prompts],
            "subset": [p.subset for p in both.prompts],
            "split": "holdout",
        }
    )
    plan = ObjectivePlan(
        ContinuationPlan(
            both.openings.tokens,
            openings,
            cells,
            both.openings.scorer,
            decoding_of(flags),
            flags.batch_size,
        ),
        SweepPlan(both.tokens, prompts, cells, both.study.scorer, Budget(flags.batch_size)),
    )
    run = begin(experiment, objective_settings(both, flags), flags, learned)

    def close(rows: pd.DataFrame) -> tuple[pd.DataFrame, Mapping[str, Any]]:
        return summarise_objectives(rows, flags.threshold, flags.seed), {
            "overlap": both.overlap,
            "alpha_unit": flags.unit,
        }

    return carry_out(run, both, plan, close, flags)
