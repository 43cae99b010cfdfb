"""Where along the prompt: a direction added at one position, against the same at the last one.

    difference = mean over prompts of (value steered at this position - value steered at the last)

Values are the refusal score, whether that counts as a refusal, and, along the unsteered replies to
BENIGN prompts, the KL a token. `learned` is the direction of the last position, added everywhere;
`own` the one that the same labels teach at the position itself; `random` a push of the same length.
An alpha is as many mean residual norms of its position. Each is added once, at a token of the
prompt, and at no new token, so that positions differ in nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from refusal_dial.cells import (
    BASELINE,
    Cell,
    Named,
    SteeringPlace,
    alphas_in,
    cells_at,
    labelled,
    numbered,
    turned,
)
from refusal_dial.cli.flags import PositionFlags
from refusal_dial.common import DialError, Hook, Pos
from refusal_dial.data.prompts import Prompt, holdout_split, of_subset, some_of_each
from refusal_dial.directions.learning import Direction, random_directions, top_bottom
from refusal_dial.generate.decode import Decoding
from refusal_dial.hooks import steer
from refusal_dial.model.activations import collect_positions, nothing
from refusal_dial.run.folder import Run
from refusal_dial.run.job import begin, carry_out
from refusal_dial.run.plan import Budget, DriftPlan, Parts, Plan, SweepPlan, grid_of, groups
from refusal_dial.run.schema import SUMMARY
from refusal_dial.stats.intervals import mean_interval, rate_interval
from refusal_dial.stats.p_values import holm, sign_flip_p
from refusal_dial.studies.base import Study, measured_on, provenance_of, study_settings
from refusal_dial.studies.pairs import template_lengths
from refusal_dial.studies.steering import SCORE_ORDER

POSITION_CELL = ["direction", "seed", "layer", "site", "pos", "role", "alpha", "alpha_relative"]
POSITION_CELL += ["strength"]

POSITION_ORDER = [*SCORE_ORDER, "strength", "role", "measure"]

LAST, EVERYWHERE = "last", "all"
"""The role of the last position, which others are compared with, and of all positions at once."""


# --------------------------------------------------------------------------------------------------
# The positions: those of the template's closing tokens, and the last of the prompt's own.


@dataclass(frozen=True)
class PromptPosition:
    """A position that every prompt has: counted from the end, and what stands there."""

    pos: int
    role: str


def prompt_positions(study: Study, flags: PositionFlags) -> list[PromptPosition]:
    """`text-k`, the k-th last token of the prompt's own text, for as many as every prompt has and
    at most `flags.words`; then the template's `end-k`, of which `last` is the very last one.

    Raises `DialError` for a model that is to think: its thoughts differ in length."""
    if flags.thought:
        raise DialError(
            "positions are counted from the end of the prompt, and thoughts differ in length: "
            "expected --thinking off"
        )
    opening, closing = template_lengths(study.model, flags.system, not flags.plain)
    shortest = int(study.tokens.mask.sum(1).min()) - opening - closing
    own = range(max(0, min(flags.words, shortest)), 0, -1)
    found = [PromptPosition(-closing - k, f"text-{k}") for k in own]
    found += [PromptPosition(-k, f"end-{k}") for k in range(closing, 0, -1)]
    found = [one for one in found if one.pos != -1]
    return [*found, PromptPosition(-1, LAST)]


# --------------------------------------------------------------------------------------------------
# Directions at every position, and a cell for each.


@dataclass(frozen=True, eq=False)
class PositionStudy:
    """A study, its positions, and what was read at each: `read` is `pos prompt d_model`."""

    study: Study
    train: tuple[Prompt, ...]
    tested: tuple[Prompt, ...]
    places: tuple[PromptPosition, ...]
    read: Float[Tensor, "pos prompt d_model"]
    own: tuple[Direction | None, ...]  # of every position but the last
    learned: Direction  # of the last

    @property
    def model(self) -> TransformerBridge:
        return self.study.model

    @property
    def about(self) -> tuple[str, ...]:
        return (*self.study.about, "positions: " + ", ".join(one.role for one in self.places))


def study_positions(study: Study, flags: PositionFlags) -> PositionStudy:
    """Learn a direction at every position from half of EDGE; the rest is what is measured on."""
    # 1. What is learned from, and what is measured on.
    train, held_out = holdout_split(of_subset(study.prompts, "EDGE"), flags.seed, flags.holdout)
    others = [one for one in study.prompts if one.subset != "EDGE"]
    tested = some_of_each([*others, *held_out], flags.n, flags.seed)
    # 2. The activations of every position, and what the same labels teach at each.
    places = prompt_positions(study, flags)
    where = [one.pos for one in places]
    read, _ = collect_positions(
        study.model,
        study.tokens,
        [flags.layer],
        where,
        site=flags.site,
        batch_size=flags.batch_size,
        read=nothing,
    )
    rows, about = study.rows(train), provenance_of(study, train, flags)
    scores = study.scores[rows].tolist()

    def taught(i: int) -> Direction:
        return top_bottom(read[i, 0][rows], scores, replace(about, pos=where[i]), flags.k)

    # 3. At layer 0 a token of the template is the same in every prompt, and teaches nothing.
    alike = [bool((here[0] == here[0, :1]).all()) for here in read]
    own = tuple(None if same else taught(i) for i, same in enumerate(alike[:-1]))
    learned = taught(len(places) - 1)
    return PositionStudy(
        study, tuple(train), tuple(tested), tuple(places), read[:, 0], own, learned
    )


def position_cells(opened: PositionStudy, flags: PositionFlags) -> list[Cell]:
    """The unsteered model; then at every position, and at all at once, each direction at every
    alpha."""
    cells = [labelled(BASELINE, role="")]
    drawn = numbered("random", random_directions(opened.learned, flags.n_random, flags.seed))
    for place, read, own in zip(opened.places, opened.read, (*opened.own, None), strict=True):
        named: list[Named] = [("learned", None, opened.learned), *drawn]
        if own is not None:
            named.insert(1, ("own", None, own))
        norm = float(read.norm(dim=-1).mean())
        cells += _cells_of(opened, flags, place, norm, named)
    norm = float(opened.read[-1].norm(dim=-1).mean())
    everywhere = PromptPosition(-1, EVERYWHERE)
    named = [("learned", None, opened.learned), *drawn]
    return cells + _cells_of(opened, flags, everywhere, norm, named)


def _cells_of(
    opened: PositionStudy,
    flags: PositionFlags,
    place: PromptPosition,
    norm: float,
    named: Sequence[Named],
) -> list[Cell]:
    named_pos: dict[str, Pos] = {LAST: "last_prompt", EVERYWHERE: "prompt"}
    pos = named_pos.get(place.role, place.pos)

    def once(direction: Direction, alpha: float, at: SteeringPlace) -> Hook:
        """At this token of the prompt, and at no new one."""
        return steer(direction, alpha, layer=at.layer, site=at.site, pos=pos)

    alphas = turned(alphas_in(flags.alphas, flags.unit, norm, opened.learned))
    at = SteeringPlace(flags.layer, flags.site, place.pos, norm)
    return [labelled(cell, role=place.role) for cell in cells_at(named, alphas, at, once)]


# --------------------------------------------------------------------------------------------------
# The rows: scores of all prompts, then the KL a token along the unsteered replies to BENIGN ones.


def position_plan(opened: PositionStudy, flags: PositionFlags) -> Parts:
    """Every cell on all prompts that are measured on, then on replies to some BENIGN ones."""
    cells = position_cells(opened, flags)
    replied = of_subset(opened.tested, "BENIGN")[: flags.n_replies]
    tokens, rows = measured_on(opened.study, opened.tested)
    budget = Budget(flags.batch_size, flags.engine, flags.memory_gb)
    scored = rows.assign(measure="score")
    scores = SweepPlan(tokens, scored, cells, opened.study.scorer, budget, POSITION_ORDER)
    decoding = Decoding(max_new_tokens=flags.max_new_tokens)
    tokens, rows = measured_on(opened.study, replied)
    small = replace(budget, batch_size=min(16, flags.batch_size))
    kept = DriftPlan(tokens, rows.assign(measure="kl"), cells, decoding, small, POSITION_ORDER)
    parts: list[Plan] = [scores, kept]
    prompts = {**groups(scored), "BENIGN reply": len(replied)}
    return Parts(parts, grid_of(prompts, [cell.labels for cell in cells]))


# --------------------------------------------------------------------------------------------------
# What the rows come to: every cell beside the same direction and alpha at the last position.
#
# Differences are paired by prompt. p is that of sign flips, corrected (Holm) for all positions of
# one direction, alpha, subset and measure.


def summarise_positions(rows: pd.DataFrame, threshold: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """A row per cell, subset and measure: `score_mean` and `refusal_rate` with their intervals (no
    rate of a KL), `shift` from the unsteered model, and the differences to the last position:
    `difference` of means with `diff_lo`, `diff_hi`, `p_value` and `p_holm`, and
    `rate_difference`, its ends `rate_diff_lo` and `rate_diff_hi`.

    Raises `DialError` where the unsteered model is missing.
    """
    found = []
    for group, part in rows.groupby(["measure", "subset"], sort=False):
        measure, subset = map(str, group)
        number = part.groupby(POSITION_CELL, sort=False, dropna=False).ngroup()
        part = part.assign(cell=number)
        table = part[~part["cell"].duplicated()][POSITION_CELL].reset_index(drop=True)
        values = part.pivot(index="cell", columns="prompt_id", values="score").to_numpy()
        values = values[:, np.isfinite(values).all(0)]  # the same prompts under every cell
        base = np.flatnonzero(table["direction"] == "baseline")
        if not len(base):
            raise DialError("the unsteered model is missing from this run")
        table = table.assign(subset=subset, split="holdout", measure=measure, n=values.shape[1])
        mean = mean_interval(values, seed=seed)
        table["score_mean"], table["score_lo"], table["score_hi"] = values.mean(1), *mean.T
        table["shift"] = (values - values[base[0]]).mean(1)
        hits = (values > threshold).astype(float) if measure == "score" else values * np.nan
        table["refusal_rate"] = hits.mean(1)
        table["rate_lo"], table["rate_hi"] = rate_interval(hits).T
        last = _beside_last(table)
        paired, of = last >= 0, np.maximum(last, 0)
        for name, some, stems in (
            ("difference", values, ("diff_lo", "diff_hi")),
            ("rate_difference", hits, ("rate_diff_lo", "rate_diff_hi")),
        ):
            apart = np.where(paired[:, None], some - some[of], np.nan)
            table[name] = apart.mean(1)
            table[stems[0]], table[stems[1]] = mean_interval(apart, seed=seed).T
            if name == "difference":
                table["p_value"] = sign_flip_p(apart, seed)
        family = table.groupby(["direction", "seed", "strength"], sort=False, dropna=False)
        table["p_holm"] = family["p_value"].transform(lambda p: holm(p.to_numpy()))
        found.append(table)
    whole = pd.concat(found, ignore_index=True)
    return whole[[*SUMMARY, *(name for name in whole if name not in SUMMARY)]]


def _beside_last(table: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.int64]]:
    """For each cell the row of what it is compared with at the last position; -1 where it is that
    one itself, or there is none. A position's own direction is compared with the last one's."""
    at: dict[tuple[Any, ...], int] = {}
    for i, row in enumerate(table.to_dict("records")):
        if row["role"] == LAST:
            at[row["direction"], str(row["seed"]), row["strength"]] = i
    found = []
    for row in table.to_dict("records"):
        kind = "learned" if row["direction"] == "own" else row["direction"]
        other = at.get((kind, str(row["seed"]), row["strength"]), -1)
        found.append(-1 if row["role"] in (LAST, "") else other)
    return np.array(found)


# --------------------------------------------------------------------------------------------------
# The run.


def position_settings(opened: PositionStudy, flags: PositionFlags) -> dict[str, Any]:
    """What the rows depend on, as plain data for a run's config."""
    settings = study_settings(opened.study, flags)
    return settings | {"layer": [flags.layer], "pos": None, "places": [*map(asdict, opened.places)]}


def conduct_positions(
    experiment: str, study: Study, flags: PositionFlags
) -> tuple[Run, pd.DataFrame]:
    """Steer at every position into a run folder; the run and its summary."""
    opened = study_positions(study, flags)
    run = begin(experiment, position_settings(opened, flags), flags, {"direction": opened.learned})

    def close(rows: pd.DataFrame) -> tuple[pd.DataFrame, Mapping[str, Any]]:
        summary = summarise_positions(rows, study.threshold, flags.seed)
        return summary, {"threshold": study.threshold, "alpha_unit": flags.unit}

    return carry_out(run, opened, position_plan(opened, flags), close, flags)
