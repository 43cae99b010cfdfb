"""A map of the dial: at which layers and positions does a direction turn the score, and how far
does its slope tell what the dial does?

    slope(place) = v(place) · mean over held-out prompts of d score / d h(place)

`v(place)` is the mean activation there of one group of prompts minus that of another. One backward
pass gives the slope at every place; 10,000 permutations of the labels, the same at every place,
give its p (`stats.p_values`). Two sets of labels, each a map of its own:

    scores     the EDGE prompts scored highest against those scored lowest
    contrast   HARMFUL against BENIGN prompts, whose labels the score had no part in

The slope is local. So 200 directions at some layers are turned for real, by alphas of the size that
people use, and the map says how well slope times alpha predicts what was measured there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64
from torch import Tensor

from refusal_dial.cells import BASELINE, Cell, SteeringPlace, alphas_in, cells_at, numbered
from refusal_dial.cli.flags import MapFlags
from refusal_dial.common import DialError, without_nan
from refusal_dial.data.prompts import Prompt, extremes, holdout_split, of_subset
from refusal_dial.directions.learning import Provenance, covariance_directions, from_vector
from refusal_dial.engine.recording import SitePlace
from refusal_dial.engine.slopes import mean_gradients
from refusal_dial.model.activations import collect, collect_positions, nothing
from refusal_dial.model.loading import check_layers
from refusal_dial.run.folder import Run
from refusal_dial.run.job import begin, carry_out
from refusal_dial.run.plan import Budget, SweepPlan, some_of
from refusal_dial.stats.p_values import contrast_weights, slope_test
from refusal_dial.stats.summary import prediction_quality
from refusal_dial.studies.base import Study, prompt_rows, study_settings
from refusal_dial.studies.selection import template_positions
from refusal_dial.studies.steering import SCORE_ORDER

LABEL_SETS = {
    "scores": "EDGE prompts scored highest against lowest",
    "contrast": "HARMFUL against BENIGN prompts",
}

CHECKED_LAYERS = 5


@dataclass(frozen=True)
class Groups:
    """The prompts to learn from, which of them are high and low, and what they are called."""

    labels: str
    prompts: tuple[Prompt, ...]
    high: tuple[int, ...]
    low: tuple[int, ...]


def groups_of(study: Study, flags: MapFlags) -> tuple[list[Groups], list[Prompt]]:
    """(the two sets of labels, the EDGE prompts that are held out). A set that these prompts do not
    have (no HARMFUL, no BENIGN) is left out."""
    train, held_out = holdout_split(of_subset(study.prompts, "EDGE"), flags.seed, flags.holdout)
    scores = [float(score) for score in study.scores[study.rows(train)]]
    k = max(1, len(train) // 3) if flags.k is None else flags.k
    high, low = extremes(scores, k)
    found = [Groups("scores", tuple(train), tuple(high), tuple(low))]
    harmful, benign = (
        [prompt for prompt in study.prompts if prompt.subset == name]
        for name in ("HARMFUL", "BENIGN")
    )
    if harmful and benign:
        n = len(harmful)
        ends = tuple(range(n)), tuple(range(n, n + len(benign)))
        found.append(Groups("contrast", (*harmful, *benign), *ends))
    return found, held_out


def map_places(
    study: Study,
    groups: Groups,
    gradient: Mapping[SitePlace, Float64[Tensor, "pos d_model"]],
    positions: Sequence[int],
    flags: MapFlags,
) -> pd.DataFrame:
    """A row per position and layer: `labels, layer, site, pos, token, residual_norm`, and the
    columns of `slope_test`, corrected over all places of the map. `slope_unit` is that of a
    direction as long as the mean residual norm there."""
    # 1. What the prompts to learn from have at every place.
    tokens = study.tokens.chosen(study.rows(groups.prompts)).on(study.model)
    layers = [layer for _, layer in gradient]
    seen, _ = collect_positions(
        study.model,
        tokens,
        layers,
        positions,
        site=flags.site,
        batch_size=flags.batch_size,
        read=nothing,
    )
    # 2. Each prompt's part in the slope there, and how alike prompts are.
    projections, grams, norms = [], [], []
    for p in range(len(positions)):
        for i, key in enumerate(gradient):
            rows = seen[p, i].double()
            projections.append((rows @ gradient[key][p]).numpy())
            grams.append((rows @ rows.T).numpy())
            norms.append(float(rows.norm(dim=-1).mean()))
    # 3. The labels, permuted alike at every place.
    weights = contrast_weights(len(groups.prompts), groups.high, groups.low)
    table = slope_test(
        np.stack(projections), np.stack(grams), weights, flags.n_permutations, flags.seed
    )
    names = {
        "labels": groups.labels,
        "layer": layers * len(positions),
        "site": flags.site,
        "pos": np.repeat(positions, len(layers)),
        "token": np.repeat(_tokens_at(study, positions), len(layers)),
        "residual_norm": norms,
    }
    about = pd.DataFrame(names)
    return pd.concat([about, table.assign(slope_unit=table["slope_unit"] * norms)], axis=1)


def _tokens_at(study: Study, positions: Sequence[int]) -> list[str]:
    """The token at each position, where every prompt has the same; else nothing."""
    found = []
    for pos in positions:
        ids = set(study.tokens.ids[:, pos].tolist())
        found.append(repr(study.model.tokenizer.decode([ids.pop()])) if len(ids) == 1 else "")
    return found


# --------------------------------------------------------------------------------------------------
# How far the slope tells what the dial does.


def check_cells(
    study: Study, layers: Sequence[int], prompts: Sequence[Prompt], flags: MapFlags
) -> list[Cell]:
    """The baseline; then at the last position of some of the layers, where these prompts differ,
    `--n-check` directions drawn with the covariance of their activations, at every alpha."""
    tokens = study.tokens.chosen(study.rows(prompts)).on(study.model)
    seen, _ = collect(
        study.model, tokens, layers, site=flags.site, batch_size=flags.batch_size, read=nothing
    )
    varied = [i for i, rows in enumerate(seen) if bool((rows != rows[0]).any())]
    cells = [BASELINE]
    for i in some_of(varied, CHECKED_LAYERS):
        rows, layer = seen[i], layers[i]
        place = SteeringPlace(layer, flags.site, -1, float(rows.norm(dim=-1).mean()))
        like = from_vector(rows[0], Provenance(layer, flags.site, -1, seed=flags.seed))
        drawn = covariance_directions(like, rows, flags.n_check, flags.seed)
        alphas = alphas_in(flags.alphas, flags.unit, place.norm, drawn[0])
        cells += cells_at(numbered("covariance", drawn), alphas, place)
    return cells


def agreement(measured: pd.DataFrame, estimated: pd.DataFrame) -> pd.DataFrame:
    """A row per layer and alpha, over its directions: how well the change of the mean score was
    predicted (`stats.summary.prediction_quality`). `estimated` are the rows of `measured` as the
    gradient has them (`SweepPlan.estimate`)."""
    place = ["layer", "alpha_relative", "seed"]
    base = float(measured.loc[measured["direction"] == "baseline", "score"].mean())
    means = pd.DataFrame(
        {
            "measured": measured.groupby(place)["score"].mean() - base,
            "predicted": estimated.groupby(place)["score"].mean() - float(estimated["base"].mean()),
        }
    )
    return pd.DataFrame(
        [
            {"layer": layer, "alpha_relative": alpha}
            | prediction_quality(part["predicted"], part["measured"])
            for (layer, alpha), part in means.groupby(place[:2], sort=True)
        ]
    )


# --------------------------------------------------------------------------------------------------
# The run.


def conduct_map(study: Study, flags: MapFlags) -> tuple[Run, pd.DataFrame]:
    """The map as summary.csv, the directions that were turned for real as scores.csv, and their
    agreement in summary.json. Raises `DialError` for prompts shorter than the positions."""
    model = study.model
    layers = check_layers(model, flags.layer or range(int(model.cfg.n_layers)))
    positions = flags.positions or template_positions(
        model, system=flags.system, chat=not flags.plain
    )
    if positions[-1] != -1:
        raise DialError(
            f"--positions: expected -1 among them, where directions are turned for real; not "
            f"{', '.join(map(str, positions))}"
        )
    shortest = int(study.tokens.mask.sum(1).min())
    if shortest < -positions[0]:
        raise DialError(
            f"--positions: expected positions that every prompt has, from -{shortest} on, not "
            f"{positions[0]}: the shortest prompt has {shortest} tokens"
        )
    groups, held_out = groups_of(study, flags)
    settings = study_settings(study, flags) | {"positions": list(positions)}
    run = begin("map_direction", settings, flags)
    # 1. Directions turned for real, on some held-out prompts at some layers.
    chosen = study.rows(some_of(held_out, flags.n_prompts))
    cells = check_cells(study, layers, groups[0].prompts, flags)
    rows = prompt_rows(study, groups[0].prompts).iloc[chosen].reset_index(drop=True)
    budget = Budget(flags.batch_size, flags.engine, flags.memory_gb)
    plan = SweepPlan(study.tokens.chosen(chosen), rows, cells, study.scorer, budget, SCORE_ORDER)

    def close(scores: pd.DataFrame) -> tuple[pd.DataFrame, Mapping[str, Any]]:
        # 2. The gradient on all held-out prompts at every place, and the maps.
        tokens = study.tokens.chosen(study.rows(held_out)).on(model)
        keys = [(flags.site, layer) for layer in layers]
        gradient = mean_gradients(model, tokens, study.scorer, keys, positions)
        tables = [map_places(study, one, gradient, positions, flags) for one in groups]
        linear = agreement(scores, plan.estimate(model))
        return pd.concat(tables, ignore_index=True), {
            "alpha_unit": flags.unit,
            "held_out": len(held_out),
            "learned_from": {one.labels: len(one.prompts) for one in groups},
            "agreement": without_nan(linear.to_dict("records")),
        }

    return carry_out(run, study, plan, close, flags)
